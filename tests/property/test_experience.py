"""The estimate is a probability, merging is a join, nobody vouches for itself, and all of it is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pmesh.protocol.experience import Experience, Learning, Report, Row
from p2pmesh.record import PeerId
from tests.machines import ME

PEERS = [ME, *(PeerId(f"p{i}") for i in range(5))]
TOPICS = ["general", "maths", "law"]
TIGHT = Learning(own_rows_max=4, reporters_max=2, reporter_rows_max=3, judged_max=2, report_rows_max=2)

peers = st.sampled_from(PEERS)
topics = st.sampled_from(TOPICS)
shares = st.floats(0.0, 1.0)


def _row(peer: PeerId, topic: str, born: int, trials: int, mean: float) -> Row:
    return Row(peer, topic, born, trials, min(float(trials), trials * mean))


rows = st.builds(_row, peers, topics, st.integers(0, 3), st.integers(0, 2**32), shares)
reports = st.builds(Report, st.integers(1, 3), st.lists(rows, max_size=6).map(tuple))
said = st.lists(st.tuples(peers, reports), max_size=8)


def listening(*told: tuple[PeerId, Report]) -> Experience:
    mind = Experience(ME, 1)
    for reporter, report in told:
        mind.heard(reporter, report)
    return mind


def held(mind: Experience) -> list[list[Row]]:
    """Return all that is known, without its order: that is of use only to the bounds."""
    return [sorted(mind.rows(peer)) for peer in PEERS]


def same(one: Experience, other: Experience) -> bool:
    """Return whether two minds hold the same, and hence think the same."""
    thoughts = [
        [mind.quality(peer, topic, 0.5) for peer in PEERS for topic in TOPICS] for mind in (one, other)
    ]
    return held(one) == held(other) and thoughts[0] == pytest.approx(thoughts[1])


@given(said, st.randoms(use_true_random=False))
def test_reports_may_come_in_any_order(told, rng):
    shuffled = list(told)
    rng.shuffle(shuffled)
    assert same(listening(*told), listening(*shuffled))


@given(said, said)
def test_reports_may_come_twice(told, more):
    once = listening(*told, *more)
    assert same(once, listening(*told, *more, *told))


@given(peers, reports, reports, reports)
def test_reports_may_be_bundled_in_any_way(reporter, a, b, c):
    """(a + b) + c == a + (b + c): what two relays hold of a reporter adds up whichever met first."""
    a, b, c = (Report(1, report.rows) for report in (a, b, c))

    def bundle(*parts: Report) -> Report:
        return Report(1, listening(*((reporter, part) for part in parts)).rows(reporter))

    left = listening((reporter, bundle(bundle(a, b), c)))
    right = listening((reporter, bundle(a, bundle(b, c))))
    assert same(left, right)
    assert same(left, listening((reporter, a), (reporter, b), (reporter, c)))


@given(said, said, topics, shares)
def test_what_a_peer_says_of_itself_changes_nothing(told, vain, topic, claim):
    without = listening(*told)
    # Epochs tell that the reporter began anew, which is true of whoever says so: only the rows are vain.
    boast = [
        (p, Report(1, tuple(_row(p, topic, 9, r.trials, 1.0) for r in report.rows))) for p, report in vain
    ]
    boasted = listening(*told, *boast)
    assert held(without) == held(boasted)
    for peer in PEERS:
        assert boasted.quality(peer, topic, claim) == pytest.approx(without.quality(peer, topic, claim))


@given(said, topics, shares, shares)
def test_a_better_claim_never_hurts(told, topic, one, other):
    mind = listening(*told)
    for peer in PEERS:
        low, high = (mind.quality(peer, topic, claim) for claim in sorted((one, other)))
        assert low <= high


@given(said, st.lists(st.tuples(peers, topics, shares, shares), max_size=12))
def test_what_is_remembered_is_what_would_be_worked_out(told, seen):
    """The estimates asked for on the way leave no trace in those asked for at the end."""
    asked, quiet = listening(*told), listening(*told)
    for peer, topic, outcome, claim in seen:
        same(asked, asked)
        for mind in (asked, quiet):
            mind.observed(peer, topic, outcome, claim)
    assert same(asked, quiet)


class Life(RuleBasedStateMachine):
    """Anything may happen, in any order, in a mind with little room."""

    def __init__(self) -> None:
        super().__init__()
        self.mind = Experience(ME, 1, TIGHT)

    @rule(peer=peers, topic=topics, outcome=shares, claim=shares)
    def observe(self, peer: PeerId, topic: str, outcome: float, claim: float) -> None:
        self.mind.observed(peer, topic, outcome, claim)

    @rule(reporter=peers, report=reports)
    def hear(self, reporter: PeerId, report: Report) -> None:
        self.mind.heard(reporter, report)

    @rule(peer=peers)
    def forget(self, peer: PeerId) -> None:
        self.mind.forget(peer)
        assert all(row.peer != peer for reporter in PEERS for row in self.mind.rows(reporter))

    @rule(since=st.integers(0, 20))
    def tell(self, since: int) -> None:
        report, until = self.mind.report(since)
        assert len(report.rows) <= TIGHT.report_rows_max
        assert all(row.peer != ME for row in report.rows)
        assert until > since if report.rows else until == since

    @invariant()
    def every_estimate_is_a_probability(self) -> None:
        for peer in PEERS:
            for topic in TOPICS:
                for claim in (0.0, 0.95, 1.0):
                    assert 0.0 < self.mind.quality(peer, topic, claim) < 1.0
            assert TIGHT.weight_min <= self.mind.weight(peer) <= 1.0
            assert TIGHT.weight_min <= self.mind.honesty(peer) <= 1.0

    @invariant()
    def everything_is_bounded(self) -> None:
        others = [self.mind.rows(peer) for peer in PEERS if peer != ME]
        assert len(self.mind.rows(ME)) <= TIGHT.own_rows_max
        assert sum(1 for rows in others if rows) <= TIGHT.reporters_max
        assert all(len(rows) <= TIGHT.reporter_rows_max for rows in others)
        mind = vars(self.mind)
        assert max(len(mind["_weights"]), len(mind["_honesty"])) <= TIGHT.judged_max
        assert len(mind["_reporters"]) <= TIGHT.reporters_max
        assert len(mind["_told"]) <= sum(map(len, others))
        assert set(mind["_evidence"]) <= {*mind["_told"], *mind["_own"]}

    @invariant()
    def nobody_vouches_for_itself(self) -> None:
        assert all(row.peer != peer for peer in PEERS if peer != ME for row in self.mind.rows(peer))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=50, stateful_step_count=30)
