"""What they can do: records, announced by name and pulled once.

Digests repair what was missed: one sum for each of a few buckets of peers, so that two who know the same find
out in 300 bytes, however many they know. It verifies every record and says so to membership; it knows nothing
of probes, loads and queries.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from p2pmesh.config import Config
from p2pmesh.protocol import digests
from p2pmesh.protocol.admission import Signer, Trust
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.equivocation import Equivocation
from p2pmesh.protocol.events import Effect, Notify, Send
from p2pmesh.protocol.membership import Membership
from p2pmesh.protocol.messages import (
    DISTANCE_MAX,
    Announce,
    Digest,
    Line,
    Lines,
    Pull,
    Records,
    Seek,
    Status,
)
from p2pmesh.record import (
    VERSION_MAX,
    Capability,
    PeerId,
    PeerRecord,
    SignedRecord,
    Version,
    record_to_sign,
)

_NEW_MAX = 4
"""New links that are compared with at once; one more learns as all do. A guess: a few are enough to join two
meshes."""
_DIGEST_PAUSE_S = 0.25
"""Seconds between digests to new links. A guess: time for the first to teach us what the second would."""
_PULL_PATIENCE_S = 2.0
"""Seconds until an unanswered pull is made again from whoever announces next."""
_OFFERED_RANDOM = 8
"""Peers told of at random in an exchange, beside those that are near to whoever is told (research: a swap of
8 in 30 s)."""
_NEVER = Version(-1, -1)


class Gossip:
    """The records and loads, ours and others'."""

    def __init__(
        self,
        record: PeerRecord,
        config: Config,
        codec: Codec,
        signer: Signer,
        trust: Trust | None,
        equivocation: Equivocation,
        membership: Membership,
        rng: Random,
        out: list[Effect],
        now: float,
    ) -> None:
        self.records: dict[PeerId, SignedRecord] = {}
        self.rejected = 0
        self.changes = 0
        """Counts changes of `records`."""
        self._config = config.gossip
        self._limits = config.limits
        self._codec = codec
        self._signer = signer
        self._trust = trust
        self._equivocation = equivocation
        self._membership = membership
        self._rng = rng
        self._out = out
        self._fresh: dict[PeerId, int] = {}
        self._pulls: dict[PeerId, float] = {}
        self._foretold: dict[PeerId, tuple[PeerId, int]] = {}
        """Who told last of a record that we lack, and how far it is from there."""
        self._announce_at = math.inf
        self._digest_at = now + self._config.digest_interval_s
        self._digest_last = -math.inf
        self._new: list[PeerId] = []
        """Links not compared with yet."""
        self._shared: tuple[tuple[object, ...], dict[PeerId, SignedRecord], bytes] | None = None
        """What may be passed on and its sums, and as of when: a thousand records are not gone through for
        each message."""
        self._declined: OrderedDict[PeerId, Version] = OrderedDict()
        """Records there was no room for: not to be pulled again while it is full."""
        self._tidied = 0
        self.me = self._sign(record)
        self._freshen(record.id, now)

    def crowd(self, admit: Callable[[PeerRecord], bool], offer: Callable[[PeerId], Sequence[PeerId]]) -> None:
        """Where there are more peers than room: `admit` says whether a newcomer takes the place of another,
        who is forgotten then; `offer` returns whom to tell a link of, the best first."""
        self._admit, self._offer = admit, offer

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

    def republish(self, now: float, seal_key: bytes = b"") -> None:
        """Publish the same anew: with another certificate, or another key to seal to."""
        record = replace(self.me.record, seal_key=seal_key or self.me.record.seal_key)
        self._publish(record, record.version, now)

    def _publish(self, record: PeerRecord, after: Version, now: float) -> None:
        self.me = self._sign(replace(record, version=after.next()))
        self._freshen(record.id, now)

    def _sign(self, record: PeerRecord) -> SignedRecord:
        body = self._codec.encode_record(record)
        certificate = b"" if self._trust is None else self._trust.certificate()
        return SignedRecord(record, body, self._signer.sign(record_to_sign(body, certificate)), certificate)

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return min(self._announce_at, self._digest_at)

    # -- events ---------------------------------------------------------------------------------------

    def connected(self, peer: PeerId, now: float) -> None:
        """Compare what we know with a new link soon; not with all at once, or a peer that comes would be told
        the same by each."""
        if len(self._new) < _NEW_MAX and peer not in self._new:
            self._new.append(peer)
        self._digest_at = min(self._digest_at, max(now, self._digest_last + _DIGEST_PAUSE_S))
        if peer in self.records:
            self._freshen(peer, now)  # the way to it is new
        if self._membership.partial:  # where sums are not compared, it would not hear who we are
            self._out.append(Send(peer, Announce(self._lines(peer, [self.me.record.id]))))

    def disconnected(self, peer: PeerId, now: float) -> None:
        """Tell the others of the ways that went with it, and ask them for other ways."""
        for ident in self.records:
            if self._membership.route(ident) is None or ident == peer:
                self._freshen(ident, now)
        self._seek(*sorted(self._membership.links))

    def on_digest(self, peer: PeerId, message: Digest) -> None:
        """Tell `peer` all we hold where it holds something else."""
        differing = digests.differing(self._sums(), message.sums)
        if differing:
            idents = [i for i in self._all() if digests.bucket(i) in differing]
            self._out.append(Send(peer, Lines(differing, self._lines(peer, idents))))

    def on_lines(self, peer: PeerId, message: Lines, now: float) -> None:
        """These are all that `peer` holds in some buckets: pull what is news, announce what it lacks."""
        self._on_told(peer, message.lines, now)
        theirs = {line.id: line.version for line in message.lines}
        buckets = set(message.buckets)
        newer = [
            i
            for i, r in self._all().items()
            if digests.bucket(i) in buckets and (i not in theirs or theirs[i] < r.record.version)
        ]
        if newer:
            self._out.append(Send(peer, Announce(self._lines(peer, newer))))

    def on_announce(self, peer: PeerId, message: Announce, now: float) -> None:
        """Pull what is news."""
        self._on_told(peer, message.lines, now)

    def on_seek(self, peer: PeerId, message: Seek) -> None:
        """Tell `peer` the ways we know."""
        lines = [line for line in self._lines(peer, list(message.ids)) if line.distance < DISTANCE_MAX]
        if lines:
            self._out.append(Send(peer, Announce(tuple(lines))))

    def _on_told(self, peer: PeerId, lines: tuple[Line, ...], now: float) -> None:
        wanted = []
        mine = self.me.record
        for line in lines:
            self._equivocation.told(peer, line.id)
            held = self._held(line.id)
            if held is not None and line.version == held.record.version and line.mark not in (b"", held.mark):
                wanted.append(line.id)
            elif line.id == mine.id:
                if mine.version < line.version:
                    wanted.append(line.id)
                continue
            elif self._membership.outdated(line.id, line.version):
                self._membership.departed(line.id, line.version)
                self._heard_again(line)
            elif self._has_declined(line):
                continue
            else:
                wanted.append(line.id)
                self._foretold[line.id] = (peer, line.distance)
                if len(self._foretold) > self._limits.digest_max:
                    del self._foretold[next(iter(self._foretold))]
            if self._way(peer, line.id, line.distance):
                self._freshen(line.id, now)
        self._pull(peer, wanted, now)

    def _heard_again(self, line: Line) -> None:
        """Others tell what we tell: one round less is enough (Demers: rumour mongering with feedback)."""
        left = self._fresh.get(line.id)
        held = self.records.get(line.id)
        if left is None or held is None or held.record.version != line.version:
            return
        if left > 1:
            self._fresh[line.id] = left - 1
        else:
            del self._fresh[line.id]

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
            held = {**held, peer: self.records[peer]}
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
            held = self._held(record.id)
            twice = held is not None and held.record.version == record.version and held.mark != signed.mark
            if not twice and self._membership.outdated(record.id, record.version):
                continue
            if not self._signer.verify(record.id, signed.signed, signed.signature):
                self.rejected += 1
                self._out.append(Notify(peer, "passed on a record that its owner never signed"))
                continue
            if self._trust is not None and not self._trust.vouches(
                record.id, signed.certificate, record.capability.zones
            ):
                self.rejected += 1
                self._out.append(
                    Notify(peer, "passed on a record of one that is not in, or not in its zones")
                )
                continue
            if held is not None and twice:
                self._equivocation.found(held, signed)
                if self._trust is None and held is not self.me and held.mark < signed.mark:
                    self.records[record.id] = signed  # where nobody is out, all are to hold the same at least
                    self.changes += 1
                continue
            if record.id == self.me.record.id:
                self._outlive(peer, record.version, now)
                continue
            if self._keep(record, now):
                self.records[record.id] = signed
                self.changes += 1
                self._equivocation.let_in(record.id)
                if record.id in self._foretold:
                    neighbour, links = self._foretold[record.id]
                    self._way(neighbour, record.id, links)
                self._freshen(record.id, now)
        for signed in message.records:
            self._foretold.pop(signed.record.id, None)
        self._tidy()

    def _held(self, peer: PeerId) -> SignedRecord | None:
        return self.me if peer == self.me.record.id else self.records.get(peer)

    def _has_declined(self, line: Line) -> bool:
        """Whether there was no room for it, and still is none; for a link there always is."""
        if not self._membership.full or line.id in self._membership.links:
            return False
        return line.version <= self._declined.get(line.id, _NEVER)

    def _keep(self, record: PeerRecord, now: float) -> bool:
        """Make it a member. Returns whether there is room for it."""
        about = (record.id, record.version, record.addresses, now)
        if self._membership.heard(*about) or (self._admit(record) and self._membership.heard(*about)):
            return True
        self._decline(record)
        return False

    def _decline(self, record: PeerRecord) -> None:
        self._declined[record.id] = record.version
        self._declined.move_to_end(record.id)
        if len(self._declined) > self._limits.digest_max:
            self._declined.popitem(last=False)

    def forgotten(self, peer: PeerId) -> None:
        """It could not be reached, and is no member any more: do not pull the same record again."""
        if peer in self.records:
            self._decline(self.records[peer].record)

    def _tidy(self) -> None:
        """Drop the records of those who are members no more."""
        if self._tidied == self._membership.changes:
            return
        self._tidied = self._membership.changes
        for gone in [i for i in self.records if i not in self._membership.members]:
            del self.records[gone]
            self.changes += 1

    def _outlive(self, peer: PeerId, version: Version, now: float) -> None:
        """Publish a record newer than that of a life of ours which we do not remember."""
        if version.epoch >= VERSION_MAX:
            self.rejected += 1
            self._out.append(Notify(peer, "holds a record of ours that nothing beats: our key was misused"))
        elif self.me.record.version < version:
            # Of a later epoch: that life may have said more than has come here, and never two of one version.
            self._publish(self.me.record, Version(version.epoch + 1, 0), now)

    # -- time -----------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do what is due: announcements, a digest."""
        self._tidy()
        if now >= self._announce_at:
            self._announce(now)
        if now >= self._digest_at:
            self._send_digest(now)

    def _send_digest(self, now: float) -> None:
        """Compare notes with one link: one that is new, or any; and look for lost ways."""
        links = self._membership.links
        self._new = [peer for peer in self._new if peer in links]
        self._digest_last = now
        if links:
            peer = self._new.pop(0) if self._new else self._rng.choice(sorted(links))
            for nameless in sorted(links.keys() - self._membership.members.keys()):
                self._out.append(Send(nameless, Pull((nameless,))))
            if self._membership.partial:
                self._exchange(peer)
            else:
                self._out.append(Send(peer, Digest(self._sums())))
            self._seek(peer)
        self._digest_at = now + (_DIGEST_PAUSE_S if self._new else self._config.digest_interval_s)

    def _way(self, neighbour: PeerId, peer: PeerId, links: int) -> bool:
        """`neighbour` says that it is `links` away from `peer`. Returns whether others should hear of it."""
        member, linked = self._membership.members.get(peer), self._membership.links
        if member is None or neighbour not in linked or peer == neighbour:
            return False
        return member.told(neighbour, links) and peer not in linked

    def lost(self) -> list[PeerId]:
        """Return the living to whom no way is known, not even a dial."""
        reach, members = self._membership.can_reach, self._membership.members.values()
        return [m.id for m in members if m.way is None and m.status < Status.DEAD and not reach(m.id)]

    def _seek(self, *links: PeerId) -> None:
        """Ask links for ways to those who were lost."""
        lost = self.lost()
        if lost:
            seek = Seek(tuple(lost[: self._limits.digest_max]))
            self._out.extend(Send(peer, seek) for peer in links)

    def _exchange(self, peer: PeerId) -> None:
        """Tell a link of peers that it may want to know: no two know the same, so sums would tell nothing."""
        rest = sorted(i for i in self.records if i != peer and self._membership.can_reach(i))
        some = self._rng.sample(rest, min(len(rest), _OFFERED_RANDOM))
        idents = list(dict.fromkeys((self.me.record.id, *self._offer(peer), *some)))
        self._out.append(Send(peer, Announce(self._lines(peer, idents))))

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
        return self._share()[0]

    def _sums(self) -> bytes:
        """What we may pass on, as one sum for each bucket of peers: equal sums, equal records."""
        return self._share()[1]

    def _share(self) -> tuple[dict[PeerId, SignedRecord], bytes]:
        as_of = (self.me.record.version, self.changes, self._membership.changes)
        if self._shared is None or self._shared[0] != as_of:
            members = self._membership.members
            held = {self.me.record.id: self.me}
            for ident, record in self.records.items():
                member = members.get(ident)
                if member is not None and member.status < Status.DEAD:
                    held[ident] = record
            self._shared = as_of, held, digests.sums(held)
        return self._shared[1:]

    def _lines(self, peer: PeerId, idents: list[PeerId]) -> tuple[Line, ...]:
        """Lines for `peer` about `idents`. A way that leads through `peer` is told as none, or two neighbours
        would each believe that the other knows one."""
        lines = []
        held = self._all()
        for ident in idents:
            if ident not in held:
                continue
            way = (ident, 0) if ident == self.me.record.id else self._membership.route(ident)
            distance = DISTANCE_MAX if way is None or way[0] == peer else way[1]
            lines.append(Line(ident, held[ident].record.version, distance, held[ident].mark))
        return tuple(lines[: self._limits.digest_max])
