"""When a query goes wrong downstream: who is blamed, who is spared, and how many retries there are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.messages import Line
from p2pmesh.protocol.recovery import MODEL_PATIENCE_S, RETRY_SHARE, ROUTE_PATIENCE_S, RetryBudget
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Options, Query, Resume, Usage
from p2pmesh.record import PeerId, Version
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, C, of, query, receipted, sent, signed

SLOW = replace(MODEL, decode_tps=1.0)
"""Nobody sends it a query that the other can take."""


class Asker(Bench):
    """A peer without a model that asks one query after the other, of `A`, which is fast, and of `B`."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(UNABLE, config)
        self.link(A)
        self.link(B, capability=replace(UNABLE, models=(SLOW,)))
        self.number = 0

    def next(self, **changes: object) -> tuple[Query, PeerId, list[e.Effect]]:
        """Ask; return the query, who got it, and all that happened."""
        self.number += 1
        asked = query(self.number, origin=self.machine.me, **changes)
        effects = self.ask(asked)
        return asked, self.target(effects), effects

    def target(self, effects: list[e.Effect]) -> PeerId:
        """Return who is sent a query."""
        [peer] = [s.peer for s in of(effects, e.Send) if isinstance(s.message, m.Forward)]
        return peer

    def refuse(self, asked: Query, peer: PeerId, reason: Reason) -> list[e.Effect]:
        """Let `peer` refuse it."""
        return self.say(peer, m.Refuse(asked.id, asked.attempt, reason, "because", 2.0))

    def serve(self, asked: Query, peer: PeerId) -> list[e.Effect]:
        """Let `peer` answer it."""
        path = (*asked.path, Hop(self.machine.me, "me", ""), Hop(peer, "it", ""))
        self.say(peer, m.Accept(asked.id, 0, True, 0.1, path, MODEL.digest))
        self.say(peer, m.Tokens(Chunk(asked.id, 0, 0, (1,), "one")))
        ended = Ended(Usage(1, 1), "stop", "small", MODEL.digest, path)
        return self.say(peer, m.End(asked.id, 0, 1, receipted(asked, ended, "one")))

    def fails_at_a(self, times: int) -> None:
        """`A` fails fast, so often; `B` serves each."""
        for _ in range(times):
            asked, peer, _ = self.next()
            assert peer == A
            self.now += 0.1
            assert self.target(self.refuse(asked, A, Reason.ENGINE_FAILED)) == B
            assert of(self.serve(asked, B), e.Deliver)


def test_who_fails_three_times_in_a_row_gets_no_queries_for_a_while() -> None:
    bench = Asker()
    bench.fails_at_a(3)
    asked, peer, _ = bench.next()
    assert peer == B
    bench.serve(asked, B)


def test_it_is_tried_again_with_one_query_and_is_back_when_it_serves() -> None:
    bench = Asker()
    bench.fails_at_a(3)
    bench.wait(5.5)
    bench.link(B, capability=replace(UNABLE, models=(SLOW,)))
    trial, peer, _ = bench.next()
    assert peer == A
    assert bench.next()[1] == B
    bench.serve(trial, A)
    assert bench.next()[1] == A


def test_one_that_fails_is_better_than_none() -> None:
    bench = Asker()
    bench.fails_at_a(3)
    bench.handle(e.Disconnected(B))
    assert bench.next()[1] == A


def test_who_fails_now_and_then_is_worth_less_than_who_does_not() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B)
    asked = query(1, origin=bench.machine.me)
    bench.ask(asked)
    row = {r.peer: r.quality for r in bench.machine.explain(query(2)).table}
    assert row[A] == row[B]
    bench.say(A, m.Refuse(asked.id, 0, Reason.ENGINE_FAILED, "it crashed"))
    row = {r.peer: r.quality for r in bench.machine.explain(query(2)).table}
    assert row[A] == pytest.approx(0.8 * row[B])


