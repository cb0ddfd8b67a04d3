"""Continuous batching over a model whose next token is a hash of all it was fed.

If a position, a chunk, a shared prefix or a roll-back were wrong by one token, the text would differ from
what the same prompt gives alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="the schedule drives llama.cpp's samplers")

from p2pmesh.config import Limits
from p2pmesh.engine import frames, schedule
from p2pmesh.engine.base import Embed, Embedded, Event, Failed, Finished, Generate, Generated, Load, Ready
from p2pmesh.engine.batch import Part
from p2pmesh.engine.calibrate import Speed
from p2pmesh.engine.schedule import FAILURES_MAX, Schedule
from p2pmesh.engine.vectors import Vectors
from p2pmesh.errors import EngineError, Reason
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.messages import Tokens
from p2pmesh.query import Chunk, Message, Options, QueryId, TokenLogprobs, Usage
from p2pmesh.record import ModelInfo

END = 300


class FakeModel:
    """A byte is a token; "<|im_end|>" is a control token where control tokens are read."""

    template = None
    sliceable = True
    add_bos, bos, eos = True, 301, END
    tokens = 302

    def tokenize(self, text: str, *, control: bool, specials: bool = False) -> list[int]:
        head, mark, rest = text.partition("<|im_end|>")
        if control and mark:
            return [*head.encode(), END, *self.tokenize(rest, control=True)]
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def control_text(self, token: int) -> str:
        return "<bos>"

    def ends(self, token: int) -> bool:
        return token == END


class FakeContext:
    """What a sequence holds, exactly; and `fault`, which decides what `decode` says."""

    batch_tokens = 40
    dimensions = 4

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.fault: Callable[[list[Part]], int] = lambda parts: 0
        self.batches: list[list[int]] = []
        self.saved = 0
        self.crowded = False
        self._rows: dict[int, int] = {}

    def decode(self, parts: list[Part]) -> int:
        assert sum(len(p.tokens) for p in parts) <= self.batch_tokens
        code = self.fault(parts)
        self._rows, at = {}, 0
        for part in parts:
            held = self.held.setdefault(part.sequence, [])
            assert part.start == len(held), "a gap, or a token read twice"
            held += [int(t) for t in part.tokens]
            at += len(part.tokens)
            part.row = at - 1
            self._rows[part.row] = part.sequence
        self.batches.append([len(p.tokens) for p in parts])
        return code

    def sample(self, sampler: object, row: int) -> int:
        code = zlib.crc32(np.array(self.held[self._rows[row]], np.int32).tobytes())
        return END if code % 23 == 0 else 97 + code % 26

    def logprobs(self, model: FakeModel, token: int, row: int, top: int) -> TokenLogprobs:
        return TokenLogprobs(model.piece(token), -float(row), ((b"x" * 255, -1.0),) * top)

    def vector(self, sequence: int) -> Any:
        return np.full(4, float(sum(self.held.pop(sequence))), np.float32)

    def forget(self, sequence: int, start: int = 0) -> None:
        del self.held.setdefault(sequence, [])[start:]

    def save(self, sequence: int) -> Any:
        self.saved += 1
        return np.array(self.held[sequence], np.int32)

    def restore(self, sequence: int, state: Any) -> bool:
        assert not self.held.get(sequence), "restored into a sequence in use"
        if self.crowded:
            return False
        self.held[sequence] = state.tolist()
        return True


class World:
    """A schedule over fakes."""

    def __init__(
        self,
        *,
        context_tokens: int = 400,
        decode_tps: float = 1.0,
        prefill_tps: float = 1.0,
        token_bytes: int = 1,
        rows_alone: int = 1,
        **load: Any,
    ) -> None:
        self.context = FakeContext()
        spec = Load(**{"slots": 3, "prefill_chunk": 30, **load})
        ready = Ready(ModelInfo("m", "d", context_tokens, prefill_tps, decode_tps, spec.slots))
        fakes: Any = (FakeModel(), self.context)
        self.schedule = Schedule(*fakes, spec, ready, token_bytes, rows_alone)
        self.events: list[Event] = []

    def ask(self, job: str, text: str, **options: Any) -> None:
        self.events += self.schedule.submit(Generate(job, (Message("user", text),), Options(**options)))

    def resume(self, job: str, text: str, tokens: tuple[int, ...], spoken: str = "", **options: Any) -> None:
        request = Generate(job, (Message("user", text),), Options(**options), tokens, spoken)
        self.events += self.schedule.submit(request)

    def run(self) -> None:
        for _ in range(10_000):
            if self.schedule.wait_s() is None:
                return
            self.events += self.schedule.step()
        raise AssertionError("it never ends")

    def text(self, job: str) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Generated) and e.job == job)

    def end(self, job: str) -> Event:
        (end,) = (e for e in self.events if isinstance(e, (Finished, Failed)) and e.job == job)
        return end


def alone(text: str, **options: Any) -> str:
    world = World()
    world.ask("a", text, **options)
    world.run()
    return world.text("a")


QUESTIONS = [f"{'a long preamble ' * (i % 3)}question number {i}?" for i in range(9)]


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_goes_on_from_any_of_its_tokens_as_if_it_had_never_stopped(question):
    whole = World()
    whole.ask("a", question, max_tokens=20)
    whole.run()
    tokens = tuple(t for e in whole.events if isinstance(e, Generated) for t in e.tokens)
    for cut in range(1, len(tokens)):
        again = World()
        again.resume("a", question, tokens[:cut], max_tokens=20)
        again.run()
        assert bytes(tokens[:cut]).decode() + again.text("a") == whole.text("a")
        assert again.end("a") == whole.end("a")  # the usage of the whole answer, too


@pytest.mark.parametrize(("decode_tps", "one_by_one"), [(12.0, True), (11.0, False)])
def test_what_was_written_is_read_as_it_was_written_where_that_takes_no_second(decode_tps, one_by_one):
    world = World(decode_tps=decode_tps)
    world.resume("a", "why?", (97,) * 12, max_tokens=13)
    world.run()
    assert sum(map(sum, world.context.batches)) == prompt_length("why?") + 12
    assert world.context.batches.count([1]) == (12 if one_by_one else 0)


def test_another_models_answer_goes_on_from_its_text():
    whole, again = World(), World()
    whole.ask("a", "why?", max_tokens=20)
    whole.run()
    text = whole.text("a")
    again.resume("a", "why?", (), text[:4], max_tokens=20)  # here a byte is a token, so it is the same
    again.run()
    assert text[:4] + again.text("a") == text


def test_an_answer_that_lacks_only_its_end_gets_it():
    world = World()
    world.resume("a", "why?", (97, 98), max_tokens=2)
    read = len(world.schedule.prompt_tokens((Message("user", "why?"),)))
    assert world.end("a") == Finished("a", Usage(read, 2), "length")


def test_tokens_of_another_vocabulary_are_refused():
    world = World()
    world.resume("a", "why?", (97, 302))
    failed = world.end("a")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.BAD_REQUEST


def test_many_at_once_say_what_each_says_alone():
    world = World()
    for i, question in enumerate(QUESTIONS):
        world.ask(str(i), question)
    world.run()
    assert [world.text(str(i)) for i in range(9)] == [alone(q) for q in QUESTIONS]
    assert max(map(len, world.context.batches)) == 3, "they never shared a batch"
    assert not any(world.context.held[s] for s in range(3)), "a sequence was not freed"


def test_few_are_decoded_one_by_one_where_that_is_faster_and_many_together():
    world = World(rows_alone=2, slots=4)
    talkative = [q for q in map(str, range(200)) if len(alone(q)) > 24][:4]
    for i, question in enumerate(talkative):
        world.ask(str(i), question, max_tokens=12 + 4 * i)
    running: dict[int, set[int]] = {}
    while world.schedule.wait_s() is not None:
        before = len(world.context.batches)
        world.events += world.schedule.step()
        batches = world.context.batches[before:]
        if all(tokens == 1 for batch in batches for tokens in batch):
            running.setdefault(sum(map(len, batches)), set()).update(map(len, batches))
    assert running == {1: {1}, 2: {1}, 3: {3}, 4: {4}}
    assert [world.text(str(i)) for i in range(4)] == [alone(q)[: 12 + 4 * i] for i, q in enumerate(talkative)]


def test_one_of_few_that_cannot_be_decoded_costs_the_other_nothing():
    world = World(rows_alone=2)
    for i, question in enumerate(QUESTIONS[:2]):
        world.ask(str(i), question)
    world.schedule.step()
    codes = iter([-1])
    world.context.fault = lambda parts: next(codes, 0)
    world.run()
    assert isinstance(world.end("0"), Failed)
    assert world.text("1") == alone(QUESTIONS[1])


def test_a_prompt_is_read_in_chunks_while_another_answers():
    world = World()
    world.ask("a", "x", max_tokens=50)
    world.schedule.step()
    world.schedule.step()
    world.ask("b", "y" * 200, max_tokens=1)
    world.run()
    assert world.text("b") == alone("y" * 200, max_tokens=1)
    assert all(sum(b) <= 30 + 3 for b in world.context.batches)
    assert any(len(b) == 2 and b[0] == 1 and b[1] > 1 for b in world.context.batches)


PREAMBLE = "the same words each time, and many of them. " * 4


def prompt_length(text: str) -> int:
    return len(World().schedule.prompt_tokens((Message("user", text),)))


def read(world: World) -> int:
    """How many tokens of prompts were read."""
    return sum(n for batch in world.context.batches for n in batch if n > 1)


def test_a_shared_beginning_is_read_once():
    world = World()
    for i in range(4):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=3)
        world.run()
    assert read(world) < 1.5 * prompt_length(PREAMBLE), "every prompt was read whole"
    assert [world.text(str(i)) for i in range(4)] == [alone(f"{PREAMBLE}{i}", max_tokens=3) for i in range(4)]


def test_a_long_prompt_is_read_in_small_pieces_while_others_write_and_in_large_ones_alone():
    world = World(decode_tps=10.0, prefill_tps=100.0)
    world.ask("a", "x", max_tokens=60)
    while not world.text("a"):
        world.events += world.schedule.step()
    world.context.batches.clear()
    world.ask("long", "y" * 200, max_tokens=1)
    world.ask("short", "z", max_tokens=1)
    beside = []
    for _ in range(12):
        world.schedule._meter = type(world.schedule._meter)(Speed(100.0, 10.0))  # as if each step took 0.1 s
        world.events += world.schedule.step()
        beside.append(world.context.batches[-1])
    assert [batch[-1] for batch in beside] == [5] * 12
    assert len(beside[0]) == 3, "a short one is read at once"
    assert beside[0][1] > 5
    world.run()
    alone_after = World()
    alone_after.ask("long", "y" * 200, max_tokens=1)
    alone_after.run()
    assert max(max(batch) for batch in alone_after.context.batches) == 30
    assert world.text("long") == alone_after.text("long")


def test_of_short_prompts_one_after_the_other_is_read_whole():
    """Read across steps, the second would be no sooner done, and the first later."""
    world = World(prefill_chunk=60)
    world.context.batch_tokens = 70
    for i in range(3):
        world.ask(str(i), f"{i}", max_tokens=1, seed=i)
    length = prompt_length("0")
    assert 30 < length <= 60
    for _ in range(3):
        world.events += world.schedule.step()
    assert world.context.batches == [[length]] * 3


def test_of_those_that_come_at_once_one_reads_and_the_others_wait_for_it():
    world = World()
    for i in range(3):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=3)
    world.run()
    assert read(world) < 1.5 * prompt_length(PREAMBLE)
    assert [world.text(str(i)) for i in range(3)] == [alone(f"{PREAMBLE}{i}", max_tokens=3) for i in range(3)]


def test_nobody_waits_for_a_beginning_that_cannot_be_kept():
    world = World(prefix_bytes_max=100, token_bytes=1)
    for i in range(3):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=1)
    world.run()
    assert world.context.saved == 0
    assert read(world) == 3 * prompt_length(f"{PREAMBLE}0")


def test_a_long_prompt_that_nobody_reads_for_it_is_long_again():
    world = World(decode_tps=10.0, prefill_tps=100.0)
    for i in range(2):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=1)
    world.events += world.schedule.step()
    first, second = world.schedule._running
    assert (first.long, second.long) == (True, False)
    world.events += world.schedule.abort("0")
    world.context.crowded = True
    world.events += world.schedule.step()
    assert second.long


@pytest.mark.parametrize("prefill_chunk", [1, 2, 3, 5])
def test_a_prompt_is_read_however_small_a_chunk_may_be(prefill_chunk: int):
    """With fewer tokens than a long prompt gets beside others nothing was ever read, and the step spun."""
    world = World(prefill_chunk=prefill_chunk)
    for i in range(2):
        world.ask(str(i), f"{i}?", max_tokens=2, seed=i)
    world.run()
    assert [world.text(str(i)) for i in range(2)] == [alone(f"{i}?", max_tokens=2) for i in range(2)]


def test_no_prompt_leaves_one_token_over_for_a_step_of_its_own():
    """A single row is rounded unlike several: what the others did would be seen in the answer."""
    for length in range(59, 64):
        world = World()
        text = "x" * (length - prompt_length(""))
        world.ask("a", text, max_tokens=1, seed=1)
        world.run()
        assert sum(map(sum, world.context.batches)) == length
        assert min(map(min, world.context.batches)) > 1


def test_a_short_prompt_is_not_held_up_by_a_long_one():
    world = World(decode_tps=10.0, prefill_tps=1e9)
    world.ask("a", "x", max_tokens=300)
    while not world.text("a"):
        world.events += world.schedule.step()
    world.ask("long", "y" * 300, max_tokens=1, seed=1)
    world.events += world.schedule.step()
    world.ask("short", "z", max_tokens=1, seed=1)
    world.schedule._load = replace(world.schedule._load, prefill_chunk=prompt_length("z"))
    world.context.batch_tokens = 100
    world.events += world.schedule.step()
    assert world.end("short")


def test_who_waits_for_one_that_goes_away_reads_on_itself():
    world = World()
    for i in range(3):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=3)
    for _ in range(3):
        world.schedule.step()
    world.events += world.schedule.abort("0")
    world.run()
    assert [world.text(str(i)) for i in (1, 2)] == [alone(f"{PREAMBLE}{i}", max_tokens=3) for i in (1, 2)]


def test_the_next_turn_of_a_conversation_begins_where_the_last_one_ended():
    world = World()
    world.ask("a", PREAMBLE, max_tokens=40)
    world.run()
    before = read(world)
    turns = (Message("user", PREAMBLE), Message("assistant", world.text("a")), Message("user", "and then?"))
    request = Generate("b", turns, Options(max_tokens=3))
    world.events += world.schedule.submit(request)
    world.run()
    frame = prompt_length("and then?") + len("<|im_end|>")
    assert read(world) - before <= frame
    fresh = World()
    fresh.events += fresh.schedule.submit(request)
    fresh.run()
    assert world.text("b") == fresh.text("b") != ""


def test_what_was_read_reused_and_written_is_counted():
    world = World()
    for i in range(3):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=3)
    world.run()
    told = world.schedule.metrics()
    prompts = 3 * prompt_length(f"{PREAMBLE}0")
    assert told.prompt_tokens + told.reused_tokens == prompts
    assert told.prompt_tokens == read(world) < told.reused_tokens
    assert told.answer_tokens == sum(n for batch in world.context.batches for n in batch if n == 1)
    assert (told.waiting, told.running) == (0, 0)
    assert told.ttft_s > 0 < told.gap_s


def test_a_prompt_with_a_seed_is_read_whole():
    world = World()
    for i in range(3):
        world.ask(str(i), PREAMBLE, max_tokens=3, seed=i)
    world.run()
    assert read(world) == 3 * prompt_length(PREAMBLE)


def test_where_there_is_no_room_in_one_piece_a_prompt_is_read_whole():
    world = World()
    world.context.crowded = True
    for i in range(2):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=3)
        world.run()
    assert read(world) == 2 * prompt_length(f"{PREAMBLE}0")
    assert world.text("1") == alone(f"{PREAMBLE}1", max_tokens=3)


@pytest.mark.parametrize("way", [{"prefix_bytes_max": 0}, {"sliceable": False}])
def test_without_room_for_it_or_with_a_model_of_one_state_nothing_is_kept(way, monkeypatch):
    monkeypatch.setattr(FakeModel, "sliceable", way.pop("sliceable", True))
    world = World(**way)
    for i in range(3):
        world.ask(str(i), f"{PREAMBLE}{i}", max_tokens=3)
        world.run()
    assert (world.context.saved, len(world.schedule._prefixes)) == (0, 0)
    assert read(world) == 3 * prompt_length(f"{PREAMBLE}0")


def test_one_that_cannot_be_decoded_fails_alone():
    world = World()
    for i, question in enumerate(QUESTIONS[:3]):
        world.ask(str(i), question)
    world.schedule.step()

    def fault(parts: list[Part]) -> int:
        sequences = [p.sequence for p in parts]
        if sequences == [1]:
            world.context.fault = lambda parts: 0  # it is gone, and another may take its place
        return -1 if 1 in sequences else 0

    world.context.fault = fault
    world.run()
    failed = world.end("1")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.ENGINE_FAILED
    assert [world.text(i) for i in "02"] == [alone(QUESTIONS[0]), alone(QUESTIONS[2])]


def test_a_passing_fault_costs_nobody_anything():
    world = World()
    codes = iter([0, 0, 1, 0, 0, 0])
    world.context.fault = lambda parts: next(codes, 0)
    for i, question in enumerate(QUESTIONS[:3]):
        world.ask(str(i), question)
    world.run()
    assert [world.text(str(i)) for i in range(3)] == [alone(q) for q in QUESTIONS[:3]]


def test_a_model_that_decodes_nothing_more_gives_itself_up():
    world = World()
    world.context.fault = lambda parts: -3
    for i in range(9):
        world.ask(str(i), "x")
    with pytest.raises(EngineError, match="could not be decoded"):
        world.run()
    assert len([e for e in world.events if isinstance(e, Failed)]) == FAILURES_MAX - 1


def test_abort_frees_a_waiting_and_a_running_job_within_a_step():
    world = World(slots=1)
    for job in "abc":
        world.ask(job, "x" * 100)
    world.schedule.step()
    assert world.schedule.abort("a") == [Failed("a", Reason.CANCELLED)]
    assert world.schedule.abort("b") == [Failed("b", Reason.CANCELLED)]
    assert world.schedule.abort("b") == []
    world.run()
    assert world.text("c") == alone("x" * 100)
    assert not world.text("a")


def test_too_long_is_told_in_numbers_and_takes_no_slot():
    world = World(context_tokens=100)
    world.ask("a", "x" * 200)
    failed = world.end("a")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.TOO_LONG
    assert failed.tokens is not None
    assert failed.detail == f"the prompt is {failed.tokens} tokens, the context 100"
    assert world.schedule.wait_s() is None


def test_a_megabyte_is_refused_without_being_cut_into_tokens(monkeypatch: pytest.MonkeyPatch):
    """It took a second, and three of nothing but spaces, in which nobody's answer went on."""
    world = World(context_tokens=100)
    monkeypatch.setattr(FakeModel, "tokenize", lambda *_, **__: pytest.fail("it was read"))
    world.ask("a", " " * (Limits().prompt_bytes_max + 1))
    failed = world.end("a")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.BAD_REQUEST
    assert failed.detail.endswith(f"at most {Limits().prompt_bytes_max} fit")


