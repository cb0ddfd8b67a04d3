"""Where a query goes: the formula as a table, the hard filters, hysteresis, ambiguity, and its words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from p2pmesh.config import Routing
from p2pmesh.errors import Reason
from p2pmesh.protocol import routing
from p2pmesh.protocol.batching import Backlog
from p2pmesh.protocol.routing import (
    Candidate,
    Decision,
    Estimates,
    Kind,
    Nearness,
    Scored,
    fit,
    quality,
)
from p2pmesh.protocol.workload import salted
from p2pmesh.query import Accepted, Hop, Query
from p2pmesh.record import GENERAL, Capability, PeerId, Skill, Vector, quantise
from tests.machines import ME, MODEL, A, B, C, query

CONFIG = Routing()
LEARNED = Estimates()


def direction(cosine: float, axis: int = 1) -> Vector:
    """A vector at this cosine from the query's."""
    vector = np.zeros(384)
    vector[0], vector[axis] = cosine, np.sqrt(1.0 - cosine**2)
    return quantise(vector)


ABOUT = query(vector=direction(1.0), space="s", prompt_tokens=100)
ONWARD = replace(ABOUT, path=(Hop(PeerId("origin"), "origin", ""),), target=ME)
"""The same, at the peer that was chosen to serve it."""


def candidate(
    peer: PeerId,
    *skills: Skill,
    wait_s: float | None = 0.0,
    rtt_s: float = 0.0,
    space: str = "s",
    **model: object,
) -> Candidate:
    """A peer whose next query waits `wait_s`; None: it never told."""
    info = replace(MODEL, **model)  # type: ignore[arg-type]
    backlog = None if wait_s is None else Backlog((wait_s,) if wait_s else ())
    return Candidate(peer, f"peer {peer}", Capability(space, skills, (info,)), backlog, rtt_s, peer)


def choose(asked: Query, me: PeerId, candidates: Sequence[Candidate]) -> Decision:
    return routing.choose(asked, me, candidates, LEARNED, CONFIG)


def score(asked: Query, candidates: Sequence[Candidate], learned: Estimates = LEARNED) -> tuple[Scored, ...]:
    return routing.score(asked, ME, candidates, learned, CONFIG)


def worth(
    asked: Query, able: Capability, model: str = "small", *others: Capability, learned: Estimates = LEARNED
) -> tuple[float, str]:
    """The expected quality of this model of a peer that is able to do this, among others."""
    peers = [(PeerId(f"n{i}"), c) for i, c in enumerate((able, *others))]
    candidates = [Candidate(peer, "", c, Backlog(), 0.0, peer) for peer, c in peers]
    return quality(candidates[0], model, Nearness(asked, candidates), learned, CONFIG)


def expected(cosine: float, *rivals: float, claimed: float = 0.8) -> float:
    others = [Capability("s", (Skill(f"rival {i}", direction(r, 2)),)) for i, r in enumerate(rivals)]
    mine = Capability("s", (Skill("mine", direction(cosine), claimed),), (MODEL,))
    return worth(ABOUT, mine, "small", *others)[0]


# -- the parts of J -----------------------------------------------------------------------------------


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
        assert worth(asked, able) == (pytest.approx(0.4), "mine")


def test_vectors_of_another_length_do_not_compare_whatever_space_they_claim() -> None:
    liar = Capability("s", (Skill("mine", np.ones(3, np.int8), 0.8),), (MODEL,))
    assert worth(ABOUT, liar) == (pytest.approx(0.4), "mine")
    assert choose(ABOUT, ME, [Candidate(A, "a", liar, Backlog(), 0.0, A)]).chosen is not None


def test_a_model_that_is_being_restarted_is_named_as_such_and_not_as_missing() -> None:
    down = replace(MODEL, slots=0)
    rows = [Candidate(A, "a", Capability("s", (), (down,)), Backlog(), 0.0, A)]
    decision = choose(replace(ABOUT, model=MODEL.name), ME, rows)
    assert decision.reason is Reason.ENGINE_FAILED
    assert "restarted" in decision.detail


def test_a_peer_that_declared_nothing_is_a_general_one() -> None:
    assert worth(ABOUT, Capability("s")) == (0.5, "general")


def test_a_skill_belongs_to_its_model() -> None:
    able = Capability("s", (Skill("mine", direction(0.9), 0.8, model="big"),), (MODEL,))
    assert worth(ABOUT, able, "big")[0] == pytest.approx(0.8)
    assert worth(ABOUT, able, "small") == (0.5, "general")


