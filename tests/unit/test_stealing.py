"""Idle peers take work: whom they ask and how often, and what a loaded one gives."""

from __future__ import annotations

from dataclasses import replace

from p2pmesh.config import Config, Routing
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.stealing import LOOKED_AT_MAX
from p2pmesh.query import Hop, Options, Query, Usage
from p2pmesh.record import Capability, Load, PeerId
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, C, of, query, sent

LOADED = Load(9.0, 0, 3, (3.0, 3.0), 9.0)
IDLE = Load(0.0, MODEL.slots)
LONG = Options(max_tokens=64)


def stolen(effects: list[e.Effect]) -> list[PeerId]:
    """Who is asked for work."""
    return [s.peer for s in of(effects, e.Send) if isinstance(s.message, m.Steal)]


def given(effects: list[e.Effect]) -> list[tuple[PeerId, Query]]:
    """Who is given which query."""
    return [(s.peer, s.message.query) for s in of(effects, e.Send) if isinstance(s.message, m.Forward)]


# -- the idle peer ------------------------------------------------------------------------------------


def test_who_has_nothing_to_do_asks_a_neighbour_at_which_queries_wait() -> None:
    on = Bench()
    on.link(A, B)
    assert stolen(on.say(A, m.LoadReport(LOADED))) == [A]


def test_the_most_loaded_is_asked_first() -> None:
    on = Bench()
    on.link(A, B, C)
    for number in range(1, MODEL.slots + 1):
        on.ask(query(number, origin=ME, excluded=(A, B, C)))
    for peer, waits_s in ((A, 1.0), (B, 5.0), (C, 3.0)):
        assert stolen(on.say(peer, m.LoadReport(replace(LOADED, waiting_s=waits_s)))) == []  # busy
    assert stolen(on.handle(e.Finished(query(1).id, 0, Usage(1, 1), "stop"))) == [B]
    assert stolen(on.wait(2.0)) == [C, A]


def test_nobody_is_asked_twice_on_the_strength_of_one_report() -> None:
    on = Bench()
    on.link(A)
    assert stolen(on.say(A, m.LoadReport(LOADED))) == [A]
    assert stolen(on.wait(4.0)) == []
    on.now += 0.2
    assert stolen(on.say(A, m.LoadReport(replace(LOADED)))) == [A]


def test_requests_lie_the_least_interval_apart() -> None:
    on = Bench(config=Config(routing=Routing(steal_interval_s=0.5)))
    on.link(A, B)
    asked = stolen(on.say(A, m.LoadReport(LOADED))) + stolen(on.say(B, m.LoadReport(LOADED)))
    assert asked == [A]
    asked += stolen(on.wait(0.45))
    assert asked == [A]
    assert stolen(on.wait(2.0)) == [B]


def test_who_has_work_that_waits_or_no_model_asks_nobody() -> None:
    busy = Bench()
    busy.link(A, capability=UNABLE)
    for number in range(MODEL.slots + 1):
        busy.ask(query(number, origin=ME, excluded=(A,)))
    assert stolen(busy.say(A, m.LoadReport(LOADED))) == []
    unable = Bench(UNABLE)
    unable.link(A)
    assert stolen(unable.say(A, m.LoadReport(LOADED))) == []


def test_one_that_closed_its_link_is_not_asked() -> None:
    on = Bench()
    on.link(A, capability=UNABLE)
    for number in range(1, MODEL.slots + 1):
        on.ask(query(number, origin=ME, excluded=(A, B, C)))
    on.say(A, m.LoadReport(LOADED))
    on.handle(e.Disconnected(A))
    assert stolen(on.handle(e.Finished(query(1).id, 0, Usage(1, 1), "stop"))) == []


def test_whom_it_asked_is_remembered_up_to_a_bound() -> None:
    on = Bench()
    for number in range(3 * LOOKED_AT_MAX):
        peer = PeerId(f"n{number}")
        on.link(peer)
        assert stolen(on.say(peer, m.LoadReport(LOADED))) == [peer]
        on.say(peer, m.LoadReport(IDLE))
        on.now += 0.2
    assert len(on.machine._stealing._asked) <= LOOKED_AT_MAX + 1


# -- the loaded peer ----------------------------------------------------------------------------------


def loaded(*asked: Query, thief: Capability = ABLE) -> Bench:
    """A bench whose slots are full, at which `asked` wait, and A comes who is idle."""
    on = Bench()
    for number in range(100, 100 + MODEL.slots):
        on.ask(query(number, origin=ME, options=LONG, prompt_tokens=1_900))
    for one in asked:
        on.ask(one)
    on.link(A, capability=thief)
    on.say(A, m.LoadReport(IDLE))
    return on


def waits(number: int = 1, **changes: object) -> Query:
    return query(number, origin=ME, options=LONG, **changes)


