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
from collections.abc import Callable
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
_READ_BYTES = 65_536

Inbox = queue.Queue[Request]


def main() -> NoReturn:
    """Serve one model until stdin ends. Exits with 1 when it could not be loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    _confine(resource.RLIMIT_CORE, 0)  # prompts must not end up in a core file
    _confine(resource.RLIMIT_NOFILE, FILES_MAX)
    out = _private_stdout()
    inbox: Inbox = queue.Queue(INBOX_MAX)
    threading.Thread(target=_read, args=(inbox, os.getppid()), daemon=True).start()
    load = inbox.get()
    if not isinstance(load, Load):
        raise EngineError("the first request must be Load")
    intact = _watch(load.path)
    try:
        engine = open_engine(load)
    except ModelLoadError as error:
        _write(out, [LoadFailed(str(error)[:DETAIL_CHARS_MAX])])
        sys.exit(1)
    _write(out, [replace(engine.ready, memory_bytes=_memory_bytes())])
    serve(engine, inbox, out, intact)


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

        gpus = devices.gpus(LIBRARY)
        free = memory.available_bytes()
        if free is not None and load.gpu_layers:
            free += sum(device.free_bytes for device in gpus)
        load = replace(load, slots=memory.slots_that_fit(load, header, path.stat().st_size, free))
        if not gpus:  # a driver of GPUs takes what it likes
            _confine(resource.RLIMIT_DATA, memory.limit_bytes(load, header, path.stat().st_size))
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


def _watch(path: str) -> Callable[[], bool]:
    """Return what tells whether a file is as it is now. Weights are mapped, not read: what is written to the
    file is written to the model. One put in its place leaves it alone; it is loaded the next time."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # there is none, or loading it will tell why not
        return lambda: True

    def stamp() -> tuple[int, int]:
        now = os.fstat(file)
        return now.st_size, now.st_mtime_ns

    before = stamp()
    return lambda: stamp() == before


def serve(engine: Engine, inbox: Inbox, out: int, intact: Callable[[], bool] = lambda: True) -> NoReturn:
    """Step the engine for ever. What one step brings goes out in one write. Raises `EngineError` at the next
    job when its file is no longer `intact`: the parent starts another, which loads what is there then."""
    spoken = told = time.monotonic()
    while True:
        events: list[Event] = []
        for request in _take(inbox, engine.wait_s()):
            if isinstance(request, (Generate, Embed)):
                if not intact():
                    raise EngineError("its model file was written to while it was in use")
                events += _submit(engine, request)
            elif isinstance(request, Abort):
                events += engine.abort(request.job)
        wait_s = engine.wait_s()
        if wait_s == 0.0:
            events += engine.step()
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


def _take(inbox: Inbox, wait_s: float | None) -> list[Request]:
    """Return all requests that have come, after at most `wait_s` seconds (None: after the first)."""
    taken: list[Request] = []
    try:
        if wait_s is None:
            taken.append(inbox.get())
        elif wait_s > 0:
            taken.append(inbox.get(timeout=min(wait_s, ALIVE_S)))
        while True:
            taken.append(inbox.get_nowait())
    except queue.Empty:
        return taken


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
