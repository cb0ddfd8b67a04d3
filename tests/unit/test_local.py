"""This peer's own queue: who runs, who waits, and how long until it is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Relay
from p2pmesh.protocol import events as e
from p2pmesh.protocol.local import Local
from p2pmesh.query import Options
from p2pmesh.record import Load
from tests.machines import MODEL, of, query

SLOTS = MODEL.slots


@pytest.fixture
def out() -> list[e.Effect]:
    return []


@pytest.fixture
def local(out: list[e.Effect]) -> Local:
    made = Local(Config(relay=Relay(waiting_max=2)), out)
    made.describe((MODEL,))
    return made


def started(out: list[e.Effect]) -> list[int]:
    return [int(g.query.id, 16) for g in of(out, e.Generate)]


def fill(local: Local, count: int) -> list[float | None]:
    return [local.submit(query(i), "small", 1.0, 0.0) for i in range(count)]


def test_slots_fill_then_the_queue_and_then_it_refuses(local: Local, out: list[e.Effect]) -> None:
    etas = fill(local, SLOTS + 3)
    assert started(out) == [0, 1]
    assert etas[-1] is None
    assert None not in etas[:-1]
    assert local.load(0.0) == Load(local.remaining_s(0.0), 0, 2)


def test_who_waited_longest_runs_next(local: Local, out: list[e.Effect]) -> None:
    fill(local, SLOTS + 2)
    assert local.finished(query(0).id) == MODEL
    local.advance(1.0)
    assert started(out) == [0, 1, 2]


def test_one_that_waits_is_cancelled_for_nothing(local: Local, out: list[e.Effect]) -> None:
    fill(local, SLOTS + 1)
    local.abort(query(SLOTS).id, 0)
    assert not of(out, e.Abort)
    assert local.load(0.0).queued == 0


def test_one_that_runs_is_aborted_and_frees_its_slot(local: Local, out: list[e.Effect]) -> None:
    fill(local, 1)
    local.abort(query(0).id, 3)
    assert of(out, e.Abort) == [e.Abort(query(0).id, 3)]
    assert local.load(0.0) == Load(0.0, SLOTS, 0)
    assert local.finished(query(0).id) is None


def test_what_waits_for_a_model_that_went_is_told_and_does_not_start(
    local: Local, out: list[e.Effect]
) -> None:
    fill(local, SLOTS + 1)
    assert [q.id for q in local.describe(())] == [query(SLOTS).id]
    local.finished(query(0).id)
    local.advance(1.0)
    assert started(out) == [0, 1]


def test_what_waits_for_a_model_that_is_restarted_starts_when_it_is_back(
    local: Local, out: list[e.Effect]
) -> None:
    fill(local, SLOTS + 1)
    assert local.describe((replace(MODEL, slots=0),)) == []
    for number in range(SLOTS):
        local.finished(query(number).id)
    local.advance(1.0)
    assert started(out) == [0, 1]
    local.describe((MODEL,))
    local.advance(2.0)
    assert started(out) == [0, 1, 2]


def test_a_full_model_does_not_hold_up_another(out: list[e.Effect]) -> None:
    local = Local(Config(), out)
    local.describe((MODEL, replace(MODEL, name="other")))
    fill(local, SLOTS + 1)
    local.submit(query(77), "other", 1.0, 0.0)
    assert 77 in started(out)
    assert local.load(0.0) == Load(local.remaining_s(0.0), 1, 1)


def test_work_left_falls_with_time_while_it_reads_and_with_tokens_while_it_writes(local: Local) -> None:
    # 1000 prompt tokens at 1000/s, then 128 at 100/s
    local.submit(query(0, options=Options(max_tokens=256)), "small", 2.28, 0.0)
    assert local.remaining_s(0.0) == pytest.approx(2.28)
    assert local.remaining_s(0.5) == pytest.approx(1.78)
    assert local.remaining_s(9.0) == pytest.approx(1.28)  # the answer is still to be written
    local.progressed(query(0).id, 100, 9.0)
    assert local.remaining_s(9.0) == pytest.approx(0.28)
    local.progressed(query(0).id, 100, 9.0)
    assert local.remaining_s(9.0) == pytest.approx(0.16)  # longer than expected: a little more
    local.progressed(query(0).id, 56, 9.0)
    assert local.remaining_s(9.0) == 0.0


def test_a_batch_is_faster_than_one_after_another_but_slower_than_one(local: Local) -> None:
    [alone] = fill(local, 1)
    both = local.remaining_s(0.0)
    local.submit(query(1), "small", 1.0, 0.0)
    assert alone == pytest.approx(1.0)
    assert both < local.remaining_s(0.0) < 2.0
