"""Whatever is said to be a schema, it is refused, or nothing gets through its grammar that does not fit."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pmesh.engine.grammar import SchemaError, gbnf
from p2pmesh.engine.rules import GRAMMAR_BYTES_MAX, RULES_MAX
from tests.grammars import Grammar, built, fits, narrowing

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.text(st.characters(codec="utf-8"), max_size=3) | st.sampled_from(["a", "b", '"', "\\", "]", ")"])
json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | names,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
lengths = st.integers(0, 4)
plain: Any = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["null", "boolean", "number", "integer", "string", "array"])}
    ),
    st.fixed_dictionaries({"type": st.just("string")}, optional={"minLength": lengths, "maxLength": lengths}),
    st.fixed_dictionaries({"enum": st.lists(json_values, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": json_values}),
    st.fixed_dictionaries({"minimum": st.integers(-9, 9), "maximum": st.integers(-9, 9)}),
    st.fixed_dictionaries({"$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/b"])}),
    st.just({}),
    st.booleans(),
)
schemas: Any = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"items": inner}, optional={"minItems": lengths, "maxItems": lengths}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(names, inner, max_size=3)},
            optional={"required": st.lists(names, max_size=2), "additionalProperties": inner | st.booleans()},
        ),
    ),
    max_leaves=8,
)
KEYWORDS = [
    "type",
    "properties",
    "required",
    "items",
    "anyOf",
    "$ref",
    "enum",
    "const",
    "minLength",
    "maxItems",
]
anything: Any = st.recursive(
    json_values | st.sampled_from(["object", "array", "string", "#", "#/items", *KEYWORDS]) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS) | names, inner, max_size=4)
    ),
)
counts = st.integers(1, 40)
widening: Any = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.builds(narrowing, st.integers(1, 6), counts, inner),
        st.builds(lambda one, count: {"anyOf": [one] * count}, inner, counts),
        st.builds(lambda one, count: {"items": one, "maxItems": count}, inner, counts),
        st.builds(
            lambda one, count, needed: {
                "properties": {f"p{i}": one for i in range(count)},
                "required": [f"p{i}" for i in range(count)][:needed],
            },
            inner,
            counts,
            counts,
        ),
        st.builds(
            lambda count, step: {"anyOf": [{"$ref": "#/$defs/a" + step * i} for i in range(count)]},
            counts,
            st.sampled_from(["/items", "/additionalProperties", ""]),
        ),
        st.builds(lambda count: {"minimum": 0, "maximum": count}, counts),
    ),
    max_leaves=6,
)
"""Schemas of which each level is many times the one below."""


def grammar(schema: str) -> str | None:
    try:
        text = gbnf(schema)
    except SchemaError:
        return None
    assert len(text.encode()) <= GRAMMAR_BYTES_MAX
    return text


@unhurried
@given(schemas, schemas, schemas, st.integers(0, 2**32))
def test_what_gets_through_fits(schema: Any, a: Any, b: Any, seed: int):
    if isinstance(schema, dict):
        schema = {**schema, "$defs": {"a": a, "b": b}}
    text = grammar(json.dumps(schema))
    if text is not None:
        speaker = Grammar(text)
        said = speaker.say(Random(seed))
        assert fits(json.loads(said), schema, schema)
        assert speaker.hears(said)


@unhurried
@given(anything)
def test_anything_is_a_grammar_or_refused(value: Any):
    text = grammar(json.dumps(value))
    if text is not None:
        Grammar(text)


@given(st.text())
def test_any_text_is_a_grammar_or_refused(text: str):
    grammar(text)


@unhurried
@given(widening, widening, widening)
def test_no_schema_is_compiled_without_end(schema: Any, a: Any, b: Any):
    if isinstance(schema, dict):
        schema = {**schema, "$defs": {"a": a, "b": b}}
    text, made, _ = built(json.dumps(schema, separators=(",", ":")))
    assert made <= RULES_MAX + 1
    if text is not None:
        assert len(text.encode()) <= GRAMMAR_BYTES_MAX
        assert text.count("\n") <= RULES_MAX
