"""Certificates that this peer has looked at: whose, and since when they are in. Pure, and bounded.

It judges none of them: what holds now, and what does not any more, `roster` says.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2pmesh.record import PeerId
from p2pmesh.trust.statements import Certificate, Signed

SEEN_MAX = 4_096
"""Most certificates remembered, of those that were shown at the door and of those that came with records: as
many as there can be connections, and more."""


class Seen:
    """What was looked at, the latest of it."""

    def __init__(self) -> None:
        self.shown: dict[PeerId, Signed] = {}
        """What those have shown last that were let in."""
        self._told: dict[bytes, Signed] = {}

    def show(self, peer: PeerId, certificate: Signed) -> None:
        """`peer` has shown it itself, and was let in."""
        self.shown.pop(peer, None)
        if len(self.shown) >= SEEN_MAX:
            del self.shown[next(iter(self.shown))]
        self.shown[peer] = certificate

    def tell(self, data: bytes, certificate: Signed) -> None:
        """It came as `data` with a record, and held."""
        self._told[data] = certificate
        if len(self._told) > SEEN_MAX:
            del self._told[next(iter(self._told))]

    def read(self, data: bytes) -> Signed:
        """Return the statement that `data` is, whose signatures are checked once. Raises Untrusted."""
        return self._told.get(data) or Signed.parse(data)

    def since(self, peer: PeerId) -> int:
        """Return since when `peer` is in, in Unix seconds, by the latest that was seen; -1: by none."""
        return max((said.since for said in self._all() if said.peer == peer), default=-1)

    def _all(self) -> Iterator[Certificate]:
        for signed in (*self.shown.values(), *self._told.values()):
            if isinstance(signed.statement, Certificate):
                yield signed.statement
