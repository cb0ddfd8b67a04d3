"""What this peer shows to be let in, and how it judges what others show. Pure: it is given a clock.

It puts together a roster, this peer's own certificate and, where a signer's key is on this machine, that key.
It knows no file and no wire: whoever keeps it is told when it has changed, and passes on what it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from p2pmesh.errors import MeshError, Untrusted
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust import tickets
from p2pmesh.trust.grants import NO_KEY, NOT_A_SIGNER, TWO_CHANGES, Policy, is_fair
from p2pmesh.trust.papers import Papers, Secret, Welcome, read_shown
from p2pmesh.trust.roster import EQUIVOCATES, LIFE_MAX_S, SKEW_S, Member, Roster
from p2pmesh.trust.seen import Seen
from p2pmesh.trust.statements import (
    Certificate,
    Quorum,
    Revocation,
    Signed,
    Signer,
    check_name,
)
from p2pmesh.trust.tickets import Invite, Ticket

LIFE_S = LIFE_MAX_S
"""Seconds that a certificate lasts: for so long is in who was thrown out, where nobody has heard of it."""
ZONED_LIFE_S = 86_400
"""The same of one with zones. A guess: a room whose signer is away for a day."""
_DRAFT_S = 60.0
"""Seconds for which one draft is offered to the signers: their signatures must be under the same bytes."""


class Standing:
    """This peer in its mesh. Implements `net.door.Door` and `protocol.admission.Trust`."""

    def __init__(
        self,
        me: PeerId,
        genesis: Signed,
        certificate: Signed,
        clock: Callable[[], float],
        statements: Collection[Signed] = (),
        invites: tuple[Invite, ...] = (),
        key: Signer | None = None,
        banned: Mapping[PeerId, int] | None = None,
        former: Collection[PeerId] = (),
        approved: tuple[int, bytes] = (0, b""),
    ) -> None:
        """`clock`: Unix seconds. `key`: of a signer, where this machine has one. Raises Untrusted for what
        does not belong together; an expired certificate is taken, and shown in vain."""
        self.me = me
        self.genesis = genesis
        self.roster = Roster(genesis)
        for signed in statements:
            self.roster.add(signed, clock(), judged=True)
        for peer, since in (banned or {}).items():
            self.roster.ban_since(peer, since)
        self.roster.former.update(self.roster.banned.keys() & former)
        self.own = certificate
        """This peer's certificate."""
        self.invites = invites
        self.approved = approved
        """The number of the change of signers that this machine signed last, and its digest."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is something new to keep. A MeshError it raises undoes what somebody asked for;
        what the mesh has said holds all the same, and `unkept` says why it may be forgotten."""
        self.unkept = ""
        self.on_renewal: Callable[[], None] = lambda: None
        """Called when this peer has a new certificate, which may grant other zones."""
        self.policy = Policy(self.roster, key)
        self._key = key
        self._clock = clock
        self._seen = Seen()
        self._draft: Signed | None = None
        self._drafted = -math.inf
        self._heard: list[bytes] = []
        """What was learnt at the door, and nobody was told of yet."""

    @property
    def signs(self) -> bool:
        """Whether a signer's key is on this machine, of one who signs or will."""
        return self._key is not None and self._key.id in self.roster.signers(self._clock())

    def member(self) -> Member:
        """Return this peer as others see it. Raises Untrusted where they do not let it in."""
        return self.roster.check(self.own, self.me, self._clock())

    def zones(self) -> tuple[str, ...]:
        """Return what this peer may see: what everybody may, where it is not let in any more."""
        try:
            return tuple(sorted(self.member().zones))
        except Untrusted:
            return (GENERAL,)

    # -- the door -------------------------------------------------------------------------------------

    def show(self) -> bytes:
        """Return this peer's certificate, with what it takes to judge it."""
        return self._papers(b"")

    def admit(self, peer: PeerId, shown: bytes) -> bytes:
        """Let in `peer` by its certificate and return nothing; to whoever shows a ticket, return what it is
        for. Raises Untrusted, saying why neither, and MeshError where a ticket's use cannot be kept."""
        papers = read_shown(shown)
        if isinstance(papers, Secret):
            return self._redeem(peer, papers.secret)
        self._judge(peer, papers)
        return b""

    def judge(self, peer: PeerId, shown: bytes) -> bytes:
        """Judge `peer`, which was let in, by what it shows now; return its draft with this peer's signature
        under it, where that is to be had, or nothing. Raises Untrusted where it is not let in any more."""
        papers = read_shown(shown)
        if isinstance(papers, Secret):
            raise Untrusted("a ticket is shown at the door")
        member = self._judge(peer, papers)
        if not (papers.draft and self.signs):
            return b""
        return self.granted(peer) or self._renewed(member, papers)

    def _judge(self, peer: PeerId, papers: Papers) -> Member:
        if len(papers.changes) > len(self.roster.changes):
            new, wrong = self.learn(papers.changes)
            self._heard += new
            if wrong:
                raise Untrusted(wrong)
        certificate = Signed.parse(papers.certificate)
        member = self.roster.check(certificate, peer, self._clock())
        self._seen.show(peer, certificate)
        return member

    def certificate(self) -> bytes:
        """Return this peer's certificate, as it goes with its record."""
        return self.own.to_bytes()

    def vouches(self, peer: PeerId, certificate: bytes, zones: Collection[str]) -> bool:
        """Return whether `certificate` proves that `peer` is in, and may see `zones`."""
        try:
            signed = self._seen.read(certificate)
            granted = self.roster.check(signed, peer, self._clock()).zones
        except Untrusted:
            return False
        self._seen.tell(certificate, signed)
        return granted.issuperset(zones)

    # -- what signers say -----------------------------------------------------------------------------

    def statements(self) -> Sequence[bytes]:
        """Return all that signers have said beside certificates."""
        return [signed.to_bytes() for signed in self.roster]

    def learn(self, statements: Sequence[bytes]) -> tuple[list[bytes], str]:
        """Take revocations and changes, up to the first that does not hold; return those that are new, as
        they are to be passed on, and what is wrong with that one, or nothing."""
        new: list[bytes] = []
        wrong = ""
        for statement in statements:
            try:
                signed = Signed.parse(statement)
                now = self._clock()
                if self.roster.add(signed, now):
                    new.append(self.roster.kept(signed, now))
                    if isinstance(signed.statement, Revocation):
                        self._void(PeerId(signed.statement.peer), signed.statement.at)
            except Untrusted as error:
                wrong = str(error)
                break
        if new:
            self._changed()
        return new, wrong

    def heard(self) -> list[bytes]:
        """Return what was learnt at the door since this was last asked."""
        heard, self._heard = self._heard, []
        return heard

    def ban(self, peer: PeerId, certificates: Sequence[bytes]) -> bool:
        """Let in `peer`, which equivocates, no more by `certificates`; return whether that is news. Raises
        Untrusted where they never let it in."""
        if not self.roster.ban(peer, [Signed.parse(one) for one in certificates], self._clock()):
            return False
        self._void(peer, self.roster.banned[peer])
        self._changed()
        return True

    def _void(self, out: PeerId, at: int) -> None:
        """Take back the tickets that whoever is thrown out has used: he would come again under a new key."""
        self.invites = tuple(one for one in self.invites if out not in one.used or int(one.made) > at)

    def _changed(self) -> None:
        try:
            self.on_change()
        except MeshError as error:
            self.unkept = str(error)
        else:
            self.unkept = ""

    def outsiders(self, peers: Collection[PeerId]) -> list[PeerId]:
        """Return those of `peers` that would not be let in any more."""
        now, found = self._clock(), []
        for peer in peers:
            try:
                self.roster.check(self._seen.shown[peer], peer, now)
            except (KeyError, Untrusted):
                found.append(peer)
        return found

    # -- renewal --------------------------------------------------------------------------------------

    def renewal(self) -> bytes:
        """Return what to show to signers, once the certificate is past half its life, or does not hold, or
        will not when the signers have changed; before that nothing."""
        if given := self.granted(self.me):
            self.take(given)
        said, now = self._said, self._clock()
        if self.unkept:
            self._changed()
        young = now < (said.not_before + said.not_after) / 2
        if young and self._grants_all(self.own, now) and self._will_hold(self.own, now):
            return b""
        try:
            granted = self.member().zones
        except Untrusted:
            return self._renewed_alone()
        if self._draft is None or not 0 <= now - self._drafted < _DRAFT_S:
            life = said.not_after - said.not_before
            zones = tuple(zone for zone in said.zones if zone in granted)
            new = Certificate(said.mesh, said.peer, zones, said.since, int(now), int(now) + life)
            self._draft, self._drafted = Signed.of(new, [self._key] if self.signs and self._key else ()), now
            if self._complete(self._draft):
                return self.show()
        return self._papers(self._draft.to_bytes())

    def _renewed_alone(self) -> bytes:
        """Where this peer is not let in any more: one that has the key that suffices was only away for long.
        Any other needs a ticket."""
        said, now = self._said, self._clock()
        out_at = self.roster.revoked_at(self.me, now)
        if not self.signs or said.since <= out_at:
            return b""
        banned = said.since <= self.roster.banned.get(self.me, -1)  # nobody else could let it in
        since = int(now) if banned else min(said.since, int(now))  # a clock may have been ahead
        try:
            new = self.certify(self.me, said.zones, max(since, out_at + 1))
        except Untrusted:
            return b""
        if not self._grants_all(new, now):
            return b""
        self._show_from_now_on(new)
        return self.show()

    def take(self, granted: bytes) -> None:
        """Take a signature under the draft, which becomes the certificate once there are enough of them, or
        a certificate with other zones; another is ignored. Raises Untrusted for what is no statement."""
        signed = Signed.parse(granted)
        if self._draft is None or signed.body != self._draft.body:
            return self._take_unasked(signed)
        # Nobody but signers: others' signatures would make it too long to be read.
        theirs = signed.only(self.roster.signers(self._clock())).signatures
        merged = {**dict(self._draft.signatures), **dict(theirs)}
        self._draft = Signed(self._draft.statement, self._draft.body, tuple(sorted(merged.items())))
        self._complete(self._draft)
        return None

    def _take_unasked(self, signed: Signed) -> None:
        """A signer grants other zones than before. What is older than what this peer shows is ignored: it may
        be played back."""
        new, now = signed.statement, self._clock()
        if (
            isinstance(new, Certificate)
            and (new.peer, new.since) == (self.me, self._said.since)
            and new.not_before > self._said.not_before
            and self._grants_all(signed, now)
            and self._will_hold(signed, now)
        ):
            self._draft = None
            self._show_from_now_on(signed.only(self.roster.signers(now)))

    def granted(self, peer: PeerId) -> bytes:
        """Return a certificate for `peer`, this one or one that was let in, by this machine's policy, where
        that grants it other zones than it shows; nothing otherwise, and where this machine alone cannot."""
        certificate = self.own if peer == self.me else self._seen.shown.get(peer)
        now = self._clock()
        said = None if certificate is None else certificate.statement
        zones = self.policy.instead(peer, said, now)
        if certificate is None or not isinstance(said, Certificate) or zones is None:
            return b""
        try:
            self.roster.check(certificate, peer, now)
            return self.certify(peer, zones, said.since).to_bytes()
        except Untrusted:
            return b""

    def _complete(self, draft: Signed) -> bool:
        """Show it from now on, if enough have signed it for all that it is to grant, now and when the signers
        will have changed."""
        now = self._clock()
        if not (self._grants_all(draft, now) and self._will_hold(draft, now)):
            return False
        self._draft = None
        self._show_from_now_on(draft)
        return True

    def _grants_all(self, certificate: Signed, now: float, quorum: Quorum | None = None) -> bool:
        """Whether `certificate` lets this peer in with all the zones it names."""
        assert isinstance(certificate.statement, Certificate)
        try:
            member = self.roster.check(certificate, self.me, now, quorum)
        except Untrusted:
            return False
        return member.zones.issuperset(certificate.statement.zones)

    def _will_hold(self, certificate: Signed, now: float) -> bool:
        """Whether `certificate` holds as well when the signers will have changed as is known already."""
        return all(self._grants_all(certificate, now, quorum) for quorum in self.roster.upcoming(now))

    def _show_from_now_on(self, certificate: Signed) -> None:
        self.own = certificate
        self._changed()
        self.on_renewal()

    def _renewed(self, member: Member, papers: Papers) -> bytes:
        """Sign a draft of `member`'s, if it asks for no more than it has. Returns nothing otherwise."""
        now = self._clock()
        signed = Signed.parse(papers.draft).only(self.roster.signers(now))
        old = Signed.parse(papers.certificate).statement
        fair = isinstance(old, Certificate) and is_fair(signed.statement, old, member, now)
        fair = fair and self.policy.instead(member.peer, signed.statement, now) is None
        return signed.signed([self._key]).to_bytes() if fair and self._key is not None else b""

    # -- tickets --------------------------------------------------------------------------------------

    def invite(
        self, secret: bytes, addresses: tuple[str, ...], zones: tuple[str, ...], life_s: float, uses: int
    ) -> Ticket:
        """Return a ticket of `secret`, random bytes, which lets `uses` peers in during `life_s` seconds.
        Raises Untrusted where this peer alone cannot let them in."""
        now = self._clock()
        made = tickets.counts_from(now, self.roster.revoked_last(self._signing().id) - SKEW_S)
        self.certify(self.me, zones, int(now))  # what could not be certified then is refused now
        self.member()  # to one that is outside nobody comes
        ticket = Ticket(self.roster.mesh, self.me, addresses, secret)
        self._keep_invites(tickets.invite(secret, zones, now + life_s, uses, self.invites, now, made))
        return Ticket.parse(str(ticket))

    def withdraw(self, ticket: Ticket) -> tuple[PeerId, ...]:
        """Let nobody in by `ticket` from now on; return whom it has let in, who stay. Raises Untrusted where
        this peer gave out no such ticket, or it is void already."""
        gone, left = tickets.withdraw(ticket.secret, self.invites)
        self._keep_invites(left)
        return gone.used

    def certify(self, peer: PeerId, zones: tuple[str, ...], since: int) -> Signed:
        """Return a certificate of `peer`, let in at `since`, signed with this machine's key. Raises Untrusted
        where that does not let it in."""
        key = self._signing()
        quorum = self.roster.quorum(self._clock())
        if (needed := quorum.zoned if zones else quorum.admit) > 1:
            raise Untrusted(f"it takes {needed} signers, and this peer has the key of one")
        for zone in zones:
            check_name("a zone", zone)
        begins = int(self._clock())
        ends = begins + (ZONED_LIFE_S if zones else LIFE_S)
        return Signed.of(Certificate(self.roster.mesh, peer, zones, since, begins, ends), [key])

    def revoke(self, peer: PeerId) -> bytes:
        """Throw `peer` out, and return the statement, for all to know. Raises Untrusted where this machine
        has no signer's key, and for this peer itself."""
        if peer == self.me:
            raise Untrusted("that is this peer itself: let another signer's do it")
        key = self._signing()
        # A signer whose clock is ahead may have let it in, and anew since; no ticket is to bring it back.
        at = max(math.ceil(tickets.newest(self.invites, self._clock())) + SKEW_S, self._seen.since(peer))
        signed = Signed.of(Revocation(self.roster.mesh, peer, at), [key])
        self.learn([signed.to_bytes()])
        if self.roster.revoked_at(peer, self._clock()) < at:
            raise Untrusted("there is no room for one more who was thrown out: found a new mesh")
        return signed.to_bytes()

    # -- who signs ------------------------------------------------------------------------------------

    def signed(self, said: Signed) -> Signed:
        """Return it, signed by this machine. Raises Untrusted where its key will not sign."""
        return said.signed([self._signing(self.roster.last)])

    def approve(self, change: Signed, anew: bool = False) -> Signed:
        """Return `change`, signed by this machine too; where that is enough it holds, and `learn` takes it.
        Raises Untrusted where this peer is no signer who is asked, it does not follow on the last change, or
        this machine has signed another that does not either: `anew` says that nobody else will sign that
        one."""
        signed = change.signed([self._signing(*self.roster.asked(change))])
        self.roster.missing(change)
        number = len(self.roster.changes) + 1
        if not anew and self.approved[0] == number and self.approved[1] != change.digest:
            raise Untrusted(TWO_CHANGES)
        before, self.approved = self.approved, (number, change.digest)
        try:
            self.on_change()
        except MeshError:
            self.approved = before
            raise
        return signed

    def _signing(self, *quorums: Quorum) -> Signer:
        """Return this machine's key, if it is of one of `quorums`; of those who sign now, without any."""
        if self._key is None:
            raise Untrusted(NO_KEY)
        for quorum in quorums or (self.roster.quorum(self._clock()),):
            if self._key.id in quorum.signers:
                return self._key
        raise Untrusted(NOT_A_SIGNER)

    def _redeem(self, peer: PeerId, secret: bytes) -> bytes:
        out_until = self.roster.revoked_at(peer, self._clock())
        found, after = tickets.redeem(secret, peer, self.invites, out_until - SKEW_S, self._clock())
        # Since the ticket was given out, not since now: who has not heard of a revocation undoes it not.
        since = max(min(int(found.made), int(self._clock())), out_until + 1)
        if since <= self.roster.banned.get(peer, -1):
            raise Untrusted(EQUIVOCATES)
        certificate = self.certify(peer, found.zones, since)
        if after is not self.invites:
            self._keep_invites(after)  # before it is given: it must not be good again after a crash
        return msgspec.msgpack.encode(
            Welcome(self.genesis.to_bytes(), certificate.to_bytes(), self._history())
        )

    def _keep_invites(self, invites: tuple[Invite, ...]) -> None:
        before, self.invites = self.invites, invites
        try:
            self.on_change()
        except MeshError:
            self.invites = before
            raise

    @property
    def _said(self) -> Certificate:
        assert isinstance(self.own.statement, Certificate)
        return self.own.statement

    def _papers(self, draft: bytes) -> bytes:
        return msgspec.msgpack.encode(Papers(self.own.to_bytes(), draft, self._history()))

    def _history(self) -> tuple[bytes, ...]:
        return tuple(change.to_bytes() for change in self.roster.changes)
