"""Real children: echoes for what processes do, the embedded model for what llama.cpp does."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from p2pmesh import config
from p2pmesh.engine import base, catalog, embedder, frames, tune
from p2pmesh.errors import ConfigError, EngineError, LocalProtocolError, ModelLoadError, Reason
from p2pmesh.peer import child
from p2pmesh.peer.engines import EngineDown, EngineHandle, EngineUp, open_engine
from p2pmesh.query import Message, Options, Usage
from p2pmesh.record import ModelInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HANG_S = 60
SYSTEM = Message("system", "You are a helpful assistant. Answer in one short sentence.")


class Engine:
    """An engine under test, and all it said."""

    def __init__(self) -> None:
        self.handle: EngineHandle = None  # type: ignore[assignment]
        self.events: list[Any] = []
        self._news = trio.Event()

    def on_event(self, handle: EngineHandle, event: Any) -> None:
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    def ask(self, job: str, text: str, **options: Any) -> None:
        self.handle.generate(job, (SYSTEM, Message("user", text)), Options(**options))

    def ends(self, job: str) -> list[Any]:
        kinds = (base.Finished, base.Failed, base.Embedded)
        return [e for e in self.events if isinstance(e, kinds) and e.job == job]

    def text(self, job: str) -> str:
        return "".join(e.text for e in self.events if isinstance(e, base.Generated) and e.job == job)

    async def until(self, true: Any) -> None:
        with trio.fail_after(HANG_S):
            while not true():
                await self._news.wait()

    async def end(self, job: str) -> Any:
        await self.until(lambda: self.ends(job))
        return self.ends(job)[0]

    def kinds(self) -> list[type]:
        return [type(e) for e in self.events if isinstance(e, (EngineUp, EngineDown))]

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.handle.pid is not None
        os.kill(self.handle.pid, number)


@asynccontextmanager
async def running(load: base.Load, *, wait: bool = True, **knobs: Any) -> AsyncIterator[Engine]:
    engine = Engine()
    knobs = {"restart_min_s": 0.01, **knobs}
    with trio.fail_after(2 * HANG_S):
        async with open_engine(load, config.Engine(**knobs), engine.on_event) as engine.handle:
            if wait:
                await engine.handle.wait_ready()
            yield engine


def echo(**fields: Any) -> base.Load:
    return base.Load(**{"kind": "echo", "name": "echo", "tokens_per_s": 1_000.0, **fields})


async def program_of(program: str) -> trio.Process:
    """Start another program where the worker would be."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return await trio.lowlevel.open_process([sys.executable, "-c", program], **pipes)


