"""Whom to be linked to, in time: what `overlay` chooses of those who are known, dialled and kept.

While all fit, everybody. Beyond that the near and the far; whoever dials us is linked too, and goes first
when there is no room. It knows members, their capabilities and the links; nothing of probes and beliefs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping

from p2pmesh.config import Config
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.messages import Status
from p2pmesh.protocol.overlay import NEAR_KEPT, Links, load_set, select, shuffled
from p2pmesh.record import Capability, PeerId, PeerRecord

_RETRY_S = 30.0
"""Seconds until those who were chosen and could not be linked are tried again. A guess: as long as one that
had no room is left alone."""
_SETTLE_S = 0.2
"""Seconds from news to a new choice, so that a burst of them is one choice. A guess."""


OFFERED = 24
"""Peers near to a link that it is told of in one exchange (research)."""


def _similarity(mine: Capability, its: Capability | None) -> float:
    """Return the cosine of the nearest two skills, or -1 where none compare."""
    if its is None or mine.space != its.space:
        return -1.0
    ours, theirs = mine.directions[1], its.directions[1]
    if not ours.size or not theirs.size or ours.shape[1] != theirs.shape[1]:
        return -1.0
    return float((ours @ theirs.T).max())


class Linking:
    """The neighbours of one peer."""

    def __init__(
        self,
        me: PeerId,
        config: Config,
        membership: Membership,
        own: Callable[[], Capability],
        known: Callable[[PeerId], Capability | None],
        evict: Callable[[set[PeerId]], bool],
    ) -> None:
        """`known` tells what a peer can do, if its record is held; `evict` ends one of the links it is given,
        if one can be spared."""
        self._me = me
        self._config = config.membership
        self._load_max = config.gossip.load_set_max
        self._membership = membership
        self._own = own
        self._known = known
        self._evict = evict
        self._wanted = Links((), ())
        self._chosen: frozenset[PeerId] = frozenset()
        self._due = math.inf
        self._chose_at = -math.inf
        self._load_set: tuple[PeerId, ...] | None = None
        self._similar: dict[PeerId, tuple[Capability, Capability | None, float]] = {}
        """How near each peer is, and by which records."""

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return self._due

    def changed(self, now: float) -> None:
        """Somebody came, went, or can do something else."""
        self._load_set = None
        if self._due > now + self._config.relink_interval_s:
            few = len(self._membership.links) < self._config.links_max // 2
            pause = 0.0 if few else self._config.relink_interval_s
            self._due = max(now + _SETTLE_S, self._chose_at + pause)

    def make_room(self) -> bool:
        """Let one more link be: end one that was not chosen here, if need be. Returns whether there is
        room."""
        return self._membership.has_room or self._evict(self.spare())

    def spare(self) -> set[PeerId]:
        """Return the links that were not chosen here."""
        return set(self._membership.links) - self._chosen

    def load_set(self) -> tuple[PeerId, ...]:
        """Return the links that hear of our load."""
        if self._load_set is None:
            self._load_set = load_set(self._wanted, self._membership.links, self._load_max)
        return self._load_set

    def advance(self, now: float) -> None:
        """Choose anew, when it is time, and dial whoever is chosen and not linked."""
        if now < self._due:
            return
        self._due, self._chose_at = math.inf, now
        pool: dict[PeerId, Capability] = {}
        for member in self._membership.members.values():
            capability = self._known(member.id)
            if member.status is Status.ALIVE and capability is not None:
                pool[member.id] = capability
        self._choose(pool)
        for peer in self._chosen:
            self._membership.dial(peer, now)
        if any(peer not in self._membership.links for peer in self._chosen):
            self._due = now + _RETRY_S

    # -- where there are more peers than room ---------------------------------------------------------

    def admit(self, record: PeerRecord) -> bool:
        """Return whether a newcomer is worth a place among the members, and forget whoever gives it up.

        That is one that cannot be reached; else, of all but the links and the nearest, the last in an order
        that is random and stays the same: who is left is a fair sample of all that were ever heard of.
        """
        members = self._membership.members
        spare = [ident for ident in members if ident not in self._membership.links]
        away = [ident for ident in spare if members[ident].redial_s]
        if not away:
            close = {ident: self._similarity(ident, self._known(ident)) for ident in spare}
            if record.id not in self._membership.links:  # a neighbour is kept whatever it is
                close[record.id] = self._similarity(record.id, record.capability)
            kept = min(NEAR_KEPT, self._config.members_max // 8)
            near = [ident for ident, cosine in close.items() if cosine > 0.0]
            nearest = set(heapq.nlargest(kept, near, key=lambda ident: (close[ident], ident)))
            away = [ident for ident in close if ident not in nearest]
            away = away or sorted(close, key=close.__getitem__)[:1]  # all are near: the least of them
        victim = shuffled(self._me, away)[-1] if away else record.id
        if victim == record.id:
            return False
        self._membership.forget(victim)
        return True

    def offer(self, peer: PeerId) -> list[PeerId]:
        """Return the members that are nearest to `peer`, for it to know."""
        its = self._known(peer)
        pool = [
            ident for ident in self._membership.members if ident != peer and self._membership.can_reach(ident)
        ]
        if its is None:
            return []
        pool = shuffled(peer, pool)  # of equals, who it would keep
        near = {ident: _similarity(its, self._known(ident)) for ident in pool}
        return sorted(pool, key=lambda ident: -near[ident])[:OFFERED]

    def _similarity(self, peer: PeerId, its: Capability | None) -> float:
        """How near `peer` is to us; worked out once for each record."""
        own = self._own()
        found = self._similar.get(peer)
        if found is None or found[0] is not own or found[1] is not its:
            found = self._similar[peer] = (own, its, _similarity(own, its))
            if len(self._similar) > 2 * self._config.members_max:
                members = self._membership.members
                self._similar = {ident: row for ident, row in self._similar.items() if ident in members}
        return found[2]

    def _choose(self, pool: Mapping[PeerId, Capability]) -> None:
        near, far = self._config.links_max - self._config.links_far, self._config.links_far
        self._wanted = select(self._me, self._own(), pool, near, far)
        self._chosen = frozenset((*self._wanted.near, *self._wanted.far))
        self._load_set = None
