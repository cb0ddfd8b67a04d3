"""Who is let in: what a host asks of whoever holds the mesh's certificates.

Knows peers and bytes; what the bytes prove, others judge. By the time it is asked both sides have proven who
they are, so what one shows is worth nothing to another.
"""

from __future__ import annotations

from typing import Protocol

from p2pmesh.errors import Untrusted
from p2pmesh.record import PeerId
from p2pmesh.trust.papers import ONE_OUTSIDE


class Door(Protocol):
    """What decides about each connection, of either direction, before it becomes a link."""

    def show(self) -> bytes:
        """Return what this peer shows to be let in."""

    def admit(self, peer: PeerId, shown: bytes) -> bytes:
        """Return nothing where `peer`, which showed `shown`, is let in; else what it is given instead of a
        link. Raises MeshError, whose text the peer is told, where it is neither."""


class Open:
    """The door of a peer without a mesh: whoever shows nothing is let in."""

    def show(self) -> bytes:
        """Return nothing."""
        return b""

    def admit(self, peer: PeerId, shown: bytes) -> bytes:
        """Let in who has no mesh either."""
        if shown:
            raise Untrusted(ONE_OUTSIDE)
        return b""
