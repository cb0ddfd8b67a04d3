"""What must always hold, checked while the world runs. It sees all and helps nobody.

1. Every query asked at a living peer ends, once, within its budget. That nothing reaches the asker after it
   is checked on every delivery and failure; that there was an end at all, at `close` alone.
2. No gap and no duplicate in any stream; nothing after its end: on every delivery and failure.
3. No peer generates one attempt of a query twice: on every start of a model.
4. Every table stays under its bound: its length after every event; what would have to be searched (the ways
   to each member, and whether links and members that are gone were forgotten) after one of `SEARCH_EVERY`.
5. No machine spins: it has at most `TICKS_MAX` ticks in `TICKS_S`: on every tick.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId
from p2pmesh.record import PeerId

_GRACE_S = 0.001
"""Seconds by which an end may be late: rounding of virtual time."""


SEARCH_EVERY = 50
"""Events of one peer between two searches of its tables, the first of them included."""
TICKS_MAX = 100
"""Most ticks of one peer within `TICKS_S`."""
TICKS_S = 0.001
"""A machine's deadline is always later than now, but by next to nothing when what is due never gets done."""


class Violation(AssertionError):
    """Something that must always hold did not."""


@dataclass
class Asking:
    """One query, as its asker sees it."""

    query: Query
    asked_at: float
    chunks: list[Chunk] = field(default_factory=list)
    path: tuple[Hop, ...] = ()
    ended: Ended | None = None
    failed: Reason | None = None
    detail: str = ""
    first_at: float | None = None
    over_at: float | None = None
    cancelled: bool = False
    excused_until: float = 0.0
    """Its peer was stopped until then, and could not end it in time."""

    @property
    def due(self) -> float:
        """When it must have ended."""
        return max(self.asked_at + self.query.budget_s, self.excused_until) + _GRACE_S

    @property
    def text(self) -> str:
        """What has arrived."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def served_by(self) -> PeerId | None:
        """Who answered, once it is known."""
        return self.path[-1].peer if self.path else None


class Judge:
    """Watches one world."""

    def __init__(self, config: Config) -> None:
        self.askings: dict[QueryId, Asking] = {}
        self._config = config
        self._generated: set[tuple[PeerId, QueryId, int]] = set()
        self._dead: set[PeerId] = set()
        self._checks: dict[PeerId, int] = {}
        self._ticks: dict[PeerId, tuple[float, int]] = {}
        """When the ticks that are being counted began, and how many there were."""

    def asked(self, query: Query, now: float) -> Asking:
        """A query enters."""
        asking = self.askings[query.id] = Asking(query, now)
        return asking

    def cancelled(self, asking: Asking) -> None:
        """Its asker left: nothing may follow."""
        asking.cancelled = True

    def resumed(self, ident: PeerId, now: float) -> None:
        """A stopped peer goes on: it may end its queries late, but then at once."""
        for asking in self.askings.values():
            if asking.query.origin == ident and asking.over_at is None:
                asking.excused_until = now

    def crashed(self, ident: PeerId) -> None:
        """The queries asked there are nobody's any more."""
        self._dead.add(ident)

    def generating(self, ident: PeerId, query: Query) -> None:
        """A model starts on it."""
        key = (ident, query.id, query.attempt)
        if key in self._generated:
            raise Violation(f"{ident} generates attempt {query.attempt} of {query.id} twice")
        self._generated.add(key)

    def delivered(self, effect: e.Deliver, now: float) -> None:
        """Something reaches the asker."""
        asking = self._open(effect.query_id, now)
        match effect.item:
            case e.Placed(path=path):
                asking.path = path
            case Chunk() as chunk:
                if chunk.index != len(asking.chunks):
                    raise Violation(f"chunk {chunk.index} after {len(asking.chunks)} chunks")
                asking.chunks.append(chunk)
                asking.first_at = now if asking.first_at is None else asking.first_at
            case Ended() as ended:
                asking.ended, asking.path, asking.over_at = ended, ended.path, now
                if asking.text != "".join(f"{i} " for i in range(ended.usage.completion_tokens)):
                    raise Violation(f"the answer to {effect.query_id} is not what was generated")

    def failed(self, effect: e.Fail, now: float) -> None:
        """The asker is told that there will be no more."""
        asking = self._open(effect.query_id, now)
        asking.failed, asking.detail, asking.over_at = effect.reason, effect.detail, now

    def ticked(self, ident: PeerId, now: float) -> None:
        """A peer's deadline has come."""
        since, count = self._ticks.get(ident, (now, 0))
        if now - since > TICKS_S:
            since, count = now, 0
        if count >= TICKS_MAX:
            raise Violation(f"{ident} spins: more than {count} ticks in {TICKS_S} s")
        self._ticks[ident] = (since, count + 1)

    def check(self, ident: PeerId, machine: Machine) -> None:
        """After every event: the tables."""
        limits, members, relay = self._config.limits, self._config.membership, self._config.relay
        links = 2 * members.links_max
        records = members.members_max + limits.records_per_frame_max
        tables = (
            ("flights", machine.relay.flights, relay.flights_max),
            ("attempts seen", machine.relay._seen, relay.seen_max),
            ("members", machine.membership.members, members.members_max),
            ("links", machine.membership.links, links),
            ("probes", machine.membership._probes, 5 * members.links_max + links),
            ("updates", machine.membership._updates, members.members_max),
            ("records", machine.gossip.records, records),
            ("fresh records", machine.gossip._fresh, records + 1),
            ("pulls", machine.gossip._pulls, limits.digest_max),
            ("loads", machine.gossip._loads, links),
            ("jobs", machine._local._jobs, relay.flights_max),
            ("waiting jobs", machine._local._waiting, relay.waiting_max),
        )
        for name, table, most in tables:
            if len(table) > most:
                raise Violation(f"{ident} holds {len(table)} {name}, at most {most}")
        checks = self._checks[ident] = self._checks.get(ident, -1) + 1
        if checks % SEARCH_EVERY == 0:
            _search(ident, machine)

    def close(self, now: float) -> None:
        """At the end of a run: every query whose time is up has ended."""
        for asking in self.askings.values():
            alive = asking.query.origin not in self._dead and not asking.cancelled
            if alive and asking.over_at is None and now > asking.due:
                raise Violation(f"{asking.query.id} never ended")

    def _open(self, query_id: QueryId, now: float) -> Asking:
        asking = self.askings[query_id]
        if asking.over_at is not None or asking.cancelled:
            raise Violation(f"something follows the end of {query_id}")
        if now > asking.due:
            raise Violation(f"{query_id} goes on after its budget")
        return asking


def _search(ident: PeerId, machine: Machine) -> None:
    """Look for what should have been forgotten."""
    links, members = machine.membership.links.keys(), machine.membership.members
    tables = (
        ("an update of no member", machine.membership._updates.keys() - members.keys()),
        ("a load of no link", machine.gossip._loads.keys() - links),
        ("a distance by no link", {n for m in members.values() for n in m.distances.keys() - links}),
    )
    for name, stray in tables:
        if stray:
            raise Violation(f"{ident} holds {name}: {min(stray)}")
