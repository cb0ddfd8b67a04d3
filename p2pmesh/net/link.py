"""One link to one neighbour: whole frames both ways, the urgent ones first, and an end that says why.

Knows a `Connection`, frames and their priorities; knows no other link and not what a frame means. Two tasks:
one reads, one writes, and nothing else ever writes, because a write cut short ruins the connection (B1).

What it says beside the frames it carries: HELLO (which start of the peer is this, and what it shows to be
let in), ADMIT (you are let in; both say it), ACCEPT (this is the link; the lower peer id says it, and it
decides), GRANT (what was asked for instead of a link), BYE (a reason). A connection that ends without BYE has
failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Protocol

import trio

from p2pmesh.errors import NetworkError, RemoteProtocolError
from p2pmesh.net.framing import FrameReader, frame
from p2pmesh.record import PeerId

_DATA, _HELLO, _ACCEPT, _BYE, _ADMIT, _GRANT = (bytes([kind]) for kind in range(6))
NONCE_BYTES = 8
SHOWN_BYTES_MAX = 32_768
"""Longest of what a peer shows to be let in."""
DUPLICATE = "duplicate"
"""The reason in the BYE that refuses a second link of one pair."""
COALESCE_BYTES = 65_000
"""Most bytes put together in one write, of whole frames: as much as one encrypted message holds."""
OUTBOX_FRAMES_WORTH = 32
"""How many frames of the greatest length an outbox holds at most, in bytes: 8 MiB by default."""
FLUSH_S = 0.5
"""Seconds that what is queued, and the BYE after it, have to leave. A peer that does not read gets no
more."""
_DETAIL_MAX = 200


class Priority(IntEnum):
    """What leaves first. Within one priority frames keep their order."""

    CONTROL = 0
    TOKENS = 1
    BULK = 2


class Duplicate(NetworkError):
    """The peer keeps another connection to us. This one has been closed."""


class Granted(NetworkError):
    """The peer gave what was asked of it instead of a link. The connection is of no more use."""

    def __init__(self, data: bytes) -> None:
        super().__init__("it gave what was asked of it")
        self.data = data


class Stream(Protocol):
    """What a link needs of a connection: `secure.Connection`, or a test's."""

    peer: PeerId

    async def read(self) -> bytes:
        """Return the next bytes. Raises NetworkError at the end."""

    async def write(self, data: bytes) -> None:
        """Write all. Raises NetworkError."""

    def abort(self, why: str = "") -> None:
        """End it at once."""


