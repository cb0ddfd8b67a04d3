"""The sweep over a batch agrees with a simulation in small steps, and keeps to what every queue keeps to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.protocol.batching import Backlog, gain

STEP_S = 0.002
works = st.floats(0.0, 3.0, allow_subnormal=False)
slots = st.integers(0, 4)


@st.composite
def backlogs(draw: st.DrawFn) -> Backlog:
    """Such as there are: nobody waits beside a free slot."""
    most = draw(slots)
    running = draw(st.lists(works, max_size=max(1, most)))
    waiting = draw(st.lists(works, max_size=5)) if len(running) >= max(1, most) else []
    return Backlog(tuple(running), tuple(waiting), most)


def ends_of(backlog: Backlog, newcomer_s: float) -> list[float]:
    """When each ends, those that run first, the newcomer last: each gets its share of each small step."""
    queue = [*backlog.running, *backlog.waiting, newcomer_s]
    left = dict(enumerate(queue))
    active = list(range(len(backlog.running)))
    waiting = list(range(len(backlog.running), len(queue)))
    ends = [0.0] * len(queue)
    now = 0.0
    while left:
        for number in [n for n in active if left[n] <= 1e-9]:
            active.remove(number)
            del left[number]
            ends[number] = now
        while waiting and len(active) < max(1, backlog.slots):
            active.append(waiting.pop(0))
        if any(left[n] <= 1e-9 for n in active):
            continue
        share = STEP_S * gain(len(active)) / max(1, len(active))
        for number in active:
            left[number] -= share
        now += STEP_S
    return ends


@settings(max_examples=150, deadline=None)
@given(backlogs(), works)
def test_the_sweep_agrees_with_a_simulation_in_small_steps(backlog: Backlog, newcomer_s: float) -> None:
    ends = ends_of(backlog, newcomer_s)
    within = STEP_S * (len(ends) + 1) * 2  # one step for each that ends, at up to twice its pace
    assert backlog.finish_s(newcomer_s) == pytest.approx(ends[-1], abs=within)
    before = Backlog(backlog.running, backlog.waiting[:-1], backlog.slots)
    if backlog.waiting:
        assert backlog.drain_s() == pytest.approx(max(ends_of(before, backlog.waiting[-1])), abs=within)


@settings(max_examples=300, deadline=None)
@given(backlogs(), works, works)
def test_more_work_ends_no_sooner_and_none_before_it_could_alone(
    backlog: Backlog, work_s: float, more_s: float
) -> None:
    finish = backlog.finish_s(work_s)
    assert finish >= work_s - 1e-9
    assert finish >= backlog.start_s() + work_s - 1e-9
    assert backlog.finish_s(work_s + more_s) >= finish - 1e-9
    assert backlog.plus((more_s,)).finish_s(work_s) >= finish - 1e-9
    assert backlog.start_s() <= backlog.drain_s() + 1e-9


@settings(max_examples=300, deadline=None)
@given(backlogs(), works)
def test_to_add_a_query_and_to_ask_for_it_is_the_same(backlog: Backlog, work_s: float) -> None:
    both = max(backlog.drain_s(), backlog.finish_s(work_s))
    assert backlog.plus((work_s,)).drain_s() >= both - 1e-9
    alone = Backlog(slots=backlog.slots).plus((*backlog.running, *backlog.waiting, work_s))
    assert alone.drain_s() == pytest.approx(backlog.plus((work_s,)).drain_s())


@settings(max_examples=300, deadline=None)
@given(backlogs(), st.floats(0.0, 5.0))
def test_what_is_left_later_never_grows_and_loses_nobody_that_waits(backlog: Backlog, seconds: float) -> None:
    later = backlog.after(seconds)
    assert sum(later.running) + sum(later.waiting) <= sum(backlog.running) + sum(backlog.waiting) + 1e-9
    assert len(later.running) + len(later.waiting) >= len(backlog.waiting)
    assert later.drain_s() <= backlog.drain_s() + 1e-9
    assert later.drain_s() >= backlog.drain_s() - seconds - 1e-6


@settings(max_examples=200, deadline=None)
@given(backlogs(), st.floats(0.0, 1.0))
def test_until_the_first_ends_what_is_left_later_is_exact(backlog: Backlog, share: float) -> None:
    if not backlog.running or min(backlog.running) <= 0.01:
        return
    count = len(backlog.running)
    seconds = share * 0.99 * min(backlog.running) * count / gain(count)
    assert backlog.after(seconds).drain_s() == pytest.approx(backlog.drain_s() - seconds, abs=1e-6)
