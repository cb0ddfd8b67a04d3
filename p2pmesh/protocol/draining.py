"""A peer is about to go: nothing new is for it, what waits goes to others, what runs is finished.

It knows the queue here and what this peer says of itself. When there is an end to waiting is the host's
business: what still runs then is lost like any, and other peers go on with what they asked; who asked here is
told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.batching import Backlog
from p2pmesh.protocol.gossip import Gossip
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.relay import Relay
from p2pmesh.protocol.routing import Decision, Scored
from p2pmesh.query import Query, QueryId
from p2pmesh.record import NOBODY, Capability, PeerId


class Draining:
    """Whether this peer is about to go, and what follows from that."""

    def __init__(
        self,
        config: Config,
        gossip: Gossip,
        local: Local,
        relay: Relay,
        plan: Callable[[Query, tuple[PeerId, ...], float], Decision],
        compare: Callable[[Query, PeerId, Backlog, float], tuple[Scored, float] | None],
    ) -> None:
        """`compare` as in `stealing`."""
        self._drain_s = config.relay.drain_s
        self._gossip, self._local, self._relay = gossip, local, relay
        self._plan, self._compare = plan, compare
        self.begun = False
        self.able = gossip.me.record.capability
        """What this peer can do in truth, as it was last described."""
        self._taken: set[QueryId] = set()
        """What was in flight here when it began."""

    def published(self, capability: Capability) -> Capability:
        """Return what others are told of `capability`: of one who goes, that its models have no slots, as of
        one whose models are being restarted. They choose it for no query, and forget nothing of it."""
        if not self.begun:
            return capability
        return replace(capability, models=tuple(replace(model, slots=0) for model in capability.models))

    def own(self, query: Query) -> Capability:
        """Return what this peer can do for `query`: all it can for what it had taken before."""
        return self.able if query.id in self._taken else self.published(self.able)

    @property
    def left(self) -> int:
        """How many queries are in flight here still that were when it began."""
        return sum(self._relay.flights.get(query_id) is not None for query_id in self._taken)

    def begin(self, me: PeerId, now: float) -> None:
        """Say so, and let others have what waits here where they are in time for it: what would be begun
        sooner here, and within the time that is left, stays, and so does what nobody else can take."""
        if self.begun:
            return
        self.begun = True
        self._taken = {flight.query.id for flight in self._relay.flights}
        self._gossip.describe(self.published(self.able), self._gossip.me.record.addresses, now)
        backlog = self._local.backlog(now)
        for ahead, job in enumerate(self._local.waiting()):
            flight = self._relay.flights.get(job.query.id)
            assert flight is not None, "what waits here has a flight"
            # It was chosen to be served here, or looked for, and that is over.
            budget_s = max(0.0, flight.deadline - now)
            query = replace(flight.query, budget_s=budget_s, target=NOBODY, search=None)
            chosen = self._plan(query, (*flight.tried, me), now).chosen
            before = Backlog(backlog.running, backlog.waiting[:ahead], backlog.slots)
            found = chosen and self._compare(query, chosen.peer, before, now)
            if not found:
                if flight.closes and before.finish_s(job.work_s) > self._drain_s:
                    self._give_back(query, now)
                continue
            there, gain_s = found
            if there.time_s <= budget_s and (gain_s > 0.0 or there.time_s + gain_s > self._drain_s):
                self._hand_over(query, there, now)

    def end(self, now: float) -> None:
        """It goes now: whoever asked here is told, while there is somebody to tell him."""
        for flight in self._relay.flights:
            if flight.upstream is None:
                self._relay.cancel(flight.query.id, now)
                self._relay.flights.end_badly(flight, Reason.PEER_LOST, "this peer has left the mesh")

    def _hand_over(self, query: Query, there: Scored, now: float) -> None:
        flight = self._relay.flights.get(query.id)
        assert flight is not None, "what waits here has a flight"
        if flight.upstream is None:
            self._relay.hand_over(query.id, there, f"to {there.name}: this peer goes", now)
            return
        self._give_back(query, now)

    def _give_back(self, query: Query, now: float) -> None:
        """Whoever sent it finds the way by himself, and it does not lead through here."""
        flight = self._relay.flights.get(query.id)
        assert flight is not None, "what waits here has a flight"
        self._relay.serving.give_up(flight, now)
        self._relay.flights.end_badly(flight, Reason.OVERLOADED, "this peer is about to go", 1.0)
