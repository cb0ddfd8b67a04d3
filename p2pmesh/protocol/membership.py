"""Who is here: probe, suspect, refute, leave (SWIM, with records' versions as incarnations).

Detection is scoped to links. A closed link is strong evidence and is used at once: if the redial fails too,
the peer is dead. What is believed spreads as updates piggybacked on probes. It knows of records only their
version, and nothing of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from random import Random

from p2pmesh.config import Config
from p2pmesh.protocol.alarms import Alarms
from p2pmesh.protocol.events import Dial, Effect, Hangup, Notify, Send
from p2pmesh.protocol.member import TOLD_AT, Member, suspicion_s
from p2pmesh.protocol.messages import Ack, Leave, Part, Ping, PingRequest, Status, Update
from p2pmesh.protocol.probing import Link, Prober
from p2pmesh.protocol.rumours import Rumours
from p2pmesh.record import PeerId, Version

_FOREVER = math.inf
_FRESH_S = 2.0
"""Seconds for which a peer that answered us is not suspected on the word of others. A guess: two probes."""
_PARTED_S = 30.0
"""Seconds for which a peer that had no room for us is not dialled. A guess."""


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
        self.changes = 0
        """Counts changes of what is believed."""
        self.partial = False
        """Whether there are more peers than this one can know."""
        self.can_spare: Callable[[], bool] = bool
        """Whether one of the links could give way to another."""
        self._config = config.membership
        self._dial_discovered = config.net.dial_discovered
        self._rng = rng
        self._out = out
        self._refute = refute
        self._alarms: Alarms[PeerId] = Alarms()
        self._prober = Prober(
            self.links, self._config, rng, out, self._news, self._cleared, self._silent, now, self._suspects
        )
        self._rumours = Rumours(self._config.updates_per_frame_max)
        self._as_of = now
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
        return None if member is None else member.way_past(barred)

    def way_to(self, peer: PeerId, barred: Collection[PeerId] = ()) -> tuple[PeerId, int] | None:
        """Return as `route` does, but straight to a peer that can be dialled."""
        member = self.members.get(peer)
        if member is None or peer in self.links or not self._is_open(member):
            return self.route(peer, barred)
        return peer, 2  # a dial takes a round trip more

    @property
    def full(self) -> bool:
        """Whether one more member would need another's place."""
        return len(self.members) >= self._config.members_max

    def can_reach(self, peer: PeerId) -> bool:
        """Return whether `peer` is linked, or may be dialled."""
        member = self.members.get(peer)
        return peer in self.links or (member is not None and self._is_open(member))

    def _is_open(self, member: Member) -> bool:
        """Whether a dial would likely succeed, and there is room for one more link. Where nobody knows all, a
        link that no query needs gives way."""
        if member.redial_s or member.parted_until > self._as_of or not self._may_dial(member):
            return False
        return self.has_room or (self.partial and self.can_spare())

    @property
    def may_dial_strangers(self) -> bool:
        """Whether this peer dials whom it knows by hearsay."""
        return self._dial_discovered and self._left is None and (self.has_room or self.can_spare())

    @property
    def has_left(self) -> bool:
        """Whether this peer has said goodbye."""
        return self._left is not None

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return min(self._prober.deadline, self._alarms.next)

    # -- events ---------------------------------------------------------------------------------------

    def connected(self, peer: PeerId, now: float) -> None:
        """A link came up: note it, and tell the peer if it is believed dead, so that it can refute."""
        if self._left is not None:
            self._say_goodbye(peer, self._left)  # whoever dials us now has not heard it yet
        self.links[peer] = Link(peer, now)
        member = self.members.get(peer)
        if member is not None:
            member.dialing = member.was_linked = False
            member.redial_s = member.parted_until = 0.0
            member.dial_at = _FOREVER
        self._prober.ping(peer, now, direct=1)

    def part(self, peer: PeerId) -> None:
        """End a link for want of room."""
        self._out.append(Send(peer, Part()))
        self._out.append(Hangup(peer))
        if peer in self.members:
            self.members[peer].was_linked = False  # it came: that it is not dialled now is no death
        if peer in self.links:
            self._unlink(peer)

    def _unlink(self, peer: PeerId) -> None:
        del self.links[peer]
        for other in self.members.values():
            other.unlinked(peer)
        self._prober.forget(peer)

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A link closed: no more work for its peer, which is dialled at once, unless it said why."""
        self._unlink(peer)
        member = self.members.get(peer)
        if member is None or member.status >= Status.DEAD or now < member.parted_until:
            return
        member.was_linked = True
        if self._may_dial(member):
            member.dial_at = now  # and who is dialled is not accused: it would have to refute it everywhere
            self._suspect(member, now)
        else:
            self._believe(Update(peer, Status.SUSPECT, member.version), now)
        self._watch(member)
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
        if self.partial and member.status < Status.DEAD:
            self.forget(peer)  # one of many that were heard of, and there are others
            return
        # Spread, so that two peers that always dial at the same moment stop doing so.
        member.dial_at = now + member.redial_s * (0.75 + 0.5 * self._rng.random())
        self._watch(member)

    def discovered(self, peer: PeerId, addresses: tuple[str, ...], now: float) -> None:
        """Somebody says that `peer` is to be had there: dial it. It is no member until its record came."""
        member = self.members.get(peer)
        if member is not None:
            if peer not in self.links and not member.dialing:
                member.dial_at = now
                self._watch(member)
        elif self._left is None and peer not in (self.me, *self.links) and self.has_room:
            self._out.append(Dial(peer, addresses))

    def heard(self, peer: PeerId, version: Version, addresses: tuple[str, ...], now: float) -> bool:
        """A newer record of `peer` has been verified. Returns False when there is no room for it."""
        member = self.members.get(peer)
        if member is None:
            if self.full and not self._forget_gone():
                self.partial = True
                return False
            member = self.members[peer] = Member(peer, version, Status.ALIVE)
        elif member.status is not Status.ALIVE:
            self._out.append(Notify(peer, "alive again"))
        member.version, member.addresses, member.status = version, addresses, Status.ALIVE
        self.changes += 1
        member.expires = _FOREVER
        self._rumours.drop(peer)
        return True

    # -- messages -------------------------------------------------------------------------------------

    def on_ping(self, peer: PeerId, message: Ping, now: float) -> None:
        """Answer, with news."""
        self._absorb(peer, message.updates, now)
        self._out.append(Send(peer, Ack(message.seq, self._news(peer))))

    def on_ping_request(self, peer: PeerId, message: PingRequest, now: float) -> None:
        """Probe for another, if the target is linked."""
        self._absorb(peer, message.updates, now)
        if message.target in self.links:
            self._prober.ping(message.target, now, direct=1, asked_by=(peer, message.seq))

    def on_ack(self, peer: PeerId, message: Ack, now: float) -> None:
        """A probe was answered, by its target or through one who was asked to help."""
        self._absorb(peer, message.updates, now)
        self._prober.on_ack(peer, message, now)

    def on_leave(self, peer: PeerId, message: Leave, now: float) -> None:
        """The peer goes on purpose: it is not mourned and not dialled."""
        member = self.members.get(peer)
        if member is not None and member.version <= message.version:
            self._believe(Update(peer, Status.LEFT, message.version), now)

    def on_part(self, peer: PeerId, now: float) -> None:
        """The peer has no room for us, and has ended the link: it lives, and others may have."""
        self._out.append(Hangup(peer))
        self._unlink(peer)
        member = self.members.get(peer)
        if member is not None:
            member.parted_until = now + _PARTED_S

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
        self._as_of = now
        self._prober.advance(now)
        for ident in self._alarms.ringing(now):
            member = self.members[ident]
            if now >= member.expires:
                self._expire(member, now)
            if now >= member.dial_at:
                member.dial_at = _FOREVER
                if self._may_dial(member) and self.has_room and ident not in self.links:
                    member.dialing = True
                    self._out.append(Dial(ident, member.addresses))
            if ident in self.members:
                self._watch(member)

    def _watch(self, member: Member) -> None:
        """Something is due for `member` earlier than it was."""
        self._alarms.set(member.id, min(member.expires, member.dial_at))

    def _expire(self, member: Member, now: float) -> None:
        if member.status is Status.SUSPECT:
            self._believe(Update(member.id, Status.DEAD, member.version), now)
        elif member.id in self.links:
            member.expires = now + self._config.tombstone_s
        else:
            self.forget(member.id)

    def excuse(self, seconds: float) -> None:
        """This peer was away for `seconds`, and so for what it did not hear nobody is to blame."""
        self._prober.excuse(seconds)
        for member in self.members.values():
            if member.status is Status.SUSPECT:
                member.expires += seconds
                member.suspected_at += seconds

    def _silent(self, peer: PeerId, now: float) -> None:
        """A probe of ours found it silent, directly and through others. The first time may be chance, and is
        kept to ourselves: an accusation has to be refuted everywhere."""
        member = self.members.get(peer)
        if member is None:  # one that never said who it is
            self.links[peer].missed += 1
            if self.links[peer].missed > self._config.confirmations:
                self._out.append(Hangup(peer))
        elif member.status is Status.ALIVE:
            self._suspect(member, now)
        elif member.status is Status.SUSPECT:
            self._confirm(member)
            if member.evidence == TOLD_AT:
                self._tell(Update(peer, Status.SUSPECT, member.version))

    def _suspects(self) -> list[PeerId]:
        """Return the links that were silent when they were last probed, the nameless too."""
        of, doubted = self.members, Status.SUSPECT
        return [p for p, link in self.links.items() if (of[p].status is doubted if p in of else link.missed)]

    # -- beliefs --------------------------------------------------------------------------------------

    def _cleared(self, peer: PeerId) -> None:
        """It answered us: drop a suspicion that is ours to drop. Others hear its own refutation."""
        member = self.members.get(peer)
        if member is not None and member.status is Status.SUSPECT and peer in self.links:
            member.status, member.expires = Status.ALIVE, _FOREVER
            self._rumours.drop(peer)
            self.changes += 1

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
                # Hearsay alone does not cut a link of ours: it is told and refutes, or our own probes decide.
                if now < self.links[update.id].heard_at + _FRESH_S:
                    continue
                if member.status is not Status.SUSPECT or member.evidence <= self._config.confirmations:
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
        self.changes += 1
        if update.status is Status.SUSPECT:
            self._suspect(member, now)
            member.evidence = max(member.evidence, TOLD_AT)
            if update.id in self.links:
                self._prober.look(update.id, now, suspected=False)  # who is accused clears itself soonest so
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
        self._watch(member)
        self._tell(update)

    def _suspect(self, member: Member, now: float) -> None:
        """Begin to suspect a peer, without a word to others."""
        member.status, member.suspected_at, member.evidence = Status.SUSPECT, now, 0
        self.changes += 1
        self._confirm(member)

    def _confirm(self, member: Member) -> None:
        """It was silent once more: wait the less before it counts as dead. Lifeguard counts how many others
        say so; but they repeat what they heard, and our own eyes do not."""
        enough = self._config.confirmations
        if member.evidence > enough:
            return
        member.evidence += 1
        member.expires = member.suspected_at + suspicion_s(member.evidence, len(self.links), self._config)
        self._watch(member)

    def _tell(self, update: Update) -> None:
        often = self._config.retransmit_mult * math.log10(len(self.links) + 1)
        self._rumours.tell(update, math.ceil(often))

    def _news(self, peer: PeerId) -> tuple[Update, ...]:
        """What to tell `peer`, first of all what concerns itself."""
        about = self.members.get(peer)
        if about is None or not about.is_accused:
            return self._rumours.news(peer)
        return self._rumours.news(peer, (Update(peer, about.status, about.version),))

    # -- links ----------------------------------------------------------------------------------------

    def _may_dial(self, member: Member) -> bool:
        return (
            self._dial_discovered
            and self._left is None
            and bool(member.addresses)
            and member.status is not Status.LEFT
        )

    @property
    def has_room(self) -> bool:
        """Whether there may be one more link."""
        return len(self.links) < 2 * self._config.links_max

    def dial_now(self, peer: PeerId, addresses: tuple[str, ...] = ()) -> None:
        """Link to `peer` at once, for something is to be sent there: one that is no member at `addresses`."""
        member = self.members.get(peer)
        if member is None:
            self._out.append(Dial(peer, addresses))
        elif not member.dialing:
            member.dialing, member.dial_at = True, _FOREVER
            self._out.append(Dial(peer, member.addresses))

    def dial(self, peer: PeerId, now: float) -> None:
        """Link to a member, unless a dial is under way, or put off, or somebody else's turn comes first."""
        member = self.members[peer]
        if now < member.parted_until:
            return
        if peer not in self.links and not member.dialing and member.dial_at == _FOREVER:
            # Of two who choose each other the lower id dials, and the other a little later.
            member.dial_at = now + (0.0 if self.me < peer else self._config.dial_grace_s)
            self._watch(member)

    def _forget_gone(self) -> bool:
        """Make room by forgetting the oldest of the departed. Returns whether there was one."""
        gone = [m for m in self.members.values() if m.status >= Status.DEAD and m.id not in self.links]
        if gone:
            self.forget(min(gone, key=lambda m: (m.expires, m.id)).id)
        return bool(gone)

    def forget(self, peer: PeerId) -> None:
        """Know nothing of `peer` any more, a member that is not linked."""
        del self.members[peer]
        self.changes += 1
        self.partial = self.partial and len(self.members) > self._config.members_max // 2
        self._alarms.drop(peer)
        self._rumours.drop(peer)
