"""How tokens are chosen, by llama.cpp's own samplers over the embedded model's logits."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from p2pmesh.engine import batch, catalog
from p2pmesh.engine.base import Load
from p2pmesh.engine.batch import TOP_K, Context, Model, Part, Sampler
from p2pmesh.engine.grammar import gbnf
from p2pmesh.engine.opening import open_schedule
from p2pmesh.engine.rules import GRAMMAR_BYTES_MAX
from p2pmesh.errors import ConfigError, ModelLoadError
from p2pmesh.query import Options

if TYPE_CHECKING:
    from collections.abc import Iterator


pytestmark = pytest.mark.model
LIST = '{"type": "array", "items": {"type": "integer"}}'
PROMPT = "Once upon a time there was a king who"


class Row:
    """A model that thinks the same at each step: one row of logits, and all else is the sampler."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model, self.context = model, context
        tokens = np.array(model.tokenize(PROMPT, control=False), np.int32)
        self._part = Part(0, 0, tokens, True)
        assert context.decode([self._part]) == 0

    def sampler(self, schema: str = "", accepted: Any = (), seed: int = 7, **options: Any) -> Sampler:
        return Sampler(self.model, Options(**options), seed, gbnf(schema) if schema else "", accepted)

    def say(self, sampler: Sampler, count: int) -> list[int]:
        """Return up to `count` tokens, or those before the end."""
        said: list[int] = []
        while len(said) < count:
            token = self.context.sample(sampler, self._part.row)
            assert token >= 0, "nothing is legal"
            if self.model.ends(token):
                break
            said.append(token)
        return said

    def speak(self, count: int, schema: str = "", **how: Any) -> list[int]:
        sampler = self.sampler(schema, **how)
        try:
            return self.say(sampler, count)
        finally:
            sampler.close()

    def text(self, tokens: list[int]) -> str:
        return b"".join(map(self.model.piece, tokens)).decode("utf-8", "replace")


@pytest.fixture(scope="module")
def row() -> Iterator[Row]:
    try:
        path = catalog.find(catalog.DEFAULT)
    except (ConfigError, ModelLoadError):
        pytest.skip("the embedded default model is not installed")
    model = Model(os.fspath(path))
    context = Context(model, sequences=1, tokens=256, batch_tokens=64, threads=1)
    yield Row(model, context)
    context.close()
    model.close()


WAYS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01, "top_k": 200},
    {"repeat_penalty": 1.5},
    {"frequency_penalty": 0.7, "presence_penalty": 0.3},
    {"temperature": 1.0, "frequency_penalty": 2.0},
    {"schema": LIST, "temperature": 1.5},
    {"schema": "{}", "repeat_penalty": 1.3},
    {"schema": '{"type": "string"}', "temperature": 2.0, "presence_penalty": 2.0},
]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_an_answer_goes_on_from_any_of_its_tokens_as_if_it_had_never_stopped(row: Row, how: dict[str, Any]):
    whole = row.speak(80, **how)
    assert len(whole) > 2
    for cut in (1, 2, len(whole) // 2, len(whole) - 1):
        assert whole[:cut] + row.speak(80 - cut, accepted=whole[:cut], **how) == whole


def test_a_seed_repeats_and_another_does_not(row: Row):
    drawn = [row.speak(30, seed=seed, temperature=1.5) for seed in (1, 1, 2, 2**32 - 1)]
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) == 3
    assert len(set(drawn[0])) > 5, "each token's dice fell alike"


def test_what_may_be_drawn(row: Row):
    def among(**how: Any) -> Counter[int]:
        return Counter(row.speak(300, temperature=2.0, **how))

    wide = among()
    assert 10 < len(wide) <= TOP_K
    assert len(among(top_k=256)) > len(wide)
    assert len(among(top_k=3)) == 3
    likeliest = row.speak(1)
    assert among(top_k=1) == Counter(likeliest * 300)
    assert set(among(min_p=1.0)) == set(likeliest)
    assert len(among(min_p=0.2)) < len(wide)


def test_penalties_keep_it_from_saying_the_same_again(row: Row):
    assert len(set(row.speak(20))) == 1, "the row has one likeliest token"
    for how in ({"repeat_penalty": 2.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        assert len(set(row.speak(20, **how))) > 1, how
    assert len(set(row.speak(20, frequency_penalty=-2.0))) == 1
    spread = Counter(row.speak(64, frequency_penalty=2.0))
    once = Counter(row.speak(64, presence_penalty=2.0))
    assert max(spread.values()) < max(once.values()), "one counts, the other does not"


def test_a_bias_makes_and_forbids(row: Row):
    (likeliest,) = row.speak(1)
    other = row.model.tokens - 1
    assert row.speak(3, logit_bias=((other, 100.0),)) == [other] * 3
    assert likeliest not in row.speak(3, logit_bias=((likeliest, -100.0),))
    forbidden = tuple((token, -100.0) for token in range(256))
    assert row.speak(1, logit_bias=forbidden)


@pytest.mark.parametrize("how", [{}, {"temperature": 2.0}, {"temperature": 1.0, "top_k": 1}], ids=str)
def test_a_schema_is_kept_whatever_the_model_would_like_to_say(row: Row, how: dict[str, Any]):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ['é"\\', "日本"]},
            "ages": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1, "maximum": 9},
                "maxItems": 3,
            },
        },
        "required": ["name", "kind", "ages"],
    }
    for seed in range(3):
        said = json.loads(row.text(row.speak(200, json.dumps(schema), seed=seed, **how)))
        assert list(said) == ["name", "kind", "ages"]
        assert len(said["name"]) <= 12
        assert said["kind"] in ('é"\\', "日本")
        assert all(1 <= age <= 9 for age in said["ages"])


