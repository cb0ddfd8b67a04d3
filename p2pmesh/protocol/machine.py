"""The parts composed: `handle(event, now) -> effects`, and one `deadline`.

The same class runs in the simulator and in the real driver. It reads no clock and throws no dice of its own:
`now` (seconds, monotonic, any origin) and a `random.Random` come in by argument. It decides nothing itself:
it hands each event to the part that knows, and lets every part do what is due.
"""

from __future__ import annotations

import math
from random import Random

from typing_extensions import assert_never

from p2pmesh.config import Config
from p2pmesh.errors import LocalProtocolError, Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.gossip import Gossip, Signer
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.relay import Relay
from p2pmesh.protocol.routing import Candidate, Decision, Scored, choose
from p2pmesh.query import Query
from p2pmesh.record import Load, PeerId, PeerRecord, Version


class Machine:
    """One peer of the mesh, without a wire and without a model."""

    def __init__(
        self, me: PeerId, name: str, epoch: int, config: Config, signer: Signer, rng: Random, now: float
    ) -> None:
        """`epoch` must be higher than in any earlier life of `me`, or others hold the old record for newer
        (they then tell, and the record's version rises above it)."""
        self.me, self.name = me, name
        self.codec = Codec(config.limits)
        self._config = config
        self._out: list[e.Effect] = []
        record = PeerRecord(me, Version(epoch, 1), name)
        self._now = now
        self.membership = Membership(me, config, rng, self._out, self._refute, now)
        self.gossip = Gossip(record, config, self.codec, signer, self.membership, rng, self._out, now)
        self._local = Local(config, self._out)
        self.relay = Relay(me, name, config, self._local, self._plan, self._sent, self._can_embed, self._out)

    # -- the whole boundary ---------------------------------------------------------------------------

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Return what is to be done about `event`, in order. `now` must not fall."""
        assert now >= self._now, "time runs forward"
        self._now = now
        self.relay.expire(now)
        self._dispatch(event, now)
        self.membership.advance(now)
        self.relay.advance(now)
        self._local.advance(now)
        self.gossip.own_load(self._local.load(now), now)
        self.gossip.advance(now)
        effects = self._out.copy()
        self._out.clear()
        return effects

    @property
    def deadline(self) -> float:
        """When to call `handle(Tick(), deadline)` if nothing happens before. Always later than the last
        `now`, or a host that waits for it would spin."""
        due = min(self.membership.deadline, self.gossip.deadline, self.relay.deadline)
        return due if due > self._now else math.nextafter(self._now, math.inf)

    # -- reads, of local knowledge only ---------------------------------------------------------------

    def explain(self, query: Query) -> Decision:
        """Return the decision that would be taken here for `query`, without taking it."""
        return self._plan(query, (), self._now)

    def records(self) -> list[PeerRecord]:
        """Return this peer's record, then those of all members, by id."""
        held = self.gossip.records
        known = sorted(i for i in self.membership.members if i in held)
        return [self.gossip.me.record, *(held[i].record for i in known)]

    def load(self, peer: PeerId) -> Load | None:
        """Return how busy `peer` is: exactly, of this peer; as last reported, of a link; None of others."""
        return self._local.load(self._now) if peer == self.me else self.gossip.load(peer)

    # -- events ---------------------------------------------------------------------------------------

    def _dispatch(self, event: e.Event, now: float) -> None:  # noqa: C901 - one line for each event
        match event:
            case e.Tick():
                pass
            case e.Received():
                self._received(event.peer, event.message, now)
            case e.Connected():
                self._connected(event.peer, now)
            case e.Disconnected():
                self._disconnected(event.peer, now)
            case e.Discovered():
                self.membership.discovered(event.peer, event.addresses, now)
            case e.DialFailed():
                self.membership.dial_failed(event.peer, now)
            case e.Departed():
                self.membership.leave(self.gossip.me.record.version)
            case e.Described():
                self._described(event, now)
            case e.Asked():
                self._asked(event.query, now)
            case e.Cancelled():
                self.relay.cancel(event.query_id, now)
            case e.Embedded():
                self.relay.embedded(event, self.gossip.me.record.capability.space, now)
            case e.Generated():
                self.relay.generated(event, now)
            case e.Finished():
                self.relay.finished(event, now)
            case e.Failed():
                self.relay.failed(event, now)
            case _:
                assert_never(event)

    def _received(self, peer: PeerId, message: m.PeerMessage, now: float) -> None:  # noqa: C901 - the same
        if peer not in self.membership.links:
            return  # said before the link closed
        match message:
            case m.Ping():
                self.membership.on_ping(peer, message, now)
            case m.Ack():
                self.membership.on_ack(peer, message, now)
            case m.PingRequest():
                self.membership.on_ping_request(peer, message, now)
            case m.Leave():
                self.membership.on_leave(peer, message, now)
            case m.Announce() | m.Digest():
                self.gossip.on_lines(peer, message, now)
            case m.Pull():
                self.gossip.on_pull(peer, message)
            case m.Records():
                self.gossip.on_records(peer, message, now)
            case m.LoadReport():
                self.gossip.on_load(peer, message, now)
            case m.Forward():
                self.relay.on_forward(peer, message.query, now)
            case m.Accept():
                self.relay.on_accept(peer, message, now)
            case m.Refuse():
                self.relay.on_refuse(peer, message, now)
            case m.Tokens():
                self.relay.on_tokens(peer, message.chunk, now)
            case m.End():
                self.relay.on_end(peer, message, now)
            case m.Error():
                self.relay.on_error(peer, message, now)
            case m.Cancel():
                self.relay.on_cancel(peer, message, now)
            case _:
                assert_never(message)

    def _connected(self, peer: PeerId, now: float) -> None:
        links = self.membership.links
        if peer not in links and len(links) >= 2 * self._config.membership.links_max:
            self._out.append(e.Hangup(peer))  # half for those we dial, half for those who dial us
            self.membership.dial_failed(peer, now)
            return
        self.membership.connected(peer, now)
        if not self.membership.has_left:
            self.gossip.connected(peer, now)

    def _disconnected(self, peer: PeerId, now: float) -> None:
        if peer in self.membership.links:
            self.membership.disconnected(peer, now)
            self.gossip.disconnected(peer, now)
            self.relay.disconnected(peer, now)

    def _asked(self, query: Query, now: float) -> None:
        try:
            self.codec.check(m.Forward(query))  # what could not travel is not taken
        except LocalProtocolError as exc:
            self._out.append(e.Fail(query.id, Reason.BAD_REQUEST, str(exc)))
            return
        self.relay.ask(query, now)

    def _described(self, event: e.Described, now: float) -> None:
        try:
            self.gossip.describe(event.capability, event.addresses, now)
        except LocalProtocolError as exc:  # what could not travel is not published, and not served either
            self._out.append(e.Notify(self.me, f"cannot publish what this peer says of itself: {exc}"))
            return
        for query in self._local.describe(event.capability.models):
            self.relay.failed(
                e.Failed(query.id, query.attempt, Reason.ENGINE_FAILED, "its model went away"), now
            )

    # -- what the parts ask of one another ------------------------------------------------------------

    def _refute(self, peer: PeerId, version: Version) -> None:
        if not self.membership.has_left:  # what is said of one who goes is true
            self.gossip.refute(peer, version, self._now)

    def _can_embed(self) -> bool:
        return bool(self.gossip.me.record.capability.space)

    def _sent(self, row: Scored, now: float) -> None:
        self.gossip.sent(row.next_hop, row.work_s, now)

    def _plan(self, query: Query, tried: tuple[PeerId, ...], now: float) -> Decision:
        return choose(query, self.me, self._candidates(query, tried, now), self._config.routing)

    def _candidates(self, query: Query, tried: tuple[PeerId, ...], now: float) -> list[Candidate]:
        barred = {*tried, *query.excluded, *(hop.peer for hop in query.path)}
        mine = self.gossip.me.record
        candidates = []
        if self.me not in barred:
            wait = self._local.remaining_s(now)
            candidates.append(Candidate(self.me, self.name, mine.capability, wait, 0.0, self.me))
        for peer, signed in self.gossip.records.items():
            way = self.membership.route(peer, barred)
            if way is None or peer in barred or not self.membership.is_alive(peer):
                continue
            wait = self.gossip.wait_s(peer, now)
            name, capability = signed.record.name or peer[-8:], signed.record.capability
            candidates.append(Candidate(peer, name, capability, wait, self._rtt_s(*way), way[0]))
        return candidates

    def _rtt_s(self, neighbour: PeerId, distance: int) -> float:
        default = self._config.routing.rtt_default_s
        measured = self.membership.links[neighbour].rtt_s
        return (default if measured is None else measured) + default * (distance - 1)