def test_a_query_that_ends_badly_at_a_relay_is_held_against_who_served_it() -> None:
    bench = Asker()
    asked, _, _ = bench.next()
    far = PeerId("far")
    path = (Hop(bench.machine.me, "me", ""), Hop(A, "a", ""), Hop(far, "far", ""))
    bench.say(A, m.Accept(asked.id, 0, True, 0.1, path, MODEL.digest))
    bench.refuse(asked, A, Reason.ENGINE_FAILED)
    assert bench.machine.relay._breakers.success(far, bench.now) < 1.0
    assert bench.machine.relay._breakers.success(A, bench.now) == 1.0


def test_who_served_it_before_is_not_blamed_for_who_serves_it_now() -> None:
    bench = Asker()
    asked, _, _ = bench.next()
    path = (Hop(bench.machine.me, "me", ""), Hop(A, "a", ""))
    bench.say(A, m.Accept(asked.id, 0, True, 0.1, path, MODEL.digest))
    assert bench.target(bench.refuse(asked, A, Reason.OVERLOADED)) == B
    bench.refuse(asked, B, Reason.ENGINE_FAILED)
    assert bench.machine._breakers.success(B, bench.now) < 1.0
    assert bench.machine._breakers.success(A, bench.now) == 1.0


def test_a_death_counts_once_however_many_queries_die_with_it() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    for number in range(5):
        bench.ask(query(number, origin=bench.machine.me))
    bench.handle(e.Disconnected(A))
    assert not bench.machine.relay._breakers.open(bench.now)


# -- nobody can take it, for a moment -----------------------------------------------------------------


def test_a_query_that_was_lost_waits_for_a_new_link() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    bench.ask()
    bench.say(A, m.Tokens(Chunk(query().id, 0, 0, (1,), "one")))
    assert not of(bench.handle(e.Disconnected(A)), e.Fail)
    assert not sent(bench.wait(0.6), m.Forward)
    bench.link(B)
    [forward] = sent(bench.wait(0.3), m.Forward, B)
    assert forward.query.attempt == 1
    assert forward.query.accepted == Accepted((1,), "one", 1)


def test_one_that_came_back_is_asked_again_if_there_is_nobody_else() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    bench.ask()
    bench.handle(e.Disconnected(A))
    bench.link(A)
    assert sent(bench.wait(0.3), m.Forward, A)


def test_it_waits_no_longer_than_its_patience_however_often_somebody_comes_and_goes() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    bench.ask()
    failed = of(bench.handle(e.Disconnected(A)), e.Fail)
    began, forwards = bench.now, 0
    while not failed:
        bench.link(A)
        effects = bench.wait(0.3)
        forwards += len(sent(effects, m.Forward))
        failed = of([*effects, *bench.handle(e.Disconnected(A))], e.Fail)
    assert failed[0].reason is Reason.NO_ROUTE
    assert forwards > 2
    assert bench.now - began <= ROUTE_PATIENCE_S + 0.5


def test_where_the_only_model_crashed_the_answer_goes_on_when_it_is_back() -> None:
    bench = Bench()
    [generate] = of(bench.ask(query(origin=ME)), e.Generate)
    bench.handle(e.Generated(generate.query.id, 0, (1,), "one"))
    bench.handle(e.Described(replace(ABLE, models=(replace(MODEL, slots=0),)), ()))
    effects = bench.handle(e.Failed(generate.query.id, 0, Reason.ENGINE_FAILED, "it crashed"))
    assert not of([*effects, *bench.wait(3.0)], e.Fail)
    assert not of(bench.ask(query(2, origin=ME)), e.Fail)
    bench.handle(e.Described(ABLE, ()))
    again, new = of(bench.wait(0.3), e.Generate)
    assert (again.query.id, again.query.accepted) == (
        generate.query.id,
        Accepted((1,), "one", 1, MODEL.digest),
    )
    assert (new.query.id, new.query.accepted) == (query(2).id, None)


def test_a_model_that_does_not_come_back_is_not_waited_for_for_ever() -> None:
    bench = Bench(replace(ABLE, models=(replace(MODEL, slots=0),)))
    assert not of(bench.ask(query(origin=ME)), e.Fail)
    assert not of(bench.wait(MODEL_PATIENCE_S - 0.5), e.Fail)
    [fail] = of(bench.wait(1.0), e.Fail)
    assert fail.reason is Reason.ENGINE_FAILED