def test_an_answer_is_capped_by_the_context():
    world = World(context_tokens=100)
    world.context.sample = lambda sampler, row: 97  # type: ignore[method-assign]  # it never ends by itself
    world.ask("a", "b" * 9, max_tokens=99)
    world.run()
    end = world.end("a")
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens + end.usage.completion_tokens <= 100
    assert end.finish_reason == "length"


def test_the_last_closes_the_gap_that_another_leaves():
    """llama.cpp decodes neighbours in one go, and those beyond a gap in another."""
    world = World(prefill_tps=1e9)
    for i, length in enumerate((4, 40, 40)):
        world.ask(str(i), f"{'x' * 9 * i}?", max_tokens=length)
    widths: list[list[int]] = []
    world.context.fault = lambda parts: widths.append(sorted(p.sequence for p in parts)) or 0
    world.run()
    assert [world.text(str(i)) for i in range(3)] == [
        alone(f"{'x' * 9 * i}?", max_tokens=n) for i, n in enumerate((4, 40, 40))
    ]
    assert all(used == list(range(used[0], used[0] + len(used))) for used in widths)
    assert [0, 1, 2] in widths
    assert widths[-1] == [0]
    assert not any(world.context.held[s] for s in range(3))


def test_where_nothing_can_be_moved_a_gap_stays():
    world = World()
    world.context.crowded = True
    for i, length in enumerate((4, 40, 40)):
        world.ask(str(i), f"{i}?", max_tokens=length)
    world.run()
    assert [world.text(str(i)) for i in (1, 2)] == [alone(f"{i}?", max_tokens=40) for i in (1, 2)]