def test_what_was_learned_of_a_peer_stands_in_for_what_it_claims() -> None:
    learned = Estimates(quality=lambda peer, skill, claim: claim / 2 if peer == "n0" else 1.0)
    able = Capability("s", (Skill("mine", direction(0.9), 0.8),), (MODEL,))
    assert worth(ABOUT, able, learned=learned) == (pytest.approx(0.4), "mine")
    assert worth(ABOUT, Capability("s"), learned=learned) == (0.25, "general")


def test_a_skill_of_one_name_is_no_rival_to_itself() -> None:
    mine, theirs = (Capability("s", (Skill("mine", direction(c), 0.8),), (MODEL,)) for c in (0.8, 0.9))
    assert worth(ABOUT, mine, "small", theirs) == (pytest.approx(0.8), "mine")


def test_a_skill_with_a_place_that_covers_nothing_leaves_no_skill_to_rest_on() -> None:
    far = Capability("s", (Skill("mine", direction(0.0), 0.8),), (MODEL,))
    assert worth(ABOUT, far) == (0.0, "none")


def test_a_skill_that_is_near_to_every_topic_counts_as_claimed() -> None:
    general = Capability("s", (Skill("general", None, 0.6), Skill("mine", direction(0.0), 0.8)), (MODEL,))
    assert worth(ABOUT, general) == (0.6, "general")


def test_between_two_equally_near_specialists_a_general_peer_is_the_better_choice() -> None:
    one = candidate(A, Skill("one", direction(0.6, 1), 0.8))
    other = candidate(B, Skill("other", direction(0.6, 2), 0.8))
    table = score(ABOUT, [one, other, candidate(ME)])
    assert table[0].peer == ME


def test_j_is_wait_and_work_and_round_trip_and_lambda_times_what_quality_lacks() -> None:
    [row] = score(ABOUT, [candidate(A, wait_s=2.0, rtt_s=0.5)])
    assert row.time_s == pytest.approx(2.0 + 0.18 + 0.5)
    assert row.j_s == pytest.approx(row.time_s + 20.0 * 0.5)


def test_wait_is_what_the_peer_s_work_adds_to_the_answer_and_not_the_length_of_its_queue() -> None:
    beside = Backlog((9.0,), slots=2)  # a free slot: it runs at once, but shares the speed
    rows = score(ABOUT, [candidate(A)._replace(backlog=beside)])
    assert rows[0].wait_s == pytest.approx(beside.finish_s(0.18) - 0.18)
    assert 0.0 < rows[0].wait_s < 1.0


def test_the_best_of_those_who_never_told_is_held_for_twice_as_busy_as_the_others() -> None:
    rows = score(ABOUT, [candidate(A, wait_s=None), candidate(B, wait_s=1.0), candidate(ME, wait_s=1.5)])
    assert [row.peer for row in rows] == [B, ME, A]
    assert rows[2].wait_s == pytest.approx(2 * 1.0)  # how busy we are tells nothing of others
    assert rows[2].j_s == pytest.approx(rows[2].time_s + 10.0)
    assert score(ABOUT, [candidate(A, wait_s=None)])[0].wait_s == 0.0  # nobody told


def test_those_who_never_told_and_are_nearly_alike_share_the_queries_by_their_speed() -> None:
    silent = [candidate(A, wait_s=None, decode_tps=200.0), candidate(B, wait_s=None)]
    rows = [*silent, candidate(C, wait_s=9.0)]
    tables = [score(query(number), rows) for number in range(300)]
    chosen = Counter(next(row.peer for row in table if row.peer != C) for table in tables)
    assert set(chosen) == {A, B}
    assert 1.4 < chosen[A] / chosen[B] < 3.0  # it is 1.9 times as fast, prompts counted in


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
    decision = choose(asked, ME, [candidate(ME), candidate(A)])
    assert (decision.kind, decision.reason) == (Kind.REFUSE, reason)
    assert decision.explain().startswith("refuse: ")
    assert [row.why_not for row in decision.table] == [reason, reason]


@pytest.mark.parametrize("model", ["auto", "small"])
def test_a_model_that_is_for_a_zone_answers_there_alone(model: str) -> None:
    secret = candidate(A, zones=("hr",), decode_tps=9_999.0)
    secret = secret._replace(capability=replace(secret.capability, zones=(GENERAL, "hr")))
    plain = candidate(ME, name="other")
    refused = choose(query(model=model), ME, [secret])
    reason = Reason.NO_ROUTE if model == "auto" else Reason.MODEL_NOT_FOUND
    assert (refused.kind, refused.reason) == (Kind.REFUSE, reason)
    assert choose(query(model=model, zone="hr"), ME, [secret, plain]).kind is Kind.FORWARD
    beside = choose(query(), ME, [secret, plain])
    assert (beside.kind, beside.chosen and beside.chosen.model) == (Kind.SERVE, "other")


