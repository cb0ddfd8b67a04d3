"""A peer is about to go: nothing new is for it, what waits goes to others, what runs is finished.

It knows the queue here and what this peer says of itself. When there is an end to waiting is the host's
business: what still runs then is lost like any, and whoever asked goes on with it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from p2pmesh.protocol.gossip import Gossip
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.relay import Relay
from p2pmesh.protocol.routing import Decision, Kind
from p2pmesh.query import Query
from p2pmesh.record import NOBODY, Capability, PeerId


class Draining:
    """Whether this peer is about to go, and what follows from that."""

    def __init__(
        self,
        gossip: Gossip,
        local: Local,
        relay: Relay,
        plan: Callable[[Query, tuple[PeerId, ...], float], Decision],
    ) -> None:
        self._gossip, self._local, self._relay, self._plan = gossip, local, relay, plan
        self.begun = False

    def published(self, capability: Capability) -> Capability:
        """Return what others are told of `capability`: of one who goes, that it answers nothing. They, and
        this peer itself, then choose it for no query; what it has taken it goes on with."""
        return replace(capability, skills=(), models=()) if self.begun else capability

    def begin(self, now: float) -> None:
        """Say so, and hand over what waits here. What nobody else can take stays, and begins in its turn."""
        if self.begun:
            return
        self.begun = True
        mine = self._gossip.me.record
        self._gossip.describe(self.published(mine.capability), mine.addresses, now)
        for job in self._local.waiting():
            flight = self._relay.flights.get(job.query.id)
            assert flight is not None, "what waits here has a flight"
            # It was chosen to be served here, or looked for, and that is over.
            query = replace(
                flight.query, budget_s=max(0.0, flight.deadline - now), target=NOBODY, search=None
            )
            decision = self._plan(query, flight.tried, now)
            chosen = decision.chosen
            if decision.kind is Kind.FORWARD and chosen is not None and decision.search is None:
                self._relay.hand_over(query.id, chosen, f"to {chosen.name}: this peer goes", now)
