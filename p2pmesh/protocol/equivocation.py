"""Whoever says one thing to one peer and another to the next is out, on the evidence of its own signatures.

A record has a version, and of one version its owner signs one record. Two that differ prove to anybody that
their owner equivocates, or that somebody else has its key: nothing that it says counts any more. The evidence
goes to every neighbour once, and later to whoever still tells of that peer. What being out means, and how one
comes in again, is `Trust`'s; this room knows signatures, no gossip and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from p2pmesh.errors import Untrusted
from p2pmesh.protocol.admission import Signer, Trust
from p2pmesh.protocol.events import Effect, Hangup, Notify, Send
from p2pmesh.protocol.messages import Evidence
from p2pmesh.record import PeerId, SignedRecord

KEPT_MAX = 64
"""Most evidence kept for those who have not heard of it, of 32 kB at most each. A guess; the bans themselves
are all kept."""
WHY = "has signed two records of one version: it lies, or its key is in other hands too"


class Equivocation:
    """The part of a machine that finds it, and hears of it."""

    def __init__(
        self,
        trust: Trust | None,
        signer: Signer,
        links: Collection[PeerId],
        let_go: Callable[[], None],
        out: list[Effect],
    ) -> None:
        """`trust`: None where the peer is in no mesh, so that nobody is out: it is told of, and that is all.
        `links`: whom this peer is linked to, a live view. `let_go` ends the links to those who are out."""
        self._trust, self._signer, self._links, self._let_go, self._out = trust, signer, links, let_go, out
        self._kept: dict[PeerId, Evidence] = {}
        self._told: set[tuple[PeerId, PeerId]] = set()
        """Who was given the evidence against whom: once on each link, as it is a hundred times as long as
        the line that asks for it."""

    def found(self, first: SignedRecord, second: SignedRecord) -> None:
        """Two records that say different things of one version have come here, and both were signed."""
        if self._trust is None:
            self._out.append(Notify(first.record.id, WHY))
            return
        try:
            self._ban(self._trust, Evidence(first, second), None)
        except Untrusted as exc:
            self._out.append(Notify(first.record.id, f"{WHY}; {exc}"))

    def received(self, peer: PeerId, evidence: Evidence) -> None:
        """`peer` passes on what somebody found, and cannot have it otherwise than from one who did."""
        if self._trust is None or self._kept.get(evidence.first.record.id) == evidence:
            return
        try:
            self._check(evidence)
        except Untrusted as exc:
            self._out.append(Notify(peer, f"passes on evidence that proves nothing: {exc}"))
            self._out.append(Hangup(peer))
            return
        try:
            self._ban(self._trust, evidence, peer)
        except Untrusted as exc:  # which says nothing of who passes it on: he may know more signers
            self._out.append(Notify(evidence.first.record.id, f"{WHY}; {exc}"))

    def told(self, peer: PeerId, about: PeerId) -> None:
        """`peer` tells of one that is out: it has not heard, perhaps."""
        if about in self._kept:
            self._tell(peer, self._kept[about])

    def let_in(self, peer: PeerId) -> None:
        """A signer let `peer` in anew: what it did before is no news to anybody."""
        self._kept.pop(peer, None)

    def disconnected(self, peer: PeerId) -> None:
        """What it was given may be lost with the link."""
        self._told = {(who, about) for who, about in self._told if who != peer}

    def _check(self, evidence: Evidence) -> None:
        one, other = evidence.first, evidence.second
        if (one.record.id, one.record.version) != (other.record.id, other.record.version):
            raise Untrusted("of two peers, or of two versions")
        if one.mark == other.mark:
            raise Untrusted("twice the same")
        for signed in (one, other):
            if not self._signer.verify(signed.record.id, signed.signed, signed.signature):
                raise Untrusted("its owner never signed that")

    def _ban(self, trust: Trust, evidence: Evidence, came_from: PeerId | None) -> None:
        """Raises Untrusted where its owner was never let in: then it is nothing to anybody."""
        liar = evidence.first.record.id
        if not trust.ban(liar, (evidence.first.certificate, evidence.second.certificate)):
            return
        self._out.append(Notify(liar, WHY))
        self._kept[liar] = evidence
        # It may have been let in anew since, and all were told of it before.
        self._told = {(who, about) for who, about in self._told if about != liar}
        if came_from is not None:
            self._told.add((came_from, liar))
        if len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        for peer in sorted(self._links):
            if peer != came_from:
                self._tell(peer, evidence)
        self._let_go()

    def _tell(self, peer: PeerId, evidence: Evidence) -> None:
        about = evidence.first.record.id
        if (peer, about) not in self._told:
            self._told.add((peer, about))
            self._out.append(Send(peer, evidence))
