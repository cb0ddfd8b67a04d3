"""Sealed envelopes: HPKE to the executor's key of the day, ChaCha20-Poly1305 on the way back.

Knows keys and bytes, and no query; time and dice are given to it. HPKE (RFC 9180, base mode) hides and binds
to the context, and does not say who sealed: the origin's signature does, inside, over the context too, so
that nobody can pass an envelope on to somebody else as his own. The answer's key comes out of a secret that
travels in the envelope, and a salt that the executor throws: an envelope that is played back to it closes
nothing twice under one nonce. Sizes are told in steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pmesh.errors import Untrusted
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import verify

KEY_S = 86_400.0
"""Seconds for which a key is published: who steals it reads a day of queries, and no answer of another."""
KEPT_S = 3_600.0
"""Seconds for which a key is kept after that: as long as an old record may still be about, and a query on its
way. A guess."""
EARLY_S = 300.0
"""Seconds by which a query may come from the future, and LATE_S from the past: clocks differ, and queries
wait. As certificates have it."""
LATE_S = 900.0
BUCKETS = (1_024, 4_096, 16_384, 65_536)
"""What a query is filled up to, in bytes; a longer one to the next 16 KiB."""
CHUNK_STEP = 256
"""What a piece of an answer is filled up to, in bytes."""
SALT_BYTES = 16
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_QUERY, _SIGNED, _ANSWER = b"p2pmesh/query/1\0", b"p2pmesh/origin/1\0", b"p2pmesh/answer/1\0"
_KEY_ID = 8
_HEAD = 64 + 8 + 32
"""Signature, time, secret."""


def _filled(data: bytes, size: int) -> bytes:
    """Return `data` behind its length, and zeros up to `size`."""
    return (len(data).to_bytes(4, "big") + data).ljust(size, b"\0")


def _emptied(data: bytes) -> bytes:
    length = int.from_bytes(data[:4], "big")
    if len(data) < 4 + length or data[4 + length :].strip(b"\0"):
        raise Untrusted("sealed, and not filled up as it should be")
    return data[4 : 4 + length]


def bucket(length: int) -> int:
    """Return what a query of `length` bytes is filled up to."""
    step = BUCKETS[2]
    return next((size for size in BUCKETS if length <= size), -(-length // step) * step)


class AnswerCipher:
    """Closes and opens the pieces of one answer. Implements `protocol.sealing.Cipher`."""

    def __init__(self, secret: bytes, context: bytes, salt: bytes = b"") -> None:
        """`salt`: the executor's, who throws it; who asked learns it with the first piece."""
        self._secret, self._context = secret, context
        self._salt = salt
        self._aead = self._derive(salt) if salt else None

    def close(self, index: int, last: bool, data: bytes) -> bytes:
        """Return `data` closed. A number that was used before would lay two texts bare: never twice."""
        assert self._aead is not None, "the asker closes nothing"
        size = -(-(4 + len(data)) // CHUNK_STEP) * CHUNK_STEP
        return self._salt + self._aead.encrypt(_nonce(index, last), _filled(data, size), self._context)

    def open(self, index: int, last: bool, data: bytes) -> bytes:
        """Return what the executor closed as this piece. Raises Untrusted."""
        salt, closed = data[:SALT_BYTES], data[SALT_BYTES:]
        if len(salt) < SALT_BYTES or (self._salt and salt != self._salt):
            raise Untrusted("a piece of another answer, or none that was sealed")
        aead = self._aead or self._derive(salt)
        try:
            opened = aead.decrypt(_nonce(index, last), closed, self._context)
        except InvalidTag:
            raise Untrusted("a piece of an answer that the executor did not seal as this one") from None
        self._salt, self._aead = salt, aead
        return _emptied(opened)

    def _derive(self, salt: bytes) -> ChaCha20Poly1305:
        key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=_ANSWER + self._context).derive(
            self._secret
        )
        return ChaCha20Poly1305(key)


def _nonce(index: int, last: bool) -> bytes:
    return bytes([last]) + index.to_bytes(11, "big")


class Envelopes:
    """The sealing keys of one peer, which live in its memory only. Implements `protocol.sealing.Sealer`."""

    def __init__(
        self,
        mesh: bytes,
        sign: Callable[[bytes], bytes],
        clock: Callable[[], float],
        dice: Callable[[int], bytes],
    ) -> None:
        """`mesh`: the id of the mesh, or nothing; `sign`: with this peer's identity; `clock`: Unix seconds;
        `dice`: so many random bytes, fit for keys."""
        self._mesh, self._sign, self._clock, self._dice = mesh, sign, clock, dice
        self._keys: list[tuple[float, X25519PrivateKey]] = []
        """The newest first, and since when each is in use."""

    def key(self) -> bytes:
        """Return the public key that others seal to now, a new one each day; forget old ones in time."""
        now = self._clock()
        if not self._keys or not 0.0 <= now - self._keys[0][0] < KEY_S:
            self._keys.insert(0, (now, X25519PrivateKey.from_private_bytes(self._dice(32))))
        kept = KEY_S + KEPT_S
        # By a clock that was set back the last one is of the future, and its record is still about.
        self._keys = [self._keys[0], *(old for old in self._keys[1:2] if now - old[0] < kept)]
        return self._keys[0][1].public_key().public_bytes_raw()

    def seal(self, data: bytes, context: bytes, key: bytes) -> tuple[bytes, AnswerCipher]:
        """Return `data` sealed to the owner of `key`, and what opens the answer. Raises Untrusted for what is
        no key."""
        context = self._mesh + context
        secret, time = self._dice(32), int(self._clock()).to_bytes(8, "big")
        head = time + secret
        signature = self._sign(_signed(context, key, head, data))
        plain = signature + head + data
        filled = _filled(plain, bucket(4 + len(plain)))
        try:
            sealed = _SUITE.encrypt(filled, X25519PublicKey.from_public_bytes(key), info=_QUERY + context)
        except ValueError:  # one of those points that make every secret the same
            raise Untrusted("what it published is no key to seal to") from None
        return _key_id(key) + sealed, AnswerCipher(secret, context)

    def open(self, sealed: bytes, context: bytes, origin: PeerId) -> tuple[bytes, AnswerCipher]:
        """Return what `origin` sealed to this peer, and what closes the answer. Raises Untrusted."""
        self.key()  # forgets what is too old
        context = self._mesh + context
        for _, private in self._keys:
            public = private.public_key().public_bytes_raw()
            if sealed[:_KEY_ID] == _key_id(public):
                break
        else:
            raise Untrusted("sealed to a key that this peer does not have, or has no more")
        try:
            plain = _emptied(_SUITE.decrypt(sealed[_KEY_ID:], private, info=_QUERY + context))
        except (InvalidTag, ValueError):
            raise Untrusted("not sealed for this peer as this query") from None
        signature, head, data = plain[:64], plain[64:_HEAD], plain[_HEAD:]
        if not verify(origin, _signed(context, public, head, data), signature):
            raise Untrusted("sealed by somebody else than it says")
        age = self._clock() - int.from_bytes(head[:8], "big")
        if not -EARLY_S <= age <= LATE_S:
            raise Untrusted(
                f"sealed {age:.0f} s ago, by the clock here: is it played back, or a clock wrong?"
            )
        return data, AnswerCipher(head[8:], context, self._dice(SALT_BYTES))


def _signed(context: bytes, key: bytes, head: bytes, data: bytes) -> bytes:
    """Return what the origin signs: what it says, to whom, and as what."""
    digest = hashlib.sha256(data).digest()
    return _SIGNED + len(context).to_bytes(2, "big") + context + key + head + digest


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_KEY_ID]
