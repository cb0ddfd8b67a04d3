"""What signers say of the mesh travels to everybody, and who is out is let go.

It passes statements on and ends links. What a statement proves, whose certificate counts and when it must be
renewed, it is told by what it is given (`Trust`); so it knows no key, no certificate and no calendar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from typing_extensions import assert_never

from p2pmesh.errors import Untrusted
from p2pmesh.protocol.events import Effect, Hangup, Notify, Send
from p2pmesh.protocol.messages import Granted, Shown, Stated
from p2pmesh.record import GENERAL, PeerId, SignedRecord

LOOK_S = 5.0
"""Seconds between two looks at whose certificate has ended, and whether our own must be renewed."""
STATEMENTS_MAX = 32
"""Most statements in one message, which fit there with sixteen signatures each; more take several."""


class Signer(Protocol):
    """What the mesh needs of a key. The real one is `net.identity`'s; the simulator has its own."""

    def sign(self, body: bytes) -> bytes:
        """Return this peer's signature of `body`."""
        ...

    def verify(self, peer: PeerId, body: bytes, signature: bytes) -> bool:
        """Return whether `peer` signed `body`. Never raises."""
        ...


class Trust(Protocol):
    """A mesh's certificates, as this peer has them."""

    def statements(self) -> Sequence[bytes]:
        """Return all that signers have said beside certificates."""

    def learn(self, statements: Sequence[bytes]) -> tuple[list[bytes], str]:
        """Take what somebody passes on, up to the first that does not hold; return what of it is new, as it
        is to be passed on, and what was wrong with that one, or nothing."""

    def heard(self) -> list[bytes]:
        """Return what somebody said at the door since this was last asked, which is to be passed on."""

    def show(self) -> bytes:
        """Return what this peer shows to be let in."""

    def judge(self, peer: PeerId, shown: bytes) -> bytes:
        """Judge what `peer` shows now. Return what it is to be granted, or nothing. Raises Untrusted where it
        is not let in any more."""

    def take(self, granted: bytes) -> None:
        """Take what was granted to this peer. Raises Untrusted where it is nothing of the kind."""

    def granted(self, peer: PeerId) -> bytes:
        """Return what `peer`, which was let in, is to be given unasked, or nothing."""

    def certificate(self) -> bytes:
        """Return what goes with this peer's record, as a proof to all who read that."""

    def vouches(self, peer: PeerId, certificate: bytes, zones: Collection[str]) -> bool:
        """Return whether `certificate` proves that `peer` is in, and may see `zones`. Never raises."""

    def ban(self, peer: PeerId, certificates: Sequence[bytes]) -> bool:
        """`peer` equivocates, and was let in by `certificates`: it is out until a signer lets it in anew.
        Return whether that is news. Raises Untrusted where they are not such as let it in."""

    def outsiders(self, peers: Collection[PeerId]) -> list[PeerId]:
        """Return those of `peers`, which were all let in, that are not any more."""

    def renewal(self) -> bytes:
        """Return what to show to signers so that they renew what this peer shows; nothing: it is fresh."""


