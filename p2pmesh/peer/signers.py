"""Who signs for this peer's mesh, and how others come to: what people ask of it, in words they can pass on.

It knows the standing, and tells the machine what is new. Whether a change holds `trust.roster` judges.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from p2pmesh.errors import ConfigError, Untrusted
from p2pmesh.net.identity import Identity
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import verify
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.statements import Change, Quorum, Signed

AFTER_S = 600.0
"""Seconds until a change holds that takes nobody away: certificates go on as they are. A guess."""
AFTER_REMOVAL_S = 86_400.0
"""The same of one that does: certificates that only he has signed are renewed meanwhile, of peers that come
to be linked to one who stays. A guess."""
SOON_S = 60.0
"""Seconds within which that cannot be waited for."""
AFTER_MAX_S = 7 * 86_400.0
"""Longest such time: as long as a certificate lasts."""
_CHANGE, _KEY = "p2pmesh-change-", "p2pmesh-key-"
_DOMAIN = b"p2pmesh/signer/1\0"


class Proposal(NamedTuple):
    """A change of signers, as it was signed so far."""

    text: str
    """A word to be signed on another signer's machine."""
    missing: int
    """How many signatures it takes yet; 0: it holds."""


class Signers:
    """The signers of one mesh, as one of its peers knows them."""

    def __init__(self, standing: Standing, tell: Callable[[bytes], None]) -> None:
        """`tell` passes a statement on to the mesh."""
        self._standing, self._tell = standing, tell

    def rows(self) -> list[dict[str, Any]]:
        """Return who signs, and who will as far as is known: `signers`, the ids of their keys, how many let
        in (`admit`) and grant a zone (`zoned`), and `since` when, in Unix seconds (0: from the start)."""
        return [
            {"since": since, "signers": list(quorum.signers), "admit": quorum.admit, "zoned": quorum.zoned}
            for since, quorum in self._standing.roster.from_now_on(time.time())
        ]

    def change(
        self,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        after_s: float | None = None,
        anew: bool = False,
    ) -> Proposal:
        """Let others sign in `after_s` seconds (None: `AFTER_S`, or `AFTER_REMOVAL_S`): `add` keys by the
        words that `word_of` makes of them, `remove` them by their ids.

        Most of those who sign until then must sign the change; where this machine's signature is enough it
        holds, and all hear of it. It signs no two that follow on the same one, as there would be two meshes,
        unless `anew` says that nobody else will sign the other. Raises Untrusted where it is to, where this
        peer is no signer, or there cannot be such a change, and ConfigError where it could not be written
        down.
        """
        if after_s is None:
            after_s = AFTER_REMOVAL_S if remove or len(self.rows()) > 1 else AFTER_S
        if not 0.0 <= after_s <= AFTER_MAX_S:
            raise Untrusted(f"a change holds within {AFTER_MAX_S // 86_400:.0f} days, not after {after_s} s")
        before = self._standing.roster.last
        if unknown := sorted(set(remove) - set(before.signers)):
            raise Untrusted(f"{unknown[0][:80]!r} is none of the signers")
        signers = tuple(sorted({*before.signers, *map(read_word, add)} - set(remove)))
        if signers == before.signers:
            raise Untrusted("nothing would change: those sign already, or will")
        if len(signers) < before.zoned:
            raise Untrusted(f"it takes {before.zoned} signers, and there would be {len(signers)}")
        quorum = Quorum(signers, before.admit, before.zoned)
        change = self._standing.roster.change(quorum, int(time.time() + after_s))
        return self._enact(self._standing.approve(change, anew))

    def sign(self, text: str, *, anew: bool = False, at_once: bool = False) -> Proposal:
        """Sign a change that was proposed on another machine. Raises as `change` does, and Untrusted where it
        would hold before anybody could have his certificate renewed, unless `at_once` says that it is to."""
        change = parse(text)
        assert isinstance(change.statement, Change)
        left_s = change.statement.at - time.time()
        # Also whom a change that is pending takes away, and this one sooner.
        gone = self._standing.roster.signers(time.time()) - set(change.statement.quorum.signers)
        if gone and left_s < SOON_S and not at_once:
            raise Untrusted(
                f"it holds in {max(0.0, left_s):.0f} s, and certificates that only those have signed who go "
                "end then: --at-once signs it all the same; or propose it anew"
            )
        return self._enact(self._standing.approve(change, anew))

    def _enact(self, change: Signed) -> Proposal:
        missing = self._standing.roster.missing(change)
        if not missing:
            new, _ = self._standing.learn([change.to_bytes()])
            for statement in (*new, *self._restated()):
                self._tell(statement)
            if self._standing.unkept:
                raise ConfigError(f"it holds, and is forgotten when this peer ends: {self._standing.unkept}")
        return Proposal(_CHANGE + _encoded(change.to_bytes()), missing)

    def _restated(self) -> list[bytes]:
        """Say again, where this machine's key will sign, whom those alone have thrown out who will not. Once,
        by who has just made a change hold: later it would be the word of one who may say anything."""
        try:
            again = [self._standing.signed(said) for said in self._standing.roster.orphaned()]
        except Untrusted:
            return []
        return self._standing.learn([signed.to_bytes() for signed in again])[0]


def word_of(key: Identity) -> str:
    """Return the word by which others let `key` sign: its id, and a proof that somebody has it. A signer whom
    nobody is could never agree to anything."""
    return _KEY + _encoded(msgspec.msgpack.encode((key.id, key.sign(_DOMAIN + key.id.encode()))))


def read_word(text: str) -> PeerId:
    """Return the id of the key that `text` is the word of. Raises Untrusted where it is of none."""
    try:
        signer, signature = msgspec.msgpack.decode(_decoded(_KEY, text), type=tuple[str, bytes])
        if verify(signer, _DOMAIN + signer.encode(), signature):
            return PeerId(signer)
    except (ValueError, msgspec.MsgspecError):
        pass
    raise Untrusted(
        f"{text[:40]!r} is no word of a signer's key: `p2pmesh mesh key` prints one, on its machine"
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(prefix: str, text: str) -> bytes:
    word = text.strip()
    if not word.startswith(prefix):
        raise ValueError
    body = word.removeprefix(prefix)
    return base64.b64decode(body + "=" * (-len(body) % 4), b"-_", validate=True)


def parse(text: str) -> Signed:
    """Return the change of signers that `text` is. Raises Untrusted where it is none."""
    try:
        change = Signed.parse(_decoded(_CHANGE, text))
    except (ValueError, Untrusted):
        raise Untrusted(f"not a change of signers, or not all of it: {text.strip()[:40]!r}") from None
    if not isinstance(change.statement, Change):
        raise Untrusted("it is no change of signers")
    return change


def describe(change: Signed, before: Collection[str]) -> list[str]:
    """Return what `change` says to those who know who signs `before`, a line each."""
    said = change.statement
    assert isinstance(said, Change)
    after = said.quorum.signers
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(said.at))
    marks = {signer: "+" for signer in after if signer not in before}
    marks |= {signer: "-" for signer in before if signer not in after}
    return [
        f"from {when} on these sign (+: anew; -: no more):",
        *(f"  {marks.get(signer, ' ')} {signer}" for signer in sorted({*before, *after})),
    ]