class Link:
    """A link from its greeting to its end."""

    def __init__(
        self, stream: Stream, address: str, *, inbound: bool, outbox_frames_max: int, frame_bytes_max: int
    ) -> None:
        self.peer = stream.peer
        self.address = address
        self.inbound = inbound
        self.nonce = b""
        """What tells this start of the peer from its last one; known after `greet`."""
        self.shown = b""
        """What the peer shows to be let in; known after `greet`."""
        self.open = True
        """Whether frames may still be queued."""
        self.violated = False
        """Whether it ended because the peer broke the protocol."""
        self.done = trio.Event()
        """Set by the host when nothing more of this link will be told."""
        self._stream = stream
        self._frame_bytes_max = frame_bytes_max
        self._reader = FrameReader(frame_bytes_max + 1)
        self._read_ahead: deque[bytes] = deque()
        self._outbox: tuple[deque[bytes], ...] = tuple(deque() for _ in Priority)
        self._outbox_frames_max = outbox_frames_max
        self._outbox_bytes = 0
        self._outbox_bytes_max = OUTBOX_FRAMES_WORTH * frame_bytes_max
        self._writer = trio.lowlevel.ParkingLot()
        self._bye = b""
        self._detail = ""
        self._write_failure = ""
        self._deaf = False
        self._ending = trio.Event()

    async def greet(self, nonce: bytes, show: bytes) -> None:
        """Exchange HELLOs. Raises NetworkError or RemoteProtocolError; the link must then be aborted."""
        await self._stream.write(frame(_HELLO + nonce + show))
        body = await self._next()
        if body[:1] != _HELLO or not 1 + NONCE_BYTES <= len(body) <= 1 + NONCE_BYTES + SHOWN_BYTES_MAX:
            raise RemoteProtocolError("its first frame is no greeting")
        self.nonce, self.shown = body[1 : 1 + NONCE_BYTES], body[1 + NONCE_BYTES :]

    async def admit(self) -> None:
        """Let the peer in, and wait until it lets us in. Raises Granted, or as `greet` does: NetworkError
        with the peer's reason where it does not."""
        await self._stream.write(frame(_ADMIT))
        body = await self._next()
        if body[:1] == _BYE:
            raise NetworkError(f"it does not let us in: {_text(body)}")
        if body[:1] == _GRANT:
            raise Granted(body[1:])
        if body != _ADMIT:
            raise RemoteProtocolError("its second frame lets nobody in")

    def accept(self) -> None:
        """Tell the peer that this is the link, before anything else. Never blocks."""
        whole = frame(_ACCEPT)
        self._outbox_bytes += len(whole)
        self._outbox[Priority.CONTROL].appendleft(whole)

    async def accepted(self) -> None:
        """Wait for the peer to say so. Raises Duplicate where it keeps another one, or as `greet` does."""
        body = await self._next()
        if body[:1] == _BYE:
            reason = _text(body)
            raise Duplicate(reason) if reason == DUPLICATE else NetworkError(reason)
        if body != _ACCEPT:
            raise RemoteProtocolError("its third frame accepts nothing")

    async def refuse(self, reason: str) -> None:
        """Say BYE instead of ADMIT or ACCEPT, and wait a moment for the peer to read it. Never raises."""
        await self._last(_BYE + reason.encode()[:_DETAIL_MAX])

    async def grant(self, data: bytes) -> None:
        """Give this instead of a link, and wait a moment for the peer to read it. Never raises."""
        await self._last(_GRANT + data)

    async def _last(self, body: bytes) -> None:
        with trio.move_on_after(FLUSH_S):
            try:
                await self._stream.write(frame(body))
                while True:
                    await self._stream.read()
            except NetworkError:
                pass

    def send(self, data: bytes, priority: Priority) -> bool:
        """Queue a frame. False: it is not open, or its outbox is full, and then it ends. Never blocks."""
        if not self.open:
            return False
        queue = self._outbox[priority]
        whole = frame(_DATA + data)
        self._outbox_bytes += len(whole)
        if len(queue) >= self._outbox_frames_max or self._outbox_bytes > self._outbox_bytes_max:
            self.abort("its outbox was full: it reads too slowly")
            return False
        queue.append(whole)
        self._writer.unpark()
        return True

    def hang_up(self, reason: str) -> None:
        """End it in order: what is queued leaves, then BYE, both within FLUSH_S. Never blocks."""
        if self.open:
            self.open = False
            self._deaf = True
            self._detail = reason
            self._bye = frame(_BYE + reason.encode()[:_DETAIL_MAX])
            self._ending.set()
            self._writer.unpark()

    def abort(self, reason: str) -> None:
        """End it now. Never blocks."""
        self.open = False
        self._deaf = True
        self._detail = self._detail or reason
        self._ending.set()
        self._writer.unpark()
        self._stream.abort(self._detail)

    async def run(self, deliver: Callable[[bytes], Awaitable[None]]) -> str:
        """Carry frames until the link ends; return why. `deliver` gets each received one, and may block: then
        reading waits, and the peer's window closes. Raises only what `deliver` raises."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_loop)
            nursery.start_soon(self._expire)
            try:
                await self._read_loop(deliver)
            except (NetworkError, RemoteProtocolError) as error:
                self.violated = isinstance(error, RemoteProtocolError)
                self._detail = self._detail or self._write_failure or str(error)
            finally:
                self.open = False
                self._stream.abort(self._detail)
                nursery.cancel_scope.cancel()
        return self._detail

    async def _read_loop(self, deliver: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            while self._read_ahead:
                body = self._read_ahead.popleft()
                if body[:1] == _BYE:
                    self._detail = self._detail or f"it said goodbye: {_text(body)}"
                    return
                if body[:1] != _DATA:
                    raise RemoteProtocolError("a frame of an unknown kind")
                if not self._deaf:
                    await deliver(body[1:])
            self._read_ahead.extend(self._reader.feed(await self._stream.read()))

    async def _next(self) -> bytes:
        while not self._read_ahead:
            self._read_ahead.extend(self._reader.feed(await self._stream.read()))
        return self._read_ahead.popleft()

    async def _write_loop(self) -> None:
        try:
            while True:
                batch = self._batch()
                if batch:
                    # Whoever ends this link aborts the stream first, and that ends the write.
                    with trio.CancelScope(shield=True):
                        await self._stream.write(batch)
                elif self._bye:
                    batch, self._bye = self._bye, b""
                    with trio.CancelScope(shield=True):
                        await self._stream.write(batch)
                else:
                    await self._writer.park()
        except NetworkError as error:
            # The peer may have said goodbye before it stopped reading: the reader gets a moment to find it.
            self.open = False
            self._write_failure = str(error)
            self._ending.set()

    def _batch(self) -> bytes:
        """Take what leaves next: whole frames, the most urgent first, up to COALESCE_BYTES or one frame."""
        parts: list[bytes] = []
        size = 0
        for queue in self._outbox:
            while queue:
                if parts and size + len(queue[0]) > COALESCE_BYTES:
                    return self._taken(parts, size)
                part = queue.popleft()
                parts.append(part)
                size += len(part)
        return self._taken(parts, size)

    def _taken(self, parts: list[bytes], size: int) -> bytes:
        self._outbox_bytes -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _expire(self) -> None:
        await self._ending.wait()
        await trio.sleep(FLUSH_S)
        self._stream.abort(self._detail)


def _text(body: bytes) -> str:
    """Return the reason in a BYE as one printable line: a stranger wrote it, and it goes to the log."""
    text = body[1 : 1 + _DETAIL_MAX].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text) or "no reason"
