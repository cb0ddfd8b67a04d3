"""A peer as its user holds it: ask, stream, look around.

It composes a driver, a host and the models, and adds no behaviour of its own.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import trio

from p2pmesh.config import Config
from p2pmesh.errors import ConfigError, Untrusted
from p2pmesh.net.address import parse
from p2pmesh.net.discovery import open_discovery
from p2pmesh.net.host import Host, open_host
from p2pmesh.net.identity import Identity, load_or_create
from p2pmesh.peer import credentials, meeting, reach, state
from p2pmesh.peer.answer import Answer, read_bookmark
from p2pmesh.peer.background import background
from p2pmesh.peer.driver import Driver
from p2pmesh.peer.models import Models, check_told, open_models
from p2pmesh.peer.signers import Signers
from p2pmesh.protocol import events as e
from p2pmesh.protocol.machine import Machine
from p2pmesh.protocol.routing import Decision
from p2pmesh.query import AUTO, Message, Options, Query, QueryId, Resume
from p2pmesh.record import GENERAL, Capability, Load, PeerId
from p2pmesh.trust import keys
from p2pmesh.trust.sealing import Envelopes
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.tickets import SECRET_BYTES, Ticket

_log = logging.getLogger("p2pmesh.peer")
TICKET_LIFE_S = 3_600.0
"""Seconds a ticket is good for, unless told otherwise: to carry it to the next desk."""
_DRAIN_LOOK_S = 0.05
"""Seconds between two looks whether all has ended."""
_LAST_WORDS_S = 1.0
"""Seconds that who asked here has to hear that there will be no more."""
_FAREWELL_S = 0.2
"""Seconds for the goodbyes to leave before the links close."""


@dataclass(frozen=True)
class Member:
    """One peer, as seen from here."""

    id: PeerId
    name: str
    addresses: tuple[str, ...]
    capability: Capability
    alive: bool
    linked: bool
    distance: int
    """Links to it: 0 is this peer, 1 a neighbour; -1: out of reach."""
    rtt_s: float | None
    """Round trip to a neighbour, smoothed; None where it was not measured."""
    load: Load | None
    """How busy it is; None where it is not known."""


class _Signer:
    """The key of `identity`, as the protocol wants it."""

    def __init__(self, identity: Identity) -> None:
        self.sign = identity.sign
        self.verify = keys.verify


class Peer:
    """A running peer. Made by `open_peer`."""

    def __init__(
        self,
        config: Config,
        directory: Any,
        host: Host,
        driver: Driver,
        models: Models,
        standing: Standing | None,
    ) -> None:
        self.config = config
        self._standing = standing
        self.state_directory = directory
        self.id: PeerId = host.id
        self._host = host
        self._driver = driver
        self._models = models
        self._meeting = trio.CancelScope()
        self.token = secrets.token_hex(16)
        """What proves to its HTTP door that somebody may read this peer's state directory."""
        self._streams = 0
        """Blocks of `stream` that have not been left."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self._driver.machine.name

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can join it: multiaddresses that end in its id."""
        return tuple(f"{address}/p2p/{self.id}" for address in self._host.addresses)

    async def ask(self, prompt: str | Sequence[Message], **options: Any) -> Answer:
        """Ask the mesh, and return the whole answer.

        `prompt` is a text or a conversation; `options` are those of `stream`. Raises QueryError: nothing of
        it runs on then, and the peer takes the next query.
        """
        async with self.stream(prompt, **options) as answer:
            return await answer.whole()

    @asynccontextmanager
    async def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        model: str = AUTO,
        options: Options | None = None,
        budget_s: float = 120.0,
        resume: Resume | str | None = None,
        guarded: bool = False,
        zone: str = GENERAL,
    ) -> AsyncIterator[Answer]:
        """Ask the mesh, and iterate over the answer as it comes. Leaving the block cancels what is left of
        it, on every hop.

        `model`: a name, or "auto". `budget_s`: seconds until it ends in BudgetSpent. `resume`: what
        becomes of the answer when the peer that writes it is lost, "any", "same-model" or "never" (see
        `Resume`); None: as `relay.resume` says. `guarded`: another peer that may see it holds the question
        and all that comes of the answer, so that it outlives this peer (see `claim`); each piece comes a
        round trip later for it. `zone`: only peers that may see it get to see the query, which travels sealed
        to one of them; where none of them can serve it, it ends in NoRoute. Iterating raises QueryError.
        Raises ValueError for another `resume`.
        """
        messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
        query = Query(
            id=QueryId(secrets.token_hex(16)),
            origin=self.id,
            messages=messages,
            options=options or Options(),
            model=model,
            hops_left=self.config.limits.hops_max,
            budget_s=budget_s,
            zone=zone,
            resume=Resume(self.config.relay.resume if resume is None else resume),
        )
        async with self._asking(e.Asked(query, guarded), query.id) as answer:
            yield answer

    @asynccontextmanager
    async def claim(self, bookmark: str, *, zones: tuple[str, ...] | None = None) -> AsyncIterator[Answer]:
        """Come for the rest of an answer that was begun at another peer, which has died: for what follows the
        place that `bookmark` names (see `Answer.bookmark`). As `stream` does otherwise, `guarded` too.

        `zones`: those, beside the general one, that whoever comes may read an answer of; None: all that this
        peer may. What it was asked with holds on, what is left of its budget too. If that peer lives, the
        answer ends there. Raises ValueError where that is no bookmark; iterating raises QueryError, NoRoute
        where nobody holds the answer any more.
        """
        held_id, seen, holder = read_bookmark(bookmark)
        query_id = QueryId(secrets.token_hex(16))
        async with self._asking(e.Claimed(query_id, held_id, holder, seen, zones), query_id, seen) as answer:
            yield answer

    @asynccontextmanager
    async def _asking(
        self, asked: e.Asked | e.Claimed, query_id: QueryId, before: int = 0
    ) -> AsyncIterator[Answer]:
        answer = Answer(query_id, self.rate, before)
        self._streams += 1
        self._driver.ask(asked, answer.put)
        try:
            yield answer
        finally:
            self._streams -= 1
            self._driver.cancel(query_id)

    def rate(self, query_id: QueryId, outcome: float) -> bool:
        """Say what an answer of this peer's was worth, from 0, worthless, to 1: who answers such queries next
        is decided with it. `Answer.rate` does the same. Returns False for a query that was not answered here,
        or long ago, or rated before: then nothing is learnt. Raises ValueError outside 0..1.
        """
        if not 0.0 <= outcome <= 1.0:
            raise ValueError(f"a rating lies within 0..1, not {outcome!r}")
        awaited = self._driver.machine.ratings.awaits(query_id)
        self._driver.feed(e.Rated(query_id, outcome))
        return awaited

    async def explain(self, prompt: str, *, model: str = AUTO, zone: str = GENERAL) -> Decision:
        """Return the decision this peer would take for `prompt`, without asking anybody. Raises EngineError
        when the embedder fails."""
        query = Query(QueryId(""), self.id, (Message("user", prompt),), model=model, zone=zone)
        vector = await self._models.vector(prompt) if prompt else None
        if vector is not None:
            query = replace(query, vector=vector, space=self._models.space)
        return self._driver.machine.explain(query)

    def members(self) -> tuple[Member, ...]:
        """Return this peer and all it knows of, itself first. Local knowledge: nobody is asked."""
        machine = self._driver.machine
        membership = machine.membership
        found = []
        for record in machine.records():
            own = record.id == self.id
            way = None if own else membership.route(record.id)
            link = membership.links.get(record.id)
            found.append(
                Member(
                    id=record.id,
                    name=record.name or record.id[-8:],
                    addresses=record.addresses,
                    capability=record.capability,
                    alive=own or membership.is_alive(record.id),
                    linked=link is not None,
                    distance=0 if own else (way[1] if way is not None else -1),
                    rtt_s=None if link is None else link.rtt_s,
                    load=machine.load(record.id),
                )
            )
        return tuple(found)

    def status(self) -> dict[str, Any]:
        """Return how this peer is, as plain values."""
        machine = self._driver.machine
        members = self.members()
        counters = {**self._host.counters, **self._driver.counters, "forged_records": machine.gossip.rejected}
        counters["retries"] = machine.relay.retries
        return {
            "id": self.id,
            "name": self.name,
            "addresses": list(self.addresses),
            "mesh": self._mesh(),
            "draining": machine.draining.begun,
            "links": len(machine.membership.links),
            "alive": sum(member.alive for member in members),
            "flights": len(machine.relay.flights),
            "engines": self._models.status(),
            "embedding_space": self._models.space,
            "unreachable": {
                address: why
                for address, why in self._driver.unreachable.items()
                if address.partition("/p2p/")[2] not in machine.membership.links
            },
            "counters": counters,
        }

    def _mesh(self) -> dict[str, Any] | None:
        """Which mesh it is in; None: none, and whoever reaches it can join."""
        if self._standing is None:
            return None
        try:
            member, why = self._standing.member(), ""
        except Untrusted as exc:
            member, why = None, str(exc)
        return {
            "name": self._standing.roster.name,
            "id": self._standing.roster.mesh.hex(),
            "zones": sorted(member.zones) if member else [],
            "until": member.until if member else None,
            "outside": why,
            "signs": self._standing.signs,
            "signers": self.signers.rows(),
            "unkept": self._standing.unkept,
        }

    def invite(self, *, zones: Sequence[str] = (), expires_s: float = TICKET_LIFE_S, uses: int = 1) -> str:
        """Return a ticket: a word that lets `uses` other machines join the mesh at this peer, within
        `expires_s` seconds, and see `zones` beside the general one.

        Raises Untrusted where this peer is in no mesh, or no signer, or the ticket could let nobody in.
        """
        secret, addresses = secrets.token_bytes(SECRET_BYTES), self._host.addresses[:4]
        return str(self._in_mesh().invite(secret, addresses, tuple(zones), expires_s, uses))

    def withdraw(self, ticket: str) -> tuple[PeerId, ...]:
        """Take back a ticket that this peer gave out: it lets nobody in any more. Returns whom it has let in,
        who stay. Raises Untrusted for one it did not give out, or that is void already."""
        return self._in_mesh().withdraw(Ticket.parse(ticket))

    def revoke(self, peer: PeerId) -> None:
        """Throw `peer` out of the mesh: whoever hears of it lets it go, and lets it in no more, until a new
        ticket does. Raises Untrusted where this peer is in no mesh, or no signer, and ConfigError where that
        could not be written down."""
        standing = self._in_mesh()
        self._driver.feed(e.Stated(standing.revoke(peer)))
        if standing.unkept:
            raise ConfigError(f"it is out, which this peer will forget when it ends: {standing.unkept}")

    @property
    def signers(self) -> Signers:
        """Those who sign for the mesh, and how others do. Raises Untrusted where this peer is in none."""
        return Signers(self._in_mesh(), lambda statement: self._driver.feed(e.Stated(statement)))

    def _in_mesh(self) -> Standing:
        if self._standing is None:
            raise Untrusted("this peer is in no mesh: `p2pmesh mesh create` founds one")
        return self._standing

    def join(self, address: str) -> None:
        """Dial a peer at a multiaddress; what comes of it shows in `members`. Raises ConfigError where this
        peer is in no mesh, and that one not on this machine."""
        if self._standing is None:
            reach.check_address(address)
        self._host.dial(None, [address])

    async def drain(self, grace_s: float | None = None) -> bool:
        """Take no new work, hand over what waits here, and finish what was in flight here.

        Returns when that has ended and every block of `stream` was left, after `grace_s` seconds (None:
        `relay.drain_s`) at the latest, and whether it had by then. What had not is gone on with elsewhere
        once this peer leaves, or is lost with it if it was asked here. What is asked here from now on is
        Refused; leave the block of `open_peer`.
        """
        self._driver.feed(e.Drained())
        left = self._driver.machine.draining
        with trio.move_on_after(self.config.relay.drain_s if grace_s is None else grace_s) as scope:
            while left.left or self._streams:  # noqa: ASYNC110  # the machine has no events to wait for
                await trio.sleep(_DRAIN_LOOK_S)
        return not scope.cancelled_caught

    @property
    def draining(self) -> bool:
        """Whether it takes no new work, as it is about to go."""
        return self._driver.machine.draining.begun

    async def leave(self) -> None:
        """Say goodbye to all neighbours, so that nobody waits for us, and look for nobody from now on.

        What was asked here and has not ended ends in an error, which its asker has a second to take."""
        self._meeting.cancel()
        self._driver.feed(e.Departed())
        with trio.move_on_after(_LAST_WORDS_S):
            while self._streams:  # noqa: ASYNC110  # as in `drain`
                await trio.sleep(_DRAIN_LOOK_S)
        await trio.sleep(_FAREWELL_S if self._host.links() else 0)


