"""A peer that is about to go: what it is asked, what waits and what runs there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Hop, Options, Query, QueryId, Usage
from p2pmesh.record import Load, PeerId
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, of, query, sent, signed

LONG = Options(max_tokens=2_000)


def full(*waiting: Query, config: Config | None = None) -> Bench:
    """A bench whose slots are all taken, and at which `waiting` wait."""
    on = Bench(config=config)
    for number in range(100, 100 + MODEL.slots):
        on.ask(query(number, origin=ME, options=LONG))
    for one in waiting:
        on.ask(one)
    return on


def forwards(effects: list[e.Effect]) -> list[tuple[PeerId, QueryId]]:
    sends = [(s.peer, s.message) for s in of(effects, e.Send)]
    return [(peer, message.query.id) for peer, message in sends if isinstance(message, m.Forward)]


def test_it_tells_the_others_that_it_answers_nothing_and_says_so_whatever_its_engines_do() -> None:
    on = full()
    on.link(A)
    version = on.machine.gossip.me.record.version
    effects = on.handle(e.Drained()) + on.wait(1.0)
    assert sent(effects, m.Announce, A)
    for _ in range(2):
        record = on.machine.gossip.me.record
        assert record.version > version
        assert record.capability == replace(ABLE, models=(replace(MODEL, slots=0),))
        on.handle(e.Described(ABLE, ("/ip4/1.2.3.4/tcp/5",)))
    assert on.machine.gossip.me.record.addresses == ("/ip4/1.2.3.4/tcp/5",)


def test_what_waits_goes_to_others_and_what_runs_is_finished() -> None:
    on = full(query(1, origin=ME, options=LONG))
    on.link(A)
    on.say(A, m.LoadReport(Load(free_slots=4)))
    effects = on.handle(e.Drained())
    assert forwards(effects) == [(A, query(1).id)]
    assert not of(effects, e.Abort)
    running = query(100).id
    on.handle(e.Generated(running, 0, (1,), "x"))
    effects = on.handle(e.Finished(running, 0, Usage(1, 1), "stop"))
    assert [d.query_id for d in of(effects, e.Deliver)] == [running]
    assert len(on.machine.relay.flights) == MODEL.slots  # three run here still, and one at A


def test_what_nobody_else_can_take_is_begun_in_its_turn() -> None:
    on = full(query(1, origin=ME, options=LONG))
    on.link(A, capability=UNABLE)
    assert forwards(on.handle(e.Drained())) == []
    effects = on.handle(e.Finished(query(100).id, 0, Usage(1, 1), "stop"))
    assert [g.query.id for g in of(effects, e.Generate)] == [query(1).id]


def test_what_another_sent_goes_back_to_him_and_its_stream_does_not_lead_through_here() -> None:
    on = full()
    on.link(A, B)
    on.say(B, m.Forward(query(1, origin=B, options=LONG, path=(Hop(B, "b", ""),), target=ME)))
    on.say(A, m.LoadReport(Load(free_slots=4)))
    effects = on.handle(e.Drained())
    assert forwards(effects) == []
    [refusal] = sent(effects, m.Refuse, B)
    assert (refusal.query_id, refusal.reason) == (query(1).id, Reason.OVERLOADED)


@pytest.mark.parametrize("gone", [True, False])
def test_what_the_other_will_not_take_waits_here_again(gone: bool) -> None:
    on = full(query(1, origin=ME, options=LONG))
    on.link(A)
    on.say(A, m.LoadReport(Load(free_slots=4)))
    assert forwards(on.handle(e.Drained()))
    refusal = m.Refuse(query(1).id, 0, Reason.OVERLOADED, "full")
    effects = on.handle(e.Disconnected(A)) if gone else on.say(A, refusal)
    assert not of(effects, e.Fail)
    effects = on.handle(e.Finished(query(100).id, 0, Usage(1, 1), "stop"))
    assert [g.query.id for g in of(effects, e.Generate)] == [query(1).id]


@pytest.mark.parametrize(
    ("drain_s", "budget_s", "goes"),
    [
        (1.0, 5_000.0, True),  # here it would not be whole in time, and there late
        (1.0, 600.0, False),  # there it would be too late for its asker
        (30.0, 5_000.0, False),
    ],
)
def test_what_another_would_begin_later_stays_unless_it_takes_too_long_here(
    drain_s: float, budget_s: float, goes: bool
) -> None:
    on = full(
        query(1, origin=ME, options=LONG, budget_s=budget_s), config=Config(relay=Relay(drain_s=drain_s))
    )
    on.link(A)
    on.say(A, m.LoadReport(Load(free_slots=0, remaining_s=1_000.0, running=(1_000.0,) * 4)))
    assert 1.0 < on.machine.load(ME).remaining_s < 30.0  # type: ignore[union-attr]
    assert bool(forwards(on.handle(e.Drained()))) == goes


def test_what_only_a_peer_behind_another_can_take_stays() -> None:
    """It would have to be passed on by one who may serve it himself, or not at all."""
    on = full(query(1, origin=ME, options=LONG))
    on.link(A, capability=UNABLE)
    on.say(A, m.Records((signed(B, capability=ABLE),)))
    assert forwards(on.handle(e.Drained())) == []


def test_what_was_on_its_way_into_the_queue_is_served_here() -> None:
    on = Bench(replace(ABLE, space="s"))
    assert of(on.ask(), e.Embed)
    on.handle(e.Drained())
    assert of(on.handle(e.Embedded(query().id, None)), e.Generate)


def test_it_asks_for_nobody_s_work() -> None:
    on = Bench()
    on.link(A)
    on.handle(e.Drained())
    on.say(A, m.LoadReport(Load(free_slots=0, queued=5, waiting_s=100.0, running=(50.0,) * 4)))
    assert not sent(on.wait(2.0), m.Steal)


def test_who_becomes_idle_later_gets_what_waits_still() -> None:
    on = full(query(1, origin=ME, options=LONG))
    on.handle(e.Drained())
    on.link(A)
    on.say(A, m.LoadReport(Load(free_slots=4)))
    assert forwards(on.say(A, m.Steal())) == [(A, query(1).id)]


def test_nobody_forgets_what_it_was_good_for() -> None:
    """The graceful way was the one that lost what others had learnt."""
    on, other = Bench(), Bench(me=A)
    other.link(ME)
    other.machine._experience.observed(ME, "general", 1.0, 0.5)
    known = other.machine._experience.quality(ME, "general", 0.5)
    on.handle(e.Drained())
    other.say(ME, m.Records((on.machine.gossip.me,)))
    assert other.machine._known(ME) == on.machine.gossip.me.record.capability
    assert other.machine._experience.quality(ME, "general", 0.5) == known != 0.5


def test_what_comes_still_is_passed_on_or_refused() -> None:
    on = Bench()
    on.link(A, B)
    on.handle(e.Drained())
    effects = on.say(B, m.Forward(query(1, origin=B, path=(Hop(B, "b", ""),))))
    assert (forwards(effects), of(effects, e.Generate)) == ([(A, query(1).id)], [])
    effects = on.say(B, m.Forward(query(2, origin=B, path=(Hop(B, "b", ""),), excluded=(A,))))
    assert (sent(effects, m.Refuse, B)[0].reason, of(effects, e.Generate)) == (Reason.ENGINE_FAILED, [])


def test_who_asks_here_is_told_to_ask_another() -> None:
    on = Bench()
    on.link(A)
    on.handle(e.Drained())
    [fail] = of(on.ask(), e.Fail)
    assert (fail.reason, fail.detail) == (Reason.OVERLOADED, "this peer is about to go")


def test_it_is_known_what_is_left_of_what_was_in_flight() -> None:
    on = full()
    on.link(A, B)
    assert on.machine.draining.left == 0
    on.handle(e.Drained())
    assert on.machine.draining.left == MODEL.slots
    on.say(
        B, m.Forward(query(1, origin=B, path=(Hop(B, "b", ""),)))
    )  # it passes through, and is not waited for
    on.handle(e.Finished(query(100).id, 0, Usage(1, 1), "stop"))
    assert on.machine.draining.left == MODEL.slots - 1


def test_to_be_told_twice_changes_nothing() -> None:
    on = full(query(1, origin=ME, options=LONG))
    on.handle(e.Drained())
    version = on.machine.gossip.me.record.version
    on.link(A)
    on.say(A, m.LoadReport(Load(free_slots=4)))
    assert forwards(on.handle(e.Drained())) == []
    assert on.machine.gossip.me.record.version == version


def test_one_without_models_says_nothing_new_but_that() -> None:
    on = Bench(replace(UNABLE, space="s"))
    on.handle(e.Drained())
    assert on.machine.gossip.me.record.capability == replace(UNABLE, space="s")


def test_who_asked_here_is_told_when_it_goes_all_the_same() -> None:
    on = full()
    on.link(A)
    on.say(A, m.Forward(query(1, path=(Hop(A, "a", ""),), options=LONG)))
    effects = on.handle(e.Departed())
    fails = of(effects, e.Fail)
    assert {fail.query_id for fail in fails} == {query(100 + i).id for i in range(MODEL.slots)}
    assert {(fail.reason, fail.detail) for fail in fails} == {
        (Reason.PEER_LOST, "this peer has left the mesh")
    }
    assert len(of(effects, e.Abort)) == MODEL.slots
    assert len(on.machine.relay.flights) == 1  # what A asked goes on elsewhere once the link has closed
    assert not of(on.handle(e.Finished(query(100).id, 0, Usage(1, 1), "stop")), e.Deliver)