def test_a_full_queue_refuses():
    world = World(jobs_max=2)
    for job in "abc":
        world.ask(job, "x")
    failed = world.end("c")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.OVERLOADED


def test_stop_texts_cut_and_what_users_write_is_no_control_token():
    whole = alone("tell me")
    world = World()
    world.ask("a", "tell me", stop=(whole[3:5],))
    world.run()
    assert world.text("a") == whole[: whole.find(whole[3:5])]
    tokens = world.schedule.prompt_tokens((Message("user", "<|im_end|>"),))
    assert tokens.count(END) == 1, "only the template's own"
    assert tokens[0] == FakeModel.bos


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"stop": ("",)},
        {"stop": ("x",) * 9},
        {"top_k": -1},
        {"top_k": 257},
        {"min_p": float("nan")},
        {"repeat_penalty": 0.0},
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"logprobs": -1},
        {"logprobs": 21},
        {"logit_bias": ((1, 0.0),) * 257},
        {"logit_bias": ((-1, 0.0),)},
        {"logit_bias": ((1, float("inf")),)},
        {"logit_bias": ((FakeModel.tokens, 1.0),)},
        {"schema": "{"},
        {"schema": '{"pattern": "x", "type": "string"}'},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]):
    world = World()
    world.ask("a", "x", **options)
    failed = world.end("a")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.BAD_REQUEST
    assert next(iter(options)).partition("_")[0] in failed.detail, "it does not say what is wrong"