class Admission:
    """The part of a machine that is in a mesh with signers."""

    def __init__(
        self,
        trust: Trust | None,
        links: Collection[PeerId],
        republish: Callable[[], None],
        out: list[Effect],
        now: float,
    ) -> None:
        """`trust`: None where the peer is in no mesh, and nothing of this happens. `links`: whom this peer is
        linked to, a live view. `republish`: publishes this peer's record anew, with its new certificate."""
        self._trust, self._links, self._republish, self._out = trust, links, republish, out
        self._own = b"" if trust is None else trust.certificate()
        self.deadline = math.inf if trust is None else now + LOOK_S

    def connected(self, peer: PeerId) -> None:
        """Tell a new neighbour all there is to know: what it missed while it was away."""
        if self._trust is None:
            return
        if heard := self._trust.heard():
            self._pass_on(heard, peer)
        if self._trust.outsiders([peer]):  # since it was let in at the door
            self._out.append(Hangup(peer))
        else:
            self._tell(peer, self._trust.statements())

    def may_see(self, signed: SignedRecord | None, zone: str) -> bool:
        """Return whether the owner of a record may see `zone` at this moment: its certificate may have ended,
        or its owner been thrown out, since the record was taken."""
        if signed is None or zone not in signed.record.capability.zones:
            return False
        if self._trust is None or zone == GENERAL:
            return True
        return self._trust.vouches(signed.record.id, signed.certificate, (zone,))

    def stated(self, statement: bytes) -> None:
        """Somebody at this peer has it from a signer, and `trust` has learnt it."""
        if self._trust is not None:
            self._pass_on([*self._trust.heard(), statement], None)  # it may rest on what was heard

    def received(self, peer: PeerId, message: Stated | Shown | Granted) -> None:
        """A neighbour says something of certificates."""
        if self._trust is None:
            return  # nobody in a mesh is linked to one that is in none
        match message:
            case Stated():
                self._on_stated(self._trust, peer, message)
            case Shown():
                self._on_shown(self._trust, peer, message)
            case Granted():
                self._on_granted(self._trust, peer, message)
            case _:
                assert_never(message)

    def _on_stated(self, trust: Trust, peer: PeerId, message: Stated) -> None:
        """A neighbour passes something on: if it is new, so do we."""
        new, wrong = trust.learn(message.statements)
        if wrong:
            self._let_go_for(peer, f"passes on what does not hold: {wrong}")
        if new:  # what was learnt at the door comes first: what is new may rest on it
            self._pass_on([*trust.heard(), *new], peer)

    def _on_shown(self, trust: Trust, peer: PeerId, message: Shown) -> None:
        """A neighbour has something newer to show, or wants it renewed."""
        try:
            granted = trust.judge(peer, message.data)
        except Untrusted as exc:
            return self._let_go_for(peer, f"is not let in any more: {exc}")
        if granted:
            self._out.append(Send(peer, Granted(granted)))
        return None

    def _on_granted(self, trust: Trust, peer: PeerId, message: Granted) -> None:
        """A signer has renewed what this peer shows."""
        try:
            trust.take(message.data)
        except Untrusted as exc:
            return self._let_go_for(peer, f"grants what does not hold: {exc}")
        return self._renewed(trust)

    def let_go(self) -> None:
        """End the links to those who are in the mesh no more."""
        if self._trust is not None:
            for peer in self._trust.outsiders(sorted(self._links)):
                self._let_go_for(peer, "is in the mesh no more")

    def advance(self, now: float) -> None:
        """Let go whose certificate has ended, and ask for a new one in time."""
        if now < self.deadline or self._trust is None:
            return
        self.deadline = now + LOOK_S
        self._pass_on(self._trust.heard(), None)
        for peer in sorted(self._links):
            if granted := self._trust.granted(peer):
                self._out.append(Send(peer, Granted(granted)))
        if asked := self._trust.renewal():
            self._show(asked)
        self._renewed(self._trust)

    def _renewed(self, trust: Trust) -> None:
        """Let all know what this peer shows from now on, if that is new."""
        if trust.certificate() != self._own:
            self._own = trust.certificate()
            self._show(trust.show())
            self._republish()

    def _pass_on(self, statements: list[bytes], came_from: PeerId | None) -> None:
        for peer in sorted(self._links):  # those as well who are let go for it: they are to know why
            if peer != came_from:
                self._tell(peer, statements)
        self.let_go()

    def _let_go_for(self, peer: PeerId, why: str) -> None:
        self._out.append(Notify(peer, why))
        self._out.append(Hangup(peer))

    def _tell(self, peer: PeerId, statements: Sequence[bytes]) -> None:
        for at in range(0, len(statements), STATEMENTS_MAX):
            self._out.append(Send(peer, Stated(tuple(statements[at : at + STATEMENTS_MAX]))))

    def _show(self, data: bytes) -> None:
        for peer in sorted(self._links):
            self._out.append(Send(peer, Shown(data)))
