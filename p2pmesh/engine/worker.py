"""The child process a model lives in; `peer.engines` starts it.

Requests come in on stdin, events go out on stdout, both as `engine.frames`. One thread owns the model and
steps it; another reads. It knows nothing of the mesh and holds no key. It ends with its parent: the end of
stdin is the end of the process, at once and from within any computation.

(Linux could also signal the parent's death, but by PR_SET_PDEATHSIG that means the *thread* that started us,
and trio starts processes from a thread that retires after ten idle seconds.)
"""

from __future__ import annotations

import hashlib
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from p2pmesh.engine import frames
from p2pmesh.engine.base import (
    DETAIL_CHARS_MAX,
    Abort,
    Alive,
    Embed,
    Engine,
    Event,
    Failed,
    Generate,
    Load,
    LoadFailed,
    Request,
)
from p2pmesh.errors import EngineError, ModelLoadError, Reason

INBOX_MAX = 1_024
"""Most requests read and not yet taken; then the pipe fills, and the parent's own bound holds."""
FILES_MAX = 1_024
"""Most files the process may have open. It needs some ten, one for each part of a model, and a driver of GPUs
some more."""
ALIVE_S = 1.0
"""Most seconds of work without a word to the parent, as far as single steps allow."""
TAKE_S = 0.25
"""Seconds in which requests are taken before running answers go on: to cut the longest prompt into tokens
takes 0.1 s (measured), and a hundred may come at once."""
_READ_BYTES = 65_536

Inbox = queue.Queue[Request]


def main() -> NoReturn:
    """Serve one model until stdin ends. Exits with 1 when it could not be loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    _confine(resource.RLIMIT_CORE, 1)  # prompts must not end up in a core file; at 0 a program may get one
    _confine(resource.RLIMIT_NOFILE, FILES_MAX)
    out = _private_stdout()
    inbox: Inbox = queue.Queue(INBOX_MAX)
    threading.Thread(target=_read, args=(inbox, os.getppid()), daemon=True).start()
    load = inbox.get()
    if not isinstance(load, Load):
        raise EngineError("the first request must be Load")
    files = Files(load.path, load.adapter)
    try:
        engine = open_engine(load)
    except ModelLoadError as error:
        _write(out, [LoadFailed(str(error)[:DETAIL_CHARS_MAX])])
        sys.exit(1)
    files.check_loaded()
    _write(out, [replace(engine.ready, memory_bytes=_memory_bytes())])
    serve(engine, inbox, out, files.check)


def _confine(limit: int, most: int) -> None:
    """Lower a limit of this process: what asks for more fails in here, and the machine and the peer live."""
    with suppress(ValueError, OSError):  # it is lower already
        resource.setrlimit(limit, (most, most))


def _memory_bytes() -> int:
    """Most memory this process has held. getrusage would count what the parent held when it forked."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def open_engine(load: Load) -> Engine:
    """Load what `load` describes. Raises `ModelLoadError`; a hostile file may also end the process."""
    if load.kind == "echo":
        from p2pmesh.engine.echo import Echo

        return Echo(load, load.served_name)
    from p2pmesh.engine import devices, digest, gguf_file, memory

    path = Path(load.path)
    header = gguf_file.check(path)
    if load.kind == "llama":
        from p2pmesh.engine.batch import LIBRARY

        size, layers = path.stat().st_size, header.numbers.get("block_count", 0)
        room = devices.room_bytes(devices.gpus(LIBRARY), load.gpu_layers, layers, size)
        free = memory.available_bytes()
        load = replace(
            load, slots=memory.slots_that_fit(load, header, size, None if free is None else free + room)
        )
        if not devices.offloads(LIBRARY):  # a driver of GPUs takes what it likes
            _confine(resource.RLIMIT_DATA, memory.limit_bytes(load, header, size))
    try:
        found = digest.sha256_of(path)
        over = digest.sha256_of(Path(load.adapter)) if load.adapter else ""
    except OSError as error:
        raise ModelLoadError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
    if load.digest and found != load.digest.lower():
        raise ModelLoadError(f"{path.name} has the digest {found}, not {load.digest.lower()}")
    if load.kind == "embed":
        from p2pmesh.engine.vectors import open_vectors

        return open_vectors(load, load.served_name, found)
    from p2pmesh.engine.opening import open_schedule

    if over:  # another mind, whose answers only its like may go on with
        gguf_file.check(Path(load.adapter))
        found = hashlib.sha256(f"{found} {over} {load.adapter_scale!r}".encode()).hexdigest()
    return open_schedule(load, load.served_name, found)


