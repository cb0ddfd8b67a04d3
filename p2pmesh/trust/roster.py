"""Who is in a mesh, and what it may see, as far as its signers have said so. Pure: the time is an argument.

A roster grows only, and forgets no revocation: from whatever order statements come in, or how often, the same
roster follows, and who was thrown out cannot come back by gossip, nor by being renewed where nobody knew. Who
signs is said once, by the genesis. Who equivocates is out as well, on evidence that it is told was looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from p2pmesh.errors import Untrusted
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust.statements import Certificate, Genesis, Revocation, Signed

LIFE_MAX_S = 7 * 86_400
"""Longest life of a certificate, in seconds: what a peer cut off from every signer has left, and how long one
that was revoked may get in at one that is cut off, too. A guess: a machine off over a weekend comes back."""
SKEW_S = 300
"""Seconds by which a clock may be slow: a certificate made just now counts there, too. As Kerberos has it."""
BANNED_MAX = 1_024
"""Most peers that are out for equivocation: each was let in by a signer once. A guess."""
REVOKED_MAX = 1_024
"""Most peers that one signer has thrown out. They are remembered for ever; more need a new mesh."""


EQUIVOCATES = "its key has signed two records of one version: it takes a new key, or a newer ticket"
"""Why a peer is out that is not who it says, or two."""


@dataclass(frozen=True)
class Member:
    """A peer that is in."""

    peer: PeerId
    zones: frozenset[str]
    """What it may see, the general zone among it."""
    until: int
    """When its certificate ends, in Unix seconds."""


class Roster:
    """One mesh's signers, and whom they have thrown out."""

    def __init__(self, genesis: Signed) -> None:
        """Raises Untrusted for what is no genesis."""
        if not isinstance(genesis.statement, Genesis):
            raise Untrusted("not the beginning of a mesh")
        self.mesh = genesis.digest
        self.name = genesis.statement.name
        self.quorum = genesis.statement.quorum
        self.signers = frozenset(map(PeerId, self.quorum.signers))
        self._revoked: dict[tuple[PeerId, PeerId], Signed] = {}
        """The latest, by signer and peer."""
        self.banned: dict[PeerId, int] = {}
        """Who equivocates, and since when it was in, in Unix seconds: let in later, it is in again."""

    def __iter__(self) -> Iterator[Signed]:
        """All there is to tell somebody who knows the genesis."""
        told = {signed.to_bytes(): signed for signed in self._revoked.values()}  # it may be of two signers
        yield from (told[data] for data in sorted(told))

    def add(self, signed: Signed) -> bool:
        """Take a revocation; return whether it told anything new, and there was room for it.

        Raises Untrusted for anything else, what is of another mesh, and what no signer said; the roster is
        then as it was.
        """
        said = signed.statement
        if not isinstance(said, Revocation):
            raise Untrusted("a roster takes revocations")
        if said.mesh != self.mesh:
            raise Untrusted("it is of another mesh")
        signed = signed.only(self.signers)
        if not signed.signatures:
            raise Untrusted("no signer has said so")
        counts = Counter(signer for signer, _ in self._revoked)
        later = []
        for signer, _ in signed.signatures:
            old = self._revoked.get((signer, PeerId(said.peer)))
            if old is None:
                later += [signer] * (counts[signer] < REVOKED_MAX)
            elif (_at(old), old.digest) < (said.at, signed.digest):
                later.append(signer)
        self._revoked.update({(signer, PeerId(said.peer)): signed for signer in later})
        return bool(later)

    def check(self, certificate: Signed, peer: PeerId, now: float) -> Member:
        """Return `peer` as a member by its `certificate` at `now`, in Unix seconds. Raises Untrusted, saying
        why it is none. Zones that too few have signed are not granted."""
        said = self._read(certificate, peer)
        if now < said.not_before - SKEW_S:
            raise Untrusted("its certificate is of the future: is a clock wrong?")
        if now >= said.not_after:
            raise Untrusted("its certificate has expired")
        signed = self._signed(certificate)
        if said.since <= self.revoked_at(peer):
            raise Untrusted("it was thrown out")
        if said.since <= self.banned.get(peer, -1):
            raise Untrusted(EQUIVOCATES)
        zones = said.zones if signed >= self.quorum.zoned else ()
        return Member(peer, frozenset((GENERAL, *zones)), said.not_after)

    def _read(self, certificate: Signed, peer: PeerId) -> Certificate:
        said = certificate.statement
        if not isinstance(said, Certificate) or said.mesh != self.mesh:
            raise Untrusted("its certificate is of another mesh")
        if said.peer != peer:
            raise Untrusted("its certificate is another peer's")
        if said.not_after - said.not_before > LIFE_MAX_S:
            raise Untrusted(f"its certificate lasts longer than {LIFE_MAX_S // 86_400} days")
        return said

    def _signed(self, certificate: Signed) -> int:
        signed = len(certificate.signers(self.signers))
        if signed < self.quorum.admit:
            raise Untrusted(f"{signed} of {self.quorum.admit} signers have let it in")
        return signed

    def ban(self, peer: PeerId, certificates: Collection[Signed]) -> bool:
        """Let `peer` in no more by what it was let in by at the time of `certificates`, which may have ended
        since: it equivocates. Return whether that is news, and there was room for it. Raises Untrusted where
        one of them never let it in; the roster is then as it was."""
        for certificate in certificates:
            self._signed(certificate)
        since = max(self._read(certificate, peer).since for certificate in certificates)
        return self.ban_since(peer, since)

    def ban_since(self, peer: PeerId, since: int) -> bool:
        """As `ban`, for who was let in at `since`, in Unix seconds, or earlier."""
        if since <= self.banned.get(peer, -1) or (peer not in self.banned and len(self.banned) >= BANNED_MAX):
            return False
        self.banned[peer] = since
        return True

    def revoked_at(self, peer: PeerId) -> int:
        """Return when, in Unix seconds, `peer` was thrown out the last time; -1: never."""
        said = [self._revoked.get((signer, peer)) for signer in sorted(self.signers)]
        return max((_at(signed) for signed in said if signed is not None), default=-1)


def _at(signed: Signed) -> int:
    assert isinstance(signed.statement, Revocation)
    return signed.statement.at
