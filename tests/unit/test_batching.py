"""The arithmetic of a batch: exact on small cases that can be reckoned by hand."""

from __future__ import annotations

import pytest

from p2pmesh.protocol.batching import Backlog, backlog_of, gain
from p2pmesh.record import Load


@pytest.mark.parametrize(
    ("running", "faster"), [(0, 1.0), (1, 1.0), (2, 1.115), (5, 1.46), (8, 1.8), (100, 1.8)]
)
def test_a_batch_is_faster_than_one_query_up_to_a_bound(running: int, faster: float) -> None:
    assert gain(running) == pytest.approx(faster)


def test_an_idle_peer_begins_at_once_and_needs_the_work_alone() -> None:
    idle = Backlog(slots=4)
    assert (idle.start_s(), idle.finish_s(3.0), idle.drain_s()) == (0.0, 3.0, 0.0)


def test_with_a_free_slot_it_begins_at_once_and_shares_the_speed() -> None:
    busy = Backlog((1.0,), slots=2)
    assert busy.start_s() == 0.0
    both = 1.0 * 2 / gain(2)  # until each of the two has got 1 s of work
    assert busy.finish_s(1.0) == pytest.approx(both)
    assert busy.finish_s(3.0) == pytest.approx(both + 2.0)  # then alone


def test_without_one_it_begins_when_the_first_ends_and_runs_beside_the_rest() -> None:
    full = Backlog((1.0, 4.0), slots=2)
    first = 1.0 * 2 / gain(2)
    assert full.start_s() == pytest.approx(first)
    assert full.finish_s(1.0) == pytest.approx(first + 1.0 * 2 / gain(2))
    assert full.drain_s() == pytest.approx(first + 3.0)


def test_those_that_wait_begin_in_order_of_arrival_before_the_newcomer() -> None:
    queue = Backlog((1.0,), (2.0, 3.0))
    assert queue.start_s() == pytest.approx(6.0)
    assert queue.finish_s(4.0) == pytest.approx(10.0)
    assert queue.drain_s() == pytest.approx(6.0)


def test_a_newcomer_s_answer_may_be_whole_long_before_the_rest_is() -> None:
    long = Backlog((100.0,), slots=2)
    assert long.finish_s(0.1) < 0.2
    assert long.drain_s() == pytest.approx(100.0)


def test_a_model_that_is_being_restarted_counts_as_one_slot() -> None:
    down = Backlog((), (), 0)
    assert (down.start_s(), down.finish_s(2.0)) == (0.0, 2.0)
    assert Backlog((), (1.0,), 0).start_s() == pytest.approx(1.0)
    assert Backlog((), (1.0,), 0).finish_s(2.0) == pytest.approx(3.0)


def test_what_is_overdue_ends_now_and_not_in_the_past() -> None:
    overdue = Backlog((0.0, 0.0), (1.0,), 2)
    assert overdue.start_s() == 0.0
    assert overdue.finish_s(1.0) == pytest.approx(1.0 * 2 / gain(2))


# -- later, and more ----------------------------------------------------------------------------------


def test_a_backlog_drains_by_itself_as_fast_as_its_batch() -> None:
    later = Backlog((1.0, 3.0), (2.0,), 2).after(1.0)
    share = gain(2) / 2
    assert later.running == (pytest.approx(1.0 - share), pytest.approx(3.0 - share))
    assert later.waiting == (2.0,)


def test_who_has_ended_makes_way_for_those_that_wait() -> None:
    later = Backlog((1.0, 3.0), (2.0, 5.0), 2).after(2.0)
    assert later.running == (pytest.approx(3.0 - gain(2)), 2.0)
    assert later.waiting == (5.0,)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_changes_nothing(seconds: float) -> None:
    busy = Backlog((1.0,), (2.0,))
    assert busy.after(seconds) is busy


def test_an_empty_backlog_stays_empty() -> None:
    assert Backlog(slots=2).after(9.0) == Backlog(slots=2)


def test_where_more_run_than_there_are_slots_nobody_begins() -> None:
    shrunk = Backlog((4.0, 4.0, 4.0), (1.0, 2.0), 1).after(1.0)
    assert len(shrunk.running) == 3
    assert shrunk.waiting == (1.0, 2.0)


def test_more_queries_take_the_free_slots_and_then_wait_in_the_order_they_came() -> None:
    more = Backlog((1.0,), (), 2).plus((2.0, 3.0, 4.0))
    assert more == Backlog((1.0, 2.0), (3.0, 4.0), 2)
    assert Backlog((), (5.0,), 2).plus((1.0,)) == Backlog((), (5.0, 1.0), 2)  # nobody overtakes
    assert Backlog((1.0,)).plus(()) == Backlog((1.0,))


def test_a_reported_load_is_read_as_equally_long_ones_that_wait() -> None:
    load = Load(9.0, 1, 3, (0.5, 1.5), 6.0)
    assert backlog_of(load) == Backlog((0.5, 1.5), (2.0, 2.0, 2.0), 3)
    assert backlog_of(Load(0.0, 2)) == Backlog((), (), 2)
    assert backlog_of(Load()) == Backlog((), (), 0)