class Files:
    """The files that a model is loaded from, kept open; of one in several parts, the first.

    Weights are mapped, not read: what is written to the file is written to the model that runs. A file that
    is put in its place under its name leaves the model alone, once it is loaded.
    """

    def __init__(self, *paths: str) -> None:
        self._open: list[tuple[str, int, tuple[int, int]]] = []
        for path in filter(None, paths):
            with suppress(OSError):  # loading it will tell why not
                file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                self._open.append((path, file, self._stamp(file)))

    @staticmethod
    def _stamp(file: int) -> tuple[int, int]:
        now = os.fstat(file)
        return now.st_size, now.st_mtime_ns

    def check(self) -> None:
        """Raise `EngineError` when one was written to since."""
        if any(self._stamp(file) != before for _, file, before in self._open):
            raise EngineError("its model file was written to while it was in use")

    def check_loaded(self) -> None:
        """Raise `EngineError` when one was written to or replaced while it was being loaded: its head, its
        digest and its weights are read one after the other."""
        self.check()
        for path, file, _ in self._open:
            try:
                same = os.path.samestat(os.stat(path), os.fstat(file))
            except OSError:
                same = False
            if not same:
                raise EngineError("its model file was replaced while it was being loaded")


def serve(engine: Engine, inbox: Inbox, out: int, check: Callable[[], None] = lambda: None) -> NoReturn:
    """Step the engine for ever. What one step brings goes out in one write, and not before `check`, which
    raises `EngineError` when it may be wrong: the parent then starts another child."""
    spoken = told = time.monotonic()
    while True:
        events: list[Event] = []
        began: float | None = None
        for request in _take(inbox, engine.wait_s()):
            began = time.monotonic() if began is None else began
            if isinstance(request, (Generate, Embed)):
                events += _submit(engine, request)
            elif isinstance(request, Abort):
                events += engine.abort(request.job)
            if time.monotonic() - began > TAKE_S:
                break  # the others wait in the inbox, and running answers go on
        wait_s = engine.wait_s()
        if wait_s == 0.0:
            events += engine.step()
            check()
        now, worked = time.monotonic(), wait_s is not None
        due = now - told >= ALIVE_S or engine.wait_s() is None
        if worked and due and (metrics := engine.metrics()):
            told = now
            events.append(metrics)
        elif worked and not events and now - spoken >= ALIVE_S:
            events.append(Alive())
        if events:
            spoken = now
            _write(out, events)


def _submit(engine: Engine, request: Generate | Embed) -> list[Event]:
    try:
        return engine.submit(request)
    except ValueError as error:
        return [Failed(request.job, Reason.BAD_REQUEST, str(error)[:DETAIL_CHARS_MAX])]


def _take(inbox: Inbox, wait_s: float | None) -> Iterator[Request]:
    """Give the requests that have come, after at most `wait_s` seconds (None: after the first)."""
    with suppress(queue.Empty):
        if wait_s is None:
            yield inbox.get()
        elif wait_s > 0:
            yield inbox.get(timeout=min(wait_s, ALIVE_S))
        while True:
            yield inbox.get_nowait()


def _read(inbox: Inbox, parent: int) -> NoReturn:
    """Read requests until the stream ends, and the process with it: there is nothing to save."""
    reader = frames.RequestReader()
    try:
        while data := os.read(0, _READ_BYTES):
            for request in reader.feed(data):
                _put(inbox, request, parent)
    except (EngineError, OSError) as error:
        os.write(2, f"{error}\n".encode())
        os._exit(2)
    os._exit(0)


def _put(inbox: Inbox, request: Request, parent: int) -> None:
    while True:
        try:
            return inbox.put(request, timeout=ALIVE_S)
        except queue.Full:
            # Nobody reads the pipe meanwhile, so its end would not be seen.
            if os.getppid() != parent:
                os._exit(0)


def _private_stdout() -> int:
    """Return stdout under another number, and send what C code prints there to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    return out


def _write(out: int, events: list[Event]) -> None:
    data = memoryview(b"".join(map(frames.encode, events)))
    try:
        while data:
            data = data[os.write(out, data) :]
    except BrokenPipeError:
        os._exit(0)
