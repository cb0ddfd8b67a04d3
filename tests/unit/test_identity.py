"""The key file: made once, read by its owner only, and never guessed at."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress

import pytest

from p2pmesh.errors import ConfigError
from p2pmesh.net.identity import Identity, load_or_create
from p2pmesh.trust.keys import verify


def test_a_new_key_is_kept_and_found_again(tmp_path):
    path = tmp_path / "state" / "key"
    made = load_or_create(path)
    assert load_or_create(path).id == made.id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["key"]


def test_many_that_start_at_once_end_with_one_key(tmp_path):
    ids, barrier = [], threading.Barrier(16)

    def start() -> None:
        barrier.wait()
        ids.append(load_or_create(tmp_path / "key").id)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 16
    assert len(set(ids)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_what_it_signs_is_verified_with_its_id_alone():
    identity = Identity.generate()
    signature = identity.sign(b"body")
    assert verify(identity.id, b"body", signature)
    assert not verify(identity.id, b"Body", signature)
    assert not verify(Identity.generate().id, b"body", signature)


def test_the_id_is_libp2ps_own():
    ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
    peer_id = pytest.importorskip("libp2p.peer.id")
    for _ in range(8):
        identity = Identity.generate()
        theirs = ed25519.Ed25519PrivateKey.from_bytes(identity.seed)
        assert identity.id == peer_id.ID.from_pubkey(theirs.get_public_key()).to_base58()
        assert theirs.get_public_key().verify(b"body", identity.sign(b"body"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    load_or_create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load_or_create(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\x00" * 83,
        b"p2pmesh-ed25519-1\n" + b"zz" * 32 + b"\n",
        b"p2pmesh-ed25519-2\n" + b"00" * 32 + b"\n",
        b"p2pmesh-ed25519-1\n" + b"00" * 32 + b"\n\n",
        b"p2pmesh-ed25519-1\n" + b"00" * 31 + b" 00\n",
    ],
)
def test_a_damaged_key_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="move it away"):
        load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_that_does_not_tell_its_id_is_read(tmp_path):
    (tmp_path / "key").write_text("p2pmesh-ed25519-1\n" + "07" * 32 + "\n")
    (tmp_path / "key").chmod(0o600)
    assert load_or_create(tmp_path / "key").id == Identity.from_seed(b"\x07" * 32).id


def test_no_flipped_bit_and_no_cut_makes_it_another_peer(tmp_path):
    """It made a peer that nobody knew, without a word: any 32 bytes are a key."""
    path = tmp_path / "key"
    made, whole = load_or_create(path).id, path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        for at in range(len(whole))
        for bit in range(8)
    ]
    assert len(damaged) > 1_000
    for content in damaged:
        path.write_bytes(content)
        with suppress(ConfigError):
            assert load_or_create(path).id == made  # a to A: the same digit
        assert path.read_bytes() == content


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="regular file"):
        load_or_create(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="regular file"):
        load_or_create(tmp_path / "pipe")


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="key file"):
        load_or_create(tmp_path / "file" / "key")


def test_the_private_key_is_not_printed():
    identity = Identity.generate()
    assert identity.seed.hex() not in repr(identity)
    assert repr(identity) == f"Identity({identity.id})"
