"""The process of an engine: started, written to, listened to, and seen to its end.

Knows processes and pipes; nothing of what goes through them, nor why a child has to go.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import trio

from p2pmesh.engine import base

STDERR_BYTES_MAX = 4_096
"""What is kept of a child's last words."""
STDERR_LINES = 3
"""Lines of them that are shown when it crashes."""
GRACE_S = 1.0
"""Seconds a child has to exit when asked, and again when told, before it is killed."""
READ_BYTES = 65_536
"""Most bytes that are read at once."""

# No code runs that lies in the directory we happen to be in, which is what the empty entry means. (-P and
# PYTHONSAFEPATH do the same, but only from Python 3.11.)
_WORKER = "import sys; sys.path[:] = filter(None, sys.path); from p2pmesh.engine.worker import main; main()"


async def spawn() -> trio.Process:
    """Start one. Raises OSError where the machine has no process, no file or no memory left."""
    # The child gets no secret that we may have been given by the environment.
    keep = {k: v for k, v in os.environ.items() if not k.startswith("P2PMESH_") or k == "P2PMESH_ENGINE_LOG"}
    return await trio.lowlevel.open_process(
        [sys.executable, "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=keep,
    )


async def write(process: trio.Process, queue: trio.MemoryReceiveChannel[bytes]) -> None:
    """Write what comes by the queue to its stdin, until there is no more."""
    assert process.stdin is not None
    with suppress(trio.BrokenResourceError):  # it died; the reader notices and tells
        async for frame in queue:
            await process.stdin.send_all(frame)


async def collect(process: trio.Process, words: bytearray) -> None:
    """Keep in `words` the last that it says on stderr, until it closes that."""
    assert process.stderr is not None
    with suppress(trio.BrokenResourceError):
        while data := await process.stderr.receive_some(READ_BYTES):
            if "P2PMESH_ENGINE_LOG" in os.environ:
                sys.stderr.write(bytes(data).decode("utf-8", "replace"))
            words += data
            del words[:-STDERR_BYTES_MAX]


async def end(process: trio.Process, grace_s: float) -> None:
    """See the child to its end: asked, then told, then killed; then reap it and close its pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdin.aclose()  # the end of its stdin is the end of the child
    with trio.move_on_after(grace_s):
        await process.wait()
    if process.returncode is None and grace_s:
        process.terminate()
        with trio.move_on_after(grace_s):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.stdout.aclose()
    await process.stderr.aclose()


def epitaph(process: trio.Process, why: str, words: bytearray) -> str:
    """Return what a child died of, in one line."""
    code = process.returncode or 0
    cause = why or (f"killed by signal {-code}" if code < 0 else f"exit status {code}")
    lines = [line.strip() for line in words.decode("utf-8", "replace").splitlines() if line.strip()]
    last = " | ".join(lines[-STDERR_LINES:])
    return f"the engine died: {cause}{f' ({last})' if last else ''}"[: base.DETAIL_CHARS_MAX]
