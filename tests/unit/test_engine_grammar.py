"""JSON schemas as grammars: what they let through, what is refused and why, and what no schema can do."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from p2pmesh.engine import grammar, rules
from p2pmesh.engine.grammar import SchemaError, gbnf
from tests.grammars import Grammar, built, fits, narrowing

PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20, "description": "his"},
        "age": {"type": "integer", "minimum": 0},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "kind": {"enum": ["a", 'b"\\', "c\nd", "é", 3, None]},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/friend"}, "maxItems": 2},
        "x/y~": {"type": ["null", "number", "boolean"]},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "kind", "friends"],
    "additionalProperties": False,
    "$defs": {"friend": {"type": "object", "properties": {"friend": {"$ref": "#/$defs/friend"}}}},
}
SCHEMAS: list[Any] = [
    PERSON,
    {},
    True,
    {"type": "object"},
    {"type": "object", "additionalProperties": False},
    {"additionalProperties": {"type": "integer"}},
    {"type": "object", "required": ["a"], "additionalProperties": {"type": "null"}},
    {"properties": {"a": True, "b": True, "c": True, "d": True}, "required": ["b", "e"]},
    {"properties": {'a\nb "]\\': True, "": {"const": {"x": [1.5, "\u2028"]}}}, "required": [""]},
    {"type": "array"},
    {"type": "array", "maxItems": 0},
    {"items": {"type": "boolean"}, "minItems": 2},
    {"items": {"type": "string", "maxLength": 2}, "minItems": 1, "maxItems": 3},
    {"type": "array", "minItems": 3, "maxItems": 3, "items": {"items": {"type": "null"}}},
    {"minLength": 4},
    {"type": ["string", "integer"], "minLength": 1, "maximum": 3, "minimum": -3},
    {"type": "integer", "minimum": 1},
    {"type": "string", "enum": ["a", 1, "b"]},
    {"type": "integer", "enum": [1, True, 2, "x"]},
    {"const": "\\"},
    {"anyOf": [{"type": "null"}, {"$ref": "#/definitions/a~1b"}], "definitions": {"a/b": {"type": "number"}}},
    {"oneOf": [{"const": 1}, {"allOf": [{"type": "boolean"}]}]},
    {
        "type": "object",
        "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["left"],
    },
    *({"type": "string", "format": form} for form in ("date", "time", "date-time", "uuid")),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_whatever_a_grammar_lets_through_is_json_that_fits(schema: Any):
    speaker = Grammar(gbnf(json.dumps(schema)))
    root = json.loads(json.dumps(schema).replace("a~1b", "ab").replace("a/b", "ab"))
    for seed in range(200):
        said = speaker.say(Random(seed))
        assert fits(json.loads(said), root, root), said
        assert speaker.hears(said)


@pytest.mark.parametrize(
    "value",
    [
        {"name": "x", "kind": 'b"\\', "friends": []},
        {
            "name": "é" * 20,
            "age": 12,
            "stars": 5,
            "kind": "c\nd",
            "friends": [{"friend": {"friend": {}}}, {}],
        },
        {"name": "\\", "kind": None, "friends": [], "x/y~": -1.5e-7, "born": "2024-01-31"},
    ],
)
def test_what_fits_can_be_said(value: Any):
    hearer = Grammar(gbnf(json.dumps(PERSON)))
    assert hearer.hears(json.dumps(value, ensure_ascii=False))
    assert hearer.hears(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


@pytest.mark.parametrize(
    "value",
    [
        {"name": "", "kind": "a", "friends": []},
        {"name": "x" * 21, "kind": "a", "friends": []},
        {"name": "x", "friends": []},
        {"name": "x", "kind": "b", "friends": []},
        {"name": "x", "kind": "a", "friends": [{}, {}, {}]},
        {"name": "x", "kind": "a", "friends": [{"foe": 1}]},
        {"name": "x", "age": -1, "kind": "a", "friends": []},
        {"name": "x", "stars": 6, "kind": "a", "friends": []},
        {"name": "x", "kind": "a", "friends": [], "born": "2024-02-30"},
    ],
)
def test_what_does_not_fit_cannot_be_said(value: Any):
    assert not Grammar(gbnf(json.dumps(PERSON))).hears(json.dumps(value))


def test_properties_come_in_the_order_of_the_schema():
    hearer = Grammar(gbnf('{"properties": {"b": {"type": "null"}, "a": {"type": "null"}}}'))
    assert hearer.hears('{"b": null, "a": null}')
    assert hearer.hears('{"a":null}')
    assert not hearer.hears('{"a": null, "b": null}')


def test_free_json_is_deep_but_not_bottomless():
    hearer = Grammar(gbnf("{}"))
    assert hearer.hears("[" * grammar.FREE_DEPTH + "]" * grammar.FREE_DEPTH)
    assert not hearer.hears("[" * (grammar.FREE_DEPTH + 2) + "]" * (grammar.FREE_DEPTH + 2))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("3", "must be an object"),
        ("false", "must be an object"),
        ('{"const": NaN}', "NaN"),
        ('{"const": 1e999}', "cannot be read"),
        ("9" * 5_000, "cannot be read"),
        (r'{"const": "\ud800"}', "surrogate"),
        ("\ud800", "surrogate"),
        ("[" * 16_000, "deep"),
        ('{"items":' * 33 + "{}" + "}" * 33, "nested 32 deep"),
        ('{"enum": [' + "1," * 2_000 + "1]}", "at most 2000 values"),
        ('{"enum": [' + "1," * 256 + "1]}", "1 to 256"),
        ('{"title": "' + "x" * 16_384 + '"}', "bytes, at most 16384"),
        ('{"enum": []}', "1 to 256"),
        ('{"enum": [1], "minimum": 0}', "'minimum' beside constants"),
        ('{"enum": [1], "const": 1}', "'const' beside constants"),
        ('{"type": "null", "const": 1}', "no constant"),
        ('{"type": "string", "pattern": "a*"}', "'pattern' is not supported for string"),
        ('{"type": "string", "format": "email"}', "'format' may be one of date"),
        ('{"type": "string", "format": []}', "'format' may be one of date"),
        ('{"type": "string", "format": "date", "maxLength": 3}', "without a length"),
        ('{"type": "number", "minimum": 0}', "'minimum' is not supported for number"),
        ('{"type": "integer", "minimum": 5}', "bounds of an integer"),
        ('{"type": "integer", "minimum": 0, "maximum": 256}', "bounds of an integer"),
        ('{"type": "integer", "minimum": true, "maximum": 2}', "bounds of an integer"),
        ('{"uniqueItems": true, "type": "array"}', "'uniqueItems' is not supported for array"),
        ('{"not": {}}', "'not' is not supported for any value"),
        ('{"type": "text"}', "'type' must be of"),
        ('{"type": []}', "'type' must be of"),
        ('{"type": [{}]}', "'type' must be of"),
        ('{"type": "array", "maxItems": 1001}', "within 0..1000"),
        ('{"type": "array", "minItems": -1}', "within 0..1000"),
        ('{"type": "array", "minItems": 2, "maxItems": 1}', "below"),
        ('{"type": "string", "maxLength": 1.5}', "within 0..1000"),
        (
            '{"anyOf": [' + '{"type": "string", "maxLength": 900},' * 5 + "{}]}",
            "together must be at most 4000",
        ),
        ('{"properties": [], "type": "object"}', "must be an object"),
        ('{"properties": {"a": 1}}', "at #/properties/a"),
        ('{"required": "a"}', "must be an object and 'required' a list"),
        ('{"required": [1]}', "lists names"),
        ('{"required": ["a"], "additionalProperties": false}', "'a' is required"),
        ('{"anyOf": []}', "list of schemas"),
        ('{"anyOf": {}}', "list of schemas"),
        ('{"anyOf": [{}], "type": "null"}', "'type' beside 'anyOf'"),
        ('{"allOf": [{}, {}]}', "merge them"),
        ('{"$ref": "https://example.org/schema"}', "must lead within"),
        ('{"$ref": 1}', "must lead within"),
        ('{"$ref": "#/$defs/a"}', "leads nowhere"),
        ('{"$ref": "#"}', "no answer would end"),
        ('{"anyOf": [{"$ref": "#"}, {"type": "null"}]}', "no answer would end"),
        ('{"properties": {"a": {"$ref": "#"}}, "required": ["a"]}', "no answer would end"),
        ('{"items": {"$ref": "#"}, "minItems": 1}', "no answer would end"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_cannot_be_kept_is_refused_by_name(schema: str, why: str):
    with pytest.raises(SchemaError, match=r"[a-z]") as caught:
        gbnf(schema)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_a_chain_of_references_is_refused_and_not_followed_to_the_end_of_the_stack():
    names = [f"{i:x}" for i in range(500)]
    chain = {a: {"$ref": f"#/$defs/{b}"} for a, b in pairwise(names)}
    with pytest.raises(SchemaError, match="lead too deep"):
        gbnf(json.dumps({"$ref": "#/$defs/0", "$defs": {**chain, names[-1]: {}}}, separators=(",", ":")))


def test_a_long_grammar_is_refused():
    names = [
        f"{i:013}" for i in range(400)
    ]  # all but one are needed, so that their run is written four times
    wide = {"properties": dict.fromkeys(names, True), "required": names[1:]}
    with pytest.raises(SchemaError, match="bytes, at most 65536"):
        gbnf(json.dumps(wide, separators=(",", ":")))


@pytest.mark.parametrize("depth", [6, 12])
def test_what_undeclared_names_hold_is_compiled_once_and_not_once_for_each(depth: int):
    text, made, compiled = built(json.dumps(narrowing(depth, 12)))
    assert text
    assert compiled == depth + 1
    assert made <= 2 * compiled


def test_undeclared_names_hold_what_further_ones_may():
    hearer = Grammar(gbnf(json.dumps(narrowing(2, 3))))
    names = ("k0", "k1", "k2")
    assert hearer.hears(json.dumps(dict.fromkeys(names, dict.fromkeys(names))))
    assert not hearer.hears(json.dumps(dict.fromkeys(names)))


def test_an_undeclared_name_is_refused_for_what_it_holds():
    with pytest.raises(SchemaError, match="at #/additionalProperties: 'pattern'"):
        gbnf('{"required": ["a", "b"], "additionalProperties": {"type": "string", "pattern": "a"}}')


def test_no_more_rules_are_made_than_a_grammar_may_have():
    chain: Any = {"anyOf": [{"enum": [1, 2]}] * 400}
    for _ in range(12):
        chain = {"items": chain}
    refs = [{"$ref": "#/$defs/a" + "/items" * i} for i in range(13)]
    schema = json.dumps({"anyOf": refs, "$defs": {"a": chain}}, separators=(",", ":"))
    text, made, _ = built(schema)
    assert text is None
    assert made == rules.RULES_MAX + 1
    with pytest.raises(SchemaError, match="4097 rules, at most 4096"):
        gbnf(schema)


def test_no_more_is_written_than_a_grammar_may_have():
    wide = json.dumps({"anyOf": [{"minimum": 0, "maximum": 255}] * 400})
    text, made, _ = built(wide)
    assert text is None
    assert made < 60, "it went on after the bytes were too many"
    with pytest.raises(SchemaError, match="bytes, at most 65536"):
        gbnf(wide)


def test_a_schema_is_referred_to_once_in_whatever_spelling():
    spellings = [f"#/$defs/{''.join('~0' if i >> b & 1 else '~' for b in range(6))}" for i in range(64)]
    schema = {"anyOf": [{"$ref": pointer} for pointer in spellings], "$defs": {"~" * 6: {"type": "array"}}}
    text, made, _ = built(json.dumps(schema))
    assert text
    assert made < 64


def test_what_it_takes_to_reckon_readings_is_bounded(monkeypatch: pytest.MonkeyPatch):
    schema = json.dumps({"properties": dict.fromkeys("abcdefghijklmnop", True)})
    gbnf(schema)
    monkeypatch.setattr(rules, "STEPS_MAX", 300)
    with pytest.raises(SchemaError, match="hold one another in too many ways"):
        gbnf(schema)


def test_no_grammar_holds_a_parenthesis_outside_of_quotes():
    for schema in SCHEMAS:
        Grammar(gbnf(json.dumps(schema)))  # it reads none


# -------------------------------------------------------------------- what a grammar may cost


def nested(alternatives: int, levels: int, item: Any) -> str:
    """A list of one of so many lists of one of so many lists …, in the end of `item`."""
    defs = {
        f"l{i}": {
            "anyOf": [
                {"items": {"$ref": f"#/$defs/l{i + 1}"}, "maxItems": j + 2} for j in range(alternatives)
            ]
        }
        for i in range(levels)
    }
    return json.dumps({"$ref": "#/$defs/l0", "$defs": {**defs, f"l{levels}": item}})


def choice(*kinds: Any, **more: Any) -> str:
    """A tree: each node one of `kinds`, an object whose properties are as given."""
    nodes = [{"type": "object", "properties": kind, "required": list(kind)[:1]} for kind in kinds]
    return json.dumps({"anyOf": [*nodes, {"type": "null"}], **more})


def test_readings_that_multiply_are_refused():
    gbnf(nested(2, 8, {"type": "null"}))
    for schema in (nested(2, 10, {"type": "null"}), nested(2, 8, {"enum": list("abcde")}), nested(9, 5, {})):
        with pytest.raises(SchemaError, match="begin alike, and within them again"):
            gbnf(schema)


def test_alternatives_that_hold_themselves_must_tell_themselves_apart_at_once():
    leaf, branch = {"leaf": {"const": 1}}, {"branch": {"const": 1}, "next": {"$ref": "#"}}
    gbnf(choice(leaf, branch))
    gbnf(choice({"kind": {"const": "leaf"}}, {"kind": {"const": "branch"}, "next": {"$ref": "#"}}))
    for kinds in (
        (
            {"kind": {"const": "a"}},
            {"kind": {"const": "ab"}, "next": {"$ref": "#"}},
            {"kind": {}, "next": {"$ref": "#"}},
        ),
        ({"x": {"const": 1}, "next": {"$ref": "#"}}, {"x": {"const": 12}, "y": {}}),
        ({"x": {}, "a": {"$ref": "#"}}, {"x": {}, "b": {"$ref": "#"}}),
    ):
        with pytest.raises(SchemaError, match="begin alike, and within them again"):
            gbnf(choice(*kinds))
    same = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert gbnf(json.dumps({"anyOf": [same, {"type": "null"}]}))


def test_more_ways_than_can_be_followed_are_refused():
    names = [f"{i:x}" for i in range(600)]
    with pytest.raises(SchemaError, match="ways, at most 512"):
        gbnf(json.dumps({"properties": dict.fromkeys(names, True)}))
    gbnf(json.dumps({"properties": dict.fromkeys(names, True), "required": names}))
    with pytest.raises(SchemaError, match="one of 65 objects or lists"):
        gbnf(json.dumps({"anyOf": [{"items": {"const": i}} for i in range(65)]}))


def test_the_same_alternative_by_many_ways_is_one():
    letters, digits = "abcdeh", "0123456789"
    defs = {
        a + i: {"anyOf": [{"$ref": f"#/$defs/{b}{j}"} for j in digits]}
        for a, b in pairwise(letters)
        for i in digits
    }
    ends = {f"h{i}": {"const": int(i)} for i in digits}
    assert gbnf(json.dumps({"$ref": "#/$defs/a0", "$defs": {**defs, **ends}}, separators=(",", ":")))
