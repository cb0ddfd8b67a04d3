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
from p2pmesh.protocol.admission import Admission, Signer, Trust
from p2pmesh.protocol.backups import Backups
from p2pmesh.protocol.breakers import Breakers
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.draining import Draining
from p2pmesh.protocol.equivocation import Equivocation
from p2pmesh.protocol.experience import Experience
from p2pmesh.protocol.flight import Flight
from p2pmesh.protocol.gossip import Gossip
from p2pmesh.protocol.linking import Linking
from p2pmesh.protocol.loads import Loads
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.origins import Origins
from p2pmesh.protocol.planning import Planning
from p2pmesh.protocol.quotas import Quotas
from p2pmesh.protocol.ratings import Ratings
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.protocol.relay import Relay
from p2pmesh.protocol.routing import Decision, Scored
from p2pmesh.protocol.sealing import Sealer, Sealing
from p2pmesh.protocol.stealing import Stealing
from p2pmesh.protocol.workload import AnswerLength
from p2pmesh.query import Ended, Query, QueryId
from p2pmesh.record import GENERAL, Capability, Load, PeerId, PeerRecord, Version

_AWAY_S = 0.25
"""Seconds by which a machine must have been called too late to hold that it was away: its process was
stopped, or its cores were busy. Longer than the probes' timeout, a guess."""
_SLOW_BYTES_PER_S = 25_000.0
"""Of a link that is given time for a long prompt. A guess: a poor mobile line's upload."""


