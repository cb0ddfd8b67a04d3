"""Where a query goes: the formula as a table, the hard filters, hysteresis, ambiguity, and its words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from p2pmesh.config import Routing
from p2pmesh.errors import Reason
from p2pmesh.protocol.routing import (
    Candidate,
    Kind,
    Scored,
    choose,
    fit,
    prompt_tokens,
    quality,
    score,
    work_s,
)
from p2pmesh.query import Options
from p2pmesh.record import Capability, PeerId, Skill, Vector, quantise
from tests.machines import ME, MODEL, A, B, query

CONFIG = Routing()


def direction(cosine: float, axis: int = 1) -> Vector:
    """A vector at this cosine from the query's."""
    vector = np.zeros(384)
    vector[0], vector[axis] = cosine, np.sqrt(1.0 - cosine**2)
    return quantise(vector)


ABOUT = query(vector=direction(1.0), space="s", prompt_tokens=100)


def candidate(
    peer: PeerId, *skills: Skill, wait_s: float = 0.0, rtt_s: float = 0.0, space: str = "s", **model: object
) -> Candidate:
    info = replace(MODEL, **model)  # type: ignore[arg-type]
    return Candidate(peer, f"peer {peer}", Capability(space, skills, (info,)), wait_s, rtt_s, peer)


def expected(cosine: float, *rivals: float, claimed: float = 0.8) -> float:
    skill = Skill("mine", direction(cosine), claimed)
    known = {"mine": cosine} | {f"rival {i}": r for i, r in enumerate(rivals)}
    return quality(ABOUT, Capability("s", (skill,), (MODEL,)), "small", known, CONFIG)[0]


# -- the parts of J -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "most", "expected_s"),
    [(1_000, 10, 1.1), (1_000, 128, 2.28), (1_000, 4_096, 2.28), (0, 8, 0.001 + 0.08)],
)
def test_work_is_reading_at_one_speed_and_writing_at_another(
    prompt: int, most: int, expected_s: float
) -> None:
    asked = query(prompt_tokens=prompt, options=Options(max_tokens=most))
    assert work_s(asked, MODEL, CONFIG) == pytest.approx(expected_s)


def test_a_model_of_no_speed_is_slow_and_not_an_error() -> None:
    assert work_s(ABOUT, replace(MODEL, prefill_tps=0.0, decode_tps=0.0), CONFIG) > 1e4


@pytest.mark.parametrize(("text", "exact", "tokens"), [("x" * 400, 0, 100), ("x", 0, 1), ("x" * 400, 7, 7)])
def test_a_prompts_length_is_estimated_until_it_is_known(text: str, exact: int, tokens: int) -> None:
    assert prompt_tokens(query(text=text, prompt_tokens=exact), CONFIG) == tokens


@pytest.mark.parametrize(
    ("cosine", "share"), [(-1.0, 0.0), (0.12, 0.0), (0.235, 0.5), (0.35, 1.0), (1.0, 1.0)]
)
def test_a_skill_covers_a_query_between_far_and_near(cosine: float, share: float) -> None:
    assert fit(cosine, CONFIG) == pytest.approx(share)


@pytest.mark.parametrize(
    ("own", "rivals", "value"),
    [
        (0.9, (), 0.8),  # near, and nobody else
        (0.9, (0.5,), 0.8),  # a clear lead
        (0.9, (0.9,), 0.4),  # none: half, below a general peer
        (0.9, (0.95,), 0.4),  # behind
        (0.9, (0.875,), 0.6),  # half a lead
        (0.1, (), 0.0),  # nothing to do with it
    ],
)
def test_a_specialist_counts_by_nearness_and_by_the_lead_over_the_next_topic(
    own: float, rivals: tuple[float, ...], value: float
) -> None:
    assert expected(own, *rivals) == pytest.approx(value, abs=0.03)


def test_without_a_vector_or_in_another_space_nearness_cannot_be_known() -> None:
    able = Capability("s", (Skill("mine", direction(0.9), 0.8),), (MODEL,))
    for asked in (replace(ABOUT, vector=None), replace(ABOUT, space="other")):
        assert quality(asked, able, "small", {}, CONFIG) == (pytest.approx(0.4), "mine")


def test_vectors_of_another_length_do_not_compare_whatever_space_they_claim() -> None:
    liar = Capability("s", (Skill("mine", np.ones(3, np.int8), 0.8),), (MODEL,))
    assert quality(ABOUT, liar, "small", {}, CONFIG) == (pytest.approx(0.4), "mine")
    candidate = Candidate(PeerId(A), "a", liar, 0.0, 0.0, PeerId(A))
    assert choose(ABOUT, ME, [candidate], CONFIG).chosen is not None


def test_a_model_that_is_being_restarted_is_named_as_such_and_not_as_missing() -> None:
    down = replace(MODEL, slots=0)
    decision = choose(
        replace(ABOUT, model=MODEL.name),
        ME,
        [Candidate(A, "a", Capability("s", (), (down,)), 0.0, 0.0, A)],
        CONFIG,
    )
    assert decision.reason is Reason.ENGINE_FAILED
    assert "restarted" in decision.detail


def test_a_peer_that_declared_nothing_is_a_general_one() -> None:
    assert quality(ABOUT, Capability("s"), "small", {}, CONFIG) == (0.5, "general")


def test_a_skill_belongs_to_its_model() -> None:
    able = Capability("s", (Skill("mine", direction(0.9), 0.8, model="big"),), (MODEL,))
    assert quality(ABOUT, able, "big", {}, CONFIG)[0] == pytest.approx(0.8)
    assert quality(ABOUT, able, "small", {}, CONFIG) == (0.5, "general")