def test_a_stranded_query_can_be_cancelled_and_runs_out_of_time() -> None:
    bench = Bench(replace(ABLE, models=(replace(MODEL, slots=0),)))
    bench.ask(query(1, origin=ME))
    bench.ask(query(2, origin=ME, budget_s=1.0))
    bench.handle(e.Cancelled(query(1).id))
    [fail] = of(bench.wait(20.0), e.Fail)
    assert (fail.query_id, fail.reason) == (query(2).id, Reason.DEADLINE)


def test_one_that_comes_at_the_last_moment_is_taken_and_else_it_is_said_why() -> None:
    """It ended in an error without a word, though somebody could have served it."""
    bench = Bench(replace(ABLE, models=(replace(MODEL, slots=0),)))
    bench.ask(query(origin=ME))
    bench.wait(MODEL_PATIENCE_S - 0.01)
    bench.handle(e.Described(ABLE, ()))
    assert of(bench.wait(0.3), e.Generate)
    lost = Bench(UNABLE)
    lost.link(A)
    lost.ask()
    lost.handle(e.Disconnected(A))
    lost.wait(0.9)
    [fail] = of(lost.wait(0.5), e.Fail)
    assert fail.detail


def test_who_relays_keeps_nothing() -> None:
    """The origin knows more ways than he does, and waits himself."""
    bench = Bench(UNABLE)
    bench.link(A, B)
    bench.link(C, capability=UNABLE)
    bench.say(C, m.Forward(query(origin=C, path=(Hop(C, "c", ""),))))
    bench.handle(e.Disconnected(A))
    assert sent(bench.handle(e.Disconnected(B)), m.Refuse, C)


def test_who_asks_when_the_only_way_is_gone_waits_for_another() -> None:
    """It was refused in the moment in which ways were asked for (kills of relays, one query of 914)."""
    bench = Bench(UNABLE)
    bench.link(A, B, capability=UNABLE)
    bench.say(A, m.Records((signed(C),)))
    bench.say(A, m.Announce((Line(C, Version(1, 1), 1),)))
    bench.handle(e.Disconnected(A))
    effects = bench.ask()
    assert not of(effects, e.Fail)
    bench.say(B, m.Announce((Line(C, Version(1, 1), 1),)))
    assert sent(bench.wait(0.3), m.Forward, B)


def test_who_asks_for_what_no_lost_peer_has_is_told_so_at_once() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B, capability=UNABLE)
    bench.say(A, m.Records((signed(C),)))
    bench.say(A, m.Announce((Line(C, Version(1, 1), 1),)))
    bench.handle(e.Disconnected(A))
    assert of(bench.ask(query(origin=ME, model="tpyo")), e.Fail)


def test_a_peer_that_drains_and_goes_is_not_waited_for_as_a_model_that_crashed() -> None:
    bench = Bench(UNABLE)
    drains = replace(ABLE, models=(replace(MODEL, slots=0),))
    bench.link(A, capability=drains)
    assert not of(bench.ask(), e.Fail)
    bench.say(A, m.Leave(Version(1, 1)))
    bench.handle(e.Disconnected(A))
    assert of(bench.wait(ROUTE_PATIENCE_S), e.Fail)


def test_with_the_attempts_spent_nothing_is_waited_for() -> None:
    bench = Bench(UNABLE, Config(relay=Relay(attempts_max=2)))
    bench.link(A)
    bench.ask()
    bench.handle(e.Disconnected(A))
    bench.link(B)
    assert sent(bench.wait(0.3), m.Forward, B)
    assert of(bench.handle(e.Disconnected(B)), e.Fail)


def test_what_was_never_sent_needs_no_new_attempt() -> None:
    bench = Bench(replace(ABLE, models=(replace(MODEL, slots=0),)), Config(relay=Relay(attempts_max=2)))
    bench.ask(query(origin=ME))
    bench.handle(e.Described(ABLE, ()))
    [generate] = of(bench.wait(0.3), e.Generate)
    assert generate.query.attempt == 0


