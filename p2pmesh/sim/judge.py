"""What must always hold, checked while the world runs. It sees all and helps nobody.

1. Every query asked at a living peer ends, once, within its budget. That nothing reaches the asker after it
   is checked on every delivery and failure; that there was an end at all, at `close` alone.
2. No gap and no duplicate in any stream, and nothing of an attempt after a later one; nothing after its end:
   on every delivery and failure.
3. No peer generates one attempt of a query twice, and none takes it twice; nobody passes it to a peer on its
   path: on every start of a model, forward and taking.
4. No peer that does not bear a query's zone is sent anything that tells of the query or its answer, and none
   answers it; between those that do, it travels sealed: on every message about it and every start of a model.
   No model answers what its own labels are not for.
5. Every table stays under its bound: its length after every event; what would have to be searched (the ways
   to each member, and whether links and members that are gone were forgotten) after one of `SEARCH_EVERY`.
6. No machine spins: it has at most `TICKS_MAX` ticks in `TICKS_S`: on every tick.
7. `CONVERGE_S` after the last fault everybody knows everybody who lives and nobody else, or, where there are
   more than one can know, is linked to some of the living and to nobody else; and when all budgets are spent
   nothing is left of any query: at `settled` and `over`.
8. Nobody signs two records of one version, whatever befell him: when one who is told both says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Protocol

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.equivocation import KEPT_MAX, WHY
from p2pmesh.protocol.holding import HELD_MAX
from p2pmesh.protocol.machine import Machine
from p2pmesh.protocol.quotas import ASKERS_MAX, TOLD_BY_MAX
from p2pmesh.protocol.sealing import CLOSED
from p2pmesh.protocol.stealing import LOOKED_AT_MAX
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId, Resume, Usage
from p2pmesh.record import CONVERSATIONS_MAX, GENERAL, NOBODY, PeerId

_GRACE_S = 0.001
"""Seconds by which an end may be late: rounding of virtual time."""

SEARCH_EVERY = 50
"""Events of one peer between two searches of its tables, the first of them included."""
TICKS_MAX = 100
"""Most ticks of one peer within `TICKS_S`."""
TICKS_S = 0.001
"""A machine's deadline is always later than now, but by next to nothing when what is due never gets done."""
CONVERGE_S = 30.0
"""Seconds after the last fault in which all views must have come right: a dead peer is dialled every
`redial_max_s`, and an unconfirmed suspicion lasts 24 s."""


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
    orphaned: bool = False
    """Its peer died: it is nobody's any more."""
    before: str = ""
    """What the asker had of it from a peer that died, when he came for the rest."""
    holder: PeerId = NOBODY
    """From whom the rest is to be had."""
    excused_until: float = 0.0
    """Its peer was stopped until then, and could not end it in time."""

    @property
    def due(self) -> float:
        """When it must have ended."""
        return max(self.asked_at + self.query.budget_s, self.excused_until) + _GRACE_S

    @property
    def text(self) -> str:
        """What has arrived."""
        return self.before + "".join(chunk.text for chunk in self.chunks)

    @property
    def served_by(self) -> PeerId | None:
        """Who answered, once it is known."""
        return self.path[-1].peer if self.path else None


class Host(Protocol):
    """A peer of the world, as far as it is judged."""

    @property
    def machine(self) -> Machine:
        """The machine."""
        ...

    @property
    def runs(self) -> Mapping[tuple[QueryId, int], object]:
        """What its model is writing."""
        ...