def test_who_may_not_ask_a_model_hears_no_more_of_it_than_of_one_that_is_not_there() -> None:
    rows = [candidate(A, name="letters", zones=("law", "hr"), context_tokens=9_999), candidate(B)]
    there, gone = (choose(query(model=name), ME, rows) for name in ("letters", "lettres"))
    assert there.reason is gone.reason is Reason.MODEL_NOT_FOUND
    assert there.detail.replace("letters", "lettres") == gone.detail
    assert "9999" not in choose(query(prompt_tokens=5_000), ME, rows).detail


def test_a_skill_that_counts_for_nothing_makes_no_other_doubtful() -> None:
    """The nearest of all was of a model that answers in another zone alone: the right one fell behind."""
    law = candidate(A, Skill("law", direction(0.9), 1.0), name="plain")
    general = candidate(C, Skill(GENERAL, None, 0.6), name="general")
    for of in ("letters", ""):
        skill = Skill("letters", direction(1.0), 1.0, model=of)
        letters = candidate(B, skill, name="letters", zones=("hr",))
        chosen = choose(ABOUT, ME, [law, letters, general]).chosen
        assert chosen is not None
        assert (chosen.model, chosen.quality) == ("plain", pytest.approx(1.0))


def test_what_a_model_of_a_zone_is_good_at_counts_nowhere_else() -> None:
    law = Skill("law", direction(1.0), 1.0, model="letters")
    both = replace(MODEL, name="letters", zones=("hr",)), MODEL
    able = Capability("s", (law, Skill("law", direction(1.0), 0.3, model=MODEL.name)), both, (GENERAL, "hr"))
    it = Candidate(ME, "me", able, Backlog(), 0.0, ME)
    chosen = {zone: choose(replace(ABOUT, zone=zone), ME, [it]).chosen for zone in (GENERAL, "hr")}
    named = {zone: (row.model, row.quality) for zone, row in chosen.items() if row is not None}
    assert named == {GENERAL: (MODEL.name, pytest.approx(0.3)), "hr": ("letters", pytest.approx(1.0))}


def test_an_estimate_turns_nobody_away_that_might_fit() -> None:
    asked = query(text="x" * 16_000)  # 4 000 tokens at 4 bytes each, but 2 000 at 8
    assert choose(asked, ME, [candidate(ME)]).kind is Kind.SERVE


@pytest.mark.parametrize(("model", "reason"), [("auto", Reason.NO_ROUTE), ("large", Reason.MODEL_NOT_FOUND)])
def test_where_nobody_serves_anything_the_reason_says_what_was_missing(model: str, reason: Reason) -> None:
    empty = Candidate(ME, "me", Capability(), Backlog(), 0.0, ME)
    assert choose(query(model=model), ME, [empty]).reason is reason


def test_too_long_names_the_longest_context_within_reach() -> None:
    rows = [candidate(ME), candidate(A, context_tokens=4_096), candidate(B, context_tokens=9_999, name="x")]
    decision = choose(query(prompt_tokens=5_000, model="small"), ME, rows)
    assert "5000" in decision.detail
    assert "4096" in decision.detail


# -- the choice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("busy_s", "kind"), [(0.0, Kind.SERVE), (0.3, Kind.SERVE), (0.6, Kind.FORWARD)])
def test_a_query_is_passed_on_only_for_a_clear_gain(busy_s: float, kind: Kind) -> None:
    assert choose(ONWARD, ME, [candidate(ME, wait_s=busy_s), candidate(A)]).kind is kind


@pytest.mark.parametrize(("busy_s", "kind"), [(0.0, Kind.SERVE), (0.01, Kind.FORWARD)])
def test_where_it_was_asked_the_best_is_taken_for_any_gain_and_this_peer_among_equals(
    busy_s: float, kind: Kind
) -> None:
    assert choose(ABOUT, ME, [candidate(ME, wait_s=busy_s), candidate(A)]).kind is kind
    hurried = replace(ABOUT, budget_s=0.01)
    assert choose(hurried, ME, [candidate(ME, wait_s=busy_s), candidate(A)]).kind is kind


def test_who_is_on_the_way_to_the_chosen_passes_it_on_whatever_it_could_do_itself() -> None:
    bound = replace(ONWARD, target=B)
    rows = [candidate(ME), candidate(A), candidate(B, wait_s=50.0)]
    decision = choose(bound, ME, rows)
    assert (decision.kind, decision.chosen and decision.chosen.peer) == (Kind.FORWARD, B)