def test_a_forged_newer_attempt_ends_no_answer() -> None:
    bench = Bench()
    bench.link(A, B, capability=UNABLE)
    bench.say(A, m.Forward(query(origin=A)))
    effects = bench.say(B, m.Forward(query(origin=B, attempt=9)))
    assert not of(effects, e.Abort)
    effects = bench.say(B, m.Forward(query(origin=A, attempt=9)))
    assert [refusal.reason for refusal in sent(effects, m.Refuse, A)] == [Reason.PEER_LOST]


def test_pieces_of_a_writer_that_nobody_named_are_not_taken_for_the_former_ones() -> None:
    """Tokens mean something else to another model."""
    bench = Asker()
    asked, first, _ = bench.next()
    path = (Hop(bench.machine.me, "me", ""), Hop(first, "it", ""))
    bench.say(first, m.Accept(asked.id, 0, True, 0.1, path, MODEL.digest))
    bench.say(first, m.Tokens(Chunk(asked.id, 0, 0, (1,), "one ")))
    second = bench.target(bench.handle(e.Disconnected(first)))
    bench.say(second, m.Tokens(Chunk(asked.id, 1, 1, (77,), "two ")))
    bench.link(C)
    [forward] = sent(bench.handle(e.Disconnected(second)), m.Forward, C)
    assert forward.query.accepted == Accepted((1, 77), "one two ", 2, "")


def test_who_never_had_anybody_is_told_so_at_once() -> None:
    assert of(Bench(UNABLE).ask(), e.Fail)


# -- the budget of retries ----------------------------------------------------------------------------


def test_there_is_one_retry_for_twenty_queries() -> None:
    budget = RetryBudget()
    while budget.spend(0.0):
        pass
    allowed = 0
    for _ in range(1_000):
        budget.earn()
        allowed += budget.spend(0.0)
    assert allowed == pytest.approx(1_000 * RETRY_SHARE, abs=1)


def test_there_are_a_few_after_a_while_whatever_came() -> None:
    budget = RetryBudget()
    assert sum(budget.spend(0.0) for _ in range(100)) == 16
    assert sum(budget.spend(10.0) for _ in range(100)) == 5
    assert sum(budget.spend(1_000.0) for _ in range(100)) == 16


def test_where_all_are_busy_not_each_of_them_is_asked() -> None:
    bench, passed_on = Asker(), 0
    for _ in range(60):
        asked, peer, _ = bench.next()
        effects = bench.refuse(asked, peer, Reason.OVERLOADED)
        forwards = sent(effects, m.Forward)
        if forwards:
            passed_on += 1
            effects = bench.refuse(asked, bench.target(effects), Reason.OVERLOADED)
        [fail] = of(effects, e.Fail)
        assert (fail.reason, fail.retry_after_s) == (Reason.OVERLOADED, 2.0)
    assert 0 < passed_on < 20
    assert 16 <= bench.machine.relay.retries <= 16 + 60 * RETRY_SHARE + 1


def test_who_is_slow_to_accept_is_waited_for_when_too_many_were() -> None:
    bench = Asker()
    while bench.machine.relay._recovery.budget.spend(bench.now):
        pass
    asked, peer, _ = bench.next()
    effects = bench.wait(0.9)
    assert not sent(effects, m.Forward)
    assert of(bench.serve(asked, peer), e.Deliver)


def test_a_full_queue_upstream_is_told_when_to_come_back() -> None:
    """Also where it was this peer's own retries that were spent."""
    bench = Asker()
    while bench.machine.relay._recovery.budget.spend(bench.now):
        pass
    came = query(77, origin=PeerId("z"), path=(Hop(PeerId("z"), "z", ""),))
    bench.link(PeerId("z"), capability=UNABLE)
    effects = bench.say(PeerId("z"), m.Forward(came))
    effects = bench.say(bench.target(effects), m.Refuse(came.id, 0, Reason.OVERLOADED, "full", 3.0))
    [refusal] = sent(effects, m.Refuse, PeerId("z"))
    assert (refusal.reason, refusal.retry_after_s) == (Reason.OVERLOADED, 3.0)


# -- one that comes too slowly ------------------------------------------------------------------------


