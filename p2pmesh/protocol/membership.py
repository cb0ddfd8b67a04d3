"""Who is here: probe, suspect, refute, leave (SWIM, with records' versions as incarnations).

Detection is scoped to links. A closed link is strong evidence and is used at once: if the redial fails too,
the peer is dead. What is believed spreads as updates piggybacked on probes. It knows of records only their
version, and nothing of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random

from p2pmesh.config import Config
from p2pmesh.protocol.events import Dial, Effect, Hangup, Notify, Send
from p2pmesh.protocol.messages import DISTANCE_MAX, Ack, Leave, Ping, PingRequest, Status, Update
from p2pmesh.record import PeerId, Version

_RTT_GAIN = 0.125
"""Share of a new measurement in the smoothed round trip (RFC 6298)."""
_FOREVER = math.inf
_SEQ_END = 2**31
"""Numbers of probes begin again here: the codec carries no higher ones."""


@dataclass
class Member:
    """What is believed of one peer."""

    id: PeerId
    version: Version
    status: Status
    addresses: tuple[str, ...] = ()
    expires: float = _FOREVER
    """When a suspect is dead, or a tombstone forgotten."""
    dial_at: float = _FOREVER
    redial_s: float = 0.0
    dialing: bool = False
    was_linked: bool = False
    """The link closed and the redial is under way: its failure is a death."""
    distances: dict[PeerId, int] = field(default_factory=dict)
    """Links to it by way of each neighbour, as that neighbour announced."""


@dataclass
class Link:
    """A neighbour."""

    peer: PeerId
    rtt_s: float | None = None


@dataclass
class _Probe:
    """One running probe, ours or on behalf of another."""

    target: PeerId
    tries: dict[int, float]
    next_at: float
    give_up_at: float
    direct_left: int
    helpers: frozenset[PeerId] = frozenset()
    """Asked to probe it too: they, and the target, may answer."""
    asked_by: tuple[PeerId, int] | None = None
    """Who wants to know, under which number."""


class Membership:
    """The members, the links and the probes between them."""

    def __init__(
        self,
        me: PeerId,
        config: Config,
        rng: Random,
        out: list[Effect],
        refute: Callable[[PeerId, Version], None],
        now: float,
    ) -> None:
        self.me = me
        self.members: dict[PeerId, Member] = {}
        self.links: dict[PeerId, Link] = {}
        self._config = config.membership
        self._dial_discovered = config.net.dial_discovered
        self._rng = rng
        self._out = out
        self._refute = refute
        self._probes: list[_Probe] = []
        self._order: list[PeerId] = []
        self._seq = 0
        self._probe_at = now + self._config.probe_interval_s
        self._updates: dict[PeerId, tuple[Update, int]] = {}
        self._left: Version | None = None
        """The version this peer left in; None: it stays."""

    # -- what others ask of it ------------------------------------------------------------------------

    def is_alive(self, peer: PeerId) -> bool:
        """Return whether `peer` is a member that may be given work: alive, or suspected and still linked."""
        member = self.members.get(peer)
        if member is None:
            return False
        return member.status is Status.ALIVE or (member.status is Status.SUSPECT and peer in self.links)

    def outdated(self, peer: PeerId, version: Version) -> bool:
        """Return whether a record of `version` is no news: known, or of the departed."""
        member = self.members.get(peer)
        return member is not None and version <= member.version

    def route(self, peer: PeerId, barred: Collection[PeerId] = ()) -> tuple[PeerId, int] | None:
        """Return the neighbour, none of `barred`, through which `peer` is nearest and the links to it;
        None: out of reach."""
        if peer in self.links and peer not in barred:
            return peer, 1
        member = self.members.get(peer)
        if member is None:
            return None
        ways = [(d + 1, n) for n, d in member.distances.items() if d + 1 < DISTANCE_MAX and n not in barred]
        if not ways:
            return None
        distance, neighbour = min(ways)
        return neighbour, distance

    @property
    def has_left(self) -> bool:
        """Whether this peer has said goodbye."""
        return self._left is not None

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        times = [self._probe_at]
        times.extend(min(p.next_at, p.give_up_at) for p in self._probes)
        times.extend(min(m.expires, m.dial_at) for m in self.members.values())
        return min(times)

    # -- events ---------------------------------------------------------------------------------------

    def connected(self, peer: PeerId, now: float) -> None:
        """A link came up: note it, and tell the peer if it is believed dead, so that it can refute."""
        if self._left is not None:
            self._say_goodbye(peer, self._left)  # whoever dials us now has not heard it yet
        self.links[peer] = Link(peer)
        member = self.members.get(peer)
        if member is not None:
            member.dialing = member.was_linked = False
            member.redial_s = 0.0
            member.dial_at = _FOREVER
        self._ping(peer, now, direct=1)

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A link closed: the peer gets no work until it is back, and is dialled at once to see."""
        del self.links[peer]
        for other in self.members.values():
            other.distances.pop(peer, None)
        self._probes = [p for p in self._probes if p.target != peer]
        member = self.members.get(peer)
        if member is None or member.status >= Status.DEAD:
            return
        self._believe(Update(peer, Status.SUSPECT, member.version), now)
        member.was_linked = True
        if self._may_dial(member):
            member.dial_at = now
        self.advance(now)

    def dial_failed(self, peer: PeerId, now: float) -> None:
        """A dial found nobody: try again later; after a closed link it is a death."""
        member = self.members.get(peer)
        if member is None or peer in self.links:
            return
        member.dialing = False
        if member.was_linked:
            member.was_linked = False
            self._believe(Update(peer, Status.DEAD, member.version), now)
        low, high = self._config.redial_min_s, self._config.redial_max_s
        member.redial_s = min(high, max(low, member.redial_s * 2))
        # Spread, so that two peers that always dial at the same moment stop doing so.
        member.dial_at = now + member.redial_s * (0.75 + 0.5 * self._rng.random())

    def discovered(self, peer: PeerId, addresses: tuple[str, ...], now: float) -> None:
        """Somebody says that `peer` is to be had there: dial it. It is no member until its record came."""
        member = self.members.get(peer)
        if member is not None:
            if peer not in self.links and not member.dialing:
                member.dial_at = now
        elif self._left is None and peer not in (self.me, *self.links) and self._has_room():
            self._out.append(Dial(peer, addresses))

    def heard(self, peer: PeerId, version: Version, addresses: tuple[str, ...], now: float) -> bool:
        """A newer record of `peer` has been verified. Returns False when there is no room for it."""
        member = self.members.get(peer)
        if member is None:
            if len(self.members) >= self._config.members_max and not self._forget_one(peer):
                return False
            member = self.members[peer] = Member(peer, version, Status.ALIVE)
        elif member.status is not Status.ALIVE:
            self._out.append(Notify(peer, "alive again"))
        member.version, member.addresses, member.status = version, addresses, Status.ALIVE
        member.expires = _FOREVER
        self._updates.pop(peer, None)
        if peer not in self.links and not member.dialing and self._may_dial(member):
            grace = 0.0 if self.me < peer else self._config.dial_grace_s
            member.dial_at = min(member.dial_at, now + grace)
        return True

    def distance(self, neighbour: PeerId, peer: PeerId, links: int) -> bool:
        """`neighbour` says that it is `links` away from `peer`. Returns whether our own way changed."""
        member = self.members.get(peer)
        if member is None or neighbour not in self.links or peer == neighbour:
            return False
        before = self.route(peer)
        if links >= DISTANCE_MAX:
            member.distances.pop(neighbour, None)
        else:
            member.distances[neighbour] = links
        return self.route(peer) != before

    # -- messages -------------------------------------------------------------------------------------

    def on_ping(self, peer: PeerId, message: Ping, now: float) -> None:
        """Answer, with news."""
        self._absorb(peer, message.updates, now)
        self._out.append(Send(peer, Ack(message.seq, self._news(peer))))

    def on_ping_request(self, peer: PeerId, message: PingRequest, now: float) -> None:
        """Probe for another, if the target is linked."""
        self._absorb(peer, message.updates, now)
        if message.target in self.links and len(self._probes) < 4 * self._config.links_max:
            self._ping(message.target, now, direct=1, asked_by=(peer, message.seq))

    def on_ack(self, peer: PeerId, message: Ack, now: float) -> None:
        """A probe was answered, by its target or through one who was asked to help."""
        self._absorb(peer, message.updates, now)
        for probe in self._probes:
            sent_at = probe.tries.get(message.seq)
            if sent_at is None or (peer != probe.target and peer not in probe.helpers):
                continue
            self._probes.remove(probe)
            link = self.links.get(peer)
            if probe.target == peer and link is not None:
                sample = now - sent_at
                link.rtt_s = sample if link.rtt_s is None else link.rtt_s + _RTT_GAIN * (sample - link.rtt_s)
            self._cleared(probe.target)
            if probe.asked_by is not None:
                asker, seq = probe.asked_by
                self._out.append(Send(asker, Ack(seq, ())))
            return

    def on_leave(self, peer: PeerId, message: Leave, now: float) -> None:
        """The peer goes on purpose: it is not mourned and not dialled."""
        member = self.members.get(peer)
        if member is not None and member.version <= message.version:
            self._believe(Update(peer, Status.LEFT, message.version), now)

    def leave(self, version: Version) -> None:
        """Go, on purpose: say so, end the links, and dial nobody from now on."""
        self._left = version
        for peer in self.links:
            self._say_goodbye(peer, version)

    def _say_goodbye(self, peer: PeerId, version: Version) -> None:
        self._out.append(Send(peer, Leave(version)))
        self._out.append(Hangup(peer))

    # -- time -----------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do what is due: probes, verdicts, dials."""
        self._advance_probes(now)
        if now >= self._probe_at:
            self._probe_at = now + self._config.probe_interval_s
            self._probe_next(now)
            self._dial_one(now)
        for member in list(self.members.values()):
            if now >= member.expires:
                self._expire(member, now)
            if now >= member.dial_at:
                member.dial_at = _FOREVER
                if self._may_dial(member) and member.id not in self.links:
                    member.dialing = True
                    self._out.append(Dial(member.id, member.addresses))

    def _expire(self, member: Member, now: float) -> None:
        if member.status is Status.SUSPECT:
            self._believe(Update(member.id, Status.DEAD, member.version), now)
        elif member.id in self.links:
            member.expires = now + self._config.tombstone_s
        else:
            self._forget(member.id)

    def _probe_next(self, now: float) -> None:
        self._order = [p for p in self._order if p in self.links]
        if not self._order:
            self._order = sorted(self.links)
            self._rng.shuffle(self._order)
        if self._order:
            target = self._order.pop()
            if not any(p.target == target and p.asked_by is None for p in self._probes):
                self._ping(target, now, direct=self._config.direct_tries)

    def _ping(
        self, target: PeerId, now: float, direct: int, asked_by: tuple[PeerId, int] | None = None
    ) -> None:
        give_up = now + self._config.probe_interval_s * 0.9
        probe = _Probe(target, {}, now, give_up, direct, asked_by=asked_by)
        self._probes.append(probe)
        self._try_probe(probe, now)

    def _try_probe(self, probe: _Probe, now: float) -> None:
        self._seq = (self._seq + 1) % _SEQ_END
        probe.tries[self._seq] = now
        probe.next_at = now + self._config.probe_timeout_s
        if probe.direct_left > 0:
            probe.direct_left -= 1
            self._out.append(Send(probe.target, Ping(self._seq, self._news(probe.target))))
            return
        probe.next_at = _FOREVER
        if probe.asked_by is None:
            others = [p for p in self.links if p != probe.target]
            helpers = self._rng.sample(others, min(len(others), self._config.indirect_peers))
            probe.helpers = frozenset(helpers)
            for peer in helpers:
                self._out.append(Send(peer, PingRequest(self._seq, probe.target, self._news(peer))))

    def _advance_probes(self, now: float) -> None:
        for probe in list(self._probes):
            if now >= probe.give_up_at:
                self._probes.remove(probe)
                member = self.members.get(probe.target)
                if probe.asked_by is None and member is not None and member.status is Status.ALIVE:
                    self._believe(Update(probe.target, Status.SUSPECT, member.version), now)
            elif now >= probe.next_at:
                self._try_probe(probe, now)

    # -- beliefs --------------------------------------------------------------------------------------

    def _cleared(self, peer: PeerId) -> None:
        """It answered us: drop a suspicion that is ours to drop. Others hear its own refutation."""
        member = self.members.get(peer)
        if member is not None and member.status is Status.SUSPECT and peer in self.links:
            member.status, member.expires = Status.ALIVE, _FOREVER

    def _absorb(self, peer: PeerId, updates: tuple[Update, ...], now: float) -> None:
        """Believe `peer`, within reason: an update is signed by nobody."""
        mine = [u.version for u in updates if u.id == self.me and u.status is not Status.ALIVE]
        if mine:
            self._refute(peer, max(mine))
        for update in updates:
            member = self.members.get(update.id)
            if member is None or update.version < member.version:
                continue
            status = update.status
            if update.id in self.links:
                # Hearsay does not cut a link of ours: it is told, and refutes, or our own probe decides.
                status = min(status, Status.SUSPECT)
            if status > member.status:
                # Of the version whose signature we hold: one made up could never be refuted.
                self._believe(Update(update.id, status, member.version), now)

    def departed(self, peer: PeerId, version: Version) -> None:
        """Somebody offers a record of one we hold for gone: have it told again, so that either they bury it
        or it refutes."""
        member = self.members.get(peer)
        if member is not None and member.status >= Status.DEAD and version <= member.version:
            self._tell(Update(peer, member.status, member.version))

    def _believe(self, update: Update, now: float) -> None:
        member = self.members[update.id]
        if update.status <= member.status and update.version == member.version:
            return
        member.status, member.version = update.status, update.version
        if update.status is Status.SUSPECT:
            spread = max(1.0, math.log10(max(10, len(self.links))))
            member.expires = now + self._config.suspicion_mult * spread
        else:
            member.expires = now + self._config.tombstone_s
            member.was_linked = False
            self._out.append(Notify(update.id, "left" if update.status is Status.LEFT else "dead"))
            if update.id in self.links:
                self._out.append(Hangup(update.id))
            if update.status is Status.LEFT:
                member.dial_at = _FOREVER
            elif not member.dialing and self._may_dial(member):
                # A partition looks like death from both sides: keep knocking, slowly.
                member.dial_at = min(member.dial_at, now + self._config.redial_max_s)
        self._tell(update)

    def _tell(self, update: Update) -> None:
        rounds = math.ceil(self._config.retransmit_mult * math.log10(len(self.links) + 1))
        self._updates[update.id] = (update, max(1, rounds))

    def _news(self, peer: PeerId) -> tuple[Update, ...]:
        """The least-told updates for `peer`, first of all what concerns itself."""
        chosen = []
        about = self.members.get(peer)
        if about is not None and about.status is not Status.ALIVE:
            chosen.append(Update(peer, about.status, about.version))
        ranked = sorted(self._updates.items(), key=lambda item: (-item[1][1], item[0]))
        for ident, (update, left) in ranked[: self._config.updates_per_frame_max - len(chosen)]:
            if ident == peer:
                continue
            chosen.append(update)
            if left <= 1:
                del self._updates[ident]
            else:
                self._updates[ident] = (update, left - 1)
        return tuple(chosen)

    # -- links ----------------------------------------------------------------------------------------

    def _may_dial(self, member: Member) -> bool:
        return (
            self._dial_discovered
            and self._left is None
            and bool(member.addresses)
            and member.status is not Status.LEFT
            and self._has_room()
        )

    def _has_room(self) -> bool:
        return len(self.links) < self._config.links_max

    def _dial_one(self, now: float) -> None:
        """While there is room for links, try one more of the living: a dial put off because there was none
        is made up for, and a peer that lost its links finds new ones."""
        if self._dial_discovered and self._has_room():
            strange = [
                m for m in self.members.values() if m.status is Status.ALIVE and m.id not in self.links
            ]
            idle = [m for m in strange if not m.dialing and m.dial_at == _FOREVER and self._may_dial(m)]
            if idle:
                self._rng.choice(idle).dial_at = now

    def _forget_one(self, newcomer: PeerId) -> bool:
        """Make room by forgetting the oldest of the departed; for a link of ours, if need be, the farthest
        of the rest: a flood of records must not keep neighbours out. Returns whether there was one."""
        others = [m for m in self.members.values() if m.id not in self.links]
        gone = [m for m in others if m.status >= Status.DEAD]
        if gone:
            self._forget(min(gone, key=lambda m: (m.expires, m.id)).id)
            return True
        if newcomer in self.links and others:
            self._forget(max(others, key=lambda m: ((self.route(m.id) or (m.id, DISTANCE_MAX))[1], m.id)).id)
            return True
        return False

    def _forget(self, peer: PeerId) -> None:
        del self.members[peer]
        self._updates.pop(peer, None)
