"""Envelopes of simulated peers. Knows no key, and no machine."""

from __future__ import annotations

import hashlib

from p2pmesh.errors import Untrusted
from p2pmesh.record import SEAL_KEY_BYTES, PeerId
from p2pmesh.sim.signer import SimSigner


def _mixed(data: bytes, key: bytes) -> bytes:
    """Return `data` so that nobody reads it by looking at it; mixed twice it is as before."""
    pad = hashlib.shake_128(key).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")


class SimCipher:
    """A stand-in for an answer's cipher. Implements `protocol.sealing.Cipher`."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.blake2b(secret, digest_size=64).digest()

    def close(self, index: int, last: bool, data: bytes) -> bytes:
        """Return `data` mixed, behind a digest of all that it is."""
        digest = hashlib.blake2b(b"%d %d " % (index, last) + data, digest_size=16, key=self._secret).digest()
        return digest + _mixed(data, self._secret + digest)

    def open(self, index: int, last: bool, data: bytes) -> bytes:
        """Return what `close` mixed. Raises Untrusted for anything else."""
        opened = _mixed(data[16:], self._secret + data[:16])
        if self.close(index, last, opened) != data:
            raise Untrusted("not what was closed")
        return opened


class SimSealer:
    """A stand-in for a peer's sealing keys: as secret as the simulated peers are honest."""

    def __init__(self, me: PeerId) -> None:
        self._me = me.encode()
        self._key = hashlib.blake2b(me.encode(), digest_size=SEAL_KEY_BYTES).digest()

    def key(self) -> bytes:
        """Return what others seal to."""
        return self._key

    def seal(self, data: bytes, context: bytes, key: bytes) -> tuple[bytes, SimCipher]:
        """Return `data` as only the owner of `key` opens it."""
        said = len(self._me).to_bytes(1, "big") + self._me + data
        return SimCipher(key + context).close(0, False, said), SimCipher(context + key)

    def open(self, sealed: bytes, context: bytes, origin: PeerId) -> tuple[bytes, SimCipher]:
        """Return what `seal` sealed to this peer. Raises Untrusted."""
        opened = SimCipher(self._key + context).open(0, False, sealed)
        if opened[1 : 1 + opened[0]] != origin.encode():
            raise Untrusted("sealed by somebody else than it says")
        return opened[1 + opened[0] :], SimCipher(context + self._key)


def sim_keys(me: PeerId) -> tuple[SimSigner, SimSealer]:
    """Return all that a simulated peer has for keys."""
    return SimSigner(me), SimSealer(me)