class Machine:
    """One peer of the mesh, without a wire and without a model."""

    def __init__(
        self,
        me: PeerId,
        name: str,
        epoch: int,
        config: Config,
        signer: Signer,
        sealer: Sealer,
        rng: Random,
        now: float,
        trust: Trust | None = None,
    ) -> None:
        """`epoch` must be higher than in any earlier life of `me`, or others hold the old record for newer
        (they then tell, and the record's version rises above it). `trust`: of the mesh it is in; None: it is
        in none that has signers."""
        self.me, self.name = me, name
        self.codec = Codec(config.limits)
        self._config = config
        self._out: list[e.Effect] = []
        record = PeerRecord(me, Version(epoch, 1), name, seal_key=sealer.key())
        self._now = self._deadline = now
        self._promised = math.inf
        """The deadline that the host was told; whoever comes later was away. None yet."""
        self.membership = Membership(me, config, rng, self._out, self._refute, now)
        links = self.membership.links
        self._admission = Admission(trust, links, self._republish, self._out, now)
        self._equivocation = Equivocation(trust, signer, links, self._admission.let_go, self._out)
        believed = (signer, trust, self._equivocation, self.membership)
        self.gossip = Gossip(record, config, self.codec, *believed, rng, self._out, now)
        experience = self._experience = Experience(me, epoch)
        breakers = self._breakers = Breakers(config.membership.members_max)
        self._local = Local(config, AnswerLength(), self._out)
        self._linking = Linking(me, config, self.membership, self._own, self._known, self._evict)
        self.loads = Loads(config, self._linking.load_set, self._out, now)
        parts = (self.membership, self.gossip, self._local, self.loads, experience, breakers)
        asked = (self._able, self._tried, self._may_see, lambda: self._now)
        planning = self._planning = Planning(me, name, config, *parts, *asked)
        held = (
            self._holders,
            self._late_s,
            self._may_see,
            self._flight,
            self._reach,
            self._ask,
            self._cancel,
        )
        self.backups = Backups(me, config, self._out, *held)
        sending = (planning.plan, self._sent, self._reach, planning.hopes, self._can_embed, self._late_s)
        keys = (config.limits, self.codec, sealer, self._key_of, self._sealed_anew)
        self._sealing = Sealing(me, *keys, now)
        origins = Origins(self.codec, signer)
        proofs = (self._sealing, Receipts(me, self.codec, signer), origins, self._life_of)
        asking = (*proofs, *sending, self.backups.deliver, self._answered)
        self._quotas = Quotas(config, links, self._may_see, self._out)
        self.relay = Relay(me, name, config, self._local, self._quotas, breakers, *asking, self._out)
        self.gossip.crowd(self._linking.admit, self._linking.offer)
        self._spared = (-math.inf, False)
        """Whether a link could give way, and as of when."""
        self.membership.can_spare = self._can_spare
        compare, topic_of = planning.compare, planning.topic_of
        self._stealing = Stealing(config, self._local, self.relay, self.loads.queued, compare, self._out)
        self.ratings = Ratings(experience, self._linking.load_set, topic_of, self._out, now)
        self.draining = Draining(config, self.gossip, self._local, self.relay, planning.plan, compare)
        telling = (self._linking, self.loads, self.ratings, self.gossip, self._admission)
        self._later = (*telling, self._sealing, self._quotas)
        self._parts = (self.membership, self.relay, self.backups, *self._later)

    # -- the whole boundary ---------------------------------------------------------------------------

    def handle(self, event: e.Event, now: float) -> list[e.Effect]:
        """Return what is to be done about `event`, in order. `now` must not fall."""
        assert now >= self._now, "time runs forward"
        late = now - max(self._promised, self._now)
        if late > _AWAY_S:
            self.relay.excuse(late)
            self.membership.excuse(late)
            self.backups.excuse(late)
        self._now = now
        self.relay.advance(now)
        self.backups.advance(now)
        self._dispatch(event, now)
        self.membership.advance(now)
        self._local.advance(now)
        if not self.draining.begun:
            self._stealing.advance(now)
        self.loads.own(self._local.load(now), now)
        for part in self._later:
            part.advance(now)
        due = min([part.deadline for part in self._parts])
        self._deadline = self._promised = due if due > now else math.nextafter(now, math.inf)
        effects = self._out.copy()
        self._out.clear()
        return effects

    @property
    def deadline(self) -> float:
        """When to call `handle(Tick(), deadline)` if nothing happens before. Always later than the last
        `now`, or a host that waits for it would spin."""
        return self._deadline

    def explain(self, query: Query) -> Decision:
        """Return the decision that would be taken here for `query`, without taking it."""
        return self._planning.plan(query, (), self._now)

    def records(self) -> list[PeerRecord]:
        """Return this peer's record, then those of all members, by id."""
        held = self.gossip.records
        known = sorted(i for i in self.membership.members if i in held)
        return [self.gossip.me.record, *(held[i].record for i in known)]

    def load(self, peer: PeerId) -> Load | None:
        """Return how busy `peer` is: exactly, of this peer; as last reported, of a link; None of others."""
        return self._local.load(self._now) if peer == self.me else self.loads.of(peer)

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
                self._dial_failed(event.peer, now)
            case e.Stated():
                self._admission.stated(event.statement)
            case e.Drained():
                self.draining.begin(self.me, now)
            case e.Departed():
                self.draining.end(now)
                self.membership.leave(self.gossip.me.record.version)
            case e.Described():
                self._described(event, now)
            case e.Asked():
                self._asked(event.query, event.guarded, now)
            case e.Claimed():
                self.backups.claimed(event, now)
            case e.Cancelled():
                self.backups.cancelled(event.query_id)
                self.relay.cancel(event.query_id, now)
            case e.Rated():
                self.ratings.rated(event.query_id, event.outcome, now)
            case e.Embedded():
                self.relay.embedded(event, self.gossip.me.record.capability.space, now)
            case e.Generated():
                self.relay.serving.generated(event, now)
            case e.Finished():
                self.relay.serving.finished(event, now)
            case e.Failed():
                self.relay.serving.failed(event, now)
            case _:
                assert_never(event)

    def _received(self, peer: PeerId, message: m.PeerMessage, now: float) -> None:  # noqa: C901, PLR0915
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
            case m.Part():
                self.membership.on_part(peer, now)
                self._unlinked(peer, now)
                self.relay.parted(peer, now)
            case m.Announce():
                self.gossip.on_announce(peer, message, now)
            case m.Digest():
                self.gossip.on_digest(peer, message)
            case m.Lines():
                self.gossip.on_lines(peer, message, now)
            case m.Seek():
                self.gossip.on_seek(peer, message)
            case m.Pull():
                self.gossip.on_pull(peer, message)
            case m.Records():
                self._on_records(peer, message, now)
            case m.LoadReport():
                self.loads.on_load(peer, message, now)
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
            case m.Outcomes():
                self.ratings.on_outcomes(peer, message)
            case m.Keep() | m.Copy() | m.Kept() | m.Settle() | m.Claim() | m.Legacy():
                self.backups.received(peer, message, now)
            case m.Steal():
                self._stealing.on_steal(peer, now)
            case m.Spent():
                self._quotas.on_spent(peer, message, now)
            case m.Evidence():
                self._equivocation.received(peer, message)
            case m.Stated() | m.Shown() | m.Granted():
                self._admission.received(peer, message)
            case _:
                assert_never(message)

    def _connected(self, peer: PeerId, now: float) -> None:
        if peer not in self.membership.links and not self._linking.make_room():
            self.membership.part(peer)
            self.membership.dial_failed(peer, now)
            self.relay.dial_failed(peer, now)
            return
        self._linking.changed(now)
        self.membership.connected(peer, now)
        if not self.membership.has_left:
            self.gossip.connected(peer, now)
            self.loads.connected(peer)
            self._quotas.connected(peer, now)
            self.relay.connected(peer, now)
            self.backups.connected(peer)
            self._admission.connected(peer)
            self.ratings.connected(peer, now)

    def _disconnected(self, peer: PeerId, now: float) -> None:
        if peer in self.membership.links:
            self.membership.disconnected(peer, now)
            self._unlinked(peer, now)
            self.relay.disconnected(peer, now)

    def _unlinked(self, peer: PeerId, now: float) -> None:
        self._linking.changed(now)
        self.gossip.disconnected(peer, now)
        self.loads.disconnected(peer)
        self.ratings.disconnected(peer)
        self._equivocation.disconnected(peer)
        self._quotas.disconnected(peer)
        self.backups.unreachable(peer, now)

    def _dial_failed(self, peer: PeerId, now: float) -> None:
        self.membership.dial_failed(peer, now)
        if peer not in self.membership.members:
            self.gossip.forgotten(peer)
        self.backups.unreachable(peer, now)
        self.relay.dial_failed(peer, now)

    def _asked(self, query: Query, guarded: bool, now: float) -> None:
        try:
            self.codec.check(m.Forward(query))  # what could not travel is not taken
        except LocalProtocolError as exc:
            self._out.append(e.Fail(query.id, Reason.BAD_REQUEST, str(exc)))
            return
        if self.draining.begun:
            self._out.append(e.Fail(query.id, Reason.OVERLOADED, "this peer is about to go", (), 1.0))
            return
        if guarded and self.relay.flights.get(query.id) is None:
            self.backups.guard(query, now)
        self.relay.ask(query, now)

    def _ask(self, query: Query, now: float) -> None:
        self._asked(query, True, now)

    def _cancel(self, query_id: QueryId, now: float) -> None:
        self.relay.cancel(query_id, now)

    def _holders(self, zone: str) -> set[PeerId]:
        """Return who may hold what was asked here."""
        links = self.membership.links
        return {peer for peer in links if self.membership.is_alive(peer) and self._may_see(peer, zone)}

    def _may_see(self, peer: PeerId, zone: str) -> bool:
        signed = self.gossip.me if peer == self.me else self.gossip.records.get(peer)
        return self._admission.may_see(signed, zone)

    def _life_of(self, peer: PeerId) -> int | None:
        """Return the epoch of the life that `peer` is known to be in; None: it is not known."""
        signed = self.gossip.me if peer == self.me else self.gossip.records.get(peer)
        return None if signed is None else signed.record.version.epoch

    def _flight(self, query_id: QueryId) -> Flight | None:
        return self.relay.flights.get(query_id)

    def _described(self, event: e.Described, now: float) -> None:
        try:
            self.gossip.describe(self.draining.published(event.capability), event.addresses, now)
        except LocalProtocolError as exc:  # what could not travel is not published, and not served either
            self._out.append(e.Notify(self.me, f"cannot publish what this peer says of itself: {exc}"))
            return
        self.draining.able = event.capability
        for query in self._local.describe(event.capability.models):
            self.relay.serving.failed(
                e.Failed(query.id, query.attempt, Reason.ENGINE_FAILED, "its model went away"), now
            )

    def _refute(self, peer: PeerId, version: Version) -> None:
        if not self.membership.has_left:  # what is said of one who goes is true
            self.gossip.refute(peer, version, self._now)

    def _republish(self) -> None:
        self.gossip.republish(self._now)

    def _sealed_anew(self, key: bytes) -> None:
        self.gossip.republish(self._now, key)

    def _key_of(self, peer: PeerId) -> bytes:
        signed = self.gossip.records.get(peer)
        return b"" if signed is None else signed.record.seal_key

    def _reach(self, peer: PeerId, addresses: tuple[str, ...]) -> bool | None:
        """Return whether `peer` is linked, or dial it, a stranger at `addresses`; None: there is no room."""
        if peer in self.membership.links:
            return True
        if not self._linking.make_room():
            self._spared = self._now, False  # nor is there for the next one
            return None
        self.membership.dial_now(peer, addresses)
        return False

    def _can_embed(self) -> bool:
        return bool(self.gossip.me.record.capability.space)

    def _late_s(self, peer: PeerId, size: int) -> float:
        """Return the seconds after which a neighbour should have said that it has the `size` bytes it was
        sent: its link's, which were measured with a hundred, and what so many take on a slow one."""
        link, late_s = self.membership.links.get(peer), self._config.relay.accept_timeout_s
        late_s = late_s if link is None else link.late_s(late_s)
        return min(late_s, self._config.relay.silence_max_s) + size / _SLOW_BYTES_PER_S

    def _sent(self, row: Scored, now: float) -> None:
        if row.next_hop == row.peer:  # it is not the neighbour on the way that has the work
            self.loads.sent(row.peer, row.work_s)

    def _able(self, query: Query) -> Capability:
        return self.draining.own(query)

    def _tried(self, query_id: QueryId) -> tuple[PeerId, ...]:
        flight = self.relay.flights.get(query_id)
        return () if flight is None else flight.tried

    def _own(self) -> Capability:
        return self.gossip.me.record.capability

    def _known(self, peer: PeerId) -> Capability | None:
        signed = self.gossip.records.get(peer)
        return None if signed is None else signed.record.capability

    def _answered(self, query: Query, ended: Ended) -> None:
        if query.zone == GENERAL:  # what is rated is told to others, topic and all
            self.ratings.answered(query, ended)

    def _on_records(self, peer: PeerId, message: m.Records, now: float) -> None:
        before = {signed.record.id: self._minds(signed.record.id) for signed in message.records}
        self.gossip.on_records(peer, message, now)
        self._linking.changed(now)
        for ident, minds in before.items():
            if minds is not None and self._minds(ident) != minds:
                self._experience.forget(ident)  # what its old models did says nothing of the new ones

    def _minds(self, peer: PeerId) -> frozenset[str] | None:
        """Return the digests of the models of `peer`; None: it is not known."""
        its = self._known(peer)
        return None if its is None else frozenset(model.digest for model in its.models)

    def _evict(self, spare: set[PeerId]) -> bool:
        """End the oldest link to one of `spare` that no query goes through. Returns whether there was one."""
        spare = self._idle(spare)
        if not spare:
            return False
        links = self.membership.links
        peer = min(spare, key=lambda p: (links[p].since, p))
        self.membership.part(peer)
        self._unlinked(peer, self._now)
        return True

    def _idle(self, links: set[PeerId]) -> set[PeerId]:
        return links - {p for f in self.relay.flights for p in (f.upstream, f.downstream) if p is not None}

    def _can_spare(self) -> bool:
        """Return whether a link could give way, as of this moment: it is asked of each candidate."""
        if self._spared[0] != self._now:
            self._spared = self._now, bool(self._idle(self._linking.spare()))
        return self._spared[1]
