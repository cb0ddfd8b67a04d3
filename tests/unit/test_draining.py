"""A peer that is about to go: what it is asked, what waits and what runs there."""

from __future__ import annotations

from dataclasses import replace

from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Hop, Options, Query, QueryId, Usage
from p2pmesh.record import Load, PeerId
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, of, query, sent

LONG = Options(max_tokens=2_000)


def full(*waiting: Query) -> Bench:
    """A bench whose slots are all taken, and at which `waiting` wait."""
    on = Bench()
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
        assert (record.capability.models, record.capability.skills) == ((), ())
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


def test_what_was_chosen_to_be_served_here_is_handed_on_too() -> None:
    on = full()
    on.link(A, B)
    on.say(B, m.Forward(query(1, origin=B, options=LONG, path=(Hop(B, "b", ""),), target=ME)))
    on.say(A, m.LoadReport(Load(free_slots=4)))
    assert forwards(on.handle(e.Drained())) == [(A, query(1).id)]


def test_what_comes_still_is_passed_on_or_refused() -> None:
    on = Bench()
    on.link(A, B)
    on.handle(e.Drained())
    effects = on.say(B, m.Forward(query(1, origin=B, path=(Hop(B, "b", ""),))))
    assert (forwards(effects), of(effects, e.Generate)) == ([(A, query(1).id)], [])
    effects = on.say(B, m.Forward(query(2, origin=B, path=(Hop(B, "b", ""),), excluded=(A,))))
    assert (sent(effects, m.Refuse, B)[0].reason, of(effects, e.Generate)) == (Reason.NO_ROUTE, [])


def test_who_asks_here_is_served_by_another() -> None:
    on = Bench()
    on.link(A)
    on.handle(e.Drained())
    assert forwards(on.ask()) == [(A, query().id)]


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
