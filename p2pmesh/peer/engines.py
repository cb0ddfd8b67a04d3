"""A model in a child process, kept alive: the trio side of `engine.worker`.

Knows processes and pipes, and nothing of the mesh or of llama.cpp. Its law: every job handed in ends in
exactly one `Finished`, `Embedded` or `Failed`, whatever happens to the child; only an aborted one ends
silently. Nothing here ever blocks the caller, and `on_event` is never called from within a call of theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import trio

from p2pmesh import config as settings
from p2pmesh.engine import base, frames
from p2pmesh.errors import EngineError, LocalProtocolError, ModelLoadError, Reason
from p2pmesh.peer import child
from p2pmesh.query import Message, Options
from p2pmesh.record import Device, ModelInfo

_LOOK_S = 1.0
"""Seconds between two looks at how long a child has been silent."""

State = Literal["loading", "ready", "asleep", "restarting", "quarantined", "closed"]
"""Asleep: it takes jobs, and loads its model again for the first one."""
_End = Literal["crashed", "unloadable", "never lived", "idle"]
"""How a child ended. One that was asked to end, or misbehaved, has crashed too."""


@dataclass(frozen=True)
class EngineUp:
    """The engine takes jobs."""

    info: ModelInfo


@dataclass(frozen=True)
class EngineDown:
    """The engine takes no jobs. Each job it had has failed already."""

    detail: str
    quarantined: bool
    """Whether it stays down: its model could never be loaded, or crashes while it is."""


OnEvent = Callable[["EngineHandle", base.Event | EngineUp | EngineDown], None]


@dataclass
class _Job:
    """A job that has not ended: how many vectors it ends in, or how many more tokens its answer may have."""

    texts: int
    tokens_left: int
    wanted: bool = True


class EngineHandle:
    """One engine, as its peer holds it. Returned by `open_engine`; its methods never block."""

    def __init__(self, spec: base.Load, config: settings.Engine, on_event: OnEvent) -> None:
        self.state: State = "loading"
        self.detail = "the model is being loaded"
        """For people: why it is in this state."""
        self.info: ModelInfo | None = None
        self.space = ""
        """The embedding space of its vectors; empty: it does not embed, or was never ready."""
        self.dimensions = 0
        self.memory_bytes = 0
        self.devices: tuple[Device, ...] = ()
        """The GPUs it saw once it was loaded."""
        self.metrics: base.Metrics | None = None
        """What the child told last of its work; None: nothing yet."""
        self.pid: int | None = None
        self.restarts = 0
        self._spec, self._config, self._on_event = spec, config, on_event
        self._jobs: dict[str, _Job] = {}
        self._early: list[base.Generate | base.Embed] = []
        """Jobs that came while it was asleep, until its model is loaded."""
        self._wake = trio.Event()
        self._refusals: deque[base.Failed] = deque()
        self._refused = trio.Event()
        self._outbox: trio.MemorySendChannel[bytes] | None = None
        self._changed = trio.Event()
        self._heard = 0.0
        """When the child last said anything, or was last given a job while it had none."""
        self._served = False
        """Whether this child has ended a job well."""

    def generate(
        self,
        job: str,
        messages: tuple[Message, ...],
        options: Options,
        accepted: tuple[int, ...] = (),
        accepted_text: str = "",
    ) -> None:
        """Start an answer, or go on with one: after `accepted`, tokens this very model wrote, or else after
        `accepted_text`. Raises `LocalProtocolError` when a job of that name is alive."""
        self._submit(base.Generate(job, messages, options, accepted, accepted_text))

    def embed(self, job: str, texts: tuple[str, ...]) -> None:
        """Start embedding at most `base.TEXTS_MAX` texts. Raises as `generate` does."""
        self._submit(base.Embed(job, texts))

    def abort(self, job: str) -> None:
        """End a job. No event of it follows. A job that has ended, or never was, is ignored."""
        for refusal in [r for r in self._refusals if r.job == job]:
            self._refusals.remove(refusal)
        if job in self._jobs and self._jobs[job].wanted:
            early = [request for request in self._early if request.job == job]
            if early:
                self._early.remove(early[0])
                del self._jobs[job]
            else:
                self._jobs[job].wanted = False
                self._send(base.Abort(job))

    async def wait_ready(self) -> None:
        """Wait until it takes jobs. Raises `ModelLoadError` when it never will."""
        while self.state not in ("ready", "asleep"):
            if self.state in ("quarantined", "closed"):
                raise ModelLoadError(self.detail)
            await self._changed.wait()

    # ---------------------------------------------------------------- jobs

    def _submit(self, request: base.Generate | base.Embed) -> None:
        job = request.job
        if job in self._jobs or any(r.job == job for r in self._refusals):
            raise LocalProtocolError(f"there is a job {job!r} already")
        if self.state not in ("ready", "asleep"):
            self._refuse(base.Failed(job, Reason.ENGINE_FAILED, f"the engine is {self.state}: {self.detail}"))
        elif len(self._jobs) >= self._config.jobs_max:
            self._refuse(base.refused(job, self._config.jobs_max))
        else:
            if not self._jobs:
                self._heard = trio.current_time()
            try:
                # What the child would hang up on is refused here.
                frames.RequestReader().feed(frames.encode(request))
            except EngineError as error:
                self._refuse(base.Failed(job, Reason.BAD_REQUEST, str(error)[: base.DETAIL_CHARS_MAX]))
            else:
                if isinstance(request, base.Embed):
                    self._jobs[job] = _Job(len(request.texts), 0)
                else:
                    self._jobs[job] = _Job(0, request.options.max_tokens)
                if self.state == "ready":
                    self._send(request)
                else:
                    self._early.append(request)
                    self._wake.set()

    def _refuse(self, failed: base.Failed) -> None:
        self._refusals.append(failed)
        self._refused.set()

    def _send(self, request: base.Request) -> None:
        if self._outbox is None:
            return  # the child is coming to its end, and every job with it
        # It cannot be full: a job has at most two frames in it, and there are at most `jobs_max`.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._outbox.send_nowait(frames.encode(request))

    def _handle(self, event: base.Event) -> None:
        """Take one event of the child. Raises `EngineError` when it is out of place."""
        self._heard = trio.current_time()
        if isinstance(event, base.Ready):
            self._on_ready(event)
        elif isinstance(event, base.LoadFailed):
            raise _Unloadable(event.detail)
        elif isinstance(event, base.Metrics):
            self.metrics = event
        elif not isinstance(event, base.Alive):
            known = self._jobs.get(event.job)
            if known is None:
                raise EngineError(f"it answered a job that does not exist: {event.job!r}")
            if isinstance(event, base.Generated):
                known.tokens_left -= len(event.tokens)
                if not event.tokens or known.tokens_left < 0:
                    raise EngineError(f"it answered a job with more than was asked: {event.job!r}")
            elif not isinstance(event, base.Failed):
                vectors = len(event.vectors) if isinstance(event, base.Embedded) else 0
                if vectors != known.texts:
                    raise EngineError(f"it answered a job with what was not asked: {event.job!r}")
            if not isinstance(event, base.Generated):
                del self._jobs[event.job]
                self._served = self._served or not isinstance(event, base.Failed)
            if known.wanted:
                self._on_event(self, event)

    def _on_ready(self, ready: base.Ready) -> None:
        if self.state == "ready":
            raise EngineError("it was ready twice")
        asleep = self.state == "asleep"
        expected = self._spec.served_name
        if ready.info.name != expected:
            raise EngineError(f"it calls itself {ready.info.name[:64]!r}, not {expected!r}")
        self.info, self.space, self.dimensions = ready.info, ready.space, ready.dimensions
        self.memory_bytes, self.devices = ready.memory_bytes, ready.devices
        self._become("ready", "")
        if not asleep:
            self._on_event(self, EngineUp(ready.info))
        early, self._early = self._early, []
        for request in early:
            self._send(request)

    def _become(self, state: State, detail: str) -> None:
        self.state, self.detail = state, detail
        self._changed.set()
        self._changed = trio.Event()

    def _fail_all(self, detail: str) -> None:
        jobs, self._jobs, self._early, self.metrics = self._jobs, {}, [], None
        for job, known in jobs.items():
            if known.wanted:
                self._on_event(self, base.Failed(job, Reason.ENGINE_FAILED, detail))

    async def _deliver_refusals(self) -> None:
        while True:
            await self._refused.wait()
            self._refused = trio.Event()
            self._flush_refusals()

    def _flush_refusals(self) -> None:
        while self._refusals:
            self._on_event(self, self._refusals.popleft())

    # ---------------------------------------------------------------- the child

    async def _supervise(self) -> None:
        """Start the child, again and again. Returns once it is quarantined."""
        crashes, pause_s = 0, self._config.restart_min_s
        while True:
            detail, end = await self._live()
            if end == "idle":
                await self._wake.wait()
                continue
            if self.state == "ready":
                crashes = 0
            elif end == "crashed":
                crashes += 1
            if self._served:
                pause_s = self._config.restart_min_s
            # A model that was ready once can be loaded. When it cannot be now (no memory, a file that is
            # being replaced), or no process can be started, it is the machine's state, and that passes.
            unloadable = end == "unloadable" and self.info is None
            quarantined = unloadable or crashes >= self._config.crashes_max
            if quarantined and not unloadable:
                detail = f"quarantined after {crashes} crashes while loading: {detail}"
            self._become("quarantined" if quarantined else "restarting", detail)
            self._fail_all(detail)
            self._on_event(self, EngineDown(detail, quarantined))
            if quarantined:
                return
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._config.restart_max_s)
            self.restarts += 1

    async def _live(self) -> tuple[str, _End]:
        """Run one child until it dies. Returns why, in words and in kind."""
        self._served = False
        try:
            process = await child.spawn()
        except OSError as error:
            return f"no process can be started: {error}", "never lived"
        self.pid = process.pid
        words = bytearray()
        why, unloadable, idle = "", False, False
        try:
            await self._converse(process, words)
        except _Idle:
            idle = True
        except _Unloadable as error:
            why, unloadable = str(error), True
        except EngineError as error:
            why = str(error)
        finally:
            self._outbox = None
            with trio.CancelScope(shield=True):
                # One that was cancelled mid-conversation is healthy, and stops when its stdin ends.
                await child.end(process, child.GRACE_S if not why else 0.0)
            self.pid = None
        if idle:
            return self.detail, "idle"
        return (why, "unloadable") if unloadable else (child.epitaph(process, why, words), "crashed")

    async def _converse(self, process: trio.Process, words: bytearray) -> None:
        """Pass frames both ways until the child's stream ends. Raises `EngineError` when it misbehaves."""
        outbox, queue = trio.open_memory_channel[bytes](2 * self._config.jobs_max + 1)
        self._outbox = outbox
        outbox.send_nowait(frames.encode(self._spec))
        failure: list[EngineError] = []
        async with trio.open_nursery() as nursery, outbox, queue:
            nursery.start_soon(child.write, process, queue)
            nursery.start_soon(child.collect, process, words)
            nursery.start_soon(self._watch, nursery.cancel_scope, failure)
            try:
                await self._read(process)
                with trio.move_on_after(child.GRACE_S):  # its last words may still be on their way
                    await process.wait()
                    await trio.sleep(0.01)
            except EngineError as error:
                failure.append(error)
            nursery.cancel_scope.cancel()
        if failure:
            raise failure[0]

    async def _read(self, process: trio.Process) -> None:
        assert process.stdout is not None
        reader = frames.EventReader()
        with suppress(trio.BrokenResourceError):
            while data := await process.stdout.receive_some(child.READ_BYTES):
                for event in reader.feed(bytes(data)):
                    self._handle(event)

    async def _watch(self, scope: trio.CancelScope, failure: list[EngineError]) -> None:
        """End a child that does not load in time, falls silent over its work, or has had none for long."""
        self._heard = started = trio.current_time()
        while True:
            now = trio.current_time()
            if self.state != "ready":
                due, said = started + self._config.load_timeout_s, "it did not load within"
                limit_s = self._config.load_timeout_s
            else:
                limit_s = self._config.stall_max_s
                due, said = (self._heard if self._jobs else now) + limit_s, "it had work and said nothing for"
                if self._config.idle_unload_s and not self._jobs:
                    due = self._heard + self._config.idle_unload_s
            if now >= due and self.state == "ready" and not self._jobs:
                self._wake = trio.Event()
                self._become("asleep", "it had nothing to do; its model is loaded again when it has")
                failure.append(_Idle())
                scope.cancel()
                return
            if now >= due:
                failure.append(EngineError(f"{said} {limit_s:g} s"))
                scope.cancel()
                return
            look_at = min(due, now + _LOOK_S)
            with trio.move_on_at(look_at):
                await self._changed.wait()
            away_s = trio.current_time() - look_at
            if away_s > _LOOK_S:  # it was we who were stopped: what the child said meanwhile is not read yet
                started += away_s
                self._heard = min(self._heard + away_s, trio.current_time())


class _Idle(EngineError):
    """It had no job for so long that its memory is better used otherwise."""


class _Unloadable(EngineError):
    """The child says that its model cannot be loaded."""


@asynccontextmanager
async def open_engine(
    spec: base.Load, config: settings.Engine, on_event: OnEvent
) -> AsyncIterator[EngineHandle]:
    """Run an engine for as long as the block lasts.

    `on_event` gets every event of every job, and `EngineUp` and `EngineDown`. It must neither block nor
    raise. When the block is left, jobs that had not ended fail and the child is gone for sure.
    """
    handle = EngineHandle(spec, config, on_event)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handle._supervise)
            nursery.start_soon(handle._deliver_refusals)
            try:
                yield handle
            except Exception as error:  # noqa: BLE001  # raised below: a nursery would wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        handle._become("closed", "the engine was closed")
        handle._fail_all(handle.detail)
        handle._flush_refusals()
    if failure is not None:
        raise failure
