"""The table of flights: one for each query, alarms that are never late, and what upstream is told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from p2pmesh.config import Config, Limits, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.flight import Flight, Phase
from p2pmesh.protocol.flights import Flights, verdict
from p2pmesh.protocol.routing import Decision, Kind
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Query, Usage
from p2pmesh.record import PeerId
from tests.machines import ME, A, B, query, sent

NOW = 100.0
PATH = (Hop(A, "a", "to me"), Hop(ME, "me", "serve"))
MANY = tuple(PeerId(f"n{i}") for i in range(9))
ENDED = Ended(Usage(1, 2), "stop", "small", "00")
CONFIG = Config(limits=Limits(excluded_max=2), relay=Relay(seen_max=3))


@pytest.fixture
def out() -> list[e.Effect]:
    return []


@pytest.fixture
def flights(out: list[e.Effect]) -> Flights:
    return Flights(CONFIG, out, out.append, lambda query, ended: None)


def flight(number: int = 1, upstream: PeerId | None = A, attempt: int = 0, **more: object) -> Flight:
    """A flight that is due at 160 and, where upstream is a peer, for a sign of life at 101."""
    made = Flight(query(number, attempt=attempt), upstream, NOW + 60.0, Phase.LOCAL, alive_at=NOW + 1.0)
    for name, value in more.items():
        setattr(made, name, value)
    return made


# -- which --------------------------------------------------------------------------------------------


def test_a_flight_is_found_by_its_attempt_its_downstream_and_its_place(flights: Flights) -> None:
    one = flight(1, attempt=2, downstream=B)
    flights.add(one)
    ident = one.query.id
    assert flights.get(ident) is flights.find(ident, 2) is flights.toward(B, ident, 2) is one
    assert flights.here(ident, 2) is one
    assert flights.find(ident, 1) is flights.toward(A, ident, 2) is flights.here(ident, 3) is None
    one.phase = Phase.RELAYING
    assert flights.here(ident, 2) is None
    assert flights.get(query(9).id) is flights.toward(B, query(9).id, 0) is None


def test_the_table_may_be_gone_through_while_it_shrinks(flights: Flights) -> None:
    for number in range(3):
        flights.add(flight(number))
    for one in flights:
        flights.forget(one)
    assert len(flights) == 0


def test_a_flight_is_in_it_until_it_is_over_or_another_took_its_place(flights: Flights) -> None:
    old, new = flight(1), flight(1, attempt=1)
    flights.add(old)
    assert old in flights
    flights.add(new)
    assert old not in flights
    assert new in flights


def test_the_finished_attempts_are_remembered_the_last_few_of_them(flights: Flights) -> None:
    for number in range(5):
        flights.add(flight(number))
        flights.forget(flight(number))
    assert [flights.was_seen(query(number)) for number in range(5)] == [False, False, True, True, True]
    assert not flights.was_seen(query(4, attempt=1))


# -- time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"upstream": None}, 160.0),
        ({}, 101.0),
        ({"downstream": B, "silent_at": 100.5}, 100.5),
        ({"upstream": None, "downstream": B, "silent_at": 103.0}, 103.0),
        ({"upstream": None, "silent_at": 3.0}, 160.0),  # of nobody
    ],
)
def test_a_flight_is_due_when_the_first_of_its_moments_comes(changes: dict[str, object], due: float) -> None:
    assert flight(**changes).due == due  # type: ignore[arg-type]


def test_those_that_are_due_are_told_once_and_must_be_watched_again(flights: Flights) -> None:
    one = flight(1, upstream=None)
    flights.add(one)
    assert flights.deadline == 160.0
    assert flights.due(159.9) == []
    assert flights.due(160.0) == [one]
    assert flights.due(161.0) == []
    flights.watch(one)
    assert flights.due(161.0) == [one]


def test_one_that_was_put_off_is_looked_at_then_and_not_before(flights: Flights) -> None:
    one = flight(1)
    flights.add(one)
    one.alive_at = 105.0
    assert flights.due(101.0) == []
    assert flights.deadline == 105.0
    assert flights.due(105.0) == [one]


def test_one_that_falls_due_earlier_is_told_in_time(flights: Flights) -> None:
    one = flight(1, upstream=None)
    flights.add(one)
    one.downstream, one.silent_at = B, 100.5
    flights.watch(one)
    assert flights.deadline == 100.5
    assert flights.due(100.5) == [one]


def test_of_the_forgotten_nothing_is_due(flights: Flights) -> None:
    one = flight(1)
    flights.add(one)
    flights.forget(one)
    assert flights.deadline == math.inf
    assert flights.due(1e9) == []
    flights.watch(one)  # by somebody who does not know yet
    assert flights.due(1e9) == []


# -- what upstream is told ----------------------------------------------------------------------------


def test_the_asker_here_is_told_by_effects_and_a_peer_by_messages(
    flights: Flights, out: list[e.Effect]
) -> None:
    chunk = Chunk(query().id, 0, 0, (1,), "x")
    here, there = flight(1, upstream=None), flight(1)
    for one in (here, there):
        flights.add(one)
        flights.place(one, PATH, 2.5, "d1", NOW)
        flights.pass_up(one, chunk, NOW)
        flights.complete(one, ENDED)
        assert (one.placed, one.path, one.index) == (True, PATH, 1)
        assert one not in flights
    ident = query().id
    assert out == [
        e.Deliver(ident, e.Placed(PATH, 2.5)),
        e.Deliver(ident, chunk),
        e.Deliver(ident, ENDED),
        e.Send(A, m.Accept(ident, 0, True, 2.5, PATH, "d1")),
        e.Send(A, m.Tokens(chunk)),
        e.Send(A, m.End(ident, 0, 1, ENDED)),
    ]


def test_an_answer_that_was_asked_for_here_is_told_of_and_one_that_passed_through_is_not(
    out: list[e.Effect],
) -> None:
    told: list[tuple[Query, Ended]] = []
    flights = Flights(CONFIG, out, out.append, lambda query, ended: told.append((query, ended)))
    here, there = flight(1, upstream=None), flight(2)
    for one in (here, there):
        flights.add(one)
        flights.complete(one, ENDED)
    assert told == [(here.query, ENDED)]


def test_every_word_upstream_is_a_sign_of_life_and_puts_off_the_next(flights: Flights) -> None:
    one = flight(1)
    flights.place(one, PATH, 1.0, "d1", 110.0)
    assert one.alive_at == 111.0
    flights.pass_up(one, Chunk(query().id, 0, 0, (1,), "x"), 120.0)
    assert one.alive_at == 121.0
    flights.say_alive(one, 130.0)
    assert one.alive_at == 131.0


def test_a_sign_of_life_says_where_it_is_and_the_asker_here_needs_none(
    flights: Flights, out: list[e.Effect]
) -> None:
    flights.say_alive(flight(1, upstream=None), NOW)
    assert out == []
    flights.say_alive(flight(1, placed=True, path=PATH, digest="d1"), NOW)
    assert out == [e.Send(A, m.Accept(query().id, 0, True, 0.0, PATH, "d1"))]


@pytest.mark.parametrize(
    ("changes", "effect"),
    [
        ({}, e.Send(A, m.Refuse(query().id, 0, Reason.OVERLOADED, "full", 7.0))),
        ({"index": 1}, e.Send(A, m.Error(query().id, 0, Reason.OVERLOADED, "full"))),
        ({"upstream": None}, e.Fail(query().id, Reason.OVERLOADED, "full", (), 7.0)),
        ({"upstream": None, "path": PATH}, e.Fail(query().id, Reason.OVERLOADED, "full", PATH, 7.0)),
    ],
)
def test_a_bad_end_is_told_as_befits_who_waits_and_what_they_have(
    flights: Flights, out: list[e.Effect], changes: dict[str, object], effect: e.Effect
) -> None:
    one = flight(1, **changes)  # type: ignore[arg-type]
    flights.add(one)
    flights.end_badly(one, Reason.OVERLOADED, "full", 7.0)
    assert out == [effect]
    assert one not in flights


@pytest.mark.parametrize("begun", [True, False])
def test_a_bad_end_names_no_more_dead_than_may_travel(
    flights: Flights, out: list[e.Effect], begun: bool
) -> None:
    flights.end_badly(flight(1, index=int(begun)), Reason.PEER_LOST, "gone", dead=MANY)
    [told] = sent(out, m.Error if begun else m.Refuse)
    assert told.dead == MANY[:2]


def test_a_refusal_names_the_exact_length_and_no_more_dead_than_may_travel(
    flights: Flights, out: list[e.Effect]
) -> None:
    asked = query(prompt_tokens=11)
    flights.refuse(A, asked, Reason.PEER_LOST, "gone", dead=MANY)
    refusal = m.Refuse(asked.id, 0, Reason.PEER_LOST, "gone", 0.0, 11, MANY[:2])
    assert out == [e.Send(A, refusal)]


def test_downstream_is_released_once(flights: Flights, out: list[e.Effect]) -> None:
    one = flight(1, downstream=B, attempt=3)
    flights.release(one)
    flights.release(one)
    assert out == [e.Send(B, m.Cancel(query().id, 3))]


# -- what there is of an answer -----------------------------------------------------------------------


def write(flights: Flights, one: Flight, *texts: str) -> None:
    """Let `one` get a chunk for each of `texts`, of one token each."""
    for text in texts:
        flights.pass_up(one, Chunk(one.query.id, one.query.attempt, one.index, (one.index,), text), NOW)


def test_where_it_was_asked_an_answer_is_kept_to_go_on_from_and_on_the_way_it_is_not(
    flights: Flights,
) -> None:
    here, there = flight(1, upstream=None), flight(2)
    assert here.accepted() is None
    for one in (here, there):
        flights.place(one, PATH, 1.0, "d1", NOW)
        write(flights, one, "a ", "b ")
    assert here.accepted() == Accepted((0, 1), "a b ", 2, "d1")
    assert (there.written, there.text) == ([], [])


def test_an_answer_that_two_models_wrote_belongs_to_neither(flights: Flights) -> None:
    one = flight(1, upstream=None)
    flights.place(one, PATH, 1.0, "d1", NOW)
    flights.place(one, PATH, 1.0, "d2", NOW)  # before the first word: only the second writes
    write(flights, one, "a ")
    assert one.accepted() == Accepted((0,), "a ", 1, "d2")
    flights.place(one, PATH, 1.0, "d1", NOW)
    write(flights, one, "b ")
    assert one.accepted() == Accepted((0, 1), "a b ", 2, "")
    flights.place(one, PATH, 1.0, "d1", NOW)
    assert one.accepted() == Accepted((0, 1), "a b ", 2, "")


def test_what_goes_on_from_an_earlier_attempt_counts_from_there_and_has_not_begun(flights: Flights) -> None:
    one = flight(1)
    one.query = replace(one.query, accepted=Accepted((7, 8, 9), "a b c ", 2, "d1"))
    flights.add(one)
    assert (one.index, one.tokens, one.begun) == (2, 3, False)
    write(flights, one, "d ")
    assert one.begun
    assert flight(1, index=1).begun


# -- why nobody is left -------------------------------------------------------------------------------

OURS = Decision(Kind.REFUSE, None, Reason.NO_ROUTE, "nobody", ())


def heard(reason: Reason) -> m.Refuse:
    return m.Refuse(query().id, 0, reason, "they said", 4.0)


@pytest.mark.parametrize("said", [None, heard(Reason.VISITED), heard(Reason.NO_ROUTE)])
def test_where_nobody_said_more_than_we_know_our_own_reason_counts(said: m.Refuse | None) -> None:
    assert verdict(said, OURS) == (Reason.NO_ROUTE, "nobody", 0.0)
    assert verdict(said, replace(OURS, reason=None))[0] is Reason.NO_ROUTE


def test_what_somebody_who_was_asked_said_tells_more_than_that_nobody_is_left() -> None:
    assert verdict(heard(Reason.OVERLOADED), OURS) == (Reason.OVERLOADED, "they said", 4.0)


def test_of_two_that_call_it_too_long_ours_knows_the_longest_context() -> None:
    ours = replace(OURS, reason=Reason.TOO_LONG, detail="4096 at most")
    assert verdict(heard(Reason.TOO_LONG), ours) == (Reason.TOO_LONG, "4096 at most", 0.0)
    assert verdict(heard(Reason.TOO_LONG), OURS) == (Reason.TOO_LONG, "they said", 4.0)
