"""Tickets: how a machine that is no member yet gets its first certificate. Pure.

A ticket names one peer and holds a secret that this peer gave out; whoever shows it there, over a connection
on which both have proven who they are, is let in. The peer keeps the secret's digest, so that who reads its
disk cannot join. It knows no wire, no file and no clock.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated

import base58
import msgspec
from typing_extensions import Self

from p2pmesh.errors import Untrusted
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import PEER_ID_CHARS_MAX, public_key_of

SECRET_BYTES = 16
"""Enough that nobody guesses it, at one try per connection."""
TEXT_CHARS_MAX = 2_048
"""Longest ticket."""
USES_MAX = 100
"""Most peers that one ticket lets in."""
OPEN_MAX = 256
"""Most tickets of one peer that are good at a time."""
_AHEAD_MAX_S = 295.0
"""Most seconds by which a ticket may be dated ahead: who comes with it must not be in at a time to come."""
_MAGIC = "p2pmesh-"
_CHECK_BYTES = 4


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is handed to the machine that is to join."""

    mesh: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    peer: Annotated[str, msgspec.Meta(max_length=PEER_ID_CHARS_MAX)]
    """Who gave it out, and takes it."""
    addresses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=256)], ...], msgspec.Meta(max_length=4)]
    """Where that peer is to be found."""
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the ticket that `str` made a text of. Raises Untrusted for any other text, and for one that
        was copied wrongly."""
        text = text.strip()
        if not text.startswith(_MAGIC) or len(text) > TEXT_CHARS_MAX:
            raise Untrusted(f"a ticket begins with {_MAGIC}, and has at most {TEXT_CHARS_MAX} characters")
        try:
            raw = base58.b58decode(text[len(_MAGIC) :])
            body, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
            if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
                raise ValueError("the ticket is incomplete, or was changed on its way: copy the whole of it")
            ticket = msgspec.msgpack.decode(body, type=cls)
            public_key_of(ticket.peer)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise Untrusted(f"not a ticket: {error}") from None
        return ticket

    def __str__(self) -> str:
        """The ticket as a word that can be copied."""
        body = msgspec.msgpack.encode(self)
        check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
        return _MAGIC + base58.b58encode(body + check).decode("ascii")

    def __repr__(self) -> str:
        return f"Ticket(to {self.peer})"  # the secret belongs into no log


@dataclass(frozen=True)
class Invite:
    """A ticket, as the peer that gave it out remembers it."""

    digest: bytes
    """SHA-256 of the secret."""
    zones: tuple[str, ...]
    """What whoever uses it may see beside the general zone."""
    made: float
    """When it was given out, in Unix seconds."""
    until: float
    """When it ends."""
    uses: int
    """How many it lets in."""
    used: tuple[PeerId, ...] = ()
    """Whom it has let in: one whose answer was lost may come again."""


def invite(
    secret: bytes,
    zones: tuple[str, ...],
    until: float,
    uses: int,
    open_: tuple[Invite, ...],
    now: float,
    made: float | None = None,
) -> tuple[Invite, ...]:
    """Return the invites `open_` with one more, which counts as `made` then (None: now). Raises
    Untrusted where it could let nobody in, or there are too many."""
    if not 1 <= uses <= USES_MAX:
        raise Untrusted(f"a ticket lets in 1..{USES_MAX} peers, not {uses}")
    if until <= now:
        raise Untrusted("a ticket that has expired already")
    alive = tuple(one for one in open_ if one.until > now)
    if len(alive) >= OPEN_MAX:
        raise Untrusted(f"{len(alive)} tickets are open already: wait until one expires")
    made = now if made is None else made
    return (*alive, Invite(hashlib.sha256(secret).digest(), zones, made, until, uses))


def counts_from(now: float, out_at: float) -> float:
    """Return when a ticket that is given out now counts as made, where somebody was thrown out at `out_at`
    last, which is a whole second and may lie some ahead: after that, as it is to let him in."""
    return max(now, min(now + _AHEAD_MAX_S, out_at + 1e-3))


def newest(open_: tuple[Invite, ...], now: float) -> float:
    """Return when the last of `open_` was made, or `now` where that is later; of those alone that a clock
    that was right can have dated."""
    return max([now, *(one.made for one in open_ if one.made <= now + _AHEAD_MAX_S)])


def withdraw(secret: bytes, open_: tuple[Invite, ...]) -> tuple[Invite, tuple[Invite, ...]]:
    """Return the invite that `secret` belongs to, and all the others of `open_`. Raises Untrusted where there
    is none."""
    digest = hashlib.sha256(secret).digest()
    gone = next((one for one in open_ if one.digest == digest), None)
    if gone is None:
        raise Untrusted("this peer has given out no such ticket, or it is void already")
    return gone, tuple(one for one in open_ if one is not gone)


def redeem(
    secret: bytes, peer: PeerId, open_: tuple[Invite, ...], out_since: float, now: float
) -> tuple[Invite, tuple[Invite, ...]]:
    """Return the invite that `secret` belongs to, and all invites as they are once `peer`, which was thrown
    out at `out_since` for the last time, has used it. Raises Untrusted where it lets `peer` in no more, or
    never did: then nothing has been used."""
    digest = hashlib.sha256(secret).digest()
    # Compared by their digests, so how long it takes tells nothing of a secret.
    found = next((one for one in open_ if one.digest == digest), None)
    if found is None:
        raise Untrusted("this peer has given out no such ticket, or it has expired or been taken back since")
    if now >= found.until:
        raise Untrusted("the ticket has expired")
    # One of a clock that was ahead may be older than it says.
    if out_since >= 0 and not out_since < found.made <= now + _AHEAD_MAX_S:
        raise Untrusted("it was thrown out, and takes a ticket given out since then to come back")
    if peer in found.used:
        return found, open_
    if len(found.used) >= found.uses:
        raise Untrusted("the ticket has been used up")
    after = replace(found, used=(*found.used, peer))
    return after, tuple(after if one is found else one for one in open_)
