"""How much work a query is: tokens read and written, in a model's seconds, and what was learned of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Routing
from p2pmesh.protocol.workload import (
    ANSWER_TOKENS_TYPICAL,
    AnswerLength,
    Remembered,
    prompt_tokens,
    salted,
    work_s,
)
from p2pmesh.query import Accepted, Message, Options
from tests.machines import MODEL, query

CONFIG = Routing()


def learned(*tokens: int) -> AnswerLength:
    lengths = AnswerLength()
    for count in tokens:
        lengths.observed(count)
    return lengths


@pytest.mark.parametrize(
    ("prompt", "most", "expected_s"),
    [(1_000, 10, 1.1), (1_000, 128, 2.28), (1_000, 4_096, 2.28), (0, 8, 0.001 + 0.08)],
)
def test_work_is_reading_at_one_speed_and_writing_at_another(
    prompt: int, most: int, expected_s: float
) -> None:
    asked = query(prompt_tokens=prompt, options=Options(max_tokens=most))
    assert work_s(asked, MODEL, CONFIG, AnswerLength()) == pytest.approx(expected_s)


def test_a_model_of_no_speed_is_slow_and_not_an_error() -> None:
    stuck = replace(MODEL, prefill_tps=0.0, decode_tps=0.0)
    assert work_s(query(prompt_tokens=100), stuck, CONFIG, AnswerLength()) > 1e4


@pytest.mark.parametrize(("text", "exact", "tokens"), [("x" * 400, 0, 100), ("x", 0, 1), ("x" * 400, 7, 7)])
def test_a_prompts_length_is_estimated_until_it_is_known(text: str, exact: int, tokens: int) -> None:
    assert prompt_tokens(query(text=text, prompt_tokens=exact), CONFIG) == tokens


def test_before_any_answer_was_seen_one_is_as_long_as_is_typical() -> None:
    assert AnswerLength().left(10_000) == ANSWER_TOKENS_TYPICAL


def test_what_was_seen_weighs_more_the_more_of_it_there_is() -> None:
    assert learned(0).mean == pytest.approx(ANSWER_TOKENS_TYPICAL / 2)
    assert learned(*[10] * 2_000).mean == pytest.approx(10.0, abs=0.1)


def test_old_answers_are_forgotten() -> None:
    lengths = learned(*[10] * 5_000, *[500] * 300)
    assert lengths.mean == pytest.approx(500.0, abs=10.0)


def test_one_odd_answer_moves_a_settled_mean_but_little() -> None:
    before = learned(*[100] * 500)
    after = learned(*[100] * 500, 8_192)
    assert after.mean - before.mean < 150.0


@pytest.mark.parametrize(
    ("most", "written", "left"),
    [
        (1_000, 0, 100.0),
        (1_000, 20, 80.0),
        (1_000, 25, 75.0),
        (1_000, 90, 75.0),  # past its time it is expected to go on, not to end at once
        (1_000, 500, 75.0),
        (1_000, 970, 30.0),  # but never beyond what was asked for
        (1_000, 1_000, 0.0),
        (1_000, 1_200, 0.0),
        (40, 0, 40.0),
        (40, 39, 1.0),
    ],
)
def test_what_is_left_of_an_answer_hardly_falls_once_it_is_longer_than_most(
    most: int, written: int, left: float
) -> None:
    lengths = learned(*[100] * 5_000)
    assert lengths.left(most, written) == pytest.approx(left, abs=0.1)


def test_what_was_written_already_is_read_and_not_written_again() -> None:
    asked = query(prompt_tokens=1_000, options=Options(max_tokens=128))
    half = replace(asked, accepted=Accepted((1,) * 100, "x", 9))
    lengths = learned(*[128] * 100)
    assert work_s(asked, MODEL, CONFIG, lengths) == pytest.approx(1.0 + 1.28)
    assert work_s(half, MODEL, CONFIG, lengths) == pytest.approx(1.1 + 0.28)


def test_work_follows_what_was_learned() -> None:
    asked = query(prompt_tokens=1_000, options=Options(max_tokens=4_096))
    assert work_s(asked, MODEL, CONFIG, learned(*[300] * 5_000)) == pytest.approx(4.0, abs=0.01)


# -- what need not be read ------------------------------------------------------------------------------

FIRST = (Message("user", "x" * 400),)
NEXT = (*FIRST, Message("assistant", "y" * 40), Message("user", "z" * 40))


def key(*messages: Message, model: str = "small") -> bytes:
    return salted(query(messages=messages).prefixes[-1][0], model)


@pytest.mark.parametrize(
    ("held", "tokens"),
    [
        ((), 0),
        ((bytes(8),), 0),
        ((key(*FIRST),), 100),
        ((bytes(8), key(*NEXT[:2]), key(*FIRST)), 110),  # the longest
        ((key(*NEXT),), 120),
        ((key(*FIRST, model="large"),), 0),
    ],
)
def test_the_longest_beginning_that_is_held_counts_and_only_that_of_the_same_model(
    held: tuple[bytes, ...], tokens: int
) -> None:
    remembered = Remembered(query(messages=NEXT), CONFIG)
    assert remembered.tokens("small", held) == tokens
    assert remembered.tokens("small", frozenset(held)) == tokens  # asked twice


def test_no_more_is_held_than_there_is_to_read() -> None:
    assert Remembered(query(messages=NEXT, prompt_tokens=70), CONFIG).tokens("small", (key(*FIRST),)) == 70


def test_what_is_held_is_not_read() -> None:
    asked = query(prompt_tokens=1_000, options=Options(max_tokens=128))
    assert work_s(asked, MODEL, CONFIG, AnswerLength(), 600) == pytest.approx(0.4 + 1.28)
    assert work_s(asked, MODEL, CONFIG, AnswerLength(), 9_999) == pytest.approx(1.28)
    half = replace(asked, accepted=Accepted((1,) * 28, "x", 9))
    assert work_s(half, MODEL, CONFIG, AnswerLength(), 1_000) == pytest.approx(0.028 + 1.0)
