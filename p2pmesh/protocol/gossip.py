"""What they can do, and how busy they are: gossip at two speeds.

Records are announced by name and pulled once; digests repair what was missed. Load goes straight to the
links when it moved, and is not passed on: a global load table goes stale and herds. It verifies every record
and says so to membership; it knows nothing of probes and queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from p2pmesh.config import Config
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.events import Effect, Notify, Send
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.messages import (
    DISTANCE_MAX,
    Announce,
    Digest,
    Line,
    LoadReport,
    Pull,
    Records,
    Status,
)
from p2pmesh.record import VERSION_MAX, Capability, Load, PeerId, PeerRecord, SignedRecord, Version

_PULL_PATIENCE_S = 2.0
"""Seconds until an unanswered pull is made again from whoever announces next."""


class Signer(Protocol):
    """What the mesh needs of a key. The real one is `net.identity`'s; the simulator has its own."""

    def sign(self, body: bytes) -> bytes:
        """Return this peer's signature of `body`."""
        ...

    def verify(self, peer: PeerId, body: bytes, signature: bytes) -> bool:
        """Return whether `peer` signed `body`. Never raises."""
        ...


@dataclass
class Known:
    """The last load a link reported, and what we have sent it since."""

    load: Load
    at: float
    sent_s: float = 0.0
    """Work, in seconds, that we passed to it since: it is not in its report yet."""


