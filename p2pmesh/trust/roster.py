"""Who is in a mesh, and what it may see, as far as signers have said so. Pure: the time comes in by argument.

A roster grows only: from whatever order statements come in, or how often, the same roster follows, and what
was revoked cannot come back by gossip. Only what the signers of today said counts. So the majority that takes
a signer away takes back whatever he alone has said, which is what one wants of a key that was stolen; the
others sign anew what is to last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from p2pmesh.errors import Untrusted
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust.statements import Certificate, Change, Genesis, Quorum, Revocation, Signed

LIFE_MAX_S = 7 * 86_400
"""Longest life of a certificate, in seconds: what a peer cut off from every signer has left, and how long one
that was revoked may get in at one that is cut off, too. A guess: a machine off over a weekend comes back."""
SKEW_S = 300
"""Seconds by which a clock may be slow: a certificate made just now counts there, too. As Kerberos has it."""
CHANGES_MAX = 64
"""Most changes of signers."""
REVOKED_MAX = 1_024
"""Most revocations of each signer; those that no certificate can contradict any more make room."""


@dataclass(frozen=True)
class Member:
    """A peer that is in."""

    peer: PeerId
    zones: frozenset[str]
    """What it may see, the general zone among it."""
    until: int
    """When its certificate ends, in Unix seconds."""


class Roster:
    """What is known of one mesh's signers, and of who was thrown out."""

    def __init__(self, genesis: Signed) -> None:
        """Raises Untrusted for what is no genesis."""
        if not isinstance(genesis.statement, Genesis):
            raise Untrusted("not the beginning of a mesh")
        self.mesh = genesis.digest
        self.name = genesis.statement.name
        self._genesis = genesis
        self._changes: dict[bytes, Signed] = {}
        self._revoked: dict[tuple[PeerId, PeerId], Signed] = {}
        """The latest, by signer and peer."""
        self.quorum = genesis.statement.quorum
        """Who signs today."""

    def __iter__(self) -> Iterator[Signed]:
        """All there is to tell somebody who knows the genesis, in an order in which it can be taken."""
        yield from self._changes.values()  # each was taken when what it follows was known
        told = {signed.to_bytes(): signed for signed in self._revoked.values()}  # it may be of two signers
        yield from (told[data] for data in sorted(told))

    def add(self, signed: Signed) -> bool:
        """Take a change of signers or a revocation; return whether it told anything new.

        Raises Untrusted for what no signer said, what is of another mesh, and what goes beyond a bound; the
        roster is then as it was. A change whose forerunner is not known yet is such: it may come again.
        """
        statement = signed.statement
        if isinstance(statement, (Genesis, Certificate)):
            raise Untrusted("a roster takes changes of signers and revocations")
        if statement.mesh != self.mesh:
            raise Untrusted("it is of another mesh")
        return self._change(signed) if isinstance(statement, Change) else self._revoke(signed, statement)

    def check(self, certificate: Signed, peer: PeerId, now: float) -> Member:
        """Return `peer` as a member by its `certificate` at `now`, in Unix seconds. Raises Untrusted, saying
        why it is none. Zones that too few have signed are not granted."""
        said = certificate.statement
        if not isinstance(said, Certificate) or said.mesh != self.mesh:
            raise Untrusted("its certificate is of another mesh")
        if said.peer != peer:
            raise Untrusted("its certificate is another peer's")
        if said.not_after - said.not_before > LIFE_MAX_S:
            raise Untrusted(f"its certificate lasts longer than {LIFE_MAX_S // 86_400} days")
        if now < said.not_before - SKEW_S:
            raise Untrusted("its certificate is of the future: is a clock wrong?")
        if now >= said.not_after:
            raise Untrusted("its certificate has expired")
        signed = len(certificate.signers.intersection(self.quorum.signers))
        if signed < self.quorum.admit:
            raise Untrusted(f"{signed} of {self.quorum.admit} signers have let it in")
        if said.not_before <= self.revoked_at(peer):
            raise Untrusted("it was thrown out")
        zones = said.zones if signed >= self.quorum.zoned else ()
        return Member(peer, frozenset((GENERAL, *zones)), said.not_after)

    def revoked_at(self, peer: PeerId) -> int:
        """Return until when, in Unix seconds, certificates of `peer` must not have begun; -1: never said."""
        said = [self._revoked.get((PeerId(signer), peer)) for signer in self.quorum.signers]
        return max((_at(signed) for signed in said if signed is not None), default=-1)

    def forget(self, now: float) -> None:
        """Drop revocations that no certificate which is still alive can contradict."""
        self._revoked = {k: s for k, s in self._revoked.items() if _at(s) + LIFE_MAX_S + SKEW_S > now}

    def _change(self, signed: Signed) -> bool:
        if signed.digest in self._changes:
            return False
        if not any(_follows(signed, old) for old in (self._genesis, *self._changes.values())):
            raise Untrusted("a change of signers without their majority, or after one that is not known")
        if len(self._changes) >= CHANGES_MAX:
            raise Untrusted(f"more than {CHANGES_MAX} changes of signers: found a new mesh")
        self._changes[signed.digest] = signed
        self.quorum = self._current()
        return True

    def _current(self) -> Quorum:
        """Return who signs after all changes. Where a majority has said two things, the one with the lesser
        digest counts, for everybody alike."""
        last = self._genesis
        while following := [s for s in self._changes.values() if _follows(s, last)]:
            last = min(following, key=lambda signed: signed.digest)
        return _quorum(last)

    def _revoke(self, signed: Signed, said: Revocation) -> bool:
        ever = {PeerId(s) for old in (self._genesis, *self._changes.values()) for s in _quorum(old).signers}
        signers = signed.signers & ever
        if not signers:
            raise Untrusted("no signer has said so")
        keys = [(signer, PeerId(said.peer)) for signer in sorted(signers)]
        old = {key: self._revoked.get(key) for key in keys}
        counts = Counter(signer for signer, _ in self._revoked)
        if any(was is None and counts[signer] >= REVOKED_MAX for (signer, _), was in old.items()):
            raise Untrusted(f"more than {REVOKED_MAX} revocations of one signer")
        later = [k for k, s in old.items() if s is None or (_at(s), s.digest) < (said.at, signed.digest)]
        self._revoked.update(dict.fromkeys(later, signed))
        return bool(later)


def _at(signed: Signed) -> int:
    assert isinstance(signed.statement, Revocation)
    return signed.statement.at


def _quorum(signed: Signed) -> Quorum:
    assert isinstance(signed.statement, (Genesis, Change))
    return signed.statement.quorum


def _follows(change: Signed, old: Signed) -> bool:
    """Whether `change` comes after `old`, and a majority of its signers say so."""
    quorum, said = _quorum(old), change.statement
    after = isinstance(said, Change) and said.after == old.digest
    return after and len(change.signers.intersection(quorum.signers)) >= quorum.majority