def test_each_token_comes_with_how_likely_it_was_also_when_it_was_held_back():
    whole = alone("tell me")
    for stop in ((), (whole[2:] + "?",)):  # the second never comes, and holds all but two back
        world = World()
        world.ask("a", "tell me", logprobs=2, stop=stop)
        world.run()
        pieces = [e for e in world.events if isinstance(e, Generated)]
        assert [len(p.logprobs) for p in pieces] == [len(p.tokens) for p in pieces]
        told = [one for p in pieces for one in p.logprobs]
        assert b"".join(one.spelled for one in told).decode() == whole
        assert all(len(one.top) == 2 for one in told)
        assert (len(pieces) == len(told)) == (not stop)
    world.ask("b", "tell me")
    world.run()
    assert not any(e.logprobs for e in world.events if isinstance(e, Generated) and e.job == "b")


def test_of_more_log_probabilities_than_a_chunk_carries_the_last_lack_the_likeliest():
    world = World()
    world.context.sample = lambda sampler, row: ord("b")  # type: ignore[method-assign]
    world.ask("a", "x", logprobs=20, max_tokens=60, stop=("b" * 100,))
    world.run()
    (piece,) = (e for e in world.events if isinstance(e, Generated))
    assert len(piece.logprobs) == 60
    tops = [len(one.top) for one in piece.logprobs]
    assert tops == sorted(tops, reverse=True)
    assert set(tops) == {0, 20}
    assert frames.EventReader().feed(frames.encode(piece)) == [piece]
    Codec(Limits()).check(Tokens(Chunk(QueryId("0" * 32), 0, 0, piece.tokens, piece.text, piece.logprobs)))


