"""Loads: pushed when they moved, to a few; drained without a message; and reckoned with what was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Gossip
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.batching import Backlog, gain
from p2pmesh.protocol.loads import _SENT_MAX, Loads
from p2pmesh.record import Load, PeerId
from tests.machines import A, B, C, sent

IDLE = Load(free_slots=2)
START = 100.0


class Told:
    """The loads of a peer whose load set is A and B, in time."""

    def __init__(self) -> None:
        self.out: list[e.Effect] = []
        self.load_set: tuple[PeerId, ...] = (A, B)
        self.now = START
        self.loads = Loads(Config(), lambda: self.load_set, self.out, self.now)
        self.own(IDLE)
        self.wait(5.0)

    def own(self, load: Load) -> list[m.LoadReport]:
        """This peer's load is `load` now. Returns what A hears at once."""
        self.loads.own(load, self.now)
        return self.wait(0.0)

    def wait(self, seconds: float) -> list[m.LoadReport]:
        """Let time pass. Returns what A hears meanwhile."""
        until = self.now + seconds
        while self.loads.deadline <= until:
            self.now = max(self.now, self.loads.deadline)
            self.loads.advance(self.now)
        self.now = until
        heard = sent(self.out, m.LoadReport, A)
        self.out.clear()
        return heard


@pytest.fixture
def told() -> Told:
    return Told()


# -- our own ------------------------------------------------------------------------------------------


def test_a_load_that_stays_is_told_once_every_keepalive(told: Told) -> None:
    assert told.own(IDLE) == []
    assert told.wait(14.9) == [m.LoadReport(IDLE)] * 2


def test_all_of_the_load_set_are_told_and_nobody_else(told: Told) -> None:
    told.load_set = (B, C)
    told.loads.advance(told.now + 5.0)
    assert [s.peer for s in told.out if isinstance(s, e.Send)] == [B, C]


def test_a_finish_time_that_moved_far_is_told_at_once(told: Told) -> None:
    told.wait(1.0)
    assert told.own(Load(0.6, 1, 0, (0.6,))) == [m.LoadReport(Load(0.6, 1, 0, (0.6,)))]


def test_a_finish_time_that_moved_little_waits_for_the_keepalive(told: Told) -> None:
    told.wait(1.0)
    assert told.own(Load(0.4, 1, 0, (0.4,))) == []
    assert len(told.wait(4.0)) == 1


def test_a_load_that_drains_as_was_told_is_no_news(told: Told) -> None:
    told.wait(1.0)
    assert told.own(Load(4.0, 1, 0, (4.0,)))
    for left in (3.0, 2.0, 1.0):
        told.wait(1.0)
        assert told.own(Load(left, 1, 0, (left,))) == []
    told.wait(0.1)
    assert told.own(IDLE)  # done 0.9 s sooner than was told


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Load(0.1, 1), Load(0.1, 0)),  # the last slot was taken
        (Load(0.1, 0), Load(0.1, 1)),  # one is free again
        (Load(0.1, 0, 0), Load(0.1, 0, 1)),  # one waits
        (Load(0.1, 0, 1), Load(0.1, 0, 0)),  # nobody waits any more
    ],
)
def test_a_turn_is_told_at_once_however_little_the_finish_time_moved(
    told: Told, before: Load, after: Load
) -> None:
    told.own(before)
    told.wait(4.6)
    assert told.own(after) == [m.LoadReport(after)]


def test_one_more_of_many_that_wait_is_no_turn(told: Told) -> None:
    told.own(Load(0.1, 0, 1))
    told.wait(1.0)
    assert told.own(Load(0.1, 0, 2)) == []


@pytest.mark.parametrize(("pace", "told_at_once"), [(0.9, False), (1.15, False), (0.8, True), (1.3, True)])
def test_a_pace_that_moved_far_is_told_at_once(told: Told, pace: float, told_at_once: bool) -> None:
    told.wait(1.0)
    assert bool(told.own(replace(IDLE, pace=pace))) == told_at_once


def test_a_pace_that_moves_in_small_steps_is_told_in_the_end(told: Told) -> None:
    told.wait(1.0)
    assert [len(told.own(replace(IDLE, pace=pace))) for pace in (0.9, 0.8, 0.7, 0.6)] == [0, 1, 0, 0]
    assert told.wait(1.0) == [m.LoadReport(replace(IDLE, pace=0.6))]


