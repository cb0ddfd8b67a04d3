"""Who might serve a query, as far as this peer knows, and what follows: a decision.

It gathers what membership, gossip, loads, the own queue, experience and the breakers know into candidates,
for `routing` to choose among. It decides by no rule of its own but this: a peer that keeps failing gets
nothing while another can take it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.batching import Backlog
from p2pmesh.protocol.breakers import Breakers
from p2pmesh.protocol.directory import ALL_WEIGHED_MAX, Directory
from p2pmesh.protocol.experience import Experience
from p2pmesh.protocol.gossip import Gossip
from p2pmesh.protocol.loads import Loads
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.routing import (
    Candidate,
    Decision,
    Estimates,
    Kind,
    Scored,
    choose,
    score,
    stranger,
    why_not,
)
from p2pmesh.protocol.seeking import Seeking
from p2pmesh.query import Query, QueryId
from p2pmesh.record import GENERAL, Capability, PeerId


class Planning:
    """What one peer plans with."""

    def __init__(
        self,
        me: PeerId,
        name: str,
        config: Config,
        membership: Membership,
        gossip: Gossip,
        local: Local,
        loads: Loads,
        experience: Experience,
        breakers: Breakers,
        own: Callable[[Query], Capability],
        tried: Callable[[QueryId], tuple[PeerId, ...]],
        may_see: Callable[[PeerId, str], bool],
        clock: Callable[[], float],
    ) -> None:
        """`own` returns what this peer can do for a query, `tried` who refused one that is in flight here,
        `may_see` whether a peer may see a zone, and `clock` when the event that is being handled came."""
        self.me, self.name = me, name
        self._config = config
        self._membership, self._gossip = membership, gossip
        self._local, self._loads = local, loads
        self._experience, self._breakers = experience, breakers
        self._own, self._tried, self._may_see, self._clock = own, tried, may_see, clock
        self.estimates = Estimates(local.lengths, self._quality)
        self._seeking = Seeking(me, membership, gossip, self._weigh)
        self._directory: tuple[tuple[int, int], Directory] | None = None
        """The records as arrays, and as of which change."""

    # -- what is asked of it --------------------------------------------------------------------------

    def topic_of(self, query: Query, peer: PeerId, model: str) -> tuple[str, float] | None:
        candidates = self._candidates(query, (), self._clock())
        rows = score(query, self.me, candidates, self.estimates, self._config.routing)
        row = next((row for row in rows if (row.peer, row.model) == (peer, model)), None)
        its = self._capability(peer)
        if row is None or its is None:
            return None
        claims = [skill.quality for skill in its.skills if skill.name == row.skill]
        return row.skill, claims[0] if claims else self._config.routing.general_quality

    def plan(self, query: Query, tried: tuple[PeerId, ...], now: float) -> Decision:
        """Decide where `query` goes, past those that refused it. Nothing goes to a peer whose breaker is
        open, unless there is nobody else. What is sealed goes to whom it is sealed to."""
        if query.sealed:
            return self._pass_on(query, tried)
        failing = self._breakers.open(now).difference(tried)
        if failing:
            decision = self._decide(query, (*tried, *failing), now)
            if decision.kind is not Kind.REFUSE:
                return decision
        return self._decide(query, tried, now)

    def hopes(self, query: Query) -> bool:
        """Return whether somebody lives who could serve it, and there is just now no way to him."""
        known = [its for its in map(self._capability, self._gossip.lost()) if its is not None]
        models = [(its, model) for its in known for model in its.models]
        return any(why_not(query, its, model, self._config.routing) is None for its, model in models)

    def compare(self, query: Query, peer: PeerId, before: Backlog, now: float) -> tuple[Scored, float] | None:
        """Return what `query`, which waits here behind `before`, would be at `peer`, and the seconds of J
        that it would gain there; None: it may not go there."""
        if peer in self._breakers.open(now) or self._is_bound(query):
            return None
        tried = self._tried(query.id)  # whoever refused it once does so again
        candidates = self._candidates(query, tried, now, only=(self.me, peer))
        candidates = [c._replace(backlog=before) if c.peer == self.me else c for c in candidates]
        rows = score(query, self.me, candidates, self.estimates, self._config.routing)
        feasible = [row for row in rows if row.why_not is None]
        there = next((row for row in feasible if row.peer == peer and row.next_hop == peer), None)
        here = next((row for row in feasible if row.peer == self.me), None)
        room = len(query.path) < self._config.limits.hops_max
        if there is None or here is None or here.continues > there.continues or not room:
            return None
        return there, here.j_s - there.j_s

    # -- how it comes to that -------------------------------------------------------------------------

    def _is_bound(self, query: Query) -> bool:
        """Whether a query is here to be served, and goes nowhere else: it was sealed to this peer."""
        return query.zone != GENERAL and query.origin != self.me

    def _pass_on(self, query: Query, tried: tuple[PeerId, ...]) -> Decision:
        """Decide by which link a sealed query goes on."""
        barred = {*tried, *query.excluded, *(hop.peer for hop in query.path)}
        way = None if query.target in barred else self._membership.way_to(query.target, barred)
        if way is None or query.hops_left <= 0:
            detail = "no way from here to the peer that it is sealed to"
            return Decision(Kind.REFUSE, None, Reason.NO_ROUTE, detail, ())
        name = query.target[-8:]
        row = Scored(query.target, name, "", way[0], "sealed", 0.0, 0.0, 0.0, self._rtt_s(*way), 0.0)
        return Decision(Kind.FORWARD, row, None, "", ())

    def _decide(self, query: Query, tried: tuple[PeerId, ...], now: float) -> Decision:
        routing, estimates = self._config.routing, self.estimates
        found: tuple[PeerId, ...] = ()
        strangers: list[Scored] = []
        if self._seeking.wanted(query):
            search, lead = self._seeking.step(query, {*tried, *query.excluded})
            if lead is not None:
                way = self._membership.way_to(lead.peer)
                row = stranger(replace(lead, work_s=lead.work_s or 0.0), routing)
                row = row._replace(next_hop=lead.peer if way is None else way[0])
                return Decision(Kind.SEEK, row, None, "", (), search)
            found = tuple(lead.peer for lead in search.leads)
            strangers = [stranger(lead, routing) for lead in self._seeking.strangers(search)]
        only = (self.me,) if self._is_bound(query) else ()
        candidates = self._candidates(query, tried, now, only=only, also=found)
        return choose(query, self.me, candidates, estimates, routing, strangers)

    def _weigh(self, query: Query, peers: Sequence[PeerId]) -> Sequence[Scored]:
        candidates = self._candidates(query, (), self._clock(), only=peers)
        return score(query, self.me, candidates, self.estimates, self._config.routing)

    def _candidates(
        self,
        query: Query,
        tried: tuple[PeerId, ...],
        now: float,
        only: Collection[PeerId] = (),
        also: Collection[PeerId] = (),
    ) -> list[Candidate]:
        """Return this peer and, of `only` or of those worth weighing and `also`, who can be reached."""
        barred = {*tried, *query.excluded, *(hop.peer for hop in query.path)}
        candidates = []
        if self.me not in barred:
            backlog, own = self._local.backlog(now), (self._local.held, self._local.pace)
            mine = self._seeing(self.me, query.zone, self._own(query))
            candidates.append(Candidate(self.me, self.name, mine, backlog, 0.0, self.me, *own))
        records = self._gossip.records
        for peer in only or dict.fromkeys((*self._worth_weighing(query), *also)):
            signed = records.get(peer)
            if signed is None or peer in barred or not self._membership.is_alive(peer):
                continue
            if (way := self._membership.way_to(peer, barred)) is None:
                continue
            known, load = self._loads.backlog(peer, now), self._loads.of(peer)
            told = () if load is None else (load.held, load.pace)
            name = signed.record.name or peer[-8:]
            capability = self._seeing(peer, query.zone, signed.record.capability)
            if query.zone != GENERAL and not signed.record.seal_key:
                capability = replace(capability, zones=())
            candidates.append(Candidate(peer, name, capability, known, self._rtt_s(*way), way[0], *told))
        return candidates

    def _seeing(self, peer: PeerId, zone: str, able: Capability) -> Capability:
        """Return what `peer` can do, without its zones where it may not see `zone` at this moment."""
        if zone in able.zones and not self._may_see(peer, zone):
            return replace(able, zones=())
        return able

    def _worth_weighing(self, query: Query) -> Iterable[PeerId]:
        """All that are known while they are few; else the links, whose load is known, and the likeliest."""
        records = self._gossip.records
        if len(records) <= ALL_WEIGHED_MAX:
            return records
        changes = (self._gossip.changes, self._membership.changes)
        if self._directory is None or self._directory[0] != changes:
            alive = {i: r.record.capability for i, r in records.items() if self._membership.is_alive(i)}
            self._directory = changes, Directory(alive)
        likely = self._directory[1].shortlist(query, self.estimates.lengths, self._config.routing)
        return dict.fromkeys((*self._membership.links, *likely))

    def _rtt_s(self, neighbour: PeerId, distance: int) -> float:
        default = self._config.routing.rtt_default_s
        link = self._membership.links.get(neighbour)
        return (default if link is None else link.likely_rtt_s(default)) + default * (distance - 1)

    def _quality(self, peer: PeerId, topic: str, claim: float) -> float:
        """What an answer is worth, or that there is none: one that fails fast is never busy, and would draw
        everything."""
        return self._experience.quality(peer, topic, claim) * self._breakers.success(peer, self._clock())

    def _capability(self, peer: PeerId) -> Capability | None:
        """Return what a peer says that it can do; None: it is not known."""
        if peer == self.me:
            return self._gossip.me.record.capability
        signed = self._gossip.records.get(peer)
        return None if signed is None else signed.record.capability