@asynccontextmanager
async def open_peer(config: Config | None = None) -> AsyncIterator[Peer]:
    """Start a peer, and leave the mesh when the block ends.

    Raises ConfigError (StateLocked among them), ListenError, ModelLoadError or EngineError before anything
    has been told to others; whatever had started has then ended.
    """
    config = config or Config()
    directory = state.directory(config.state)
    _check_addresses(config)
    async with AsyncExitStack() as stack:
        stack.enter_context(state.locked(directory))
        identity = load_or_create(directory / state.KEY)
        standing, contacts = credentials.load(directory, identity.id) or (None, ())
        credentials.apply(config.zones, standing)
        credentials.check_labels(config.models, standing)
        if standing is None:
            reach.check_loopback(config.net)
        host = await stack.enter_async_context(
            open_host(identity, config.net, config.limits.frame_bytes_max, standing)
        )
        early: list[e.Event] = []  # engines may speak before there is a machine to hear them
        feed = early.append
        models = await stack.enter_async_context(open_models(config, lambda event: feed(event)))
        machine = Machine(
            host.id,
            config.name or f"{socket.gethostname()[:40]}-{host.id[-4:]}",
            state.next_epoch(directory),
            config,
            _Signer(identity),
            Envelopes(
                standing.roster.mesh if standing else b"", identity.sign, time.time, secrets.token_bytes
            ),
            Random(secrets.randbits(64)),  # noqa: S311 - it spreads load and guards nothing
            trio.current_time(),
            standing,
        )
        driver = Driver(machine, host, models)
        stack.callback(driver.close)
        feed = driver.feed

        def told() -> tuple[Capability, tuple[str, ...]]:
            able = models.capability()
            if standing is not None:
                able = replace(able, zones=standing.zones())
            return able, host.addresses[: config.limits.addresses_max]

        def describe() -> None:
            driver.feed(e.Described(*told()))

        able, addresses = told()
        check_told(machine.codec, replace(machine.gossip.me.record, capability=able, addresses=addresses))
        models.on_change(describe)
        describe()
        if standing is not None:
            standing.on_renewal = describe
        peer = Peer(config, directory, host, driver, models, standing)
        nursery = await stack.enter_async_context(background())
        nursery.start_soon(driver.run)
        named = tuple(dict.fromkeys((*config.net.join, *contacts)))
        place = directory if standing is not None and config.net.dial_discovered else None
        nursery.start_soon(meeting.look_for_others, peer._meeting, driver, host, named, place)
        if config.net.mdns:
            heard = await stack.enter_async_context(open_discovery(host.id, host.addresses, config.net))
            nursery.start_soon(meeting.meet, driver, heard)
        try:
            yield peer
        finally:
            most = _LAST_WORDS_S + 2 * _FAREWELL_S
            with trio.CancelScope(deadline=trio.current_time() + most, shield=True):
                await peer.leave()


def _check_addresses(config: Config) -> None:
    """Raise ConfigError for an address to join that cannot be one: it would never be reached, in silence."""
    for address in config.net.join:
        try:
            parse(address)
        except ValueError as exc:
            raise ConfigError(f"net.join: {exc}") from None