@pytest.mark.parametrize("changes", [{"hops_left": 0}, {"target": PeerId("unknown here")}])
def test_who_cannot_pass_it_on_to_the_chosen_decides_anew(changes: dict[str, object]) -> None:
    lost = replace(ONWARD, **{"target": B, **changes})  # type: ignore[arg-type]
    assert choose(lost, ME, [candidate(ME), candidate(B, wait_s=50.0)]).kind is Kind.SERVE


def test_the_chosen_passes_it_on_to_nobody_whose_load_it_does_not_know() -> None:
    rows = [candidate(ME, wait_s=9.0), candidate(A, wait_s=None), candidate(B, wait_s=1.0)]
    assert choose(ONWARD, ME, rows).chosen.peer == B  # type: ignore[union-attr]
    assert choose(ONWARD, ME, rows[:2]).kind is Kind.SERVE
    assert choose(ONWARD, ME, rows[1:2]).kind is Kind.FORWARD  # where there is no other


def test_a_better_answer_is_worth_a_wait() -> None:
    expert = candidate(A, Skill("mine", direction(0.9), 0.8), wait_s=5.0)
    decision = choose(ABOUT, ME, [candidate(ME), expert])
    assert decision.kind is Kind.FORWARD
    assert decision.explain() == "to peer a: mine quality 0.80, 5.2 s"


def test_who_is_in_time_goes_before_who_is_better() -> None:
    expert = candidate(A, Skill("mine", direction(0.9), 0.8), wait_s=5.0)
    decision = choose(replace(ABOUT, budget_s=2.0), ME, [candidate(ME), expert])
    assert decision.kind is Kind.SERVE


def test_where_nobody_is_in_time_time_alone_counts_but_still_takes_a_clear_gain() -> None:
    hurried = replace(ONWARD, budget_s=0.01)
    expert = candidate(A, Skill("mine", direction(0.9), 0.8), wait_s=5.0)
    assert choose(hurried, ME, [candidate(B), expert]).chosen.peer == B  # type: ignore[union-attr]
    assert choose(hurried, ME, [candidate(ME, wait_s=0.1), candidate(A)]).kind is Kind.SERVE
    assert choose(hurried, ME, [candidate(ME, wait_s=9.0), candidate(A)]).kind is Kind.FORWARD


def test_what_could_be_in_time_but_for_the_queues_is_refused_with_when_it_could() -> None:
    hurried = replace(ABOUT, budget_s=2.0)
    decision = choose(hurried, ME, [candidate(ME, wait_s=5.0), candidate(A, wait_s=4.0)])
    assert (decision.kind, decision.reason) == (Kind.REFUSE, Reason.OVERLOADED)
    least = min(row.time_s + 0.15 * row.wait_s for row in decision.table)
    assert decision.retry_after_s == pytest.approx(least - 2.0)
    assert 2.0 < least - 2.0 < 4.0
    assert "2.0 s" in decision.detail


def test_a_wait_may_turn_out_longer_and_work_may_not() -> None:
    """Who takes what is late by a little serves nobody in time once every queue is as long as that."""
    [idle] = score(ABOUT, [candidate(A)])
    brink = replace(ABOUT, budget_s=idle.time_s + 1.0)
    assert choose(brink, ME, [candidate(A, wait_s=0.85)]).kind is Kind.FORWARD
    assert choose(brink, ME, [candidate(A, wait_s=0.95)]).reason is Reason.OVERLOADED
    assert choose(replace(brink, budget_s=idle.time_s), ME, [candidate(A)]).kind is Kind.FORWARD
    begun = replace(brink, accepted=Accepted((1,), "one", 1))
    assert choose(begun, ME, [candidate(A, wait_s=0.95)]).kind is Kind.FORWARD


def test_what_nobody_could_do_in_time_even_if_idle_is_tried_by_the_fastest() -> None:
    hurried = replace(ABOUT, budget_s=0.01)
    assert choose(hurried, ME, [candidate(ME, wait_s=5.0), candidate(A, wait_s=4.0)]).chosen is not None


def test_an_answer_that_has_begun_is_gone_on_with_however_busy_all_are() -> None:
    begun = replace(ABOUT, budget_s=2.0, accepted=Accepted((1, 2), "a b", 2, MODEL.digest))
    assert choose(begun, ME, [candidate(A, wait_s=4.0)]).kind is Kind.FORWARD


