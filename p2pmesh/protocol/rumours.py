"""What is to be told of others: beliefs, piggybacked on probes, each a few times and the least told first.

It knows updates and how often they were told; nothing of whether they are true. One for each peer at most: a
newer belief takes the older one's place.
"""

from __future__ import annotations

from collections.abc import Iterator

from p2pmesh.protocol.messages import Update
from p2pmesh.record import PeerId


class Rumours:
    """The updates that one peer has yet to tell."""

    def __init__(self, per_frame_max: int) -> None:
        self._per_frame_max = per_frame_max
        self._left: dict[PeerId, tuple[Update, int]] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._left)

    def __iter__(self) -> Iterator[PeerId]:
        """Go through whom they are about."""
        return iter(self._left)

    def tell(self, update: Update, times: int) -> None:
        """Let `update` go out so many times."""
        self._left[update.id] = (update, max(1, times))

    def drop(self, peer: PeerId) -> None:
        """What was believed of `peer` is no news any more."""
        self._left.pop(peer, None)

    def news(self, peer: PeerId, first: tuple[Update, ...] = ()) -> tuple[Update, ...]:
        """Return what goes on the next frame to `peer`: `first`, and then the least told of others."""
        chosen = list(first)
        ranked = sorted(self._left.items(), key=lambda item: (-item[1][1], item[0]))
        for ident, (update, left) in ranked[: self._per_frame_max - len(chosen)]:
            if ident == peer:
                continue
            chosen.append(update)
            if left <= 1:
                del self._left[ident]
            else:
                self._left[ident] = (update, left - 1)
        return tuple(chosen)