class Judge:
    """Watches one world."""

    def __init__(self, config: Config) -> None:
        self.askings: dict[QueryId, Asking] = {}
        self._config = config
        self._generated: dict[PeerId, set[tuple[QueryId, int]]] = {}
        self._taken: dict[PeerId, set[tuple[QueryId, int, PeerId]]] = {}
        """Those that it passes on sealed, by whom they are sealed to: another is asked the same way."""
        self._zones: dict[PeerId, tuple[str, ...]] = {}
        self._labels: dict[PeerId, tuple[str, ...]] = {}
        """The zones whose queries alone its model answers; empty: all."""
        self._checks: dict[PeerId, int] = {}
        self._ticks: dict[PeerId, tuple[float, int]] = {}
        """When the ticks that are being counted began, and how many there were."""
        self._bounds = _bounds(config)

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

    def started(self, ident: PeerId, zones: tuple[str, ...], labels: tuple[str, ...] = ()) -> None:
        """A peer begins a life, with nothing remembered of an earlier one."""
        self._generated[ident], self._taken[ident] = set(), set()
        self._zones[ident], self._labels[ident] = zones, labels

    def crashed(self, ident: PeerId) -> None:
        """The queries asked there are nobody's any more."""
        for asking in self.askings.values():
            if asking.query.origin == ident and asking.over_at is None:
                asking.orphaned = True

    def generating(self, ident: PeerId, query: Query, digest: str) -> None:
        """A model starts on it, or goes on with it, by its asker's leave."""
        asking = self.askings.get(query.id)
        zone = query.zone if asking is None else asking.query.zone
        if zone not in self._zones[ident]:
            raise Violation(f"{ident} answers {query.id}, of the zone {zone}")
        if zone not in (self._labels[ident] or (zone,)):
            raise Violation(
                f"{ident} answers {query.id}, of the zone {zone}, with a model that is not for it"
            )
        if asking is not None and query.accepted is not None:
            resume, another = asking.query.resume, query.accepted.digest != digest
            if resume is Resume.NEVER or (resume is Resume.SAME_MODEL and another):
                raise Violation(f"{ident} goes on with {query.id}, and was to do so: {resume.value}")
        key = (query.id, query.attempt)
        if key in self._generated[ident]:
            raise Violation(f"{ident} generates attempt {query.attempt} of {query.id} twice")
        self._generated[ident].add(key)

    def handled(self, ident: PeerId, machine: Machine, event: e.Event, effects: list[e.Effect]) -> None:
        """A machine has handled an event, and wants `effects`."""
        self.check(ident, machine)
        for effect in effects:
            if isinstance(effect, e.Send) and isinstance(effect.message, m.Forward):
                self._forwarded(ident, effect.peer, effect.message.query)
            if isinstance(effect, e.Send):
                self._told(ident, effect.peer, effect.message)
            if isinstance(effect, e.Notify) and WHY in effect.what:
                raise Violation(f"{ident} has proof that {effect.peer} equivocates, and nobody means to")
        if not isinstance(event, e.Received) or event.peer not in machine.membership.links:
            return  # what was said before the link closed comes to nobody's ears
        if isinstance(event.message, m.Forward):
            self._arrived(ident, event.peer, event.message.query, effects)

    def _forwarded(self, ident: PeerId, target: PeerId, query: Query) -> None:
        path = [hop.peer for hop in query.path]
        if target in path or len(set(path)) < len(path) or path[-1] != ident:
            raise Violation(f"{ident} sends {query.id} to {target} after {' '.join(path)}")

    def _told(self, ident: PeerId, target: PeerId, message: m.PeerMessage) -> None:
        """A message about a query of a zone tells no more than it may."""
        query_id, what = _tells(message)
        asking = self.askings.get(query_id)
        zone = GENERAL if asking is None else asking.query.zone
        if isinstance(message, m.Forward | m.Keep | m.Legacy) and message.query.zone != GENERAL:
            zone = message.query.zone
        if zone == GENERAL or not what:
            return
        if zone not in self._zones[target]:
            raise Violation(f"{ident} tells {target} {what} of {query_id}, of the zone {zone}")
        if not isinstance(message, m.Keep | m.Copy | m.Legacy | m.Settle):
            raise Violation(f"{ident} sends {target} {what} of {query_id}, of the zone {zone}, open")

    def _arrived(self, ident: PeerId, source: PeerId, query: Query, effects: list[e.Effect]) -> None:
        key = (query.id, query.attempt)
        said = [x.message for x in effects if isinstance(x, e.Send) and x.peer == source]
        if any(isinstance(x, m.Refuse) and (x.query_id, x.attempt) == key for x in said):
            return
        passed = (*key, query.target if query.sealed and query.target != ident else NOBODY)
        if passed in self._taken[ident]:
            raise Violation(f"{ident} takes attempt {query.attempt} of {query.id} twice")
        self._taken[ident].add(passed)

    def delivered(self, effect: e.Deliver, now: float) -> None:
        """Something reaches the asker."""
        asking = self._open(effect.query_id, now)
        match effect.item:
            case e.Placed(path=path):
                asking.path = path
            case e.Guarded(holder=holder):
                asking.holder = holder
            case Chunk() as chunk:
                due = asking.chunks[-1].index + 1 if asking.chunks else 0
                claimed = asking.before and not asking.chunks  # another peer knows how many there were
                if chunk.index != due and not claimed:
                    raise Violation(f"chunk {chunk.index} after {len(asking.chunks)} chunks")
                if asking.chunks and chunk.attempt < asking.chunks[-1].attempt:
                    raise Violation(f"a chunk of attempt {chunk.attempt} of {effect.query_id} comes late")
                asking.chunks.append(chunk)
                asking.first_at = now if asking.first_at is None else asking.first_at
            case Ended() as ended:
                asking.ended, asking.path, asking.over_at = ended, ended.path, now
                if asking.text != "".join(f"{i} " for i in range(ended.usage.completion_tokens)):
                    raise Violation(f"the answer to {effect.query_id} is not what was generated")

    def failed(self, effect: e.Fail, now: float) -> None:
        """The asker is told that there will be no more."""
        asking = self._open(effect.query_id, now)
        if asking.before and effect.reason is Reason.BAD_REQUEST:
            raise Violation(f"the asker of {effect.query_id} had more of it than was held")
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
        for name, most, table in self._bounds:
            if len(table(machine)) > most:
                raise Violation(f"{ident} holds {len(table(machine))} {name}, at most {most}")
        checks = self._checks[ident] = self._checks.get(ident, -1) + 1
        if checks % SEARCH_EVERY == 0:
            _search(ident, machine)

    def close(self, now: float) -> None:
        """At the end of a run: every query whose time is up has ended."""
        for asking in self.askings.values():
            waits = asking.over_at is None and not asking.cancelled and not asking.orphaned
            if waits and now > asking.due:
                raise Violation(f"{asking.query.id} never ended")

    def settled(self, nodes: Mapping[PeerId, Host]) -> None:
        """`CONVERGE_S` after the last fault."""
        for ident in sorted(nodes):
            membership = nodes[ident].machine.membership
            if dead := membership.links.keys() - nodes.keys():
                raise Violation(f"{ident} is still linked to {min(dead)}")
            if nameless := membership.links.keys() - membership.members.keys():
                raise Violation(f"{ident} does not know who {min(nameless)} is")
            if membership.partial:  # nobody knows all there are, and whoever is not linked is not probed
                if not membership.links:
                    raise Violation(f"{ident} is alone")
                continue
            known = {peer for peer in membership.members if membership.is_alive(peer)} | {ident}
            if ghosts := known - nodes.keys():
                raise Violation(f"{ident} still takes {min(ghosts)} for alive")
            if missing := nodes.keys() - known:
                raise Violation(f"{ident} does not know {min(missing)}")

    def over(self, nodes: Mapping[PeerId, Host], now: float) -> None:
        """When every budget is spent: nobody works for nobody."""
        self.close(now)
        for ident in sorted(nodes):
            node = nodes[ident]
            left = [f.query.id for f in node.machine.relay.flights] or [key[0] for key in node.runs]
            left += [*node.machine.backups._mine, *node.machine.backups._wanted]
            if left or len(node.machine._local._jobs):
                raise Violation(f"{ident} still holds {len(left)} queries that nobody waits for")

    def _open(self, query_id: QueryId, now: float) -> Asking:
        asking = self.askings[query_id]
        if asking.over_at is not None or asking.cancelled or asking.orphaned:
            raise Violation(f"something follows the end of {query_id}")
        if now > asking.due:
            raise Violation(f"{query_id} goes on after its budget")
        return asking