def test_between_two_equally_near_specialists_a_general_peer_is_the_better_choice() -> None:
    one = candidate(A, Skill("one", direction(0.6, 1), 0.8))
    other = candidate(B, Skill("other", direction(0.6, 2), 0.8))
    table = score(ABOUT, [one, other, candidate(ME)], CONFIG)
    assert table[0].peer == ME


def test_j_is_wait_and_work_and_round_trip_and_lambda_times_what_quality_lacks() -> None:
    [row] = score(ABOUT, [candidate(A, wait_s=2.0, rtt_s=0.5)], CONFIG)
    assert row.time_s == pytest.approx(2.0 + 0.18 + 0.5)
    assert row.j_s == pytest.approx(row.time_s + 20.0 * 0.5)


# -- hard filters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"zone": "secret"}, Reason.NO_ROUTE),
        ({"model": "large"}, Reason.MODEL_NOT_FOUND),
        ({"prompt_tokens": 2_048}, Reason.TOO_LONG),
        ({"text": "x" * 16_384, "prompt_tokens": 0}, Reason.TOO_LONG),
    ],
)
def test_a_hard_filter_is_never_a_weight(changes: dict[str, object], reason: Reason) -> None:
    asked = query(**changes)  # type: ignore[arg-type]
    decision = choose(asked, ME, [candidate(ME), candidate(A)], CONFIG)
    assert (decision.kind, decision.reason) == (Kind.REFUSE, reason)
    assert decision.explain().startswith("refuse: ")
    assert [row.why_not for row in decision.table] == [reason, reason]


def test_an_estimate_turns_nobody_away_that_might_fit() -> None:
    asked = query(text="x" * 16_000)  # 4 000 tokens at 4 bytes each, but 2 000 at 8
    assert choose(asked, ME, [candidate(ME)], CONFIG).kind is Kind.SERVE


@pytest.mark.parametrize(("model", "reason"), [("auto", Reason.NO_ROUTE), ("large", Reason.MODEL_NOT_FOUND)])
def test_where_nobody_serves_anything_the_reason_says_what_was_missing(model: str, reason: Reason) -> None:
    empty = Candidate(ME, "me", Capability(), 0.0, 0.0, ME)
    assert choose(query(model=model), ME, [empty], CONFIG).reason is reason


def test_too_long_names_the_longest_context_within_reach() -> None:
    rows = [candidate(ME), candidate(A, context_tokens=4_096), candidate(B, context_tokens=9_999, name="x")]
    decision = choose(query(prompt_tokens=5_000, model="small"), ME, rows, CONFIG)
    assert "5000" in decision.detail
    assert "4096" in decision.detail


# -- the choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("busy_s", "kind"), [(0.0, Kind.SERVE), (0.3, Kind.SERVE), (0.6, Kind.FORWARD)])
def test_a_query_is_passed_on_only_for_a_clear_gain(busy_s: float, kind: Kind) -> None:
    assert choose(ABOUT, ME, [candidate(ME, wait_s=busy_s), candidate(A)], CONFIG).kind is kind


def test_a_better_answer_is_worth_a_wait() -> None:
    expert = candidate(A, Skill("mine", direction(0.9), 0.8), wait_s=5.0)
    decision = choose(ABOUT, ME, [candidate(ME), expert], CONFIG)
    assert decision.kind is Kind.FORWARD
    assert decision.explain() == "to peer a: mine quality 0.80, 5.2 s"


def test_who_is_in_time_goes_before_who_is_better() -> None:
    expert = candidate(A, Skill("mine", direction(0.9), 0.8), wait_s=5.0)
    decision = choose(replace(ABOUT, budget_s=2.0), ME, [candidate(ME), expert], CONFIG)
    assert decision.kind is Kind.SERVE


def test_where_nobody_is_in_time_time_alone_counts_but_still_takes_a_clear_gain() -> None:
    hurried = replace(ABOUT, budget_s=0.01)
    expert = candidate(A, Skill("mine", direction(0.9), 0.8), wait_s=5.0)
    assert choose(hurried, ME, [candidate(B), expert], CONFIG).chosen.peer == B  # type: ignore[union-attr]
    assert choose(hurried, ME, [candidate(ME, wait_s=0.1), candidate(A)], CONFIG).kind is Kind.SERVE
    assert choose(hurried, ME, [candidate(ME, wait_s=9.0), candidate(A)], CONFIG).kind is Kind.FORWARD


def test_who_is_late_here_and_in_time_elsewhere_goes_elsewhere_for_any_gain() -> None:
    rows = [candidate(ME, wait_s=0.1), candidate(A)]
    assert choose(replace(ABOUT, budget_s=0.2), ME, rows, CONFIG).kind is Kind.FORWARD


def test_without_hops_left_it_is_served_here_or_nowhere() -> None:
    tired = replace(ABOUT, hops_left=0)
    rows = [candidate(ME, wait_s=50.0), candidate(A)]
    assert choose(tired, ME, rows, CONFIG).kind is Kind.SERVE
    decision = choose(tired, ME, rows[1:], CONFIG)
    assert (decision.kind, decision.detail) == (Kind.REFUSE, "no hops left")


def test_equals_are_told_apart_by_their_ids() -> None:
    assert [row.peer for row in score(ABOUT, [candidate(B), candidate(A)], CONFIG)] == [A, B]


@pytest.mark.parametrize(
    ("why_not", "line"), [(None, "code quality 0.50, 3.0 s"), (Reason.TOO_LONG, "m: context_length_exceeded")]
)
def test_each_row_explains_itself(why_not: Reason | None, line: str) -> None:
    row = Scored(A, "a", "m", A, "code", 0.5, 1.0, 1.5, 0.5, 9.0, why_not)
    assert row.explain() == line
