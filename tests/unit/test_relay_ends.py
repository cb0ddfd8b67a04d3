"""How queries in flight end: duplicates and fences, cancel, expiry, lost links."""

from __future__ import annotations

from p2pmesh.config import Config, Limits, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Hop, Options, Usage
from p2pmesh.record import PeerId
from tests.machines import ME, MODEL, UNABLE, A, B, Bench, of, query, sent
from tests.unit.test_relay import ID, asker, failed

# -- duplicates, loops and fences ---------------------------------------------------------------------


def test_a_duplicate_is_answered_and_not_served_again() -> None:
    bench = Bench()
    bench.link(A, B)
    bench.say(A, m.Forward(query()))
    effects = bench.say(B, m.Forward(query()))
    assert [r.reason for r in sent(effects, m.Refuse, B)] == [Reason.VISITED]
    bench.handle(e.Finished(ID, 0, Usage(), "stop"))
    effects = bench.say(A, m.Forward(query()))
    assert [r.reason for r in sent(effects, m.Refuse, A)] == [Reason.VISITED]
    assert not of(effects, e.Generate)


def test_a_loop_is_refused_as_visited() -> None:
    bench = Bench()
    bench.link(A)
    effects = bench.say(A, m.Forward(query(path=(Hop(ME, "me", ""), Hop(A, "a", "")))))
    assert [r.reason for r in sent(effects, m.Refuse, A)] == [Reason.VISITED]


def test_a_newer_attempt_fences_off_the_older_and_its_sender_is_told() -> None:
    bench = Bench()
    bench.link(A, B)
    bench.say(A, m.Forward(query()))
    effects = bench.say(B, m.Forward(query(attempt=1)))
    assert [(f.query_id, f.attempt) for f in of(effects, e.Abort)] == [(ID, 0)]
    assert [r.attempt for r in sent(effects, m.Refuse, A)] == [0]
    assert [g.query.attempt for g in of(effects, e.Generate)] == [1]


def test_finished_attempts_are_remembered_up_to_a_bound() -> None:
    bench = Bench(config=Config(relay=Relay(seen_max=2)))
    bench.link(A, capability=UNABLE)
    for number in range(5):
        bench.say(A, m.Forward(query(number)))
        bench.say(A, m.Cancel(query(number).id, 0))
    assert of(bench.say(A, m.Forward(query(0))), e.Generate)  # forgotten
    assert not of(bench.say(A, m.Forward(query(4))), e.Generate)


def test_a_full_path_is_served_here_or_refused_but_never_made_longer() -> None:
    most = Limits().hops_max
    path = tuple(Hop(PeerId(f"p{i}"), "p", "") for i in range(most))
    bench = Bench(UNABLE)
    bench.link(A, B)
    effects = bench.say(A, m.Forward(query(path=path, hops_left=most)))
    assert [r.reason for r in sent(effects, m.Refuse, A)] == [Reason.NO_ROUTE]
    bench = Bench()
    bench.link(A, B)
    [accept] = sent(bench.say(A, m.Forward(query(path=path, hops_left=most))), m.Accept, A)
    assert len(accept.path) == most + 1


# -- cancel, expiry, lost links -----------------------------------------------------------------------


def test_cancel_goes_down_the_path_and_frees_the_slot() -> None:
    bench = asker(A)
    bench.ask()
    assert sent(bench.handle(e.Cancelled(ID)), m.Cancel, A) == [m.Cancel(ID, 0)]
    relay = Bench(UNABLE)
    relay.link(A, B)
    relay.say(A, m.Forward(query(path=(Hop(A, "a", ""),))))
    assert sent(relay.say(A, m.Cancel(ID, 0)), m.Cancel, B) == [m.Cancel(ID, 0)]
    server = Bench()
    server.link(A)
    server.say(A, m.Forward(query()))
    assert of(server.say(A, m.Cancel(ID, 0)), e.Abort) == [e.Abort(ID, 0)]
    assert server.machine.load(ME).free_slots == MODEL.slots  # type: ignore[union-attr]


def test_only_the_one_who_asked_here_cancels_here() -> None:
    bench = Bench()
    bench.link(A)
    bench.say(A, m.Forward(query()))
    assert not of(bench.handle(e.Cancelled(ID)), e.Abort)


def test_a_query_ends_when_its_budget_is_spent_and_its_work_stops() -> None:
    bench = Bench()
    bench.ask(query(origin=ME, budget_s=2.0))
    effects = bench.wait(2.0)
    assert failed(effects).reason is Reason.DEADLINE
    assert of(effects, e.Abort) == [e.Abort(ID, 0)]


def test_nothing_is_delivered_after_the_budget_even_if_it_arrives_first() -> None:
    bench = Bench()
    bench.ask(query(origin=ME, budget_s=2.0))
    bench.now += 2.0
    effects = bench.handle(e.Generated(ID, 0, (1,), "late"))
    assert not of(effects, e.Deliver)
    assert failed(effects).reason is Reason.DEADLINE


def test_an_asker_that_went_away_stops_the_work_for_it() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B)
    bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),))))
    assert sent(bench.handle(e.Disconnected(A)), m.Cancel, B) == [m.Cancel(ID, 0)]
    assert not bench.machine.relay.flights


def test_a_model_that_went_away_hands_on_what_waited_for_it() -> None:
    bench = Bench()
    for number in range(MODEL.slots + 1):
        bench.ask(query(number, origin=ME, options=Options(max_tokens=1)))
    bench.handle(e.Described(UNABLE, ()))
    fails = of(bench.wait(11.0), e.Fail)
    assert [(f.query_id, f.reason) for f in fails] == [(query(MODEL.slots).id, Reason.ENGINE_FAILED)]
