"""What happens on the wire, as the peer above is told: plain values, in order for each peer."""

from __future__ import annotations

from dataclasses import dataclass

from p2pmesh.record import PeerId


@dataclass(frozen=True)
class LinkUp:
    """A peer is linked; `address` is where it was dialled, or where it came from."""

    peer: PeerId
    address: str
    inbound: bool


@dataclass(frozen=True)
class LinkDown:
    """A link has ended, whoever ended it. Follows each LinkUp once, unless the host itself closes first."""

    peer: PeerId
    detail: str


@dataclass(frozen=True)
class FrameReceived:
    """A peer sent a frame."""

    peer: PeerId
    data: bytes


@dataclass(frozen=True)
class DialFailed:
    """A dial led to no link to `peer`, or to anybody where it named none. `address`: the last it gave."""

    peer: PeerId | None
    address: str
    detail: str


NetEvent = LinkUp | LinkDown | FrameReceived | DialFailed