def gone(pid: int) -> bool:
    """Return whether a process has ended; one whose new parent does not reap it has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def limits_of(pid: int | None) -> dict[str, list[str]]:
    """The soft and the hard limit of each resource of a process, by name."""
    told = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:25].strip(): line[25:].split()[:2] for line in told}


def no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


# -------------------------------------------------------------------- the process


async def test_an_answer_comes_whole_and_ends_once():
    async with running(echo()) as engine:
        assert engine.handle.state == "ready"
        assert engine.handle.space == "hash-384"
        engine.ask("a", "one two three")
        end = await engine.end("a")
        assert engine.text("a") == "echo: one two three"
        assert (end.finish_reason, end.usage.completion_tokens) == ("stop", 4)
        engine.handle.embed("v", ("one", "two"))
        vectors = (await engine.end("v")).vectors
        assert np.allclose(vectors, embedder.HashEmbedder().embed(("one", "two")))
    assert engine.kinds() == [EngineUp]
    assert engine.handle.state == "closed"


async def test_after_a_thousand_jobs_nothing_is_left_behind():
    """Done, aborted, refused for what they ask, refused for want of room, and those that an end of the child
    took with it."""
    async with running(echo()):
        pass  # what trio opens once, it has opened
    before = sorted(os.listdir("/proc/self/fd"))
    async with running(echo(tokens_per_s=100_000.0)) as engine:
        pipes = len(os.listdir(f"/proc/{engine.handle.pid}/fd"))
        most = config.Engine().jobs_max
        for i in range(0, 1_200, 300):
            jobs = [str(job) for job in range(i, i + 300)]
            for job in jobs:
                engine.ask(job, f"number {job}", max_tokens=0 if job.endswith("3") else 100)
                if job.endswith("7"):
                    engine.handle.abort(job)
            ends = {job: await engine.end(job) for job in jobs if not job.endswith("7")}
            full = [job for job in ends if getattr(ends[job], "reason", None) is Reason.OVERLOADED]
            assert full == [job for job in jobs[most:] if job in ends]
            for job in ends.keys() - set(full):
                if job.endswith("3"):
                    assert ends[job].reason is Reason.BAD_REQUEST
                else:
                    assert engine.text(job) == f"echo: number {job}"
            await engine.until(lambda: not engine.handle._jobs and not engine.handle._refusals)
        assert len(os.listdir(f"/proc/{engine.handle.pid}/fd")) == pipes
    async with running(echo(tokens_per_s=10.0)) as engine:
        for i in range(8):
            engine.ask(f"last {i}", "x " * 100)
        await engine.until(lambda: engine.text("last 0"))
        engine.kill()
        for i in range(8):
            assert (await engine.end(f"last {i}")).reason is Reason.ENGINE_FAILED
        await engine.handle.wait_ready()
        assert engine.handle.restarts == 1
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert no_children()


async def test_every_job_of_a_killed_child_fails_once_and_it_comes_back():
    async with running(echo(tokens_per_s=20.0)) as engine:
        for i in range(20):
            engine.ask(str(i), "word " * 50)
        await engine.until(lambda: engine.text("0"))
        engine.handle.abort("19")
        first = engine.handle.pid
        engine.kill()
        await engine.until(lambda: engine.kinds() == [EngineUp, EngineDown, EngineUp])
        assert Counter(e.job for e in engine.events if isinstance(e, base.Failed)) == Counter(
            map(str, range(19))
        )
        failed = engine.ends("0")[0]
        assert failed.reason is Reason.ENGINE_FAILED
        assert "killed by signal 9" in failed.detail
        down = next(i for i, e in enumerate(engine.events) if isinstance(e, EngineDown))
        assert all(engine.events.index(engine.ends(str(i))[0]) < down for i in range(19))
        assert (engine.handle.restarts, engine.handle.state) == (1, "ready")
        assert engine.handle.pid != first
        engine.ask("again", "x", max_tokens=1)
        await engine.end("again")
        assert engine.text("again") == "echo:"


async def test_a_child_killed_at_rest_comes_back_and_refuses_meanwhile():
    async with running(echo(), restart_min_s=0.3) as engine:
        engine.kill()
        await engine.until(lambda: engine.kinds() == [EngineUp, EngineDown])
        assert engine.handle.state == "restarting"
        engine.ask("a", "x")
        assert engine.ends("a") == [], "told from within the call"
        failed = await engine.end("a")
        assert failed.reason is Reason.ENGINE_FAILED
        assert "restarting" in failed.detail
        await engine.handle.wait_ready()


async def test_an_error_in_the_block_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with open_engine(echo(), config.Engine(), lambda handle, event: None):
            raise ZeroDivisionError
    assert no_children()


async def test_leaving_the_block_ends_jobs_and_child():
    async with running(echo(tokens_per_s=1.0)) as engine:
        engine.ask("a", "x " * 100)
        pid = engine.handle.pid
        assert pid is not None
    assert gone(pid)
    assert [e.reason for e in engine.ends("a")] == [Reason.ENGINE_FAILED]


async def test_being_cancelled_ends_a_child_that_is_stopped(monkeypatch: Any):
    monkeypatch.setattr(child, "GRACE_S", 0.1)
    pid = None
    with trio.CancelScope() as scope:
        async with running(echo(tokens_per_s=1.0)) as engine:
            pid = engine.handle.pid
            engine.kill(signal.SIGSTOP)
            scope.cancel()
            await trio.sleep_forever()
    assert pid is not None
    assert gone(pid)


async def test_a_child_that_falls_silent_over_its_work_is_ended():
    async with running(echo(tokens_per_s=5.0), stall_max_s=2.0) as engine:
        engine.ask("a", "x " * 20)
        await engine.until(lambda: engine.text("a"))
        engine.kill(signal.SIGSTOP)
        failed = await engine.end("a")
        assert "it had work and said nothing for 2 s" in failed.detail
        await engine.handle.wait_ready()


async def test_who_was_stopped_himself_does_not_take_his_child_for_silent():
    async with running(echo(tokens_per_s=5.0), stall_max_s=2.5) as engine:
        engine.ask("a", "x " * 10)
        await engine.until(lambda: engine.text("a"))
        engine.kill(signal.SIGSTOP)  # or it would speak in time, now and then
        time.sleep(4.0)  # nobody here runs  # noqa: ASYNC251
        engine.kill(signal.SIGCONT)
        assert isinstance(await engine.end("a"), base.Finished)


async def test_a_job_that_comes_while_the_child_comes_to_its_end_fails_with_the_others(monkeypatch: Any):
    end = child.end

    async def late(process: trio.Process, grace_s: float) -> None:
        with suppress(LocalProtocolError):
            engine.ask("b", "one two")
            engine.handle.abort("b")
            engine.ask("c", "one two")
        await end(process, grace_s)

    async with running(echo(tokens_per_s=5.0)) as engine:
        engine.ask("a", "x " * 20)
        await engine.until(lambda: engine.text("a"))
        monkeypatch.setattr(child, "end", late)
        engine.kill(signal.SIGKILL)
        assert [(await engine.end(job)).reason for job in ("a", "c")] == [Reason.ENGINE_FAILED] * 2
        monkeypatch.setattr(child, "end", end)
        await engine.handle.wait_ready()
        assert engine.ends("b") == []


async def test_slow_work_is_not_silence():
    async with running(echo(tokens_per_s=0.8), stall_max_s=2.0) as engine:
        engine.ask("a", "x", max_tokens=1)
        assert isinstance(await engine.end("a"), base.Finished)


async def test_an_engine_without_work_falls_asleep_and_wakes_for_the_next_job():
    async with running(echo(), idle_unload_s=0.05) as engine:
        for number in range(3):
            with trio.fail_after(HANG_S):
                while engine.handle.state != "asleep" or engine.handle.pid is not None:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await engine.handle.wait_ready()  # it takes jobs
            for job in ("a", "b", "unwanted"):
                engine.ask(f"{job}{number}", "one two")
            engine.handle.abort(f"unwanted{number}")
            assert isinstance(await engine.end(f"a{number}"), base.Finished)
            assert isinstance(await engine.end(f"b{number}"), base.Finished)
            assert engine.ends(f"unwanted{number}") == []
        assert engine.kinds() == [EngineUp]
        assert engine.handle.restarts == 0


async def test_one_that_cannot_wake_fails_what_it_was_woken_for(monkeypatch: Any):
    async with running(echo(), idle_unload_s=0.05, crashes_max=1_000) as engine:
        with trio.fail_after(HANG_S):
            while engine.handle.state != "asleep":  # noqa: ASYNC110
                await trio.sleep(0.01)
        monkeypatch.setattr(child, "spawn", lambda: program_of("raise SystemExit(3)"))
        engine.ask("a", "x")
        failed = await engine.end("a")
        assert failed.reason is Reason.ENGINE_FAILED
        await engine.until(lambda: EngineDown in engine.kinds())
        monkeypatch.undo()
        await engine.until(lambda: engine.kinds().count(EngineUp) == 2)


async def test_a_job_that_comes_while_it_falls_asleep_is_done():
    """Whatever the moment: before the child is told to end, meanwhile, or after."""
    async with running(echo(), idle_unload_s=0.02) as engine:
        for number in range(40):
            engine.ask(str(number), "x")
            assert isinstance(await engine.end(str(number)), base.Finished)
            await trio.sleep(0.001 * number)


async def test_a_full_engine_refuses_and_an_aborted_job_makes_room():
    async with running(echo(tokens_per_s=20.0, slots=1), jobs_max=2) as engine:
        for job in "abc":
            engine.ask(job, "x " * 50)
        assert (await engine.end("c")).reason is Reason.OVERLOADED
        with pytest.raises(LocalProtocolError):
            engine.ask("a", "x")
        engine.handle.abort("a")
        engine.handle.abort("nobody")
        await engine.until(lambda: engine.text("b"))
        assert engine.ends("a") == []
        engine.ask("d", "x")
        assert engine.ends("d") == []


async def test_what_a_child_would_choke_on_is_refused_at_home():
    async with running(echo()) as engine:
        engine.handle.embed("none", ())
        engine.handle.embed("many", ("x",) * (base.TEXTS_MAX + 1))
        engine.handle.embed("surrogate", ("\ud800",))
        engine.handle.generate("big", (Message("user", "x" * 2_000_000),), Options())
        for job in ("none", "many", "surrogate", "big"):
            assert (await engine.end(job)).reason is Reason.BAD_REQUEST
        engine.handle.generate("role", (Message("root", "x"),), Options())
        assert "unknown role" in (await engine.end("role")).detail
        assert engine.handle.restarts == 0


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os.write(1, b'garbage!' * 9); import time; time.sleep(99)", "a frame of"),
        ("import sys; sys.exit('no such library')", "exit status 1 (no such library)"),
        ("import os; os.abort()", "killed by signal 6"),
        ("import time; time.sleep(99)", "it did not load within 0.5 s"),
        ("import os, time; os.close(1); os.write(2, b'x' * 10_000_000); time.sleep(99)", "the engine died"),
    ],
)
async def test_a_child_that_cannot_start_is_quarantined(monkeypatch: Any, program: str, said: str):
    monkeypatch.setattr(child, "spawn", lambda: program_of(program))
    monkeypatch.setattr(child, "GRACE_S", 0.1)
    timeout = 0.5 if "0.5" in said else 60.0
    async with running(echo(), wait=False, load_timeout_s=timeout) as engine:
        with pytest.raises(ModelLoadError) as caught:
            await engine.handle.wait_ready()
        assert said in str(caught.value)
        assert len(str(caught.value)) <= base.DETAIL_CHARS_MAX + 100
        assert "quarantined after 2 crashes" in engine.handle.detail
        assert engine.events[-1] == EngineDown(engine.handle.detail, True)
        assert engine.kinds() == [EngineDown, EngineDown]
        engine.ask("a", "x")
        assert "quarantined" in (await engine.end("a")).detail
    assert no_children()


def saying(event: base.Event) -> str:
    """A child that says one thing and waits."""
    return f"import os; os.write(1, {frames.encode(event)!r}); os.read(0, 1 << 20); os.read(0, 1)"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("answer", base.Embedded("a", np.ones((1, 4), np.float32))),
        ("vectors", base.Finished("a", Usage(1, 1), "stop")),
        ("vectors", base.Embedded("a", np.ones((3, 4), np.float32))),
        ("vectors", base.Generated("a", (1,), "x")),
        ("answer", base.Generated("a", (), "x")),
        ("answer", base.Generated("a", (1,) * 257, "x")),
    ],
)
async def test_a_job_that_ends_in_what_was_not_asked_has_failed(
    monkeypatch: Any, kind: str, said: base.Event
):
    """The query waited for its end until its budget was spent."""
    ready = base.Ready(ModelInfo("echo", "", 1, 1.0, 1.0, 1))
    program = f"""
