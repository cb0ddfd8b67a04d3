"""Faults on the wire between real peers: a proxy on loopback in front of each of them.

A peer listens on one port and announces its proxy's, so that every link of two peers goes through a proxy,
and what goes from one to the other can be delayed, damaged, held back or cut, for each ordered pair. Who
dialled is found from the port he dialled from. The parts that decide about bytes (`Fault`, `Way`, `Course`)
open no socket and read no clock; `Wire` has the sockets.
It knows bytes, times, ports and process ids. It knows nothing of frames, of encryption or of peers' words,
starts no process, and talks to 127.0.0.1 alone.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any

import trio

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 16_384
"""Most bytes that are read at once."""
HELD_PIECES = 1_024
"""Most pieces under way in one direction of one connection; then nothing more is read, as on a full wire."""
CONNECTIONS_MAX = 1_024
"""Most connections through all proxies; one more is closed at once."""
RESEND_S = 0.2
"""Seconds until a lost segment is sent again: the least that Linux waits."""
LOOKS = 5
"""Times that is looked for who dialled."""
LOOK_AGAIN_S = 0.01
STRANGER = "?"
"""Who dialled, where it was none of the peers, or had gone again before it was looked for."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to bytes on their way from one peer to another. Shares are of pieces."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much more, drawn for each piece. Nothing overtakes: it is a stream."""
    loss: float = 0.0
    """Share that is lost. A stream loses nothing: the piece, and all behind it, comes `RESEND_S` later."""
    slice_bytes: int = 0
    """Longest piece; 0: as they come."""
    bytes_per_s: float = math.inf
    flips: float = 0.0
    """Share in which one bit is flipped."""
    repeats: float = 0.0
    """Share that comes twice."""
    swaps: float = 0.0
    """Share whose two halves change places."""
    cuts: float = 0.0
    """Share amid which the connection is closed."""
    blackhole: bool = False
    """Nothing passes, not even an end; what was said meanwhile arrives when this is over, as on a wire that
    was unplugged."""
    silent: bool = False
    """New connections are accepted, and nothing is ever said on them until this is over."""


class Way:
    """From one peer to another, over all connections between the two."""

    def __init__(self, rng: Random) -> None:
        self.fault = Fault()
        self.rng = rng
        self.flips_due = 0
        """Pieces in which a bit is still to be flipped, whatever the fault says."""
        self.bytes_left: int | None = None
        """After so many more bytes the connection that carries the next is closed, once. None: never."""
        self.done: Counter[str] = Counter()
        """What was done to pieces, by kind."""


class Course:
    """One direction of one connection: what becomes of what is said, and when it arrives."""

    def __init__(self, way: Way) -> None:
        self.over = False
        """Whether the connection is to be closed behind what was last returned."""
        self._way = way
        self._free_at = -math.inf
        self._due = -math.inf

    def take(self, data: bytes, now: float) -> list[tuple[float, bytes]]:
        """Return what arrives of `data`, and when, in order."""
        found = []
        for piece in sliced(data, self._way.fault.slice_bytes):
            for part in self._spoilt(piece):
                found.append((self.due(len(part), now), part))
            if self.over:
                break
        return found

    def due(self, size: int, now: float) -> float:
        """Return when `size` bytes that leave now arrive: never before those that left earlier."""
        fault, rng = self._way.fault, self._way.rng
        self._free_at = max(self._free_at, now) + size / fault.bytes_per_s
        due = self._free_at + fault.delay_s + fault.jitter_s * rng.random()
        if rng.random() < fault.loss:
            self._way.done["lost"] += 1
            due += RESEND_S
        self._due = max(self._due, due)
        return self._due

    def _spoilt(self, piece: bytes) -> list[bytes]:
        way, fault, draw = self._way, self._way.fault, self._way.rng.random
        if draw() < fault.swaps and (swapped := halves_swapped(piece)) != piece:
            way.done["swapped"] += 1
            piece = swapped
        if way.flips_due or draw() < fault.flips:
            way.flips_due = max(0, way.flips_due - 1)
            way.done["flipped"] += 1
            piece = flipped(piece, way.rng)
        parts = [piece]
        if draw() < fault.repeats:
            way.done["repeated"] += 1
            parts.append(piece)
        if draw() < fault.cuts:
            way.bytes_left = way.rng.randrange(len(piece))
        return self._cut(parts)

    def _cut(self, parts: list[bytes]) -> list[bytes]:
        """Return what still passes before the connection is closed: all, where it is not to be."""
        way = self._way
        if way.bytes_left is None:
            return parts
        kept = []
        for part in parts:
            if len(part) > way.bytes_left:
                kept.append(part[: way.bytes_left])
                way.bytes_left, self.over = None, True
                way.done["cut"] += 1
                break
            kept.append(part)
            way.bytes_left -= len(part)
        return [part for part in kept if part]


def sliced(data: bytes, size: int) -> list[bytes]:
    """Return `data` in pieces of at most `size` bytes; 0: in one."""
    return [data[at : at + size] for at in range(0, len(data), size)] if size else [data]


def flipped(data: bytes, rng: Random) -> bytes:
    """Return `data` with one bit another."""
    at = rng.randrange(8 * len(data))
    spoilt = bytearray(data)
    spoilt[at // 8] ^= 1 << at % 8
    return bytes(spoilt)


def halves_swapped(data: bytes) -> bytes:
    """Return the second half of `data`, then the first."""
    return data[len(data) // 2 :] + data[: len(data) // 2]


def inode_of(table: str, local: int, remote: int) -> str:
    """Return the inode of the socket with these two ports in a /proc/net/tcp; "": it holds none."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{local:04X}") and fields[2].endswith(f":{remote:04X}"):
            return fields[9]
    return ""


