"""Planted bugs, one each, to see whether the judge would notice. A checker that finds nothing proves nothing.

Each spoils one machine before it starts, by replacing a step of it with one that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from p2pmesh.protocol.events import Deliver, Fail
from p2pmesh.protocol.flight import Flight
from p2pmesh.protocol.machine import Machine
from p2pmesh.protocol.messages import Status
from p2pmesh.protocol.routing import Decision
from p2pmesh.protocol.sealing import Cover
from p2pmesh.query import Query, QueryId, Resume
from p2pmesh.record import GENERAL, Capability, PeerId, PeerRecord, Version


@dataclass(frozen=True)
class Mutant:
    """One planted bug."""

    what: str
    spoil: Callable[[Machine], None]


MUTANTS: dict[str, Mutant] = {}


def _mutant(name: str) -> Callable[[Callable[[Machine], None]], Callable[[Machine], None]]:
    """Enter a bug under `name`; its docstring says what is wrong."""

    def enter(spoil: Callable[[Machine], None]) -> Callable[[Machine], None]:
        MUTANTS[name] = Mutant(spoil.__doc__ or "", spoil)
        return spoil

    return enter


def _replace(part: object, **steps: object) -> None:
    """Replace methods and fields of one object."""
    for name, step in steps.items():
        assert hasattr(part, name), f"{type(part).__name__} has no {name} any more"
        setattr(part, name, step)


def _before(part: Any, name: str, first: Callable[..., None]) -> None:
    """Do something wrong each time before a step."""
    step = getattr(part, name)

    def both(*args: Any) -> Any:
        first(*args)
        return step(*args)

    _replace(part, **{name: both})


def _nothing(*_: object) -> None:
    pass


# -- attempts and paths -----------------------------------------------------------------------------------


@_mutant("no-dedupe")
def _no_dedupe(machine: Machine) -> None:
    """an attempt that is over here is taken again when its frame comes twice"""
    _replace(machine.relay.flights, was_seen=lambda query: False)


@_mutant("no-visited-check")
def _no_visited_check(machine: Machine) -> None:
    """queries are sent to peers that are on their path"""
    plan = machine.relay._plan

    def forgetful(query: Query, tried: tuple[PeerId, ...], now: float) -> Decision:
        return plan(replace(query, path=query.path[-1:]), tried, now)

    _replace(machine.relay, _plan=forgetful)


@_mutant("stale-attempt")
def _stale_attempt(machine: Machine) -> None:
    """what comes of a dead attempt counts as of the living one"""
    flights = machine.relay.flights

    def toward(peer: PeerId, query_id: QueryId, attempt: int) -> Flight | None:
        flight = flights.get(query_id)
        return flight if flight is not None and flight.downstream is not None else None

    _replace(flights, toward=toward)


@_mutant("end-twice")
def _end_twice(machine: Machine) -> None:
    """a query that was answered is not forgotten, and fails later"""
    flights = machine.relay.flights
    forget, complete = flights.forget, flights.complete

    def remember(flight: Flight, ended: Any) -> None:
        _replace(flights, forget=_nothing)
        complete(flight, ended)
        _replace(flights, forget=forget)

    _replace(flights, complete=remember)


# -- streams ----------------------------------------------------------------------------------------------


@_mutant("gap-unnoticed")
def _gap_unnoticed(machine: Machine) -> None:
    """a piece that is missing is not missed"""

    def skip(peer: PeerId, chunk: Any, now: float) -> None:
        flight = machine.relay.flights.toward(peer, chunk.query_id, chunk.attempt)
        if flight is not None:
            flight.index = max(flight.index, chunk.index)

    _before(machine.relay, "on_tokens", skip)


@_mutant("repeat-unnoticed")
def _repeat_unnoticed(machine: Machine) -> None:
    """a piece that comes twice is passed on twice"""

    def again(peer: PeerId, chunk: Any, now: float) -> None:
        flight = machine.relay.flights.toward(peer, chunk.query_id, chunk.attempt)
        if flight is not None:
            flight.index = min(flight.index, chunk.index)

    _before(machine.relay, "on_tokens", again)


# -- signs of life ----------------------------------------------------------------------------------------


@_mutant("silence-endured")
def _silence_endured(machine: Machine) -> None:
    """a peer that fell silent with a query is never given up"""

    def patient(now: float) -> None:
        for flight in machine.relay.flights:
            flight.silent_at = math.inf

    _before(machine.relay, "advance", patient)


@_mutant("no-keepalive")
def _no_keepalive(machine: Machine) -> None:
    """no sign of life is given while a query waits"""

    def mute(flight: Flight, now: float) -> None:
        flight.alive_at = now + 1.0

    _replace(machine.relay.flights, say_alive=mute)


@_mutant("no-budget")
def _no_budget(machine: Machine) -> None:
    """a query whose time is up goes on"""

    def endless(now: float) -> None:
        for flight in machine.relay.flights:
            flight.deadline = now + 600.0

    _before(machine.relay, "advance", endless)


@_mutant("stale-deadline")
def _stale_deadline(machine: Machine) -> None:
    """a part says again and again that something is due, and does nothing"""

    class Stale:
        deadline = 1.0

    _replace(machine, _parts=(*machine._parts, Stale()))


# -- cancels ----------------------------------------------------------------------------------------------


@_mutant("cancel-ignored")
def _cancel_ignored(machine: Machine) -> None:
    """a cancel from upstream is not acted upon"""
    _replace(machine.relay, on_cancel=_nothing)


@_mutant("cancel-kept")
def _cancel_kept(machine: Machine) -> None:
    """a cancel from the asker is not passed on"""
    _replace(machine.relay, _stop_work=_nothing)


@_mutant("steal-twice")
def _steal_twice(machine: Machine) -> None:
    """a query that an idle peer took over is served here too"""
    local, finished = machine._local, machine._local.finished

    def hand_over(*args: Any) -> None:
        _replace(local, finished=_nothing)
        give(*args)
        _replace(local, finished=finished)

    give = machine.relay.hand_over
    _replace(machine.relay, hand_over=hand_over)


# -- members ----------------------------------------------------------------------------------------------


@_mutant("no-tombstones")
def _no_tombstones(machine: Machine) -> None:
    """an old record brings the departed back"""
    members, outdated = machine.membership.members, machine.membership.outdated

    def believe(peer: PeerId, version: Version) -> bool:
        member = members.get(peer)
        return outdated(peer, version) and member is not None and member.status < Status.DEAD

    _replace(machine.membership, outdated=believe)


@_mutant("no-refutation")
def _no_refutation(machine: Machine) -> None:
    """who hears that it is held for dead does not say that it lives"""
    _replace(machine.membership, _refute=_nothing)


@_mutant("no-redial")
def _no_redial(machine: Machine) -> None:
    """whoever was held for dead is never dialled again, so that a cut mesh stays cut"""
    may_dial = machine.membership._may_dial
    _replace(machine.membership, _may_dial=lambda member: member.status < Status.DEAD and may_dial(member))


@_mutant("no-verdict")
def _no_verdict(machine: Machine) -> None:
    """who does not answer is never suspected"""
    _replace(machine.membership._prober, _silent=_nothing)


@_mutant("no-digests")
def _no_digests(machine: Machine) -> None:
    """what an announcement missed is never repaired"""
    _replace(machine.gossip, on_digest=_nothing)


@_mutant("always-resumed")
def _always_resumed(machine: Machine) -> None:
    """an answer goes on wherever it can, whatever its asker said"""

    def leave(flight: Flight, *_: object) -> None:
        flight.query = replace(flight.query, resume=Resume.ANY)

    _before(machine.relay._recovery, "_again", leave)


# -- zones and tables -------------------------------------------------------------------------------------


@_mutant("no-zones")
def _no_zones(machine: Machine) -> None:
    """a query is shown to peers that may not see its zone"""
    plan = machine.relay._plan

    def open_to_all(query: Query, tried: tuple[PeerId, ...], now: float) -> Decision:
        return plan(replace(query, zone=GENERAL), tried, now)

    _replace(machine.relay, _plan=open_to_all)


@_mutant("labels-unread")
def _labels_unread(machine: Machine) -> None:
    """a model answers queries of zones that it is not for"""
    planning = machine._planning
    seeing = planning._seeing

    def blind(peer: PeerId, zone: str, able: Capability) -> Capability:
        its = seeing(peer, zone, able)
        return replace(its, models=tuple(replace(model, zones=()) for model in its.models))

    _replace(planning, _seeing=blind)


@_mutant("zones-unsealed")
def _zones_unsealed(machine: Machine) -> None:
    """a query of a zone travels open to a peer that may see it"""
    sealing = machine._sealing
    _replace(sealing, wrap=lambda query, model: (query, None), arrived=lambda query: (query, None))


@_mutant("reasons-told")
def _reasons_told(machine: Machine) -> None:
    """a sealed query says outside why it went where"""
    sealing = machine._sealing
    wrap = sealing.wrap

    def telling(query: Query, model: str) -> tuple[Query, Cover]:
        outside, cover = wrap(query, model)
        return replace(outside, path=query.path), cover

    _replace(sealing, wrap=telling)


@_mutant("answers-unsealed")
def _answers_unsealed(machine: Machine) -> None:
    """what was asked sealed is answered open"""
    sealing = machine._sealing
    arrived = sealing.arrived
    _replace(sealing, arrived=lambda query: (arrived(query)[0], None))


@_mutant("unbounded-memory")
def _unbounded_memory(machine: Machine) -> None:
    """every attempt that was ever seen is remembered"""
    flights = machine.relay.flights
    _replace(flights, _config=replace(flights._config, seen_max=10**9))


@_mutant("loads-kept")
def _loads_kept(machine: Machine) -> None:
    """the loads of peers that are no longer linked are kept"""
    _replace(machine.loads, disconnected=_nothing)


@_mutant("ways-kept")
def _ways_kept(machine: Machine) -> None:
    """ways that lead through a link that closed are kept"""
    membership = machine.membership

    def unlink(peer: PeerId) -> None:
        del membership.links[peer]
        membership._prober.forget(peer)

    _replace(membership, _unlink=unlink)


# -- answers that outlive their peer ----------------------------------------------------------------------


@_mutant("claimed-from-the-start")
def _claimed_from_the_start(machine: Machine) -> None:
    """who comes for the rest of an answer gets what he has seen again"""
    backups = machine.backups
    claimed = backups.claimed
    _replace(backups, claimed=lambda event, now: claimed(replace(event, seen=event.seen // 2), now))


@_mutant("nothing-held-back")
def _nothing_held_back(machine: Machine) -> None:
    """the asker gets a piece before it is held elsewhere"""
    backups, out = machine.backups, machine._out
    deliver = backups.deliver

    def at_once(effect: Deliver | Fail) -> None:
        deliver(effect)
        mine = backups._mine.get(effect.query_id)
        while mine is not None and mine.waiting and mine.waiting[0][0] <= mine.chunks:
            out.append(mine.waiting.popleft()[2])

    _replace(machine.relay.flights, _deliver=at_once)


@_mutant("held-by-anybody")
def _held_by_anybody(machine: Machine) -> None:
    """a question is given to a peer to hold that may not see its zone"""
    _replace(machine.backups, _holders=lambda zone: set(machine.membership.links))


@_mutant("one-version")
def _one_version(machine: Machine) -> None:
    """what a peer says anew of itself has the version of what it said before"""
    publish = machine.gossip._publish

    def again(record: PeerRecord, after: Version, now: float) -> None:
        publish(record, Version(after.epoch, max(0, after.seq - 1)), now)

    _replace(machine.gossip, _publish=again)