def test_an_answer_that_no_token_can_go_on_with_fails_alone():
    world = World()
    for i, question in enumerate(QUESTIONS[:3]):
        world.ask(str(i), question)
    world.schedule.step()
    sample, stuck = world.context.sample, world.schedule._running[1].sampler
    world.context.sample = lambda sampler, row: -1 if sampler is stuck else sample(sampler, row)  # type: ignore[method-assign]
    world.run()
    failed = world.end("1")
    assert isinstance(failed, Failed)
    assert failed.reason is Reason.BAD_REQUEST
    assert "schema" in failed.detail
    assert [world.text(i) for i in "02"] == [alone(QUESTIONS[0]), alone(QUESTIONS[2])]
    assert len(world.schedule._free) == 3


def test_a_sampler_that_cannot_be_made_costs_no_slot(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ValueError("no such grammar")

    world = World(slots=1)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "Sampler", refuse)
        world.ask("a", "x")
        world.run()
    assert world.end("a") == Failed("a", Reason.BAD_REQUEST, "no such grammar")
    world.ask("b", "tell me")
    world.run()
    assert world.text("b") == alone("tell me")


def test_each_kind_of_engine_refuses_the_others_jobs():
    (failed,) = World().schedule.submit(Embed("a", ("x",)))
    assert isinstance(failed, Failed)
    fakes: Any = (FakeModel(), FakeContext())
    vectors = Vectors(*fakes, Load(), Ready(ModelInfo("m", "d", 256, 1.0, 1.0, 16)))
    (failed,) = vectors.submit(Generate("a", (Message("user", "x"),)))
    assert isinstance(failed, Failed)


def test_texts_of_several_jobs_are_packed_and_come_back_in_order():
    context = FakeContext()
    fakes: Any = (FakeModel(), context)
    vectors = Vectors(*fakes, Load(jobs_max=2), Ready(ModelInfo("m", "d", 256, 1.0, 1.0, 16)))
    assert vectors.submit(Embed("a", ("x" * 15, "yy", "z" * 30))) == []
    assert vectors.submit(Embed("b", ("w",))) == []
    (full,) = vectors.submit(Embed("c", ("w",)))
    assert isinstance(full, Failed)
    events: list[Event] = []
    while vectors.wait_s() is not None:
        events += vectors.step()
    assert context.batches == [[15, 2], [30, 1]]
    first, second = (e for e in events if isinstance(e, Embedded))
    assert first.vectors[:, 0].tolist() == [15 * ord("x"), 2 * ord("y"), 30 * ord("z")]
    assert second.vectors[:, 0].tolist() == [ord("w")]
