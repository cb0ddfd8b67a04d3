"""Whom to be linked to, in time: what `overlay` chooses of those who are known, dialled and kept.

While all fit, everybody. Beyond that the near and the far; whoever dials us is linked too, and goes first
when there is no room. It knows members, their capabilities and the links; nothing of probes and beliefs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from p2pmesh.config import Config
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.messages import Status
from p2pmesh.protocol.overlay import Links, load_set, select
from p2pmesh.record import Capability, PeerId

_RETRY_S = 30.0
"""Seconds until those who were chosen and could not be linked are tried again. A guess: as long as one that
had no room is left alone."""
_SETTLE_S = 0.2
"""Seconds from news to a new choice, so that a burst of them is one choice. A guess."""


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
        links = self._membership.links
        return len(links) < 2 * self._config.links_max or self._evict(set(links) - self._chosen)

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

    def _choose(self, pool: Mapping[PeerId, Capability]) -> None:
        near, far = self._config.links_max - self._config.links_far, self._config.links_far
        self._wanted = select(self._me, self._own(), pool, near, far)
        self._chosen = frozenset((*self._wanted.near, *self._wanted.far))
        self._load_set = None
