"""What only the two ends of a query may read: its origin seals it, its executor opens it, and the answer
comes back as it went.

A query of a zone is planned by its origin alone, down to the model, and sealed to the peer it chose; whoever
passes it on learns where it goes, how long it is (in steps) and when. This module knows what goes into the
envelope and what must stay outside; which cipher closes it is for what it is given (`Sealer`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from p2pmesh.config import Limits
from p2pmesh.errors import LocalProtocolError, RemoteProtocolError, Untrusted
from p2pmesh.protocol.codec import Codec, sealed_bytes_max
from p2pmesh.protocol.messages import Copy, End, Forward
from p2pmesh.query import AUTO, Chunk, Ended, Hop, Options, Query, Resume, Usage
from p2pmesh.record import GENERAL, PeerId

LOOK_S = 60.0
"""Seconds between two looks at whether the key is still the one that was published."""
CLOSED = "sealed"
"""What a hop says of itself where everybody may read it."""


class Cipher(Protocol):
    """What the two ends of one attempt share, and nobody between them."""

    def close(self, index: int, last: bool, data: bytes) -> bytes:
        """Return `data` closed, as the piece with this number; of each number there is one."""
        ...

    def open(self, index: int, last: bool, data: bytes) -> bytes:
        """Return what `close` closed at the other end. Raises Untrusted for anything else."""
        ...


class Sealer(Protocol):
    """The keys of one peer. The real ones are `trust.sealing`'s; the simulator has its own."""

    def key(self) -> bytes:
        """Return the public key that others seal to now."""
        ...

    def seal(self, data: bytes, context: bytes, key: bytes) -> tuple[bytes, Cipher]:
        """Return `data` sealed to the owner of `key`, for this `context` alone, and the answer's cipher.
        Raises Untrusted for what is no key."""
        ...

    def open(self, sealed: bytes, context: bytes, origin: PeerId) -> tuple[bytes, Cipher]:
        """Return what `origin` sealed to one of this peer's keys in this `context`, and the answer's cipher.
        Raises Untrusted."""
        ...


class Cover:
    """One answer's pieces, closed by who writes it and opened by who asked."""

    def __init__(self, codec: Codec, cipher: Cipher) -> None:
        self._codec, self._cipher = codec, cipher

    def close_chunk(self, chunk: Chunk, digest: str) -> Chunk:
        """Return `chunk`, which the model with `digest` wrote, as everybody may see it."""
        data = self._cipher.close(chunk.index, False, self._codec.encode(Copy(chunk, digest)))
        return Chunk(chunk.query_id, chunk.attempt, chunk.index, (), "", (), data)

    def open_chunk(self, chunk: Chunk) -> tuple[Chunk, str]:
        """Return what `close_chunk` was given. Raises Untrusted where it was not."""
        said = self._read(self._cipher.open(chunk.index, False, chunk.sealed))
        if not isinstance(said, Copy) or not _same(said.chunk, chunk):
            raise Untrusted("a sealed piece of an answer that is another piece inside")
        return said.chunk, said.digest

    def close_end(self, end: End) -> End:
        """Return the `end` of an answer as everybody may see it."""
        data = self._cipher.close(end.chunks, True, self._codec.encode(end))
        ended = Ended(Usage(), CLOSED, "", "", veiled(end.ended.path), data)
        return replace(end, ended=ended)

    def open_end(self, end: End) -> Ended:
        """Return the end of the answer that `close_end` was given. Raises Untrusted where it was not."""
        said = self._read(self._cipher.open(end.chunks, True, end.ended.sealed))
        if not isinstance(said, End) or replace(said, ended=end.ended) != end:
            raise Untrusted("a sealed end of an answer that is another one's inside")
        return said.ended

    def _read(self, data: bytes) -> object:
        try:
            return self._codec.decode(data)
        except RemoteProtocolError as exc:
            raise Untrusted(f"sealed, and no message: {exc}") from None


