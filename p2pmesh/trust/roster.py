"""Who is in a mesh, and what it may see, as far as its signers have said so. Pure: the time is an argument.

A roster forgets no revocation that counts: from whatever order statements come in, or how often, while who
said them signs, the same roster follows, and who was thrown out cannot come back by gossip, nor by being
renewed where nobody knew. Who signs says the genesis, and then each change, which most of those before have
signed: one chain, of which the first end that was heard of stays. A signer's word counts as long as he is
one. Who equivocates is out as well, on evidence that it is told was looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from p2pmesh.errors import Untrusted
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust.statements import (
    SIGNERS_MAX,
    Certificate,
    Change,
    Genesis,
    Quorum,
    Revocation,
    Signed,
)

LIFE_MAX_S = 7 * 86_400
"""Longest life of a certificate, in seconds: what a peer cut off from every signer has left, and how long one
that was revoked may get in at one that is cut off, too. A guess: a machine off over a weekend comes back."""
SKEW_S = 300
"""Seconds by which a clock may be slow: a certificate made just now counts there, too. As Kerberos has it."""
HISTORY_BYTES_MAX = 14_336
"""Longest that all changes of signers are together, in bytes: they are shown at the door, too."""
_SIGNATURE_BYTES = 122
"""Of one signature with whose it is."""
SINCE_AHEAD_MAX_S = 2 * SKEW_S
"""Seconds by which a certificate may begin before it says that its peer was let in: that is later than the
last revocation, which lies ahead for a clock that may be slow. Later still, nobody could be thrown out."""
AHEAD_MAX_S = 86_400
"""Most seconds that a revocation may lie ahead: for so long could no ticket make up for it. A guess: a clock
that is off by a day is noticed."""
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
        self.changes: list[Signed] = []
        """The changes of its signers, in order."""
        self._heads = [(genesis.digest, -math.inf, genesis.statement.quorum)]
        """Of the genesis and each change: the digest, since when it holds, and who signs from then on."""
        self._revoked: dict[tuple[PeerId, PeerId], Signed] = {}
        """The latest, by signer and peer."""
        self.banned: dict[PeerId, int] = {}
        """Who equivocates, and since when it was in, in Unix seconds: let in later, it is in again."""
        self.former: set[PeerId] = set()
        """Those of them whom only such have let in who sign no more."""

    def signers(self, now: float) -> frozenset[PeerId]:
        """Return who signs at `now` or will, in Unix seconds: whose signatures are worth keeping."""
        return _ids(*(quorum for _, quorum in self.from_now_on(now)))

    def quorum(self, now: float) -> Quorum:
        """Return who signs at `now`, in Unix seconds."""
        return next(quorum for _, since, quorum in reversed(self._heads) if since <= now)

    def from_now_on(self, now: float) -> list[tuple[int, Quorum]]:
        """Return who signs at `now`, and who will, each with since when in Unix seconds (0: the start)."""
        heads: list[tuple[int, Quorum]] = []
        for _, since, quorum in self._heads:  # a later one that holds sooner takes the place of an earlier
            heads = [(at, earlier) for at, earlier in heads if at < since]
            heads.append((0 if since == -math.inf else int(since), quorum))
        return heads[max(index for index, (since, _) in enumerate(heads) if since <= now) :]

    @property
    def last(self) -> Quorum:
        """Who signs when all changes hold."""
        return self._heads[-1][2]

    def upcoming(self, now: float) -> list[Quorum]:
        """Return who will sign, in turn, as the changes that are known come to hold."""
        return [quorum for _, quorum in self.from_now_on(now)[1:]]

    def __iter__(self) -> Iterator[Signed]:
        """All there is to tell somebody who knows the genesis, in an order in which it can be taken."""
        yield from self.changes
        told = {signed.to_bytes(): signed for signed in self._revoked.values()}  # it may be of two signers
        yield from (told[data] for data in sorted(told))

    def add(self, signed: Signed, now: float, *, judged: bool = False) -> bool:
        """Take a revocation or a change at `now`, in Unix seconds; return whether it told anything new, and
        there was room for it. The word of one who signs no more is no news, nor one of the far future, unless
        it was `judged` before, and kept since.

        Raises Untrusted for anything else, what is of another mesh, what no signer said, and a change that is
        none of this history; the roster is then as it was.
        """
        said = signed.statement
        if not isinstance(said, (Revocation, Change)):
            raise Untrusted("a roster takes revocations and changes")
        if said.mesh != self.mesh:
            raise Untrusted("it is of another mesh")
        if isinstance(said, Change):
            return self._change(said, signed)
        if not signed.signers(_ids(*(quorum for _, _, quorum in self._heads))):
            raise Untrusted("no signer has said so")
        if said.at > now + AHEAD_MAX_S and not judged:
            return False  # no ticket could make up for it
        signed = signed if judged else signed.only(self.signers(now))
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

    def kept(self, signed: Signed, now: float) -> bytes:
        """Return what `add` has just taken, as it is to be passed on."""
        if isinstance(signed.statement, Change):
            return self.changes[signed.statement.number - 1].to_bytes()
        return signed.only(self.signers(now)).to_bytes()

    def change(self, quorum: Quorum, at: int) -> Signed:
        """Return the next change, to be signed, by which `quorum` signs from `at` on, in Unix seconds. Raises
        Untrusted where there cannot be one."""
        return Signed.of(Change(self.mesh, len(self._heads), self._heads[-1][0], quorum, at))

    def missing(self, change: Signed) -> int:
        """Return how many must sign `change` yet, so that it holds. Raises Untrusted where it is none, or
        does not follow on the last one."""
        said = change.statement
        if not isinstance(said, Change) or said.mesh != self.mesh:
            raise Untrusted("no change of this mesh's signers")
        digest, _, quorum = self._heads[-1]
        if said.number < len(self._heads) and self._heads[said.number][0] == change.digest:
            raise Untrusted("it holds already, or will")
        if said.number != len(self._heads) or said.after != digest:
            raise Untrusted("it does not follow on the last change of signers that is known here")
        if (said.quorum.admit, said.quorum.zoned) != (quorum.admit, quorum.zoned):
            raise Untrusted("how many signers it takes does not change")
        if len(change.signers(_ids(quorum))) < sum(s in quorum.signers for s, _ in change.signatures):
            raise Untrusted("a signature under it does not hold: is it the whole word?")
        asked = self.asked(change)
        if len({*_ids(*asked), *said.quorum.signers}) > SIGNERS_MAX:
            raise Untrusted(f"those who sign and those who are to sign are more than {SIGNERS_MAX}")
        bodies = sum(len(one.body) for one in (*self.changes, change))
        signatures = sum(len(one.signatures) for one in self.changes) + sum(map(_most, asked))
        if bodies + signatures * _SIGNATURE_BYTES > HISTORY_BYTES_MAX:
            raise Untrusted("the signers were changed too often: found a new mesh")
        return max(0, *(_most(one) - len(change.signers(_ids(one))) for one in asked))

    def asked(self, change: Signed) -> list[Quorum]:
        """Return of whom most must sign the next change: those of the last one, and where it is to hold
        before that does, those as well who would have signed from then until then. Raises Untrusted where it
        is none."""
        if not isinstance(change.statement, Change):
            raise Untrusted("no change of signers")
        at = change.statement.at
        _, last_since, last = self._heads[-1]
        turns = [at, *(since for _, since, _ in self._heads if at < since)]
        return [last, *(self.quorum(turn) for turn in turns if turn < last_since)]

    def _change(self, said: Change, signed: Signed) -> bool:
        if said.number < len(self._heads):
            if signed.digest != self._heads[said.number][0]:
                raise Untrusted("the signers were changed otherwise: there are two meshes now")
            return False
        if missing := self.missing(signed):
            raise Untrusted(f"{missing} more of those who signed until then must say so")
        # No more signatures than it takes, the same everywhere: how long it is must not depend on who tells.
        kept = {s for one in self.asked(signed) for s in sorted(signed.signers(_ids(one)))[: _most(one)]}
        self.changes.append(signed.only(kept))
        self._heads.append((signed.digest, float(said.at), said.quorum))
        return True

    def check(self, certificate: Signed, peer: PeerId, now: float, quorum: Quorum | None = None) -> Member:
        """Return `peer` as a member by its `certificate` at `now`, in Unix seconds, or as it will be one when
        `quorum` signs. Raises Untrusted, saying why it is none. Zones that too few have signed are not
        granted."""
        said = self._read(certificate, peer)
        if now < said.not_before - SKEW_S:
            raise Untrusted("its certificate is of the future: is a clock wrong?")
        if now >= said.not_after:
            raise Untrusted("its certificate has expired")
        quorum = quorum or self.quorum(now)
        signed = self._signed(certificate, quorum)
        if said.since <= self.revoked_at(peer, now):
            raise Untrusted("it was thrown out")
        if said.since <= self.banned.get(peer, -1):
            raise Untrusted(EQUIVOCATES)
        zones = said.zones if signed >= quorum.zoned else ()
        return Member(peer, frozenset((GENERAL, *zones)), said.not_after)

    def _read(self, certificate: Signed, peer: PeerId) -> Certificate:
        said = certificate.statement
        if not isinstance(said, Certificate) or said.mesh != self.mesh:
            raise Untrusted("its certificate is of another mesh")
        if said.peer != peer:
            raise Untrusted("its certificate is another peer's")
        if said.since > said.not_before + SINCE_AHEAD_MAX_S:
            raise Untrusted("it was let in at a time to come, by its certificate")
        if said.not_after - said.not_before > LIFE_MAX_S:
            raise Untrusted(f"its certificate lasts longer than {LIFE_MAX_S // 86_400} days")
        return said

    @staticmethod
    def _signed(certificate: Signed, quorum: Quorum) -> int:
        signed = len(certificate.signers(_ids(quorum)))
        if signed < quorum.admit:
            raise Untrusted(f"{signed} of {quorum.admit} signers have let it in")
        return signed

    def ban(self, peer: PeerId, certificates: Collection[Signed], now: float) -> bool:
        """Let `peer` in no more by what it was let in by at the time of `certificates`: it equivocates.
        Return whether that is news, and there was room for it. Raises Untrusted where one of them never let
        it in, whoever signed at which time; the roster is then as it was."""
        since = max(self._read(certificate, peer).since for certificate in certificates)
        for certificate in certificates:
            if not _any_admits(certificate, [quorum for _, _, quorum in self._heads]):
                raise Untrusted("no signers have ever let it in")
        signing = [quorum for _, quorum in self.from_now_on(now)]
        former = not all(_any_admits(certificate, signing) for certificate in certificates)
        if peer not in self.banned and len(self.banned) >= BANNED_MAX and not former and self.former:
            del self.banned[self.former.pop()]  # who signs no more could make up any number of them
        for_good = peer in self.banned and peer not in self.former
        # One that was just let in anew, by a clock that is ahead, is out as well.
        news = self.ban_since(peer, min(since, int(now) + SKEW_S + SINCE_AHEAD_MAX_S))
        if former:
            if news and not for_good:
                self.former.add(peer)
        elif peer in self.former:  # also by what is older: in whatever order it is heard
            self.former.discard(peer)
            news = True
        return news

    def ban_since(self, peer: PeerId, since: int) -> bool:
        """As `ban`, for who was let in at `since`, in Unix seconds, or earlier."""
        if since <= self.banned.get(peer, -1) or (peer not in self.banned and len(self.banned) >= BANNED_MAX):
            return False
        self.banned[peer] = since
        return True

    def orphaned(self) -> list[Signed]:
        """Return whom those alone have thrown out who will sign no more, as their word will not count: the
        latest, and no more than half of what one signer has room for."""
        told = {signed.body: signed for signed in self._revoked.values()}
        orphans = [signed for signed in told.values() if not signed.signers(_ids(self.last))]
        return sorted(orphans, key=lambda one: (_at(one), one.digest))[-REVOKED_MAX // 2 :]

    def revoked_last(self, signer: PeerId) -> int:
        """Return when, in Unix seconds, `signer` has thrown anybody out last; -1: never."""
        return max((_at(signed) for (who, _), signed in self._revoked.items() if who == signer), default=-1)

    def revoked_at(self, peer: PeerId, now: float) -> int:
        """Return when, in Unix seconds, `peer` was thrown out the last time, by those who sign at `now`; -1:
        never."""
        said = [self._revoked.get((PeerId(signer), peer)) for signer in self.quorum(now).signers]
        return max((_at(signed) for signed in said if signed is not None), default=-1)


def _ids(*quorums: Quorum) -> frozenset[PeerId]:
    return frozenset(PeerId(signer) for quorum in quorums for signer in quorum.signers)


def _any_admits(certificate: Signed, quorums: Iterable[Quorum]) -> bool:
    return any(len(certificate.signers(_ids(quorum))) >= quorum.admit for quorum in quorums)


def _most(quorum: Quorum) -> int:
    return len(quorum.signers) // 2 + 1


def _at(signed: Signed) -> int:
    assert isinstance(signed.statement, Revocation)
    return signed.statement.at