def test_who_is_late_here_and_in_time_elsewhere_goes_elsewhere_for_any_gain() -> None:
    rows = [candidate(ME, wait_s=0.1), candidate(A)]
    assert choose(replace(ONWARD, budget_s=0.2), ME, rows).kind is Kind.FORWARD


def test_an_answer_is_gone_on_with_by_the_same_model_wherever_it_is() -> None:
    broken = replace(ONWARD, accepted=Accepted((1, 2), "a b", 2, MODEL.digest))
    rows = [candidate(ME, digest="11" * 32), candidate(A, wait_s=3.0)]
    decision = choose(broken, ME, rows)
    assert (decision.kind, decision.chosen and decision.chosen.peer) == (Kind.FORWARD, A)
    assert choose(broken, ME, [candidate(ME, wait_s=3.0), candidate(A, digest="11" * 32)]).kind is Kind.SERVE
    mixed = replace(broken, accepted=Accepted((1, 2), "a b", 2))  # of no one model: time and quality decide
    assert choose(mixed, ME, rows).kind is Kind.SERVE


def test_who_is_in_time_goes_before_the_same_model() -> None:
    broken = replace(ABOUT, budget_s=2.0, accepted=Accepted((1, 2), "a b", 2, MODEL.digest))
    assert choose(broken, ME, [candidate(ME, digest="11" * 32), candidate(A, wait_s=3.0)]).kind is Kind.SERVE


def test_without_hops_left_it_is_served_here_or_nowhere() -> None:
    tired = replace(ABOUT, hops_left=0)
    rows = [candidate(ME, wait_s=50.0), candidate(A)]
    assert choose(tired, ME, rows).kind is Kind.SERVE
    decision = choose(tired, ME, rows[1:])
    assert (decision.kind, decision.detail) == (Kind.REFUSE, "no hops left")


def test_equals_are_told_apart_by_their_ids() -> None:
    assert [row.peer for row in score(ABOUT, [candidate(B), candidate(A)])] == [A, B]


@pytest.mark.parametrize(
    ("why_not", "line"), [(None, "code quality 0.50, 3.0 s"), (Reason.TOO_LONG, "m: context_length_exceeded")]
)
def test_each_row_explains_itself(why_not: Reason | None, line: str) -> None:
    row = Scored(A, "a", "m", A, "code", 0.5, 1.0, 1.5, 0.5, 9.0, why_not=why_not)
    assert row.explain() == line


# -- what it holds, and how fast it was of late ---------------------------------------------------------

SAID = query(text="x" * 4_000)
"""1 000 tokens: a second to read."""
HELD = (salted(SAID.prefixes[-1][0], "small"),)


def test_what_a_peer_holds_of_the_prompt_it_need_not_read_and_says_so() -> None:
    [with_it, without] = score(SAID, [candidate(A, wait_s=0.0)._replace(held=HELD), candidate(B)])
    assert (with_it.peer, with_it.held, without.held) == (A, 1_000, 0)
    assert without.work_s - with_it.work_s == without.j_s - with_it.j_s == pytest.approx(1.0)
    assert with_it.explain() == "general quality 0.50, 0.1 s, holds 1000 tokens"
    assert "holds" not in without.explain()


def test_a_model_of_another_name_does_not_hold_it() -> None:
    [row] = score(SAID, [candidate(A, name="large")._replace(held=HELD)])
    assert row.held == 0


@pytest.mark.parametrize(("busy_s", "goes_to"), [(0.3, A), (3.0, B)])
def test_a_conversation_returns_unless_the_wait_outweighs_what_is_saved(
    busy_s: float, goes_to: PeerId
) -> None:
    holder = candidate(A, wait_s=busy_s)._replace(held=HELD)
    assert choose(SAID, ME, [holder, candidate(B)]).chosen.peer == goes_to  # type: ignore[union-attr]


def test_a_peer_at_a_fifth_of_its_speed_needs_five_times_as_long_and_says_so() -> None:
    [well, ill] = score(SAID, [candidate(A), candidate(B)._replace(pace=0.2)])
    assert (well.peer, ill.peer) == (A, B)
    assert ill.work_s == pytest.approx(5.0 * well.work_s)
    assert (well.wait_s, ill.wait_s) == (0.0, 0.0)
    assert ill.explain() == "general quality 0.50, 5.4 s, at 0.20 of its speed"


def test_what_it_has_to_do_reckons_with_its_pace_already() -> None:
    [ill] = score(SAID, [candidate(A, wait_s=4.0)._replace(pace=0.5)])
    work = ill.work_s
    assert ill.wait_s + work == pytest.approx(Backlog((4.0,)).finish_s(work))