import os
def frame():
    return os.read(0, int.from_bytes(os.read(0, 4), "big"))
frame()
os.write(1, {frames.encode(ready)!r})
frame()
os.write(1, {frames.encode(said)!r})
os.read(0, 1)
"""
    monkeypatch.setattr(child, "spawn", lambda: program_of(program))
    async with running(echo()) as engine:
        if kind == "answer":
            engine.ask("a", "x")
        else:
            engine.handle.embed("a", ("x", "y"))
        end = await engine.end("a")
        assert end.reason is Reason.ENGINE_FAILED
        assert "with what was not asked" in end.detail or "with more than was asked" in end.detail


async def test_a_child_that_takes_another_name_is_quarantined(monkeypatch: Any):
    ready = base.Ready(ModelInfo("gpt-5", "", 1, 1.0, 1.0, 1))
    monkeypatch.setattr(child, "spawn", lambda: program_of(saying(ready)))
    async with running(echo(), wait=False) as engine:
        with pytest.raises(ModelLoadError, match="it calls itself 'gpt-5', not 'echo'"):
            await engine.handle.wait_ready()
        assert engine.handle.info is None
        assert engine.kinds() == [EngineDown, EngineDown]


async def test_when_no_process_can_be_started_it_tries_again_and_waits_longer_each_time(monkeypatch: Any):
    real_spawn, real_sleep = child.spawn, trio.sleep
    forks, pauses = 0, []

    async def spawn() -> trio.Process:
        nonlocal forks
        forks += 1
        if forks in (1, 2, 3, 5, 6, 7):
            raise OSError("no more processes")
        return await real_spawn()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real_sleep(seconds)

    monkeypatch.setattr(child, "spawn", spawn)
    monkeypatch.setattr(trio, "sleep", sleep)
    async with running(echo(), restart_min_s=0.02) as engine:
        assert engine.kinds() == [EngineDown] * 3 + [EngineUp]
        down = next(e for e in engine.events if isinstance(e, EngineDown))
        assert down == EngineDown("no process can be started: no more processes", False)
        assert pauses == [0.02, 0.04, 0.08]
        engine.ask("a", "x")
        await engine.end("a")
        pauses.clear()
        engine.kill()
        await engine.until(lambda: engine.kinds()[4:] == [EngineDown] * 4 + [EngineUp])
        assert [p for p in pauses if p != 0.01] == [0.02, 0.04, 0.08, 0.16]


async def test_a_model_that_was_ready_and_cannot_be_loaded_now_is_tried_again(monkeypatch: Any):
    real, starts = child.spawn, 0

    async def spawn() -> trio.Process:
        nonlocal starts
        starts += 1
        return await (real() if starts in (1, 5) else program_of(saying(base.LoadFailed("no memory"))))

    monkeypatch.setattr(child, "spawn", spawn)
    async with running(echo()) as engine:
        engine.kill()
        await engine.until(lambda: engine.kinds() == [EngineUp] + [EngineDown] * 4 + [EngineUp])
        downs = [e for e in engine.events if isinstance(e, EngineDown)]
        assert downs[1:] == [EngineDown("no memory", False)] * 3
        assert engine.handle.state == "ready"


async def test_a_model_that_never_was_ready_and_cannot_be_loaded_is_not_tried_again(monkeypatch: Any):
    monkeypatch.setattr(child, "spawn", lambda: program_of(saying(base.LoadFailed("no GGUF"))))
    async with running(echo(), wait=False) as engine:
        with pytest.raises(ModelLoadError, match="no GGUF"):
            await engine.handle.wait_ready()
        assert engine.events == [EngineDown("no GGUF", True)]


async def test_a_model_that_was_ready_and_now_kills_its_child_is_quarantined(monkeypatch: Any):
    async with running(echo()) as engine:
        monkeypatch.setattr(child, "spawn", lambda: program_of("import os; os.abort()"))
        engine.kill()
        await engine.until(lambda: engine.handle.state == "quarantined")
        assert engine.kinds() == [EngineUp] + [EngineDown] * 3


async def test_no_code_of_the_current_directory_is_run(monkeypatch: Any, tmp_path: Path):
    for name in ("p2pmesh", "msgspec", "queue", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run from the current directory')")
    real = trio.lowlevel.open_process

    async def as_python_3_10(*args: Any, env: dict[str, str], **more: Any) -> trio.Process:
        return await real(*args, env={k: v for k, v in env.items() if k != "PYTHONSAFEPATH"}, **more)

    monkeypatch.setattr(trio.lowlevel, "open_process", as_python_3_10)
    monkeypatch.chdir(tmp_path)
    async with running(echo()) as engine:
        assert engine.handle.restarts == 0


@pytest.mark.model
async def test_a_relative_path_is_meant_from_where_the_peer_is(monkeypatch: Any, model: Path):
    monkeypatch.chdir(model.parent)
    async with running(base.Load(path=model.name)) as engine:
        assert engine.handle.info is not None
        assert engine.handle.info.name == model.stem


async def test_a_child_dies_with_its_parent():
    program = """
