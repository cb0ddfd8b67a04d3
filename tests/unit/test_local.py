"""This peer's own queue: who runs, who waits, and how long until it is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Relay
from p2pmesh.protocol import events as e
from p2pmesh.protocol.batching import Backlog, gain
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.workload import AnswerLength
from p2pmesh.query import Accepted, Options
from p2pmesh.record import Load, ModelInfo
from tests.machines import MODEL, of, query

SLOTS = MODEL.slots
LONG = Options(max_tokens=256)
"""1.28 s of a typical answer, and 1 s of reading a prompt of 1 000 tokens."""


@pytest.fixture
def out() -> list[e.Effect]:
    return []


@pytest.fixture
def lengths() -> AnswerLength:
    return AnswerLength()


@pytest.fixture
def local(out: list[e.Effect], lengths: AnswerLength) -> Local:
    return serving(out, lengths, MODEL, waiting_max=2)


def serving(out: list[e.Effect], lengths: AnswerLength, *models: ModelInfo, waiting_max: int = 64) -> Local:
    made = Local(Config(relay=Relay(waiting_max=waiting_max)), lengths, out)
    made.describe(models)
    return made


def started(out: list[e.Effect]) -> list[int]:
    return [int(g.query.id, 16) for g in of(out, e.Generate)]


def fill(local: Local, count: int) -> list[float | None]:
    """Let as many come, of 1 s each."""
    return [local.submit(query(i, prompt_tokens=920), "small", 0.0) for i in range(count)]


# -- who runs and who waits ---------------------------------------------------------------------------


def test_slots_fill_then_the_queue_and_then_it_refuses(local: Local, out: list[e.Effect]) -> None:
    etas = fill(local, SLOTS + 3)
    assert started(out) == [0, 1]
    assert etas[-1] is None
    assert None not in etas[:-1]
    assert local.load(0.0) == Load(local.remaining_s(0.0), 0, 2, (1.0, 1.0), 2.0)
    assert [job.query.id for job in local.waiting()] == [query(2).id, query(3).id]


def test_a_full_queue_of_one_model_does_not_turn_away_from_a_free_slot_of_another(
    out: list[e.Effect], lengths: AnswerLength
) -> None:
    local = serving(out, lengths, MODEL, replace(MODEL, name="other"), waiting_max=1)
    fill(local, SLOTS + 1)
    assert local.submit(query(77), "other", 0.0) is not None
    assert local.submit(query(78), "small", 0.0) is None


def test_who_waited_longest_runs_next(local: Local, out: list[e.Effect]) -> None:
    fill(local, SLOTS + 2)
    job = local.finished(query(0).id)
    assert job is not None
    assert job.model == MODEL
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


def test_a_full_model_does_not_hold_up_another(out: list[e.Effect], lengths: AnswerLength) -> None:
    local = serving(out, lengths, MODEL, replace(MODEL, name="other"))
    fill(local, SLOTS + 1)
    local.submit(query(77), "other", 0.0)
    assert 77 in started(out)
    load = local.load(0.0)
    assert (load.free_slots, load.queued, len(load.running), load.waiting_s) == (1, 1, SLOTS + 1, 1.0)


def test_a_peer_is_idle_while_it_has_a_free_slot_and_nobody_waits(local: Local) -> None:
    assert local.idle
    fill(local, SLOTS)
    assert not local.idle
    local.finished(query(0).id)
    assert local.idle
    local.describe((replace(MODEL, slots=1),))
    assert not local.idle


def test_a_peer_with_a_free_slot_that_one_may_not_take_is_not_idle(
    out: list[e.Effect], lengths: AnswerLength
) -> None:
    local = serving(out, lengths, MODEL, replace(MODEL, name="other"))
    fill(local, SLOTS + 1)
    assert not local.idle


def test_a_peer_without_a_model_is_never_idle(out: list[e.Effect], lengths: AnswerLength) -> None:
    assert not serving(out, lengths).idle


# -- how long until it is served ----------------------------------------------------------------------


def test_work_left_falls_with_time_while_it_reads_and_with_tokens_while_it_writes(local: Local) -> None:
    # 1000 prompt tokens at 1000/s, then 128 at 100/s
    local.submit(query(0, prompt_tokens=1_000, options=LONG), "small", 0.0)
    assert local.remaining_s(0.0) == pytest.approx(2.28)
    assert local.remaining_s(0.5) == pytest.approx(1.78)
    local.progressed(query(0).id, 100)
    assert local.remaining_s(1.5) == pytest.approx(0.96)  # three quarters of what is typical
    local.progressed(query(0).id, 100)
    assert local.remaining_s(1.5) == pytest.approx(0.56)  # it may write 56 more
    local.progressed(query(0).id, 56)
    assert local.remaining_s(1.5) == 0.0


def test_one_that_goes_on_from_an_earlier_attempt_has_that_much_less_to_write(local: Local) -> None:
    broken = query(0, prompt_tokens=900, options=LONG, accepted=Accepted((1,) * 100, "x", 9))
    assert local.submit(broken, "small", 0.0) == pytest.approx(1.0 + 0.96)
    assert local.remaining_s(0.5) == pytest.approx(1.46)  # it reads, as any that has not begun
    local.progressed(query(0).id, 150)
    assert local.remaining_s(1.0) == pytest.approx(0.06)


def test_a_model_is_known_by_its_digest(local: Local) -> None:
    assert local.digest("small") == MODEL.digest


def test_a_prompt_that_takes_longer_to_read_than_expected_still_has_its_answer_to_write(local: Local) -> None:
    local.submit(query(0, prompt_tokens=1_000, options=LONG), "small", 0.0)
    local.submit(query(1, options=LONG), "small", 9.0)  # whatever happens, all are reckoned anew
    local.finished(query(1).id)
    assert local.remaining_s(9.0) == pytest.approx(1.28)


def test_work_left_drains_between_two_events_as_a_batch_does(local: Local) -> None:
    fill(local, SLOTS)
    now, later = local.backlog(0.0), local.backlog(0.4)
    share = 0.4 * gain(SLOTS) / SLOTS
    assert later.running == tuple(pytest.approx(work - share) for work in now.running)
    assert local.backlog(0.4) == later  # asked twice, reckoned from the same moment


def test_a_slot_is_free_when_its_query_has_ended_and_no_sooner(local: Local) -> None:
    fill(local, SLOTS + 1)
    assert local.backlog(0.0).running == (1.0,) * SLOTS
    overdue = local.backlog(99.0)
    assert overdue == Backlog((0.0,) * SLOTS, (1.0,), SLOTS)
    assert local.load(99.0).free_slots == 0
    assert overdue.finish_s(1.0) >= 1.0


def test_an_idle_peer_has_no_backlog_however_late_it_is(local: Local) -> None:
    assert local.backlog(0.0) == local.backlog(50.0) == Backlog(slots=SLOTS)


def test_the_slots_of_all_models_count_together(out: list[e.Effect], lengths: AnswerLength) -> None:
    local = serving(out, lengths, MODEL, replace(MODEL, name="other", slots=3))
    assert local.backlog(0.0).slots == SLOTS + 3
    assert local.load(0.0).free_slots == SLOTS + 3


def test_a_batch_is_faster_than_one_after_another_but_slower_than_one(local: Local) -> None:
    [alone] = fill(local, 1)
    assert alone == pytest.approx(1.0)
    assert local.remaining_s(0.0) == pytest.approx(1.0)
    second = local.submit(query(1, prompt_tokens=920), "small", 0.0)
    assert second == local.remaining_s(0.0)
    assert 1.0 < local.remaining_s(0.0) < 2.0


def test_what_was_learned_of_answers_changes_what_new_queries_count_for(
    local: Local, lengths: AnswerLength
) -> None:
    for _ in range(1_000):
        lengths.observed(10)
    assert local.submit(query(0, prompt_tokens=1_000, options=LONG), "small", 0.0) == pytest.approx(
        1.1, abs=0.01
    )


def test_a_load_lists_no_more_running_queries_than_may_travel(
    out: list[e.Effect], lengths: AnswerLength
) -> None:
    local = serving(out, lengths, replace(MODEL, slots=100))
    fill(local, 100)
    assert len(local.load(0.0).running) == 64
    assert len(local.backlog(0.0).running) == 100