class Gossip:
    """The records and loads, ours and others'."""

    def __init__(
        self,
        record: PeerRecord,
        config: Config,
        codec: Codec,
        signer: Signer,
        membership: Membership,
        rng: Random,
        out: list[Effect],
        now: float,
    ) -> None:
        self.records: dict[PeerId, SignedRecord] = {}
        self.rejected = 0
        self._config = config.gossip
        self._limits = config.limits
        self._codec = codec
        self._signer = signer
        self._membership = membership
        self._rng = rng
        self._out = out
        self._loads: dict[PeerId, Known] = {}
        self._fresh: dict[PeerId, int] = {}
        self._pulls: dict[PeerId, float] = {}
        self._announce_at = math.inf
        self._digest_at = now + self._config.digest_interval_s
        self._load = Load()
        self._load_sent: tuple[float, Load] = (-math.inf, Load())
        self._load_at = now + self._config.load_keepalive_s
        self.me = self._sign(record)
        self._freshen(record.id, now)

    # -- our own record and load ----------------------------------------------------------------------

    def describe(self, capability: Capability, addresses: tuple[str, ...], now: float) -> None:
        """Publish what this peer can do and where it is, if that is news."""
        record = self.me.record
        if capability == record.capability and addresses == record.addresses:
            return
        described = replace(record, capability=capability, addresses=addresses)
        # A later version takes more bytes: one that has no room for it must not be published now.
        self._codec.encode_record(replace(described, version=Version(VERSION_MAX, VERSION_MAX)))
        self._publish(described, record.version, now)

    def refute(self, peer: PeerId, version: Version, now: float) -> None:
        """`peer` believes us gone in `version`: publish a newer one, which beats it. A version we do not
        know is one of a life we do not remember, or made up: our own signature must tell."""
        if version == self.me.record.version:
            self._publish(self.me.record, version, now)
        elif self.me.record.version < version:
            self._pull(peer, [self.me.record.id], now)

    def _publish(self, record: PeerRecord, after: Version, now: float) -> None:
        self.me = self._sign(replace(record, version=after.next()))
        self._freshen(record.id, now)

    def _sign(self, record: PeerRecord) -> SignedRecord:
        body = self._codec.encode_record(record)
        return SignedRecord(record, body, self._signer.sign(body))

    def own_load(self, load: Load, now: float) -> None:
        """Note how busy this peer is; the links hear of it when it moved."""
        self._load = load
        sent_at, sent = self._load_sent
        moved = abs(max(0.0, sent.remaining_s - (now - sent_at)) - load.remaining_s)
        turned = (sent.free_slots == 0) != (load.free_slots == 0)
        if moved > self._config.load_delta_s or turned:
            self._load_at = min(self._load_at, max(now, sent_at + self._config.load_interval_min_s))

    # -- what others ask of it ------------------------------------------------------------------------

    def wait_s(self, peer: PeerId, now: float) -> float:
        """Return the seconds until `peer` can begin another query, as last reported and drained since."""
        known = self._loads.get(peer)
        if known is None:
            return 0.0
        return max(0.0, known.load.remaining_s + known.sent_s - (now - known.at))

    def load(self, peer: PeerId) -> Load | None:
        """Return what `peer` last reported, or None."""
        known = self._loads.get(peer)
        return None if known is None else known.load

    def sent(self, peer: PeerId, work_s: float, now: float) -> None:
        """We passed `work_s` seconds of work to `peer`, which its reports do not show yet."""
        known = self._loads.setdefault(peer, Known(Load(), now))
        known.sent_s += work_s

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return min(self._announce_at, self._digest_at, self._load_at)

    # -- events ---------------------------------------------------------------------------------------

    def connected(self, peer: PeerId, now: float) -> None:
        """Tell a new link all we know, and how busy we are."""
        self._out.append(Send(peer, Digest(self._lines(peer, None))))
        self._out.append(Send(peer, LoadReport(self._load)))
        if peer in self.records:
            self._freshen(peer, now)  # the way to it is new

    def disconnected(self, peer: PeerId, now: float) -> None:
        """Forget its load; tell the others of the ways that went with it."""
        self._loads.pop(peer, None)
        for ident in self.records:
            if self._membership.route(ident) is None or ident == peer:
                self._freshen(ident, now)

    def on_lines(self, peer: PeerId, message: Announce | Digest, now: float) -> None:
        """Pull what is news; to a digest, announce what the sender lacks."""
        wanted = []
        mine = self.me.record
        for line in message.lines:
            if line.id == mine.id:
                if mine.version < line.version:
                    wanted.append(line.id)
                continue
            if self._membership.outdated(line.id, line.version):
                self._membership.departed(line.id, line.version)
            else:
                wanted.append(line.id)
            if self._membership.distance(peer, line.id, line.distance):
                self._freshen(line.id, now)
        self._pull(peer, wanted, now)
        if isinstance(message, Digest):
            theirs = {line.id: line.version for line in message.lines}
            newer = [i for i, r in self._all().items() if i not in theirs or theirs[i] < r.record.version]
            if newer:
                self._out.append(Send(peer, Announce(self._lines(peer, newer))))

    def _pull(self, peer: PeerId, idents: list[PeerId], now: float) -> None:
        """Ask `peer` for what nobody was asked for just now. Where too many are outstanding to remember
        another, it is asked for all the same: twice is better than never."""
        if len(self._pulls) >= self._limits.digest_max:
            self._pulls = {i: at for i, at in self._pulls.items() if at + _PULL_PATIENCE_S > now}
        wanted = []
        for ident in dict.fromkeys(idents):
            if self._pulls.get(ident, -math.inf) + _PULL_PATIENCE_S <= now:
                wanted.append(ident)
                if ident in self._pulls or len(self._pulls) < self._limits.digest_max:
                    self._pulls[ident] = now
        if wanted:
            self._out.append(Send(peer, Pull(tuple(wanted))))

    def on_pull(self, peer: PeerId, message: Pull) -> None:
        """Send the records asked for, in frames that fit; to a peer also its own, which it may have lost."""
        held = self._all()
        if peer in self.records:
            held[peer] = self.records[peer]
        batch: list[SignedRecord] = []
        for ident in dict.fromkeys(message.ids):
            if ident in held:
                batch.append(held[ident])
            if len(batch) == self._limits.records_per_frame_max:
                self._out.append(Send(peer, Records(tuple(batch))))
                batch = []
        if batch:
            self._out.append(Send(peer, Records(tuple(batch))))

    def on_records(self, peer: PeerId, message: Records, now: float) -> None:
        """Verify, keep and announce what is newer than what we have."""
        for signed in message.records:
            record = signed.record
            self._pulls.pop(record.id, None)
            if self._membership.outdated(record.id, record.version):
                continue
            if not self._signer.verify(record.id, signed.body, signed.signature):
                self.rejected += 1
                self._out.append(Notify(peer, "passed on a record that its owner never signed"))
                continue
            if record.id == self.me.record.id:
                self._outlive(peer, record.version, now)
                continue
            if self._membership.heard(record.id, record.version, record.addresses, now):
                self.records[record.id] = signed
                self._freshen(record.id, now)
        for gone in [i for i in self.records if i not in self._membership.members]:
            del self.records[gone]

    def _outlive(self, peer: PeerId, version: Version, now: float) -> None:
        """Publish a record newer than that of a life of ours which we do not remember."""
        if version.epoch >= VERSION_MAX:
            self.rejected += 1
            self._out.append(Notify(peer, "holds a record of ours that nothing beats: our key was misused"))
        elif self.me.record.version < version:
            self._publish(self.me.record, version, now)

    def on_load(self, peer: PeerId, message: LoadReport, now: float) -> None:
        """Note how busy a link is."""
        self._loads[peer] = Known(message.load, now)

    # -- time -----------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do what is due: announcements, a digest, our load."""
        if now >= self._announce_at:
            self._announce(now)
        if now >= self._digest_at:
            self._digest_at = now + self._config.digest_interval_s
            if self._membership.links:
                peer = self._rng.choice(sorted(self._membership.links))
                self._out.append(Send(peer, Digest(self._lines(peer, None))))
        if now >= self._load_at:
            self._load_at = now + self._config.load_keepalive_s
            self._load_sent = (now, self._load)
            links = sorted(self._membership.links)
            if len(links) > self._config.load_set_max:
                links = self._rng.sample(links, self._config.load_set_max)
            self._out.extend(Send(peer, LoadReport(self._load)) for peer in links)

    def _announce(self, now: float) -> None:
        idents = list(self._fresh)
        links = sorted(self._membership.links)
        for peer in self._rng.sample(links, min(len(links), self._config.fanout)):
            self._out.append(Send(peer, Announce(self._lines(peer, idents))))
        self._fresh = {ident: left - 1 for ident, left in self._fresh.items() if left > 1}
        self._announce_at = now + self._config.announce_interval_s if self._fresh else math.inf

    def _freshen(self, ident: PeerId, now: float) -> None:
        """Announce `ident` for a few rounds; the first at the next moment, so that a burst goes as one."""
        self._fresh[ident] = self._config.announce_rounds
        if self._announce_at == math.inf:
            self._announce_at = now + self._config.announce_interval_s / 4

    def _all(self) -> dict[PeerId, SignedRecord]:
        """What may be passed on: our own record and those of the living."""
        members = self._membership.members
        held = {self.me.record.id: self.me}
        for ident, record in self.records.items():
            member = members.get(ident)
            if member is not None and member.status < Status.DEAD:
                held[ident] = record
        return held

    def _lines(self, peer: PeerId, idents: list[PeerId] | None) -> tuple[Line, ...]:
        """Lines for `peer` about `idents` (None: all). A way that leads through `peer` is told as none,
        or two neighbours would each believe that the other knows one."""
        lines = []
        held = self._all()
        for ident in held if idents is None else idents:
            if ident not in held:
                continue
            way = (ident, 0) if ident == self.me.record.id else self._membership.route(ident)
            distance = DISTANCE_MAX if way is None or way[0] == peer else way[1]
            lines.append(Line(ident, held[ident].record.version, distance))
        return tuple(lines[: self._limits.digest_max])
