"""Who this peer is: one Ed25519 key in one file that only its owner can read.

Knows files and keys. Knows no wire: `host` proves the identity to others, `trust.keys` checks what it signed.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from p2pmesh.errors import ConfigError
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import peer_id_of

_MAGIC = "p2pmesh-ed25519-2"
_UNCHECKED = "p2pmesh-ed25519-1"
"""Of files that do not tell the id yet."""
_SEED_BYTES = 32
_FILE_BYTES_MAX = 256


@dataclass(frozen=True)
class Identity:
    """A private key and the peer id that follows from it."""

    private_key: Ed25519PrivateKey
    id: PeerId

    @classmethod
    def generate(cls) -> Identity:
        """Return a new identity, kept nowhere."""
        return cls.from_seed(os.urandom(_SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Return the identity of a raw 32-byte private key. Raises ValueError for another length."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(key, peer_id_of(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)))

    @property
    def seed(self) -> bytes:
        """The raw 32-byte private key."""
        return self.private_key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def sign(self, body: bytes) -> bytes:
        """Return the 64-byte signature of `body`."""
        return self.private_key.sign(body)

    def __repr__(self) -> str:
        return f"Identity({self.id})"


def load_or_create(path: Path) -> Identity:
    """Return the identity kept in `path`; make one, mode 0600, where there is no file.

    Two processes that start at once end with the same key. Raises ConfigError where the file is not a key,
    can be read by others, or cannot be read or written; the file is then as it was.
    """
    with suppress(FileNotFoundError):
        return load(path)
    try:
        _create(path, Identity.generate())
    except OSError as error:
        raise ConfigError(f"cannot write the key file {path}: {error.strerror}") from error
    return load(path)


def load(path: Path) -> Identity:
    """Return the identity kept in `path`. Raises FileNotFoundError, or ConfigError as `load_or_create`
    does."""
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(
                f"the key file {path} is not a regular file; move it away, and a new key is made"
            )
        if status.st_mode & 0o077:
            raise ConfigError(f"others can read the key file {path}; run: chmod 600 {path}")
        content = os.read(descriptor, _FILE_BYTES_MAX)
    finally:
        os.close(descriptor)
    try:
        return _parse(content.decode("ascii"))
    except ValueError:
        raise ConfigError(
            f"the key file {path} is damaged or not ours; restore it, or move it away to become a new peer"
        ) from None


def _parse(text: str) -> Identity:
    """Return the identity in a key file. Raises ValueError where it is none, or not the one it was: any 32
    bytes are a key, and the peer would be another one without a word."""
    magic, seed, *told, rest = text.split("\n")
    if rest or len(seed) != 2 * _SEED_BYTES or (magic, len(told)) not in ((_MAGIC, 1), (_UNCHECKED, 0)):
        raise ValueError("not a key file")
    identity = Identity.from_seed(bytes.fromhex(seed))
    if told and told != [identity.id]:
        raise ValueError("the key is not the one of that id")
    return identity


def _create(path: Path, identity: Identity) -> None:
    """Write the key beside `path` and link it there: whole or not at all, and never over another."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{_MAGIC}\n{identity.seed.hex()}\n{identity.id}\n".encode("ascii"))
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):  # another process was faster: its key is the one
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # others will know the id within a second: its key must outlive a loss of power
    finally:
        os.close(folder)
