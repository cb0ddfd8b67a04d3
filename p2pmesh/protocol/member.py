"""What is believed of one peer, and the ways to it. Plain state; `membership` moves it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from p2pmesh.config import Membership
from p2pmesh.protocol.messages import DISTANCE_MAX, Status
from p2pmesh.record import PeerId, Version

_FOREVER = math.inf
TOLD_AT = 2
"""Unanswered probes, in a row, after which a suspicion is told to others."""


def suspicion_s(evidence: int, links: int, config: Membership) -> float:
    """Return the seconds for which a peer is suspected before it counts as dead: the fewer, the more often it
    was silent (Lifeguard)."""
    least = config.suspicion_mult * max(1.0, math.log10(max(10, links)))
    most = least * config.suspicion_max_mult
    confirmed = math.log(evidence) / math.log(config.confirmations + 1)
    return max(least, most - (most - least) * confirmed)


@dataclass
class Member:
    """What is believed of one peer."""

    id: PeerId
    version: Version
    status: Status
    addresses: tuple[str, ...] = ()
    expires: float = _FOREVER
    """When a suspect is dead, or a tombstone forgotten."""
    dial_at: float = _FOREVER
    redial_s: float = 0.0
    dialing: bool = False
    parted_until: float = 0.0
    """It has no room for us: not to be dialled before."""
    was_linked: bool = False
    """The link closed and the redial is under way: its failure is a death."""
    suspected_at: float = 0.0
    evidence: int = 0
    """Probes of ours that it left unanswered, and one where somebody told us: the suspicion ends the sooner,
    the more they are."""
    distances: dict[PeerId, int] = field(default_factory=dict)
    """Links between each neighbour and it, as that neighbour announced."""
    way: tuple[int, PeerId] | None = None
    """The least of them, and whose it is."""

    @property
    def is_accused(self) -> bool:
        """Whether others are to hear of what is held against it."""
        return self.status > Status.SUSPECT or (self.status is Status.SUSPECT and self.evidence >= TOLD_AT)

    def way_past(self, barred: Collection[PeerId]) -> tuple[PeerId, int] | None:
        """Return the neighbour, none of `barred`, that is nearest to it, and the links from here; None: out
        of reach."""
        way = self.way
        if way is not None and way[1] in barred:
            way = min(((links, n) for n, links in self.distances.items() if n not in barred), default=None)
        return None if way is None else (way[1], way[0] + 1)

    def told(self, neighbour: PeerId, links: int) -> bool:
        """`neighbour` says that it is `links` away from it. Returns whether others should hear of it: there
        was no way, or is none now, or a longer one. A shorter one they find by asking."""
        before = self.way
        if links + 1 < DISTANCE_MAX:
            self.distances[neighbour] = links
        else:
            self.distances.pop(neighbour, None)
        self._find_way()
        if before is None or self.way is None:
            return before != self.way
        return self.way[0] > before[0]

    def unlinked(self, neighbour: PeerId) -> None:
        """There is no way through `neighbour` any more."""
        if self.distances.pop(neighbour, None) is not None:
            self._find_way()

    def _find_way(self) -> None:
        self.way = min(((links, n) for n, links in self.distances.items()), default=None)
