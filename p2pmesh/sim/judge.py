"""What must always hold, checked while the world runs. It sees all and helps nobody.

1. Every query asked at a living peer ends, once, within its budget.
2. No gap and no duplicate in any stream; nothing after its end.
3. No peer generates one attempt of a query twice.
4. Every table stays under its bound, and deadlines lie ahead.
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

    def check(self, ident: PeerId, machine: Machine, now: float) -> None:
        """After every event: tables and deadlines."""
        limits, config = self._config.limits, self._config
        tables = {
            "flights": (len(machine.relay.flights), config.relay.flights_max),
            "members": (len(machine.membership.members), config.membership.members_max),
            "links": (len(machine.membership.links), 2 * config.membership.links_max + 1),
            "records": (len(machine.gossip.records), limits.digest_max),
        }
        for name, (size, most) in tables.items():
            if size > most:
                raise Violation(f"{ident} holds {size} {name}, at most {most}")
        if machine.deadline <= now:
            raise Violation(f"{ident} has a deadline in the past")

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
