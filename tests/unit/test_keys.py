"""Identities that prove themselves: a peer id holds its key, in one spelling only."""

from __future__ import annotations

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from p2pmesh.trust.keys import PEER_ID_CHARS_MAX, peer_id_of, public_key_of, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
ID = peer_id_of(PUBLIC)


def test_an_id_is_the_key_and_back() -> None:
    assert ID.startswith("12D3KooW")
    assert len(ID) <= PEER_ID_CHARS_MAX
    assert public_key_of(ID) == PUBLIC


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_has_no_id(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id_of(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0OIl",
        "é" * 10,
        "x" * 65,
        ID[:-1],
        ID + "1",
        "1" + ID,
        ID + " ",
        ID + "\n",
        base58.b58encode(b"\x12\x20" + bytes(32)).decode(),
        base58.b58encode(bytes(38)).decode(),
    ],
)
def test_what_is_not_an_ed25519_id_in_its_one_spelling_proves_nothing(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - base58's own words differ
        public_key_of(text)
    assert not verify(text, b"body", KEY.sign(b"body"))


def test_only_the_owner_of_an_id_signs_for_it() -> None:
    signature = KEY.sign(b"body")
    assert verify(ID, b"body", signature)
    assert not verify(ID, b"other", signature)
    assert not verify(ID, b"body", signature[:-1])
    assert not verify(ID, b"body", b"")
    assert not verify(ID, b"body", bytes(64))
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert not verify(ID, b"body", stranger.sign(b"body"))
