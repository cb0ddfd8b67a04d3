"""What a grammar of ours lets through: GBNF as far as `engine.grammar` writes it, and JSON Schema.

Written without a look at the code under test, so that both must be wrong alike for a fault to pass.
"""

from __future__ import annotations

import re
import uuid
from datetime import date, datetime, time
from random import Random
from typing import Any
from unittest.mock import patch

from p2pmesh.engine import grammar

ATOM = re.compile(r'("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[a-z][a-z0-9-]*)([?*+]|\{\d+(?:,\d*)?\})?')
SAMPLES = [*map(chr, range(32, 127)), "é", "日", "🙂", "\n", "\x7f", "\x00"]
MORE = 3
"""How often at most something is said that may be said without end."""


def built(schema: str) -> tuple[str | None, int, int]:
    """Return the grammar, or None where it is refused; how many rules were made, and schemas compiled.

    It fails in the midst of what would not end.
    """
    made, compiled = 0, 0
    most = grammar.NODES_MAX * grammar.DEPTH_MAX

    class Counted(grammar._Compiler):
        def _put(self, name: str, alternatives: list[list[str]]) -> None:
            nonlocal made
            made += name not in self._rules
            super()._put(name, alternatives)

        def _alternatives(self, schema: Any, where: str) -> list[list[str]]:
            nonlocal compiled
            compiled += 1
            assert compiled <= most, "it compiles the same again and again"
            return super()._alternatives(schema, where)

    with patch.object(grammar, "_Compiler", Counted):
        try:
            return grammar.gbnf(schema), made, compiled
        except grammar.SchemaError:
            return None, made, compiled


def narrowing(depth: int, names: int, end: Any = None) -> Any:
    """Return a schema of objects within objects, each with so many names that are undeclared and needed."""
    schema = {"type": "null"} if end is None else end
    for _ in range(depth):
        required = [f"k{i}" for i in range(names)]
        schema = {"type": "object", "required": required, "additionalProperties": schema}
    return schema


class Grammar:
    """Speaks a grammar, and hears it."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, list[list[tuple[str, int, int | None]]]] = {}
        for line in text.strip("\n").split("\n"):
            name, _, body = line.partition(" ::= ")
            assert name not in self.rules
            self.rules[name] = [[]]
            at = 0
            while at < len(body):
                if body.startswith(" | ", at):
                    self.rules[name].append([])
                    at += 3
                    continue
                at += body[at] == " "
                found = ATOM.match(body, at)
                assert found, f"not ours: {body[at:]}"
                self.rules[name][-1].append((found[1], *self._times(found[2] or "{1}")))
                at = found.end()

    @staticmethod
    def _times(suffix: str) -> tuple[int, int | None]:
        if suffix in "?*+":
            return {"?": (0, 1), "*": (0, None), "+": (1, None)}[suffix]
        low, comma, high = suffix.strip("{}").partition(",")
        return int(low), (int(high) if high else None) if comma else int(low)

    def say(self, dice: Random, name: str = "root", depth: int = 0) -> str:
        """Return something it lets through; deep down, the shortest way out."""
        runs = self.rules[name]
        run = dice.choice(runs) if depth < 25 else min(runs, key=lambda r: sum(a[0] in self.rules for a in r))
        said = []
        for atom, low, high in run:
            most = low + MORE if high is None else min(high, low + MORE)
            count = dice.randint(low, most) if depth < 25 else low
            said += [self._say_atom(dice, atom, depth) for _ in range(count)]
        return "".join(said)

    def _say_atom(self, dice: Random, atom: str, depth: int) -> str:
        if atom[0] == '"':
            return literal(atom)
        if atom[0] == "[":
            return dice.choice([c for c in SAMPLES if re.fullmatch(atom, c)])
        return self.say(dice, atom, depth + 1)

    def hears(self, text: str) -> bool:
        """Return whether it lets through all of `text`."""
        return len(text) in self._ends("root", text, 0)

    def _ends(self, name: str, text: str, start: int) -> set[int]:
        ends: set[int] = set()
        for run in self.rules[name]:
            here = {start}
            for atom, low, high in run:
                here = self._repeat(atom, low, high, text, here)
            ends |= here
        return ends

    def _repeat(self, atom: str, low: int, high: int | None, text: str, here: set[int]) -> set[int]:
        ends, count = here if low == 0 else set(), 0
        while here and (high is None or count < high):
            here, count = {end for at in here for end in self._atom_ends(atom, text, at)}, count + 1
            if count >= low:
                if here <= ends:
                    break
                ends = ends | here
        return ends

    def _atom_ends(self, atom: str, text: str, at: int) -> set[int]:
        if atom[0] == '"':
            word = literal(atom)
            return {at + len(word)} if text.startswith(word, at) else set()
        if atom[0] == "[":
            return {at + 1} if at < len(text) and re.fullmatch(atom, text[at]) else set()
        return self._ends(atom, text, at)


def literal(atom: str) -> str:
    """Return what a terminal in quotes stands for."""
    return re.sub(r"\\(.)", r"\1", atom[1:-1])


def fits(value: Any, schema: Any, root: Any) -> bool:
    """Return whether `value` fits `schema`, a part of `root`: the keywords that `engine.grammar` knows."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].split("/")[1:]:
            target = target[step]
        return fits(value, target, root)
    return (
        all(fits(value, s, root) for s in schema.get("allOf", []))
        and any(fits(value, s, root) for s in schema.get("anyOf", schema.get("oneOf", [True])))
        and ("const" not in schema or same(value, schema["const"]))
        and any(same(value, v) for v in schema.get("enum", [value]))
        and of_type(value, schema.get("type", []))
        and sizes_fit(value, schema)
        and parts_fit(value, schema, root)
    )


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def of_type(value: Any, types: Any) -> bool:
    kinds = {
        str: "string",
        dict: "object",
        list: "array",
        bool: "boolean",
        type(None): "null",
        int: "integer",
    }
    types = [types] if isinstance(types, str) else types
    return not types or kinds.get(type(value)) in types or ("number" in types and type(value) in (int, float))


def sizes_fit(value: Any, schema: Any) -> bool:
    if isinstance(value, str):
        reads = {"date": date, "time": time, "date-time": datetime}
        if schema.get("format") in reads:
            reads[schema["format"]].fromisoformat(value.replace("Z", "+00:00"))
        elif "format" in schema:
            uuid.UUID(value)
        return schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
    if isinstance(value, int):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def parts_fit(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(value, list):
        return all(fits(item, schema.get("items", True), root) for item in value)
    if not isinstance(value, dict):
        return True
    named, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(key in value for key in schema.get("required", [])) and all(
        fits(item, named.get(key, more), root) for key, item in value.items()
    )
