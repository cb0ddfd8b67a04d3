"""Keys and the identities they prove. Pure: no file, no wire, no clock.

A peer id of an Ed25519 key holds the whole public key (libp2p's identity multihash), so a signature is
checked with the id alone: there is no key to fetch and none to trust.
"""

from __future__ import annotations

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pmesh.record import PeerId

_PREFIX = bytes.fromhex("0024080112" + "20")
"""identity multihash of 36 bytes; protobuf key type Ed25519; 32 bytes of key."""
PEER_ID_CHARS_MAX = 64
"""Longest text of a peer id; an Ed25519 one has 52 characters."""


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of a raw 32-byte Ed25519 public key. Raises ValueError for another length."""
    if len(public_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    return PeerId(base58.b58encode(_PREFIX + public_key).decode("ascii"))


def public_key_of(peer_id: str) -> bytes:
    """Return the raw public key inside `peer_id`. Raises ValueError where there is none."""
    if len(peer_id) > PEER_ID_CHARS_MAX:
        raise ValueError("peer id too long")
    raw = base58.b58decode(peer_id)
    if len(raw) != 38 or not raw.startswith(_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key")
    if base58.b58encode(raw).decode("ascii") != peer_id:  # b58decode forgives white space at the end
        raise ValueError("not the canonical text of a peer id")
    return bytes(raw[len(_PREFIX) :])


def verify(peer_id: str, body: bytes, signature: bytes) -> bool:
    """Return whether the owner of `peer_id` signed `body`. Never raises on bad input: it is then False."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer_id)).verify(signature, body)
    except (ValueError, InvalidSignature):
        return False
    return True
