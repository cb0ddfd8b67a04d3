"""What this peer adds to a query's search: the peers that it knows near to the query, and what each is worth.

Wanted only where there are more peers than anybody knows: elsewhere the peer that was asked knows the best.
A query of a zone is never searched for, as its origin alone may plan it, and of others those hear nothing who
may not see them. It knows records and members; where the query goes is `search`'s rule, and who serves
it `routing`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from p2pmesh.protocol.gossip import Gossip
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.overlay import Places, places
from p2pmesh.protocol.routing import Scored
from p2pmesh.protocol.search import LEAD_ADDRESSES_MAX, PATIENCE, arrive, following, forget, leads_of
from p2pmesh.query import Lead, Query, Search
from p2pmesh.record import GENERAL, NOBODY, Capability, PeerId, PeerRecord

_ENDLESS = 256
"""More than a search ever grows stale."""


class Seeking:
    """The search of queries, as one peer takes part in it."""

    def __init__(
        self,
        me: PeerId,
        membership: Membership,
        gossip: Gossip,
        weigh: Callable[[Query, Sequence[PeerId]], Sequence[Scored]],
    ) -> None:
        """`weigh` returns the models of some peers, the best first, and says which may not serve a query."""
        self._me = me
        self._membership = membership
        self._gossip = gossip
        self._weigh = weigh
        self._places: tuple[tuple[object, ...], Places] | None = None
        """Where all stand who live and may see, and as of when; who of them is in reach changes too often."""

    def wanted(self, query: Query) -> bool:
        """Return whether somebody better may be found by asking further."""
        return (
            self._membership.partial
            and query.target == NOBODY
            and query.vector is not None
            and query.zone == GENERAL
            and query.accepted is None  # an answer goes on at the same model, wherever it stands
        )

    def step(self, query: Query, barred: Collection[PeerId]) -> tuple[Search, Lead | None]:
        """Return the search with what is known here, and whom to ask next; None: it is over. The `barred`
        are dead, or refused the query. It is not over before somebody is found who can serve at all."""
        assert query.vector is not None, "there is nothing to search by"
        visited = [hop.peer for hop in query.path]
        where = self._where(query.space, len(query.vector))
        away = {peer for peer in where.peers if peer != self._me and not self._membership.can_reach(peer)}
        known = leads_of(query.vector, where, {*barred, *visited, *away}, tie=query.id)
        told = query.search or Search()
        search = arrive(
            replace(told, leads=tuple(lead for lead in told.leads if self._may_see(lead.peer))),
            self._worth(query, known),
            self._me,
            visited=visited,
            excluded=barred,
            tie=query.id,
        )
        while True:
            found = any(lead.work_s is not None for lead in search.leads)
            lead = following(search, query.hops_left, PATIENCE if found else _ENDLESS)
            if lead is None or self._in_reach(lead):
                return search, lead
            search = forget(search, lead.peer)

    def strangers(self, search: Search) -> list[Lead]:
        """Return the leads that can serve and of which the query alone knows, or that it has been to."""
        return [
            lead
            for lead in search.leads
            if lead.peer != self._me
            and lead.work_s is not None
            and (lead.expanded or (lead.addresses and lead.peer not in self._gossip.records))
        ]

    def _may_see(self, peer: PeerId) -> bool:
        """Whether `peer` may be shown a query of no zone, as far as is known here."""
        signed = self._gossip.records.get(peer)
        return bool(peer) and (signed is None or GENERAL in signed.record.capability.zones)

    def _in_reach(self, lead: Lead) -> bool:
        if lead.peer in self._membership.members:
            return self._membership.can_reach(lead.peer)
        return bool(lead.addresses) and self._membership.may_dial_strangers

    def _worth(self, query: Query, leads: list[Lead]) -> list[Lead]:
        best: dict[PeerId, Scored] = {}
        for row in self._weigh(query, [lead.peer for lead in leads]):
            if row.why_not is None:
                best.setdefault(row.peer, row)
        worth = []
        for lead in leads:
            addresses = self._record(lead.peer).addresses[:LEAD_ADDRESSES_MAX]
            row_of = best.get(lead.peer)
            work_s, value = (None, 0.0) if row_of is None else (row_of.work_s, row_of.quality)
            if row_of is not None and lead.peer == self._me:
                work_s = row_of.time_s  # our own queue we know exactly, and nobody asks us again
            worth.append(replace(lead, addresses=addresses, work_s=work_s, quality=value))
        return worth

    def _record(self, peer: PeerId) -> PeerRecord:
        return (self._gossip.me if peer == self._me else self._gossip.records[peer]).record

    def _where(self, space: str, dimensions: int) -> Places:
        as_of = (
            space,
            dimensions,
            self._gossip.me.record.version,
            self._gossip.changes,
            self._membership.changes,
        )
        if self._places is None or self._places[0] != as_of:
            pool: list[tuple[PeerId, Capability]] = [(self._me, self._gossip.me.record.capability)]
            for peer, signed in self._gossip.records.items():
                if self._membership.is_alive(peer) and self._may_see(peer):
                    pool.append((peer, signed.record.capability))
            self._places = as_of, places(pool, space, dimensions)
        return self._places[1]
