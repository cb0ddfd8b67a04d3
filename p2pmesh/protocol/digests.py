"""Sums over records, so that two who know the same find that out in 256 bytes. Pure.

Peers are sorted into a few buckets by a hash of their ids, and each bucket has one sum: only where two sums
differ is a bucket gone through. It knows records by their marks; nothing of who holds them, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

from p2pmesh.protocol.messages import DIGEST_BUCKETS
from p2pmesh.record import PeerId, SignedRecord

_SUM_BYTES = 8


def sums(held: Mapping[PeerId, SignedRecord]) -> bytes:
    """Return one sum for each bucket, the exclusive or of its records' marks: equal sums, equal records."""
    totals = [0] * DIGEST_BUCKETS
    for ident, signed in held.items():
        totals[bucket(ident)] ^= int.from_bytes(signed.mark[:_SUM_BYTES], "big")
    return b"".join(total.to_bytes(_SUM_BYTES, "big") for total in totals)


def differing(mine: bytes, theirs: bytes) -> tuple[int, ...]:
    """Return the buckets in which two hold something else."""
    return tuple(
        i
        for i in range(DIGEST_BUCKETS)
        if mine[i * _SUM_BYTES : (i + 1) * _SUM_BYTES] != theirs[i * _SUM_BYTES : (i + 1) * _SUM_BYTES]
    )


@lru_cache(maxsize=8_192)
def bucket(ident: PeerId) -> int:
    """Return which bucket `ident` is in, the same on every peer."""
    return hashlib.blake2b(ident.encode(), digest_size=1).digest()[0] % DIGEST_BUCKETS