def test_a_bias_for_what_the_schema_forbids_does_not_break_it(row: Row):
    (brace,) = row.model.tokenize("{", control=False)
    said = row.text(row.speak(9, '{"enum": [true, false]}', logit_bias=((brace, 100.0),), temperature=1.0))
    assert said in ("true", "false")


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}], ids=str)
def test_a_control_token_does_not_stand_for_its_spelling(row: Row, how: dict[str, Any]):
    (start,) = row.model.tokenize("<|im_start|>", control=True)
    how = {"logit_bias": ((start, 100.0),), **how}
    said = row.text(row.speak(40, '{"const": "<|im_start|>"}', **how))
    assert json.loads(said) == "<|im_start|>"
    # It is biased to end as soon as it may, and may not before five characters are there to be read.
    (quote,) = row.model.tokenize('"', control=False)
    how["logit_bias"] += ((quote, 50.0),)
    for seed in range(3):
        said = row.text(row.speak(40, '{"type": "string", "minLength": 5}', seed=seed, **how))
        assert len(json.loads(said)) >= 5


def test_an_answer_that_holds_a_control_token_does_not_fit_a_schema(row: Row):
    (start,) = row.model.tokenize("<|im_start|>", control=True)
    said = row.model.tokenize('"', control=False)
    with pytest.raises(ValueError, match="does not fit the schema"):
        row.sampler('{"type": "string"}', [*said, start])
    assert start in row.model.silent
    assert not any(row.model.ends(int(token)) or row.model.piece(int(token)) for token in row.model.silent)


def test_what_the_vocabulary_cannot_spell_is_noticed(row: Row):
    sampler = row.sampler(json.dumps({"const": "\U0009ef80"}))
    with pytest.raises(AssertionError, match="nothing is legal"):
        row.say(sampler, 20)
    sampler.close()


def test_it_does_not_go_on_after_what_the_schema_forbids(row: Row):
    eos = row.model.eos
    for accepted in (
        row.model.tokenize("hello", control=False),
        [eos],
        row.model.tokenize("[1, x", control=False),
    ):
        with pytest.raises(ValueError, match="does not fit the schema"):
            row.sampler(LIST, accepted)
    sampler = row.sampler(LIST, row.model.tokenize("[1,2]", control=False))
    assert row.say(sampler, 1) == [], "it is whole, and can only end"
    sampler.close()


def test_how_likely_a_token_was_is_what_the_model_thought(row: Row):
    (likeliest,) = row.speak(1)
    told = row.context.logprobs(row.model, likeliest, row._part.row, 20)
    values = [value for _, value in told.top]
    assert (told.spelled, told.logprob) == told.top[0] == (row.model.piece(likeliest), values[0])
    assert values == sorted(values, reverse=True)
    assert 0.0 < sum(map(math.exp, values)) < 1.0
    assert row.context.logprobs(row.model, likeliest, row._part.row, 0).top == ()
    drawn = Counter(row.speak(400, temperature=1.0, top_k=256))
    assert drawn[likeliest] / 400 == pytest.approx(math.exp(told.logprob), abs=0.1)
    end = row.context.logprobs(row.model, row.model.eos, row._part.row, 0)
    assert end.spelled == b"<|im_end|>"
    assert end.logprob < values[-1]


@pytest.mark.parametrize("grammar", ["root ::= (", 'root ::= root "a"', "root ::= nothing", 'other ::= "a"'])
def test_a_grammar_that_llama_cpp_cannot_read_is_refused(row: Row, grammar: str):
    with pytest.raises(ValueError, match="cannot read"):
        Sampler(row.model, Options(), 0, grammar)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 1_000},
        {"type": "array", "minItems": 1_000, "maxItems": 1_000, "items": {"type": "null"}},
        {"anyOf": [{"type": "string", "maxLength": 500 + i} for i in range(7)]},
        {"properties": {f"{i:x}": {} for i in range(480)}},
        {"properties": {f"{i:x}": {} for i in range(900)}, "required": [f"{i:x}" for i in range(900)]},
        {"enum": [f"{i:04x}" * 10 for i in range(256)]},
        {"items": {"items": {"items": {"items": {"$ref": "#"}}}}},
        {
            "$ref": "#/$defs/0",
            "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(80)} | {"80": {}},
        },
        {"properties": {'"] | ( ((((': {"const": '\\" ::= ((('}}},
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_the_largest_schemas_are_read_and_kept(row: Row, schema: dict[str, Any]):
    text = gbnf(json.dumps(schema))
    assert len(text) <= GRAMMAR_BYTES_MAX
    said = row.speak(2, json.dumps(schema), temperature=1.0)
    row.sampler(json.dumps(schema), said).close()


def test_a_model_that_looks_back_through_a_window_keeps_no_beginnings(row: Row, monkeypatch: Any):
    """Only its last window is saved, which is no beginning of anything."""
    assert row.model.sliceable
    monkeypatch.setattr(batch.llama, "llama_model_n_swa", lambda handle: 512)
    spec = Load(path=os.fspath(catalog.find(catalog.DEFAULT)), slots=1, context_tokens=256)
    schedule = open_schedule(spec, "m", "")
    assert not schedule._model.sliceable
    assert schedule.ready.info.prefixes == 0


def test_what_there_is_no_memory_to_keep_is_not_kept(row: Row, monkeypatch: Any):
    def none(size: int, kind: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(batch.np, "empty", none)
    assert row.context.save(0) is None
