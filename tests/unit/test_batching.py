"""The arithmetic of a batch: exact on small cases that can be reckoned by hand."""

from __future__ import annotations

import pytest

from p2pmesh.protocol.batching import PACE_MAX, PACE_MIN, Backlog, Pace, backlog_of, gain
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


# -- how fast it really is ------------------------------------------------------------------------------


def paced(share: float, seconds: float = 20.0, piece_s: float = 0.25, *, after: Pace | None = None) -> Pace:
    """A machine that does `share` of what is due, in pieces of `piece_s` of work."""
    pace, now = after or Pace(), 1_000.0 if after else 0.0
    until = now + seconds
    while now < until:
        now += piece_s / share
        pace.measured(piece_s, piece_s / share, now)
    return pace


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0, 2.5])
@pytest.mark.parametrize("piece_s", [0.01, 0.1, 1.0])
def test_a_steady_pace_is_found_whatever_the_pieces(share: float, piece_s: float) -> None:
    assert paced(share, 60.0, piece_s).value == pytest.approx(share, rel=0.1)


def test_a_fall_is_known_in_seconds_and_so_is_a_recovery() -> None:
    ill = paced(0.2, 4.0)
    assert 0.2 < ill.value < 0.5
    assert paced(1.0, 7.0, after=paced(0.2, 20.0)).value > 0.8


def test_a_short_stall_moves_it_but_little() -> None:
    pace = paced(1.0)
    pace.measured(0.02, 0.52, 100.0)
    pace.measured(0.02, 0.02, 101.0)
    assert 0.8 < pace.value < 0.9


def test_what_comes_in_one_burst_is_one_sample() -> None:
    pace = Pace()
    pace.measured(0.1, 1.0, 10.0)
    for _ in range(9):
        pace.measured(0.1, 0.0, 10.0)
    pace.measured(1.0, 1.0, 11.0)
    assert pace.value == pytest.approx(1.0)


def test_a_burst_of_which_nothing_is_known_does_not_make_it_fast() -> None:
    pace = Pace()
    pace.measured(50.0, 0.3, 10.0)
    assert pace.at_best(0.0, 0.0) < 1.25


def test_a_pace_has_bounds() -> None:
    assert paced(0.001, 5_000.0).value == PACE_MIN
    assert paced(50.0, 60.0, 5.0).value == PACE_MAX


def test_what_was_measured_fades_while_there_is_nothing_to_do() -> None:
    pace = paced(0.2)
    pace.rested(10.0)
    assert pace.value < 0.3
    pace.rested(600.0)
    assert pace.value == pytest.approx(1.0, abs=0.01)


def test_that_it_was_faster_than_it_says_is_forgotten_soon() -> None:
    pace = paced(4.0)
    assert pace.value > 3.5
    pace.rested(6.0)
    assert pace.value < 1.25


def test_a_piece_that_is_late_is_known_before_it_comes() -> None:
    pace = Pace()
    assert pace.at_best(0.1, 0.05) == pytest.approx(1.0, abs=0.03)
    assert pace.at_best(0.1, 5.0) < 0.3
    assert pace.value == 1.0