class Sealing:
    """The part of a machine that seals and opens."""

    def __init__(
        self,
        me: PeerId,
        limits: Limits,
        codec: Codec,
        sealer: Sealer,
        key_of: Callable[[PeerId], bytes],
        republish: Callable[[bytes], None],
        now: float,
    ) -> None:
        """`key_of` returns the key that a peer has published, or nothing; `republish` publishes this peer's
        record anew, with another key."""
        self._me, self._codec, self._sealer = me, codec, sealer
        self._limits = limits
        self._key_of, self._republish = key_of, republish
        self._published = sealer.key()
        self.deadline = now + LOOK_S

    def wrap(self, query: Query, model: str) -> tuple[Query, Cover]:
        """Return `query`, which goes to its target's `model`, as those on the way may see it, and the cover
        of its answer.

        Raises LocalProtocolError where it is too long for a frame once it is sealed, and Untrusted where the
        target has published no key.
        """
        slim = {"vector": None, "space": "", "prompt_tokens": 0, "search": None, "path": (), "excluded": ()}
        inside = replace(query, model=model, **slim)  # type: ignore[arg-type]
        data = self._codec.encode(Forward(inside))
        sealed, cipher = self._sealer.seal(data, _context(query), self._key_of(query.target))
        most = sealed_bytes_max(self._limits)
        if len(sealed) > most:
            raise LocalProtocolError(f"{len(sealed)} bytes once it is sealed, at most {most} fit")
        outside = replace(
            query,
            messages=(),
            options=Options(max_tokens=1),
            model=AUTO,
            zone=GENERAL,
            vector=None,
            space="",
            prompt_tokens=0,
            path=veiled(query.path),
            accepted=None,
            search=None,
            resume=Resume.ANY,
            sealed=sealed,
        )
        return outside, Cover(self._codec, cipher)

    def arrived(self, query: Query) -> tuple[Query, Cover | None]:
        """Return `query`, which came from another peer, as it is to be read here, and what closes its answer
        where it was sealed to this peer.

        Raises Untrusted where the origin it names did not seal it, to a key this peer has; and for one of a
        zone that was not sealed.
        """
        if query.sealed and [hop.peer for hop in query.path[:1]] != [query.origin]:
            raise Untrusted("a sealed query whose way does not begin where it was asked")
        if query.sealed and query.target == self._me:
            return self._unwrap(query)
        if query.zone != GENERAL:
            raise Untrusted("a query of a zone travels sealed, or not at all")
        return query, None

    def _unwrap(self, query: Query) -> tuple[Query, Cover]:
        data, cipher = self._sealer.open(query.sealed, _context(query), query.origin)
        try:
            said = self._codec.decode(data)
        except RemoteProtocolError as exc:
            raise Untrusted(f"sealed, and no message: {exc}") from None
        if not isinstance(said, Forward) or said.query.sealed or said.query.zone == GENERAL:
            raise Untrusted("sealed, and no query of a zone")
        inside = said.query
        if _context(inside) != _context(query):
            raise Untrusted("a sealed query that is another one inside")
        budget_s = min(inside.budget_s, query.budget_s)
        whole = replace(inside, path=query.path, hops_left=0, budget_s=budget_s, excluded=(), search=None)
        return whole, Cover(self._codec, cipher)

    def advance(self, now: float) -> None:
        """Publish a new key in time."""
        if now < self.deadline:
            return
        self.deadline = now + LOOK_S
        if self._sealer.key() != self._published:
            self._published = self._sealer.key()
            self._republish(self._published)


def veiled(path: tuple[Hop, ...]) -> tuple[Hop, ...]:
    """Return `path` without the reasons, which tell what the query is about."""
    return tuple(replace(hop, why=CLOSED) for hop in path)


def _same(inside: Chunk, outside: Chunk) -> bool:
    ident = (outside.query_id, outside.attempt, outside.index)
    return (inside.query_id, inside.attempt, inside.index) == ident and not inside.sealed


def _context(query: Query) -> bytes:
    """Return what a sealed query is bound to: this query, this attempt, from here, to there."""
    parts = (query.id, str(query.attempt), query.origin, query.target)
    return b"".join(len(raw).to_bytes(2, "big") + raw for raw in (part.encode() for part in parts))
