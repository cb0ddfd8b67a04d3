"""The processes and files of a benchmark: started, listened to, counted, and gone at the end.

Nothing outlives `run`, however it ends: by itself, by an error, by Ctrl-C or by SIGTERM. A benchmark that is
killed takes its children with it, for they end with their stdin; only its folder stays.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from benchmarks.sse import BadResponse
from p2pmesh.engine import catalog
from p2pmesh.errors import MeshError

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 2.0
"""Seconds a child has to end with its stdin before it is killed."""

LOG_LINES = 5
"""Lines of a child's last words that are shown when it ends early."""

T = TypeVar("T")


class BenchmarkError(Exception):
    """The benchmark cannot go on; its text says why."""


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU a process has used: all its threads, also those that have ended.

    Raises `BenchmarkError` when the process is gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise BenchmarkError(f"process {pid}, which was to answer, is gone") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Child:
    """A process of `benchmarks.rivals`, and the lines of JSON it says."""

    def __init__(self, process: trio.Process, log: Path) -> None:
        self.process = process
        self._log = log
        self._raw = b""

    async def line(self) -> dict[str, Any]:
        """Return the next line. Raises `BenchmarkError` when there is none any more."""
        assert self.process.stdout is not None
        while b"\n" not in self._raw:
            data = await self.process.stdout.receive_some(65_536)
            if not data:
                raise BenchmarkError(await self._epitaph())
            self._raw += bytes(data)
        line, _, self._raw = self._raw.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    async def _epitaph(self) -> str:
        with trio.move_on_after(GRACE_S):
            await self.process.wait()
        last = self._log.read_text("utf-8", "replace").strip().splitlines()[-LOG_LINES:]
        return " | ".join([f"a rival ended early, with status {self.process.returncode}", *last])

    async def say(self, message: dict[str, Any]) -> None:
        """Write one line to it."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps(message).encode() + b"\n")


@asynccontextmanager
async def open_child(role: str, options: dict[str, Any], folder: Path) -> AsyncIterator[Child]:
    """Run a rival for as long as the block lasts."""
    log = folder / f"{role}.log"
    async with await trio.open_file(log, "wb") as errors:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "benchmarks.rivals", role, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.fileno(),
            cwd=ROOT,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Child(process, log)
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(GRACE_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def open_spinner() -> AsyncIterator[None]:
    """Keep one core busy with nothing for as long as the block lasts."""
    process = await trio.lowlevel.open_process([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


_TICKER = """
import os, struct, sys, time
while True:
    time.sleep(float(sys.argv[1]))
    os.write(1, struct.pack("d", time.perf_counter()))
"""


@asynccontextmanager
async def open_ticker(interval_s: float) -> AsyncIterator[trio.abc.ReceiveStream]:
    """Give a stream on which another process says, again and again, what time it is: a double by
    `time.perf_counter`, which on Linux all processes share."""
    command = [sys.executable, "-c", _TICKER, str(interval_s)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def workplace(model: str | None) -> AsyncIterator[tuple[Path, Path]]:
    """Give the model's file and a folder, which is gone afterwards. None: a Q8_0 copy of the embedded one."""
    with tempfile.TemporaryDirectory(prefix="p2pmesh-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        source = catalog.find(model or catalog.DEFAULT).resolve()
        stack.enter_context(_cache(name))
        if model is not None:
            yield source, folder
            return
        target = folder / f"{catalog.DEFAULT}-q8_0.gguf"
        program = [sys.executable, "-m", "benchmarks.rivals", "quantize", str(source)]
        done = await trio.run_process(
            [*program, str(target)], capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT
        )
        if done.returncode:
            raise BenchmarkError(done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
        yield target, folder


@contextmanager
def _cache(folder: str) -> Iterator[None]:
    """Let caches be in a folder of ours: a copy that this user keeps must not take a model's place."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


async def tuned(model: Path, tell: Callable[[str], None]) -> str:
    """Let `p2pmesh tune` make its copy of a model, and return what it says of it."""
    tell(f"tuning {model.name}, which takes a minute or two")
    program = [sys.executable, "-m", "p2pmesh", "tune", str(model)]

    async def end(process: trio.Process) -> None:
        os.killpg(process.pid, signal.SIGKILL)  # it works in a child of its own

    done = await trio.run_process(
        program,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        start_new_session=True,
        deliver_cancel=end,
    )
    if done.returncode:
        raise BenchmarkError(done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
    return done.stdout.decode("utf-8", "replace").strip().splitlines()[-1]


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run a benchmark, and end it in order at Ctrl-C and SIGTERM."""
    stopped: list[int] = []
    found: list[T] = []

    async def watched() -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    async for number in signals:
                        stopped.append(number)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                found.append(await work())
                nursery.cancel_scope.cancel()

    try:
        trio.run(watched)
    except Exception as error:
        cause: BaseException = error
        while inner := getattr(cause, "exceptions", None):  # a nursery wraps what went wrong in a group
            cause = inner[0]
        if isinstance(cause, (BenchmarkError, BadResponse, MeshError)):
            raise SystemExit(str(cause)) from None
        raise
    if not found:
        raise SystemExit(128 + stopped[0])
    return found[0]