import trio
from p2pmesh import config
from p2pmesh.engine import base
from p2pmesh.peer.engines import open_engine
async def main():
    load = base.Load(kind="echo", tokens_per_s=1.0)
    async with open_engine(load, config.Engine(), lambda handle, event: None) as handle:
        await handle.wait_ready()
        print(handle.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    parent = await trio.lowlevel.open_process(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with trio.fail_after(HANG_S):
        pid = int(await parent.stdout.receive_some())
        assert not gone(pid)
        parent.kill()
        await parent.wait()
        await parent.stdout.aclose()
        while not gone(pid):  # noqa: ASYNC110
            await trio.sleep(0.01)


# -------------------------------------------------------------------- llama.cpp


@pytest.fixture
def model() -> Path:
    pytest.importorskip("llama_cpp")
    try:
        return catalog.find(catalog.DEFAULT)
    except (ConfigError, ModelLoadError):
        pytest.skip("the embedded default model is not installed")


def load(path: Path, **fields: Any) -> base.Load:
    return base.Load(path=str(path), name="smol", **fields)


QUESTIONS = (
    "What is the capital of France?",
    "What is gravity?",
    "Name the primary colours.",
    "What is a cat?",
    "Why is the sky blue?",
    "What is water made of?",
    "Who wrote Hamlet?",
    "Who was Napoleon?",
)


@pytest.mark.model
async def test_eight_at_once_say_what_each_says_alone(model: Path):
    """Word for word only at first: one row and eight rows are multiplied by different kernels, and a near-tie
    may fall the other way (measured: 7 of 8 stay equal over 24 tokens). That the schedule itself is exact is
    shown on a model of integers in the unit tests.
    """
    async with running(load(model)) as engine:
        info = engine.handle.info
        assert info is not None
        assert len(info.digest) == 64
        assert info.context_tokens == 2_048
        assert info.decode_tps > 0 < info.prefill_tps
        for i, question in enumerate(QUESTIONS):
            engine.ask(f"alone {i}", question, max_tokens=24)
            await engine.end(f"alone {i}")
        for i, question in enumerate(QUESTIONS):
            engine.ask(f"together {i}", question, max_tokens=24)
        for i in range(len(QUESTIONS)):
            end = await engine.end(f"together {i}")
            assert end.usage.completion_tokens <= 24
        for i in range(len(QUESTIONS)):
            assert engine.text(f"together {i}")[:10] == engine.text(f"alone {i}")[:10] != ""
        assert "Paris" in engine.text("together 0")


@pytest.mark.model
async def test_what_decides_an_answer(model: Path):
    async with running(load(model, context_tokens=256, slots=4)) as engine:
        engine.ask("whole", QUESTIONS[0])
        assert (await engine.end("whole")).finish_reason == "stop"
        whole = engine.text("whole")

        engine.ask("stopped", QUESTIONS[0], stop=(" of Fra", "Paris"))
        assert (await engine.end("stopped")).finish_reason == "stop"
        assert engine.text("stopped") == whole[: whole.index(" of Fra")]

        for job in ("drawn", "drawn again"):
            engine.ask(job, "Tell me a story.", temperature=1.0, top_p=0.9, seed=7, max_tokens=20)
            await engine.end(job)
        assert engine.text("drawn") == engine.text("drawn again")

        engine.ask("japanese", "日本語で、絵文字🙂も使って答えてください。", max_tokens=24)
        assert isinstance(await engine.end("japanese"), base.Finished)
        assert not engine.text("japanese").isascii()
        assert "\ufffd" not in engine.text("japanese")[:-1], "a character was cut in two"

        engine.ask("capped", "Write a very long story about the sea.", max_tokens=8_000)
        end = await engine.end("capped")
        assert end.finish_reason in ("length", "stop")
        assert end.usage.prompt_tokens + end.usage.completion_tokens <= 256

        engine.ask("long", "word " * 1_000)
        failed = await engine.end("long")
        assert failed.reason is Reason.TOO_LONG
        assert failed.detail == f"the prompt is {failed.tokens} tokens, the context 256"
        assert failed.tokens > 1_000


@pytest.mark.model
async def test_a_schema_is_kept_and_one_that_cannot_be_costs_nobody_anything(model: Path):
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["capital", "sure"],
    }
    async with running(load(model, slots=4)) as engine:
        pid = engine.handle.pid
        hostile = ("(" * 16_000, "[" * 16_000, '{"$ref": "#"}', '{"type": "string", "pattern": "(a+)+$"}')
        for i, bad in enumerate(hostile):
            engine.ask(f"bad {i}", "x", schema=bad)
        engine.ask("good", QUESTIONS[0], schema=json.dumps(schema), max_tokens=60)
        engine.ask("plain", QUESTIONS[0], max_tokens=20, repeat_penalty=1.1, logit_bias=((0, -100.0),))
        for i in range(len(hostile)):
            failed = await engine.end(f"bad {i}")
            assert failed.reason is Reason.BAD_REQUEST
            assert failed.detail.startswith("the JSON schema is refused: ")
        assert (await engine.end("good")).finish_reason == "stop"
        assert "Paris" in json.loads(engine.text("good"))["capital"]
        assert isinstance(await engine.end("plain"), base.Finished)

        pieces = [e for e in engine.events if isinstance(e, base.Generated) and e.job == "good"][:5]
        accepted = tuple(token for piece in pieces for token in piece.tokens)
        talk = (SYSTEM, Message("user", QUESTIONS[0]))
        options = Options(schema=json.dumps(schema), max_tokens=60)
        engine.handle.generate("resumed", talk, options, accepted)
        assert (await engine.end("resumed")).finish_reason == "stop"
        whole = "".join(piece.text for piece in pieces) + engine.text("resumed")
        assert list(json.loads(whole)) == ["capital", "sure"]
        engine.handle.generate("from text", talk, options, (), '{"capital": "Rome", ')
        await engine.end("from text")
        assert json.loads('{"capital": "Rome", ' + engine.text("from text"))["capital"] == "Rome"
        engine.handle.generate("from prose", talk, options, (), "The capital of")
        assert (await engine.end("from prose")).reason is Reason.BAD_REQUEST
        assert engine.handle.pid == pid
        assert engine.handle.restarts == 0


@pytest.mark.model
async def test_a_conversation_that_goes_on_says_what_it_says_to_one_who_reads_it_whole(model: Path):
    story = "Tell me in many words what the sea is, and what lives in it. " * 8
    said = {}
    for kept in (0, 2**26):
        async with running(load(model, prefix_bytes_max=kept)) as engine:
            assert bool(engine.handle.info and engine.handle.info.prefixes) == bool(kept)
            engine.ask("first", story, max_tokens=16)
            await engine.end("first")
            turns = (SYSTEM, Message("user", story), Message("assistant", engine.text("first")))
            engine.handle.generate("next", (*turns, Message("user", "Go on.")), Options(max_tokens=16))
            await engine.end("next")
            said[kept] = (engine.text("first"), engine.text("next"))
            while (told := engine.handle.metrics) is None or told.running:  # noqa: ASYNC110
                await trio.sleep(0.01)  # it follows the end of the last job
            assert (told.reused_tokens > 100) == bool(kept)
            assert told.waiting == 0 < told.ttft_s
    assert said[0] == said[2**26]


@pytest.mark.model
def test_a_copy_in_another_format_is_measured_and_served(model: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "FORMATS", {"q8_0": 34 / 32})
    monkeypatch.setattr(tune, "GAIN_MIN", 0.0)  # whether it pays is this machine's affair
    outcome = tune.tune(catalog.DEFAULT, lambda line: None)
    original, copy = outcome.tried
    assert outcome.kept == "q8_0"
    assert 0.98 < copy.perplexity / original.perplexity < 1.02
    assert original.perplexity < 100
    assert copy.together_tps > copy.decode_tps > 0 < copy.prefill_tps
    spec = catalog.model_load(config.ModelConfig(model=catalog.DEFAULT), config.Engine())
    assert Path(spec.path).parent == tmp_path / "p2pmesh" / "tuned"
    assert spec.served_name == catalog.DEFAULT


@pytest.mark.model
def test_a_copy_for_which_the_disk_has_no_room_is_said_to_be_that(model: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no disk that is always full")
    with pytest.raises(EngineError, match=r"cannot quantise .*: is the disk full"):
        tune._child("quantise", str(model), "/dev/full", "q8_0")


def adapter(path: Path, width: int, strength: float) -> Path:
    """Write a LoRA adapter for a model of 30 layers that are so wide."""
    gguf = pytest.importorskip("gguf")
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for layer in range(30):
        low = random.normal(size=(4, width)).astype(np.float32)
        high = strength * random.normal(size=(width, 4)).astype(np.float32)
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_a", low)
        writer.add_tensor(f"blk.{layer}.attn_q.weight.lora_b", high)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.model
async def test_an_adapter_is_laid_over_its_model_and_is_another_mind(model: Path, tmp_path: Path):
    said, digests = [], []
    strong, none = (adapter(tmp_path / f"{s}.gguf", 576, s) for s in (0.2, 0.0))
    for over in ("", str(none), str(strong)):
        async with running(load(model, slots=1, adapter=over)) as engine:
            engine.ask("a", QUESTIONS[0], max_tokens=8)
            await engine.end("a")
            said.append(engine.text("a"))
            assert engine.handle.info is not None
            digests.append(engine.handle.info.digest)
    assert said[0] == said[1] != said[2]
    assert len(set(digests)) == 3


@pytest.mark.model
async def test_what_is_no_adapter_for_this_model_is_refused(model: Path, tmp_path: Path):
    narrow = str(adapter(tmp_path / "narrow.gguf", 64, 0.1))
    async with running(load(model, adapter=narrow), wait=False) as engine:
        with pytest.raises(ModelLoadError, match=r"cannot lay narrow\.gguf over"):
            await engine.handle.wait_ready()
    for wrong, why in ((str(model), "is no adapter"), (str(tmp_path / "none.gguf"), "there is no file")):
        with pytest.raises(ModelLoadError, match=why):
            catalog.model_load(config.ModelConfig(model=str(model), adapter=wrong), config.Engine())
    asked = config.ModelConfig(model=str(model), adapter=narrow)
    assert catalog.model_load(asked, config.Engine()).served_name == f"{model.stem}+narrow"


@pytest.mark.model
async def test_a_child_is_kept_within_bounds(model: Path):
    async with running(load(model, slots=2)) as engine:
        limits = limits_of(engine.handle.pid)
        assert {*limits["Max core file size"]} <= {"0", "1"}
        assert limits["Max open files"] == ["1024", "1024"]
        soft, hard = limits["Max data size"]
        assert 2**30 < int(soft) == int(hard) < 2**31
        assert len(os.listdir(f"/proc/{engine.handle.pid}/fd")) < 32


@pytest.mark.model
async def test_control_tokens_in_a_question_are_only_characters(model: Path):
    async with running(load(model)) as engine:
        # Were it a control token, the counts would be equal: "<|im_end|>" is one, "x" is one.
        for job, text in (("plain", "x"), ("hostile", "<|im_end|>")):
            engine.ask(job, text, max_tokens=1)
        plain, hostile = await engine.end("plain"), await engine.end("hostile")
        assert hostile.usage.prompt_tokens > plain.usage.prompt_tokens + 3


@pytest.mark.model
async def test_an_abort_frees_the_only_slot(model: Path):
    async with running(load(model, slots=1)) as engine:
        engine.ask("a", "Write a very long story about the sea.", max_tokens=1_500)
        engine.ask("b", QUESTIONS[0], max_tokens=4)
        await engine.until(lambda: engine.text("a"))
        engine.handle.abort("a")
        await engine.end("b")
        assert engine.ends("a") == []


@pytest.mark.model
async def test_a_child_killed_while_it_loads_and_while_it_decodes_comes_back(model: Path):
    async with running(load(model), wait=False) as engine:
        with trio.fail_after(HANG_S):
            while engine.handle.pid is None:  # noqa: ASYNC110  # a pid is no event
                await trio.sleep(0.01)
        engine.kill()
        await engine.handle.wait_ready()
        assert engine.kinds() == [EngineDown, EngineUp]
        engine.ask("a", "Write a very long story about the sea.", max_tokens=500)
        await engine.until(lambda: engine.text("a"))
        engine.kill()
        assert (await engine.end("a")).reason is Reason.ENGINE_FAILED
        await engine.handle.wait_ready()
        engine.ask("b", QUESTIONS[0])
        await engine.end("b")
        assert "Paris" in engine.text("b")


def without_blocks(model: Path, target: Path) -> Path:
    """Copy a model, made to claim that it has no layers: llama.cpp aborts on it."""
    target.write_bytes(model.read_bytes())
    key = b"llama.block_count"
    with target.open("r+b") as file:
        at = file.read(1_000_000).index(key) + len(key) + 4
        file.seek(at)
        file.write(struct.pack("<I", 0))
    return target


def copied(model: Path, target: Path, length: int | None = None) -> Path:
    """Copy a model into a file, or the beginning of it."""
    target.write_bytes(model.read_bytes()[:length])
    return target


@pytest.mark.model
async def test_a_file_that_aborts_llama_cpp_is_quarantined(model: Path, tmp_path: Path):
    async with running(load(without_blocks(model, tmp_path / "hostile.gguf")), wait=False) as engine:
        with pytest.raises(ModelLoadError, match="quarantined after 2 crashes while loading"):
            await engine.handle.wait_ready()
        assert "killed by signal" in engine.handle.detail
        assert engine.handle.state == "quarantined"


@pytest.mark.model
@pytest.mark.parametrize(
    ("length", "said"), [(0, "is not a GGUF file"), (2_000, "is damaged"), (50_000_000, "is cut")]
)
async def test_a_damaged_file_is_refused_at_once(model: Path, tmp_path: Path, length: int, said: str):
    async with running(load(copied(model, tmp_path / "damaged.gguf", length)), wait=False) as engine:
        with pytest.raises(ModelLoadError, match=said) as caught:
            await engine.handle.wait_ready()
        assert "\n" not in str(caught.value)
        assert engine.handle.restarts == 0


def scramble(path: Path) -> None:
    """Write random bytes over a model's weights."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        file.write(np.random.default_rng(0).bytes(path.stat().st_size // 3))


@pytest.mark.model
async def test_a_file_that_is_written_to_while_it_is_in_use_spoils_no_answer(model: Path, tmp_path: Path):
    """What the weights became was answered with, in two tokens, as a whole answer."""
    used = copied(model, tmp_path / "used.gguf")
    async with running(load(used)) as engine:
        engine.ask("a", "Write a very long story about the sea.", max_tokens=500)
        await engine.until(lambda: engine.text("a"))
        await trio.to_thread.run_sync(scramble, used)
        end = await engine.end("a")
        assert end.reason is Reason.ENGINE_FAILED
        assert "its model file was written to while it was in use" in end.detail
        assert engine.handle.metrics is None  # nothing runs there
        copied(model, used)
        await engine.handle.wait_ready()
        engine.ask("b", QUESTIONS[0])
        await engine.end("b")
        assert "Paris" in engine.text("b")


@pytest.mark.model
async def test_a_file_that_is_cut_while_it_is_in_use_is_waited_for(model: Path, tmp_path: Path):
    """The kernel kills who reads what is no longer there."""
    used = copied(model, tmp_path / "used.gguf")
    async with running(load(used)) as engine:
        engine.ask("a", "Write a very long story about the sea.", max_tokens=1_000)
        await engine.until(lambda: engine.text("a"))
        os.truncate(used, 50_000_000)
        assert (await engine.end("a")).reason is Reason.ENGINE_FAILED
        await engine.until(lambda: "is cut" in engine.handle.detail)
        copied(model, used)
        await engine.handle.wait_ready()
        engine.ask("b", QUESTIONS[0])
        await engine.end("b")
        assert "Paris" in engine.text("b")


@pytest.mark.model
async def test_a_file_that_another_takes_the_place_of_stays_in_use(model: Path, tmp_path: Path):
    used = copied(model, tmp_path / "used.gguf")
    async with running(load(used)) as engine:
        copied(model, tmp_path / "other.gguf", 2_000).replace(used)
        engine.ask("a", QUESTIONS[0])
        await engine.end("a")
        assert "Paris" in engine.text("a")
        assert engine.handle.restarts == 0


def scrambled(model: Path, target: Path) -> Path:
    """Write a model with its head and random bytes for weights, among them scales that are no numbers."""
    data = bytearray(model.read_bytes())
    start = len(data) // 8  # the head is shorter
    data[start:] = np.random.default_rng(0).bytes(len(data) - start)
    target.write_bytes(data)
    return target


@pytest.mark.model
async def test_weights_that_compute_no_numbers_are_refused(model: Path, tmp_path: Path):
    """It answered "" with success, and drew other peers' queries."""
    async with running(load(scrambled(model, tmp_path / "damaged.gguf")), wait=False) as engine:
        with pytest.raises(ModelLoadError, match="its weights are damaged"):
            await engine.handle.wait_ready()


@pytest.mark.model
async def test_another_digest_is_refused(model: Path):
    async with running(load(model, digest="0" * 64), wait=False) as engine:
        with pytest.raises(ModelLoadError, match=f"not {'0' * 64}"):
            await engine.handle.wait_ready()


@pytest.mark.model
async def test_the_embedder_knows_what_belongs_together():
    pytest.importorskip("llama_cpp")
    spec = catalog.embedder_load(config.Engine())
    if spec is None:
        pytest.skip("set-up has not made the embedder")
    async with running(spec) as engine:
        assert (engine.handle.space, engine.handle.dimensions) == (embedder.SPACE, 384)
        texts = (
            "How do I bake bread?",
            "The best flour for a sourdough loaf",
            "A Python TypeError",
            "x " * 9_000,
        )
        engine.handle.embed("a", texts)
        engine.handle.embed("b", texts[:1])
        together, alone = (await engine.end("a")).vectors, (await engine.end("b")).vectors
        assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
        assert together[0] @ together[1] > 0.4 > together[0] @ together[2]
        assert math.isclose(float(together[0] @ alone[0]), 1.0, abs_tol=1e-3)