def trickling(
    gap_s: float, other: object = MODEL, pieces: int = 12, **changes: object
) -> tuple[Bench, PeerId, PeerId, list[e.Effect]]:
    """Ask one of two peers, whose pieces come every `gap_s`; return who that was, who is the other, and all
    that happened."""
    bench = Bench(UNABLE)
    bench.link(A)
    asked = query(1, origin=ME, options=Options(max_tokens=200), budget_s=600.0, **changes)
    bench.ask(asked)
    if other is not None:
        bench.link(B, capability=replace(UNABLE, models=(other,)))  # type: ignore[arg-type]
    path = (Hop(ME, "me", ""), Hop(A, "a", ""))
    effects = bench.say(A, m.Accept(asked.id, 0, True, 0.1, path, MODEL.digest))
    for index in range(pieces):
        bench.now += gap_s
        effects += bench.say(A, m.Tokens(Chunk(asked.id, 0, index, (index,), f"{index} ")))
    return bench, A, B, effects


def test_an_answer_that_trickles_goes_on_where_it_is_whole_sooner() -> None:
    bench, slow, other, effects = trickling(0.5)
    [forward] = sent(effects, m.Forward, other)
    assert sent(effects, m.Cancel, slow) == [m.Cancel(query(1).id, 0)]
    assert (forward.query.attempt, forward.query.excluded) == (1, (slow,))
    assert forward.query.accepted == Accepted((0, 1, 2), "0 1 2 ", 3, MODEL.digest)
    assert bench.machine._breakers.success(slow, bench.now) < 1.0


def test_it_moves_once() -> None:
    bench, slow, other, _ = trickling(0.5, pieces=3)
    bench.wait(0.0)
    path = (Hop(ME, "me", ""), Hop(other, "b", ""))
    bench.say(other, m.Accept(query(1).id, 1, True, 0.1, path, MODEL.digest))
    bench.link(C)
    effects = []
    for index in range(3, 12):
        bench.now += 0.5
        effects += bench.say(other, m.Tokens(Chunk(query(1).id, 1, index, (index,), f"{index} ")))
    assert len(of(effects, e.Deliver)) == 9
    assert not sent(effects, m.Forward)
    assert slow == A


@pytest.mark.parametrize(
    ("gap_s", "other", "changes"),
    [
        (0.02, MODEL, {}),
        (0.5, None, {}),
        (0.5, replace(MODEL, digest="11" * 32), {}),
        (0.5, replace(MODEL, decode_tps=3.0), {}),
        (0.5, MODEL, {"resume": Resume.NEVER}),
    ],
    ids=["fast", "nobody else", "another model", "no sooner there", "it must not be resumed"],
)
def test_an_answer_stays_where_moving_it_is_no_gain_or_may_not_be(
    gap_s: float, other: object, changes: dict[str, object]
) -> None:
    _, _, _, effects = trickling(gap_s, other, pieces=100, **changes)
    assert len(of(effects, e.Deliver)) == 101
    assert not sent(effects, m.Forward)


def test_answers_move_no_oftener_than_retries_may() -> None:
    bench, _, _, _ = trickling(0.5, pieces=2)
    while bench.machine.relay._recovery.budget.spend(bench.now):
        pass
    effects = bench.say(A, m.Tokens(Chunk(query(1).id, 0, 2, (2,), "2 ")))
    assert not sent(effects, m.Forward)
    assert len(of(effects, e.Deliver)) == 1


def test_an_answer_too_long_to_be_resumed_stays() -> None:
    bench, _, _, _ = trickling(0.5, pieces=2)
    long = "x" * bench.config.limits.accepted_bytes_max
    effects = bench.say(A, m.Tokens(Chunk(query(1).id, 0, 2, (2,), long)))
    assert not sent(effects, m.Forward)
    assert not of(effects, e.Fail)


def test_at_a_relay_nothing_moves() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B, C)
    bench.say(C, m.Forward(query(1, origin=C, options=Options(max_tokens=200), path=(Hop(C, "c", ""),))))
    [to] = [flight.downstream for flight in bench.machine.relay.flights]
    assert to is not None
    effects = []
    for index in range(12):
        bench.now += 0.5
        effects += bench.say(to, m.Tokens(Chunk(query(1).id, 0, index, (index,), "x ")))
    assert len(sent(effects, m.Tokens, C)) == 12