def test_what_is_held_is_told_in_time_for_the_next_turn_but_not_more_than_once_a_second(told: Told) -> None:
    told.wait(2.0)
    news = [replace(IDLE, held=(bytes([number]) * 8,)) for number in range(4)]
    assert told.own(news[0]) == [m.LoadReport(news[0])]
    assert told.own(news[1]) == told.wait(0.5) == told.own(news[2]) == told.wait(0.4) == []
    assert told.wait(0.2) == [m.LoadReport(news[2])]
    busy = replace(news[3], remaining_s=9.0)
    told.wait(0.3)
    assert told.own(busy) == [m.LoadReport(busy)]  # with what is news in itself it goes along


def test_what_is_held_is_told_no_more_often_than_anything_else() -> None:
    patient = Loads(Config(gossip=Gossip(load_interval_min_s=3.0)), lambda: [A], [], START)
    patient.advance(START + 5.0)
    patient.own(replace(IDLE, held=(bytes(8),)), START + 5.0)
    assert patient.deadline == START + 8.0


def test_two_that_are_told_lie_the_least_interval_apart_and_the_last_one_counts(told: Told) -> None:
    told.wait(1.0)
    assert len(told.own(Load(10.0, 0, 1))) == 1
    assert told.own(Load(20.0, 0, 2)) == []
    assert told.own(Load(30.0, 0, 3)) == []
    assert told.wait(0.24) == []
    assert told.wait(0.02) == [m.LoadReport(Load(30.0, 0, 3))]


def test_a_new_link_hears_of_it_at_once(told: Told) -> None:
    told.own(Load(0.1, 1))
    told.loads.connected(C)
    assert told.out == [e.Send(C, m.LoadReport(Load(0.1, 1)))]


# -- others' ------------------------------------------------------------------------------------------


def test_who_never_told_has_no_backlog_that_could_be_reckoned_with(told: Told) -> None:
    told.loads.sent(A, 3.0)
    assert told.loads.backlog(A, told.now) is None
    assert told.loads.of(A) is None


def test_a_reported_load_drains_by_itself_and_grows_by_what_we_sent(told: Told) -> None:
    loads = told.loads
    loads.on_load(A, m.LoadReport(Load(5.0, 0, 1, (3.0,), 2.0)), told.now)
    assert loads.backlog(A, told.now) == Backlog((3.0,), (2.0,), 1)
    assert loads.backlog(A, told.now + 1.0) == Backlog((2.0,), (2.0,), 1)
    loads.sent(A, 4.0)
    assert loads.backlog(A, told.now + 1.0) == Backlog((2.0,), (2.0, 4.0), 1)
    loads.on_load(A, m.LoadReport(Load(6.0, 0, 1, (2.0,), 4.0)), told.now + 1.0)
    assert loads.backlog(A, told.now + 1.0) == Backlog((2.0,), (4.0,), 1)  # what we sent is in it
    assert loads.of(A) == Load(6.0, 0, 1, (2.0,), 4.0)


def test_what_we_sent_to_an_idle_peer_runs_there(told: Told) -> None:
    told.loads.on_load(A, m.LoadReport(IDLE), told.now)
    for work in (1.0, 2.0, 3.0):
        told.loads.sent(A, work)
    assert told.loads.backlog(A, told.now) == Backlog((1.0, 2.0), (3.0,), 2)


def test_a_batch_drains_at_its_own_pace(told: Told) -> None:
    told.loads.on_load(A, m.LoadReport(Load(3.0, 0, 0, (2.0, 2.0))), told.now)
    backlog = told.loads.backlog(A, told.now + 1.0)
    assert backlog is not None
    assert backlog.running == (pytest.approx(2.0 - gain(2) / 2),) * 2


def test_what_we_sent_to_one_that_stays_silent_is_reckoned_with_up_to_a_bound(told: Told) -> None:
    told.loads.on_load(A, m.LoadReport(IDLE), told.now)
    for _ in range(_SENT_MAX + 50):
        told.loads.sent(A, 1.0)
    backlog = told.loads.backlog(A, told.now)
    assert backlog is not None
    assert len(backlog.running) + len(backlog.waiting) == _SENT_MAX


def test_those_at_which_queries_wait_are_known_until_they_say_otherwise_or_go(told: Told) -> None:
    waits, loads = Load(9.0, 0, 2, (1.0,), 8.0), told.loads
    loads.on_load(A, m.LoadReport(waits), told.now)
    loads.on_load(B, m.LoadReport(waits), told.now)
    loads.on_load(C, m.LoadReport(IDLE), told.now)
    assert loads.queued() == [(A, waits), (B, waits)]
    loads.on_load(A, m.LoadReport(IDLE), told.now)
    loads.disconnected(B)
    assert loads.queued() == []


def test_the_load_of_a_link_that_closed_is_forgotten(told: Told) -> None:
    told.loads.on_load(A, m.LoadReport(IDLE), told.now)
    told.loads.disconnected(A)
    told.loads.disconnected(A)
    assert told.loads.of(A) is None
