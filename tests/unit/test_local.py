"""This peer's own queue: who runs, who waits, and how long until it is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Relay
from p2pmesh.protocol import events as e
from p2pmesh.protocol.batching import Backlog, gain
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.workload import AnswerLength, salted
from p2pmesh.query import Accepted, Message, Options, Query
from p2pmesh.record import HELD_MAX, Load, ModelInfo
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


# -- what is in the caches ------------------------------------------------------------------------------

KEEPS = replace(MODEL, prefixes=2)


def turn(number: int, turns: int = 1, **changes: object) -> Query:
    """The conversation of that number after so many turns: 1 000 tokens, and 10 more each time."""
    opening = Message("user", f"{number} ".ljust(4_000, "x"))
    later = (Message("assistant", "y" * 40), Message("user", "z" * 40)) * (turns - 1)
    return query(100 * number + turns, messages=(opening, *later), **changes)


def key(asked: Query, model: str = "small") -> bytes:
    return salted(asked.prefixes[-1][0], model)


def read(local: Local, asked: Query, model: str = "small", now: float = 0.0) -> float | None:
    """Let it be answered by one piece. Returns how long it was expected to take."""
    eta = local.submit(asked, model, now)
    local.progressed(asked.id, 1)
    local.finished(asked.id)
    local.advance(now)
    return eta


def test_the_next_turn_need_not_read_what_the_last_one_left(
    out: list[e.Effect], lengths: AnswerLength
) -> None:
    local = serving(out, lengths, KEEPS)
    assert read(local, turn(1)) == pytest.approx(1.08)
    assert local.load(0.0).held == (key(turn(1)),)
    assert read(local, turn(1, 2)) == pytest.approx(0.02 + 0.08)
    assert local.load(0.0).held == (key(turn(1, 2)), key(turn(1)))
    assert read(local, turn(2)) == pytest.approx(1.08)


def test_the_least_recently_read_is_forgotten(out: list[e.Effect], lengths: AnswerLength) -> None:
    local = serving(out, lengths, KEEPS)
    for number in (1, 2, 1, 3):
        read(local, turn(number))
    assert local.load(0.0).held == (key(turn(3)), key(turn(1)))
    assert set(local.held) == {key(turn(3)), key(turn(1))}


def test_what_has_not_been_read_whole_is_not_held(out: list[e.Effect], lengths: AnswerLength) -> None:
    local = serving(out, lengths, KEEPS)
    local.submit(turn(1), "small", 0.0)
    assert local.load(0.0).held == (key(turn(1)),)
    local.abort(turn(1).id, 0)
    assert local.load(0.0).held == ()


def test_what_waits_is_reckoned_anew_when_it_starts(out: list[e.Effect], lengths: AnswerLength) -> None:
    local = serving(out, lengths, replace(KEEPS, slots=1))
    local.submit(turn(1), "small", 0.0)
    local.submit(turn(1, 2), "small", 0.0)
    local.submit(turn(2), "small", 0.0)
    assert local.backlog(0.0).waiting == (pytest.approx(0.1), pytest.approx(1.08))
    local.abort(turn(1).id, 0)  # before it was read
    local.advance(0.0)
    assert local.backlog(0.0).running == (pytest.approx(1.1),)


@pytest.mark.parametrize(
    "models",
    [
        (),
        (replace(KEEPS, slots=0),),
        (replace(KEEPS, digest="11" * 32),),
        (replace(KEEPS, prefixes=9),),
        (replace(KEEPS, name="other"),),
    ],
    ids=["gone", "restarted", "another mind", "another size", "another name"],
)
def test_a_model_that_starts_anew_holds_nothing(
    out: list[e.Effect], lengths: AnswerLength, models: tuple[ModelInfo, ...]
) -> None:
    local = serving(out, lengths, KEEPS)
    read(local, turn(1))
    local.describe((KEEPS,))
    assert local.held
    local.describe(models)
    assert not local.held
    assert local.load(0.0).held == ()


def test_models_keep_their_own_caches(out: list[e.Effect], lengths: AnswerLength) -> None:
    other = replace(KEEPS, name="other", prefixes=1)
    local = serving(out, lengths, KEEPS, other, replace(MODEL, name="none"))
    for model in ("small", "other", "none"):
        assert read(local, turn(1), model) == pytest.approx(1.08)
    read(local, turn(2), "other")
    assert local.load(0.0).held == (key(turn(2), "other"), key(turn(1), "small"))
    local.describe((other,))
    assert local.load(0.0).held == (key(turn(2), "other"),)


def test_others_hear_of_the_most_recent_ones_and_never_of_a_zones(
    out: list[e.Effect], lengths: AnswerLength
) -> None:
    local = serving(out, lengths, replace(KEEPS, prefixes=99))
    for number in range(HELD_MAX + 4):
        read(local, turn(number))
    read(local, turn(99, zone="secret"))
    assert local.load(0.0).held == tuple(key(turn(n)) for n in range(HELD_MAX + 3, 3, -1))
    assert key(turn(99)) in local.held
    assert read(local, turn(99, 2, zone="secret")) == pytest.approx(0.1)


def test_a_query_without_words_holds_nothing(out: list[e.Effect], lengths: AnswerLength) -> None:
    local = serving(out, lengths, KEEPS)
    read(local, query(messages=()))
    assert not local.held


# -- how fast they are ----------------------------------------------------------------------------------


class Writing:
    """A peer whose model writes 100 tokens a second as it says, or so much of that as it is told."""

    def __init__(self, out: list[e.Effect], lengths: AnswerLength, slots: int = 4) -> None:
        self.local = serving(out, lengths, replace(MODEL, slots=slots))
        self.local.advance(0.0)
        self.now = 0.0

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            asked = query(number, prompt_tokens=100, options=Options(max_tokens=100_000))
            self.local.submit(asked, "small", self.now)

    def write(self, *numbers: int, seconds: float, share: float = 1.0, piece: int = 5) -> None:
        """These write by turns, of `share` of what a batch of them should, in pieces of so many tokens."""
        count = len(numbers)
        step = piece * 0.01 * count / gain(count) / share
        until = self.now + seconds
        while self.now < until:
            for _ in range(int(step)):  # it is called once a second, whatever happens
                self.now += 1.0
                self.local.advance(self.now)
            self.now += step % 1.0
            for number in numbers:
                self.local.progressed(query(number).id, piece)
                self.local.advance(self.now)

    @property
    def pace(self) -> float:
        return self.local.load(self.now + 1e-6).pace


@pytest.fixture
def writing(out: list[e.Effect], lengths: AnswerLength) -> Writing:
    return Writing(out, lengths)


@pytest.mark.parametrize("numbers", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("piece", [1, 20])
def test_the_pace_is_found(writing: Writing, numbers: tuple[int, ...], share: float, piece: int) -> None:
    writing.begin(*numbers)
    writing.write(*numbers, seconds=40.0, share=share, piece=piece)
    assert writing.pace == pytest.approx(share, rel=0.12)


def test_one_that_is_as_fast_as_it_says_is_exactly_that(writing: Writing) -> None:
    writing.begin(0, 1)
    for _ in range(20):
        writing.write(0, 1, seconds=0.3)
        assert writing.pace == 1.0


def test_the_time_to_the_first_token_is_not_slow_writing(writing: Writing) -> None:
    writing.begin(0)
    writing.now = 1.2
    writing.write(0, seconds=1.0)
    assert writing.pace == 1.0


def test_who_reads_does_not_make_the_others_slow(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=1.0)
    writing.begin(1)
    writing.write(0, seconds=5.0, share=0.1)
    assert writing.pace == 1.0
    writing.write(0, 1, seconds=1.0)
    assert writing.pace == 1.0


def test_idle_time_is_not_slow_writing(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=1.0)
    writing.local.finished(query(0).id)
    writing.local.advance(writing.now)
    writing.now += 60.0
    writing.begin(1)
    writing.write(1, seconds=1.0)
    assert writing.pace == 1.0


def test_a_model_that_is_stuck_is_known_before_it_writes_again(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=1.0)
    for _ in range(4):
        writing.now += 1.0
        writing.local.advance(writing.now)
    assert writing.pace < 0.5


def test_who_was_away_learns_nothing_from_that(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=1.0)
    writing.now += 30.0
    writing.local.advance(writing.now)
    assert writing.pace == 1.0
    for _ in range(600):  # all that it wrote meanwhile
        writing.local.progressed(query(0).id, 5)
        writing.local.advance(writing.now)
    writing.write(0, seconds=3.0)
    assert writing.pace == 1.0


def test_what_is_left_and_what_comes_are_reckoned_by_the_pace(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=60.0, share=0.2)
    pace = writing.local.pace
    assert pace == pytest.approx(0.2, rel=0.12)
    [left] = writing.local.backlog(writing.now).running
    assert left == pytest.approx(0.96 / pace)  # three quarters of a typical answer
    writing.local.finished(query(0).id)
    eta = writing.local.submit(query(1, prompt_tokens=920), "small", writing.now)
    assert eta == pytest.approx(1.0 / pace)
    assert writing.local.remaining_s(writing.now) == pytest.approx(1.0 / pace)
    assert writing.local.remaining_s(writing.now + 1.0) == pytest.approx(1.0 / pace - 1.0)
    for number in range(2, 6):
        writing.local.submit(query(number, prompt_tokens=920), "small", writing.now)
    assert writing.local.load(writing.now).waiting_s == pytest.approx(1.0 / pace)


def test_a_model_that_measured_itself_anew_is_believed(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=30.0, share=0.2)
    assert writing.pace < 0.3
    writing.local.describe((replace(MODEL, slots=3),))
    assert writing.pace < 0.3  # as fast as before, it says
    writing.local.describe((replace(MODEL, decode_tps=20.0),))
    assert writing.pace == 1.0
    writing.write(0, seconds=3.0, share=0.2)
    assert writing.pace == 1.0


def test_who_is_idle_for_long_is_as_fast_as_he_says_again(writing: Writing) -> None:
    writing.begin(0)
    writing.write(0, seconds=30.0, share=0.2)
    writing.local.finished(query(0).id)
    for _ in range(300):
        writing.now += 1.0
        writing.local.advance(writing.now)
        load = writing.local.load(writing.now)
    assert load.pace == 1.0
    assert writing.local.load(writing.now + 9.0) is load