def test_an_idle_neighbour_is_given_a_query_that_waits_to_serve_it_or_refuse_it() -> None:
    on = loaded(waits())
    effects = on.say(A, m.Steal())
    [(peer, onward)] = given(effects)
    assert (peer, onward.id, onward.hops_left) == (A, query(1).id, 0)
    assert [hop.peer for hop in onward.path] == [ME]
    assert "idle" in onward.path[0].why
    assert not of(effects, e.Abort)  # it had not begun
    assert on.machine.load(ME).queued == 0  # type: ignore[union-attr]


def test_what_is_handed_over_has_only_what_is_left_of_its_budget() -> None:
    on = loaded(waits(budget_s=20.0))
    on.wait(2.0)
    on.say(A, m.LoadReport(IDLE))
    [(_, onward)] = given(on.say(A, m.Steal()))
    assert onward.budget_s == 18.0


def test_the_stream_of_a_query_that_was_handed_over_goes_on_to_whoever_asked() -> None:
    on = loaded()
    on.link(B, capability=UNABLE)
    on.say(B, m.Forward(replace(waits(), origin=B, path=(Hop(B, "b", ""),), excluded=(A,))))
    assert given(on.say(A, m.Steal())) == []  # it was with A already
    on.say(B, m.Forward(replace(waits(2), origin=B, path=(Hop(B, "b", ""),), hops_left=0)))
    [(peer, onward)] = given(on.say(A, m.Steal()))
    assert (peer, onward.id) == (A, query(2).id)
    placed = sent(on.say(A, m.Accept(onward.id, 0, True, 1.0, (*onward.path, Hop(A, "a", "")))), m.Accept, B)
    assert [hop.peer for hop in placed[0].path] == [B, ME, A]


def test_of_those_that_wait_the_one_that_gains_most_is_given() -> None:
    on = loaded(waits(1), waits(2), waits(3))
    assert [q.id for _, q in given(on.say(A, m.Steal()))] == [query(3).id]  # it would wait longest here


def test_only_those_that_start_first_are_looked_at() -> None:
    on = loaded(*(waits(number) for number in range(1, LOOKED_AT_MAX + 5)))
    assert [q.id for _, q in given(on.say(A, m.Steal()))] == [query(LOOKED_AT_MAX).id]


def test_what_gains_too_little_stays() -> None:
    on = loaded(waits(), thief=Capability(models=(replace(MODEL, decode_tps=12.6),)))
    assert given(on.say(A, m.Steal())) == []


def test_what_may_not_go_there_stays() -> None:
    secret = Capability(zones=("general", "secret"), models=(MODEL,))
    on = Bench(secret)
    for number in range(100, 100 + MODEL.slots):
        on.ask(query(number, origin=ME, options=LONG, prompt_tokens=1_900))
    on.ask(waits(zone="secret"))
    on.link(A)
    on.say(A, m.LoadReport(IDLE))
    assert given(on.say(A, m.Steal())) == []


def test_where_nothing_waits_nothing_is_given_and_a_stranger_is_not_heard() -> None:
    on = loaded()
    assert given(on.say(A, m.Steal())) == []
    assert loaded(waits()).say(B, m.Steal()) == []


def test_a_query_that_the_thief_refuses_waits_here_again_and_is_not_given_to_it_twice() -> None:
    on = loaded(waits())
    on.say(A, m.Steal())
    on.say(A, m.Refuse(query(1).id, 0, Reason.OVERLOADED, "not idle any more"))
    assert on.machine.load(ME).queued == 1  # type: ignore[union-attr]
    on.now += 0.2
    on.say(A, m.LoadReport(IDLE))
    assert given(on.say(A, m.Steal())) == []
    on.link(B)
    on.say(B, m.LoadReport(IDLE))
    assert [peer for peer, _ in given(on.say(B, m.Steal()))] == [B]


def test_a_query_whose_thief_says_nothing_starts_anew_without_it() -> None:
    on = loaded(waits())
    on.say(A, m.Steal())
    effects = on.wait(on.config.relay.accept_timeout_s)
    assert sent(effects, m.Cancel, A) == [m.Cancel(query(1).id, 0)]
    flight = on.machine.relay.flights.find(query(1).id, 1)
    assert flight is not None
    assert flight.query.excluded == (A,)
    assert on.machine.load(ME).queued == 1  # type: ignore[union-attr]


def test_what_was_given_counts_against_the_thief_s_next_request() -> None:
    on = loaded(*(waits(number) for number in range(1, 31)))
    gifts = []
    for _ in range(40):
        gifts += given(on.say(A, m.Steal()))
    assert 1 < len(gifts) < 25  # until it would have no less to do than we


def test_a_query_whose_path_is_full_stays_or_what_goes_on_could_not_be_read() -> None:
    on = loaded()
    on.link(B, capability=UNABLE)
    path = tuple(Hop(PeerId(f"p{i}"), "p", "") for i in range(on.config.limits.hops_max))
    for number, way in ((1, path), (2, path[:-1])):
        on.say(B, m.Forward(replace(waits(number), origin=B, path=way, hops_left=0)))
    assert [q.id for _, q in given(on.say(A, m.Steal()))] == [query(2).id]