def _tells(message: m.PeerMessage) -> tuple[QueryId, str]:
    """Return which query a message is about, and what of it whoever gets the message can read: nothing, where
    that is no more than the way."""
    match message:
        case m.Forward(query) | m.Keep(query) | m.Legacy(query):
            open_ = query.messages or query.accepted or query.vector is not None or query.prompt_tokens
            return query.id, "the prompt" if open_ else _reasons(query.path)
        case m.Tokens(chunk) | m.Copy(chunk):
            return chunk.query_id, "a piece of the answer" if chunk.tokens or chunk.text else ""
        case m.End(query_id=query_id, ended=ended) | m.Settle(query_id=query_id, ended=Ended() as ended):
            return query_id, "the end" if ended.model or ended.usage != Usage() else _reasons(ended.path)
        case m.Accept(query_id=query_id, path=path, digest=digest, eta_s=eta_s):
            return query_id, "the model" if digest else "how long it takes" if eta_s else _reasons(path)
        case m.Refuse(query_id=query_id, prompt_tokens=count):
            return query_id, "the prompt's length" if count else ""
        case _:
            return QueryId(""), ""


def _reasons(path: tuple[Hop, ...]) -> str:
    return "" if all(hop.why == CLOSED for hop in path) else "why it went where"


def _bounds(config: Config) -> tuple[tuple[str, int, Callable[[Machine], Sized]], ...]:
    """Every table of a machine: its name, its bound, and how to get at it."""
    limits, members, relay = config.limits, config.membership, config.relay
    links = 2 * members.links_max
    records = members.members_max + limits.records_per_frame_max
    return (
        ("flights", relay.flights_max, lambda m: m.relay.flights),
        ("attempts seen", relay.seen_max, lambda m: m.relay.flights._seen),
        ("alarms of flights", relay.flights_max, lambda m: m.relay.flights._alarms),
        ("members", members.members_max, lambda m: m.membership.members),
        ("links", links, lambda m: m.membership.links),
        ("alarms of members", members.members_max, lambda m: m.membership._alarms),
        ("probes", 5 * members.links_max + links, lambda m: m.membership._prober._probes),
        ("probes to come", links, lambda m: m.membership._prober._order),
        ("chosen links", members.links_max, lambda m: m._linking._chosen),
        ("updates", members.members_max, lambda m: m.membership._rumours),
        ("records", records, lambda m: m.gossip.records),
        ("fresh records", records + 1, lambda m: m.gossip._fresh),
        ("pulls", limits.digest_max, lambda m: m.gossip._pulls),
        ("declined records", limits.digest_max, lambda m: m.gossip._declined),
        ("similarities", 2 * members.members_max, lambda m: m._linking._similar),
        ("links to compare with", 2 * links, lambda m: m.gossip._new),
        ("loads", links, lambda m: m.loads._loads),
        ("loads that wait", links, lambda m: m.loads._queued),
        ("requests for work", LOOKED_AT_MAX + 1, lambda m: m._stealing._asked),
        ("jobs", relay.flights_max, lambda m: m._local._jobs),
        ("waiting jobs", relay.waiting_max, lambda m: m._local._waiting),
        ("conversations", limits.models_max * CONVERSATIONS_MAX, lambda m: m._local._held),
        ("breakers", members.members_max, lambda m: m._breakers._table),
        ("answers held for others", HELD_MAX, lambda m: m.backups.holding._held),
        ("answers held elsewhere", relay.flights_max, lambda m: m.backups._mine),
        ("askers", ASKERS_MAX, lambda m: m._quotas._own),
        ("links that told of askers", TOLD_BY_MAX, lambda m: m._quotas._told),
        ("links that want to be told of askers", links, lambda m: m._quotas._asks),
        ("evidence", KEPT_MAX, lambda m: m._equivocation._kept),
        ("pieces not reckoned with", 0, lambda m: m._local._pieces),
    )


def _search(ident: PeerId, machine: Machine) -> None:
    """Look for what should have been forgotten."""
    links, members = machine.membership.links.keys(), machine.membership.members
    tables = (
        ("an update of no member", set(machine.membership._rumours) - members.keys()),
        ("a load of no link", machine.loads._loads.keys() - links),
        ("a waiting load of no link", machine.loads._queued.keys() - links),
        ("a record of no member", machine.gossip.records.keys() - members.keys()),
        ("a distance by no link", {n for m in members.values() for n in m.distances.keys() - links}),
    )
    for name, stray in tables:
        if stray:
            raise Violation(f"{ident} holds {name}: {min(stray)}")