def owner_of(inode: str, pids: dict[str, int]) -> str:
    """Return which of these processes holds a socket; STRANGER: none."""
    wanted = f"socket:[{inode}]"
    for name, pid in pids.items():
        with suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):  # closed since
                    if os.readlink(f"/proc/{pid}/fd/{number}") == wanted:
                        return name
    return STRANGER


class _End(Enum):
    """What a direction of a connection ends in."""

    EOF = auto()
    CLOSE = auto()
    RESET = auto()


@dataclass(eq=False)
class _Connection:
    """One that a peer opened to another's proxy."""

    pair: tuple[str, str]
    scope: trio.CancelScope
    reset: bool = False


_Piece = tuple[float, "bytes | _End"]


class Wire:
    """All proxies of one mesh, and the faults between its peers."""

    def __init__(self, seed: int) -> None:
        self.pids: dict[str, int] = {}
        """The process of each peer, as far as they run: whoever starts one writes it here."""
        self.strangers = 0
        """Connections that none of the peers was found to have opened."""
        self._seed = seed
        self._ways: dict[tuple[str, str], Way] = {}
        self._connections: list[_Connection] = []
        self._changed = trio.Event()

    def way(self, source: str, target: str) -> Way:
        """Return the way from one peer to another. Its dice depend on the seed and the two names alone."""
        key = (source, target)
        if key not in self._ways:
            self._ways[key] = Way(Random(f"{self._seed} {source} {target}"))
        return self._ways[key]

    def set(self, sources: Iterable[str], targets: Iterable[str], fault: Fault) -> None:
        """From now on `fault` is between each of the one and each of the other, in this direction only."""
        for source in sources:
            for target in targets:
                if source != target:
                    self.way(source, target).fault = fault
        self._news()

    def heal(self) -> None:
        """No fault is left."""
        for way in self._ways.values():
            way.fault, way.flips_due, way.bytes_left = Fault(), 0, None
        self._news()

    def reset(self, one: str, other: str) -> int:
        """Reset every connection between two peers, whoever opened it; return how many there were."""
        hit = [c for c in self._connections if set(c.pair) == {one, other}]
        for connection in hit:
            connection.reset = True
            connection.scope.cancel()
        return len(hit)

    def done(self) -> Counter[str]:
        """Return what was done to pieces on all ways, by kind."""
        return sum((way.done for way in self._ways.values()), Counter())

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def _news(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            await self._changed.wait()

    async def proxy(self, name: str, port: int, *, task_status: Any) -> None:
        """Stand before the peer that listens on `port`, until cancelled. Starts with the proxy's own port."""
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        own = listeners[0].socket.getsockname()[1]

        async def take(stream: trio.SocketStream) -> None:
            await self._take(stream, own, name, port)

        task_status.started(own)
        await trio.serve_listeners(take, listeners)

    async def _look_for_dialler(self, stream: trio.SocketStream, own: int) -> str:
        """Return who dialled. Not at once a stranger: the kernel's table is read in parts, and what changes
        in between may be missing, so that a link would come about through a blackhole."""
        for _ in range(LOOKS):
            if (found := self._dialler(stream, own)) != STRANGER:
                return found
            await trio.sleep(LOOK_AGAIN_S)
        self.strangers += 1
        return STRANGER

    def _dialler(self, stream: trio.SocketStream, own: int) -> str:
        try:
            theirs = stream.socket.getpeername()[1]
        except OSError:
            return STRANGER
        inode = inode_of(Path("/proc/net/tcp").read_text("ascii"), theirs, own)
        return owner_of(inode, self.pids) if inode not in ("", "0") else STRANGER

    async def _take(self, inbound: trio.SocketStream, own: int, name: str, port: int) -> None:
        """Carry one connection to its end, however that comes."""
        if self.connections >= CONNECTIONS_MAX:
            _close(inbound, reset=True)
            return
        with trio.CancelScope() as scope:
            connection = _Connection((STRANGER, name), scope)
            self._connections.append(connection)
            streams = [inbound]
            try:
                connection.pair = (await self._look_for_dialler(inbound, own), name)
                outbound = await self._reach(connection, port)
                if outbound is None:
                    connection.reset = True
                else:
                    streams.append(outbound)
                    await self._carry(connection, inbound, outbound)
            finally:
                self._connections.remove(connection)
                for stream in streams:
                    _close(stream, reset=connection.reset)

    async def _reach(self, connection: _Connection, port: int) -> trio.SocketStream | None:
        """Connect to the peer itself; None: it does not listen."""
        there, back = self.way(*connection.pair), self.way(*reversed(connection.pair))
        await self._until(lambda: not (there.fault.blackhole or back.fault.blackhole or there.fault.silent))
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            await sock.connect((LOOPBACK, port))
        except OSError:
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def _carry(
        self, connection: _Connection, inbound: trio.SocketStream, outbound: trio.SocketStream
    ) -> None:
        there, back = self.way(*connection.pair), self.way(*reversed(connection.pair))
        async with trio.open_nursery() as nursery:
            for source, sink, ways in (
                (inbound, outbound, (there, back)),
                (outbound, inbound, (back, there)),
            ):
                send, receive = trio.open_memory_channel[_Piece](HELD_PIECES)
                nursery.start_soon(self._read, source, ways[0], send)
                nursery.start_soon(self._write, receive, sink, ways, connection)

    async def _read(self, source: trio.SocketStream, way: Way, send: trio.MemorySendChannel[_Piece]) -> None:
        course, end = Course(way), _End.EOF
        while not course.over:
            try:
                data = await source.receive_some(PIECE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                end = _End.RESET
                break
            if not data:
                break
            for piece in course.take(bytes(data), trio.current_time()):
                await send.send(piece)
        if course.over:
            end = _End.CLOSE
        await send.send((course.due(0, trio.current_time()), end))

    async def _write(
        self,
        receive: trio.MemoryReceiveChannel[_Piece],
        sink: trio.SocketStream,
        ways: tuple[Way, Way],
        connection: _Connection,
    ) -> None:
        way, back = ways
        async for due, piece in receive:
            await trio.sleep_until(due)
            await self._until(lambda: not way.fault.blackhole)
            try:
                if isinstance(piece, bytes):
                    await sink.send_all(piece)
                    continue
                if piece is _End.EOF:
                    await sink.send_eof()
                    return
                connection.reset = piece is _End.RESET
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                # That nobody is there any more has to come back this way, too.
                await self._until(lambda: not back.fault.blackhole)
            connection.scope.cancel()
            return


def _close(stream: trio.SocketStream, *, reset: bool) -> None:
    with suppress(OSError):
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
