"""A JSON schema becomes the grammar an answer must follow: JSON Schema in, llama.cpp's GBNF out.

Pure, and llama.cpp is not imported. Whatever the grammar lets through is JSON that fits the schema; what
cannot be kept that way is refused by name, never dropped in silence. A schema is a stranger's text: its
bytes, depth and values are bounded before a rule is made, repetitions and the grammar's size with each that
is, and what it may cost llama.cpp after, in `rules`. No rule holds parentheses, which llama.cpp reads by
recursion: deep ones end the process.

(llama-cpp-python's converter is not used: it drops keywords it does not know, lets raw line breaks into
strings, and does not escape backslashes, so that a property's name can break out of its literal.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

from p2pmesh.config import Limits
from p2pmesh.engine.rules import SPACE, GrammarError, Rules, check_size, literal, rule_of, size, write

SCHEMA_BYTES_MAX = Limits().schema_bytes_max
DEPTH_MAX = 32
"""Deepest nesting of a schema as JSON: two for each level of objects."""
NODES_MAX = 2_000
"""Most JSON values in a schema."""
ENUM_MAX = 256
"""Most values of an `enum`, or of an integer between two bounds."""
REPEAT_MAX = 1_000
"""Highest `maxItems`, `maxLength` and the like: llama.cpp takes a rule apart for each, and 2 000 at most."""
REPEATS_MAX = 4_000
"""All of them together, in one schema."""
FREE_DEPTH = 8
"""Deepest nesting where any JSON will do: a small model may open brackets until its tokens are spent."""

_NOTES = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
    | {"deprecated", "readOnly", "writeOnly"}
)
"""Keywords that say nothing about which JSON fits."""
_OF_TYPE = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": frozenset({"minimum", "maximum"}),
    "number": frozenset[str](),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_BUILT_IN: Rules = {
    # Without \u: half of a surrogate pair would be no text.
    "char": [[r'[^"\\\x7F\x00-\x1F]'], [r'"\\"', r'["\\/bfnrt]']],
    "string": [[r'"\""', "char*", r'"\""']],
    "natural": [['"0"'], ["[1-9]", "[0-9]{0,15}"]],
    "integer": [['"-"?', "natural"]],
    "fraction": [['"."', "[0-9]{1,16}"]],
    "exponent": [["[eE]", "[-+]?", "[0-9]{1,2}"]],
    "number": [["integer", "fraction?", "exponent?"]],
    "boolean": [['"true"'], ['"false"']],
    "null": [['"null"']],
    "hex": [["[0-9a-f]"]],
    "uuid": [["hex{8}", *['"-"', "hex{4}"] * 3, '"-"', "hex{12}"]],
    "month": [['"0"', "[1-9]"], ['"1"', "[0-2]"]],
    "long-month": [['"0"', "[13578]"], ['"10"'], ['"12"']],
    "no-february": [['"0"', "[13-9]"], ['"1"', "[0-2]"]],
    "month-day": [
        ["month", '"-"', "day"],
        ["no-february", '"-"', '"29"'],
        ["no-february", '"-"', '"30"'],
        ["long-month", '"-31"'],
    ],
    "day": [['"0"', "[1-9]"], ['"1"', "[0-9]"], ['"2"', "[0-8]"]],
    "date": [["[12]", "[0-9]{3}", '"-"', "month-day"]],
    "clock": [["[01]", "[0-9]", '":"', "[0-5]", "[0-9]"], ['"2"', "[0-3]", '":"', "[0-5]", "[0-9]"]],
    "part": [['"."', "[0-9]{1,6}"]],
    "offset": [['"Z"'], ["[-+]", "clock"]],
    "time": [["clock", '":"', "[0-5]", "[0-9]", "part?", "offset"]],
    "date-time": [["date", '"T"', "time"]],
}
"""Rules that schemas share; only those in use are written out."""
_FORMATS = ("date", "time", "date-time", "uuid")


class SchemaError(ValueError):
    """The schema cannot be kept; the text says what to change."""


def gbnf(schema: str) -> str:
    """Return the grammar of the JSON that fits `schema`, from the rule "root" on. Raises `SchemaError`."""
    try:
        return write(_Compiler(_read(schema)).rules())
    except RecursionError:
        raise SchemaError("its references lead too deep: fewer '$ref' within '$ref'") from None
    except GrammarError as error:
        raise SchemaError(str(error)) from None


def _read(schema: str) -> Any:
    """Return `schema` as values, of bounded size and depth."""
    try:
        length = len(schema.encode())
        if length > SCHEMA_BYTES_MAX:
            raise SchemaError(f"it has {length} bytes, at most {SCHEMA_BYTES_MAX}")
        value = json.loads(schema, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise SchemaError("it holds half a surrogate pair, which is no text") from None
    except RecursionError:
        raise SchemaError(f"it is nested more than {DEPTH_MAX} deep") from None
    except json.JSONDecodeError as error:
        raise SchemaError(f"it is not JSON: {error}") from None
    except SchemaError:
        raise
    except ValueError as error:  # a number of more digits than Python reads, or beyond what a float holds
        raise SchemaError(f"it cannot be read: {error}") from None
    nodes, depth, level = 0, 0, [value]
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if nodes > NODES_MAX or depth > DEPTH_MAX:
            raise SchemaError(f"at most {NODES_MAX} values, nested {DEPTH_MAX} deep")
        level = [child for node in level for child in _children(node)]
    return value


def _no_number(name: str) -> NoReturn:
    raise SchemaError(f"{name} is no JSON number")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _json(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


class _Compiler:
    """One schema's rules as they come about."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._rules: Rules = {}
        self._referred: dict[int, str] = {}
        """The rule of each schema referred to, by its identity, as it may be pointed to in many spellings."""
        self._repeats = 0
        self._length = 0
        """What the rules so far take in a grammar, at least."""
        root = self._rule_of("#", schema)
        self._rules = {"root": [[root]], **self._rules}

    def rules(self) -> Rules:
        """Return the rules, and those built in that they use."""
        pending = [atom for atoms in self._rules.values() for run in atoms for atom in run]
        while pending:
            name = rule_of(pending.pop())
            if name in _BUILT_IN and name not in self._rules:
                self._rules[name] = _BUILT_IN[name]
                pending += [atom for run in _BUILT_IN[name] for atom in run]
        return self._rules

    def _add(self, alternatives: list[list[str]]) -> str:
        name = f"r{len(self._rules)}"
        self._put(name, alternatives)
        return name

    def _put(self, name: str, alternatives: list[list[str]]) -> None:
        """Keep a rule, and its size within bounds now: a schema's rules can be far more than its bytes."""
        self._rules[name] = alternatives
        self._length += size(alternatives)
        check_size(len(self._rules), self._length)

    def _rule_of(self, pointer: str, schema: Any) -> str:
        # Made before what it stands for, or recursion would not end.
        name = self._referred[id(schema)] = self._add([])
        self._put(name, self._alternatives(schema, pointer))
        return name

    def _value(self, schema: Any, where: str) -> str:
        """Return the atom of what fits `schema`: a rule."""
        alternatives = self._alternatives(schema, where)
        alone = len(alternatives) == 1 and len(alternatives[0]) == 1
        return alternatives[0][0] if alone else self._add(alternatives)

    def _alternatives(self, schema: Any, where: str) -> list[list[str]]:
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            _refuse(where, "nothing fits it: it must be an object")
        said = {key: value for key, value in schema.items() if key not in _NOTES}
        for keyword, read in (
            ("$ref", self._ref),
            ("anyOf", self._union),
            ("oneOf", self._union),  # one that fits two of them is the schema's own ambiguity
            ("allOf", self._union),
        ):
            if keyword in said:
                if len(said) > 1:
                    other = next(key for key in said if key != keyword)
                    _refuse(where, f"{other!r} beside {keyword!r} is not supported: put it inside")
                if keyword == "allOf" and (not isinstance(said["allOf"], list) or len(said["allOf"]) != 1):
                    _refuse(where, "'allOf' is supported for one schema: merge them into one")
                return read(said[keyword], where)
        if "enum" in said or "const" in said:
            return self._constants(said, where)
        return self._typed(said, where)

    def _ref(self, pointer: Any, where: str) -> list[list[str]]:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            _refuse(where, "'$ref' must lead within the schema: '#/$defs/name'")
        target = self._schema
        for step in pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                _refuse(where, f"{pointer[:64]!r} leads nowhere")
            target = target[key]
        return [[self._referred.get(id(target)) or self._rule_of(pointer, target)]]

    def _union(self, schemas: Any, where: str) -> list[list[str]]:
        if not isinstance(schemas, list) or not schemas:
            _refuse(where, "it needs a list of schemas")
        return [[self._value(schema, f"{where}/{i}")] for i, schema in enumerate(schemas)]

    def _constants(self, said: dict[str, Any], where: str) -> list[list[str]]:
        values = said["enum"] if "enum" in said else [said["const"]]
        if not isinstance(values, list) or not 1 <= len(values) <= ENUM_MAX:
            _refuse(where, f"'enum' needs 1 to {ENUM_MAX} values")
        beside = next((key for key in said if key not in ("enum", "const", "type")), None)
        if beside is not None or ("enum" in said and "const" in said):
            _refuse(
                where, f"{beside or 'const'!r} beside constants is not supported: leave out what does not fit"
            )
        if "type" in said:
            types = _types(said, where)
            values = [value for value in values if any(_is(value, kind) for kind in types)]
            if not values:
                _refuse(where, "no constant is of the 'type'")
        return [[_json(value)] for value in values]

    def _typed(self, said: dict[str, Any], where: str) -> list[list[str]]:
        types = _types(said, where)
        known = frozenset({"type"}).union(*(_OF_TYPE[kind] for kind in types))
        unknown = next((key for key in said if key not in known), None)
        if unknown is not None:
            of = " or ".join(types) if types else "any value"
            _refuse(where, f"{unknown[:64]!r} is not supported for {of}: leave it out and check the answer")
        if not types:
            return [[self._free(FREE_DEPTH)]]
        return [run for kind in types for run in self._of_type(kind, said, where)]

    def _of_type(self, kind: str, said: dict[str, Any], where: str) -> list[list[str]]:
        if kind == "object":
            return self._object(said, where)
        if kind == "array":
            return self._array(said, where)
        if kind == "string":
            return self._string(said, where)
        if kind == "integer":
            return self._integer(said, where)
        return [[kind]]

    def _free(self, depth: int) -> str:
        """Return the rule of any JSON, nested at most `depth` deep."""
        name = f"any-{depth}"
        if name not in self._rules:
            plain = [["string"], ["number"], ["boolean"], ["null"]]
            inner = self._free(depth - 1) if depth else ""
            nested = [*self._map(inner), *self._list(inner, 0, None)] if depth else []
            self._put(name, plain + nested)
        return name

    def _map(self, value: str) -> list[list[str]]:
        pair = ["string", '":"', SPACE, value]
        more = self._add([['","', SPACE, *pair]])
        return [['"{}"'], ['"{"', *pair, f"{more}*", '"}"']]

    def _object(self, said: dict[str, Any], where: str) -> list[list[str]]:
        properties, required = said.get("properties", {}), said.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            _refuse(where, "'properties' must be an object and 'required' a list")
        if not all(isinstance(key, str) for key in required):
            _refuse(where, "'required' lists names")
        further = said.get("additionalProperties", not properties)
        undeclared = [key for key in dict.fromkeys(required) if key not in properties]
        if undeclared and further is False and "additionalProperties" in said:
            _refuse(where, f"{undeclared[0][:64]!r} is required and not among the 'properties'")
        if not properties and not undeclared:
            if further is False:
                return [['"{}"']]
            return self._map(self._value(further, f"{where}/additionalProperties"))
        # Once for all names: once for each, they would multiply with every level of nesting.
        rest = True if further is False else further
        other = self._value(rest, f"{where}/additionalProperties") if undeclared else ""
        needed = frozenset(required)
        # Properties come in the schema's order, and none that it does not name: such answers fit, too.
        after, first = ['"}"'], ['"}"']
        for key in reversed([*properties, *undeclared]):
            declared = key in properties
            value = self._value(properties[key], f"{where}/properties/{key[:64]}") if declared else other
            pair = [literal(json.dumps(key, ensure_ascii=False) + ":"), SPACE, value]
            alone, joined = [*pair, *after], ['","', SPACE, *pair, *after]
            if key in needed:
                after, first = joined, alone
            else:
                after, first = [self._add([joined, after])], [self._add([alone, first])]
        return [['"{"', *first]]

    def _array(self, said: dict[str, Any], where: str) -> list[list[str]]:
        low, high = self._bounds(said, "minItems", "maxItems", where)
        if high == 0:
            return [['"[]"']]
        return self._list(self._value(said.get("items", True), f"{where}/items"), low, high)

    def _list(self, item: str, low: int, high: int | None) -> list[list[str]]:
        more = self._add([['","', SPACE, item]])
        most = "" if high is None else str(high - 1)
        some = ['"["', item, f"{more}{{{max(0, low - 1)},{most}}}", '"]"']
        return [some] if low else [['"[]"'], some]

    def _string(self, said: dict[str, Any], where: str) -> list[list[str]]:
        if "format" in said:
            form = said["format"]
            if form not in _FORMATS or "minLength" in said or "maxLength" in said:
                _refuse(
                    where, f"'format' may be one of {', '.join(_FORMATS)}, without a length: leave it out"
                )
            return [[r'"\""', form, r'"\""']]
        low, high = self._bounds(said, "minLength", "maxLength", where)
        if not low and high is None:
            return [["string"]]
        return [[r'"\""', f"char{{{low},{'' if high is None else high}}}", r'"\""']]

    def _integer(self, said: dict[str, Any], where: str) -> list[list[str]]:
        low, high = said.get("minimum"), said.get("maximum")
        if low is None and high is None:
            return [["integer"]]
        if low in (0, 1) and type(low) is int and high is None:
            return [["natural"]] if low == 0 else [["[1-9]", "[0-9]{0,15}"]]
        if type(low) is not int or type(high) is not int or not 0 <= high - low < ENUM_MAX:
            _refuse(
                where, f"bounds of an integer must be whole, both given and at most {ENUM_MAX} values apart"
            )
        return [[_json(value)] for value in range(low, high + 1)]

    def _bounds(self, said: dict[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
        low, high = said.get(least, 0), said.get(most)
        for name, value in ((least, low), (most, high)):
            if value is not None and (type(value) is not int or not 0 <= value <= REPEAT_MAX):
                _refuse(where, f"{name!r} must lie within 0..{REPEAT_MAX}")
        if high is not None and high < low:
            _refuse(where, f"{most!r} is below {least!r}")
        self._repeats += low if high is None else high
        if self._repeats > REPEATS_MAX:
            _refuse(where, f"all lengths together must be at most {REPEATS_MAX}")
        return low, high


def _refuse(where: str, why: str) -> NoReturn:
    raise SchemaError(f"at {where[:256]}: {why}")


def _types(said: dict[str, Any], where: str) -> list[str]:
    """Return the types a schema allows; where it tells none, that of which it speaks, or [] for any."""
    if "type" not in said:
        return [kind for kind, keywords in _OF_TYPE.items() if not keywords.isdisjoint(said)][:1]
    types = said["type"] if isinstance(said["type"], list) else [said["type"]]
    if not types or not all(isinstance(kind, str) and kind in _OF_TYPE for kind in types):
        _refuse(where, f"'type' must be of {', '.join(_OF_TYPE)}")
    return list(dict.fromkeys(types))


def _is(value: Any, kind: str) -> bool:
    """Return whether `value` is of JSON's `kind`; True is no number, and 1.0 an integer."""
    if kind in ("integer", "number"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or value == int(value))
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[kind])
