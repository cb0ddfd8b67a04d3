"""Who may ask from another machine: keys by name, and the zones that each may ask in.

A key is 256 random bits, of which a hash alone is kept: whoever reads the file cannot ask. It knows one file
and no request. The file is read again when it has changed, so that a key is good, or no longer good, at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from p2pmesh.errors import ConfigError, Untrusted
from p2pmesh.peer import state
from p2pmesh.record import GENERAL
from p2pmesh.trust.statements import check_name

PREFIX = "p2pm-"
"""What a key begins with, so that it is known for one wherever it turns up."""
KEYS_MAX = 256
"""Most keys of one peer. A guess."""
ZONES_MAX = 16
"""Most zones of one key. A guess: a certificate has one fewer."""
PER_MINUTE_MAX = 1_000_000
"""Most queries a minute that a key may be allowed: beyond that it is without a limit."""
_FILE = "http-keys"
_LOCK = "http-keys.lock"
_FILE_BYTES_MAX = 2**20
_NAME = re.compile(r"[\w.@-]{1,64}")


class Key(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One key, as it is kept."""

    name: str
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """SHA-256 of it: there is nothing to guess, so nothing slower is needed."""
    zones: Annotated[tuple[str, ...], msgspec.Meta(max_length=ZONES_MAX)]
    """Zones it may ask in, beside the general one."""
    made: int
    """Unix seconds."""
    per_minute: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Most queries a minute, on average; 0: as many as there is room for."""

    def may_ask_in(self, zone: str) -> bool:
        """Return whether it is good for `zone`."""
        return zone == GENERAL or zone in self.zones


class Allowance:
    """How many queries each key may ask now: a token bucket of a minute's worth."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}
        """By name: how many there were, and as of when."""

    def wait_s(self, key: Key, now: float) -> float:
        """Take one query off, and return 0; or, where there is none, the seconds until there is."""
        if not key.per_minute:
            return 0.0
        left, at = self._left.get(key.name, (float(key.per_minute), now))
        left = min(key.per_minute, left + (now - at) * key.per_minute / 60.0)
        if left < 1.0:
            self._left[key.name] = left, now
            return (1.0 - left) * 60.0 / key.per_minute
        self._left[key.name] = left - 1.0, now
        while len(self._left) > KEYS_MAX:  # of keys that were taken back
            del self._left[next(iter(self._left))]
        return 0.0


class Keys:
    """The keys kept in one state directory."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError, as every method does, where the file cannot be read or is damaged."""
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._by_digest: dict[bytes, Key] = {}
        self._refresh()

    def rows(self) -> tuple[Key, ...]:
        """Return all of them, the oldest first."""
        self._refresh()
        return tuple(self._by_digest.values())

    def make(self, name: str, zones: Sequence[str], per_minute: int = 0) -> str:
        """Make a key called `name` and return it: nobody can be told it again. Raises ConfigError where there
        is one of that name, or no more may be."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"a key's name is up to 64 letters, digits, dots, dashes or @, not {name[:80]!r}"
            )
        if len(zones) > ZONES_MAX:
            raise ConfigError(f"a key asks in at most {ZONES_MAX} zones beside the general one")
        try:
            for zone in zones:
                check_name("a zone", zone)
        except Untrusted as exc:
            raise ConfigError(str(exc)) from None
        if not 0 <= per_minute <= PER_MINUTE_MAX:
            raise ConfigError(f"a key asks 1 to {PER_MINUTE_MAX} times a minute, or, by 0, without a limit")
        secret = PREFIX + secrets.token_urlsafe(32)
        own = tuple(sorted({*zones} - {GENERAL}))
        with self._alone():
            rows = self.rows()
            if any(key.name == name for key in rows):
                raise ConfigError(f"there is a key called {name!r}: remove it, or choose another name")
            if len(rows) >= KEYS_MAX:
                raise ConfigError(f"there are {KEYS_MAX} keys, and no more may be: remove one")
            self._keep((*rows, Key(name, _digest(secret), own, int(time.time()), per_minute)))
        return secret

    def remove(self, name: str) -> None:
        """Take a key back. Raises ConfigError where there is none of that name."""
        with self._alone():
            rows = self.rows()
            left = tuple(key for key in rows if key.name != name)
            if left == rows:
                raise ConfigError(f"no key is called {name[:64]!r}: `p2pmesh key list` tells which there are")
            self._keep(left)

    def find(self, secret: str) -> Key | None:
        """Return the key that `secret` is; None: it is none, or was taken back."""
        self._refresh()
        return self._by_digest.get(_digest(secret))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other command change the file meanwhile, which would undo what this one does."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"cannot use the state directory {self._path}: {exc.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _keep(self, rows: Sequence[Key]) -> None:
        state.keep(self._path, _FILE, msgspec.msgpack.encode(list(rows)))
        self._refresh()

    def _refresh(self) -> None:
        try:
            found = (self._path / _FILE).stat()
        except FileNotFoundError:
            self._seen, self._by_digest = None, {}
            return
        except OSError as exc:
            raise ConfigError(f"cannot read {self._path / _FILE}: {exc.strerror}") from None
        if (found.st_mtime_ns, found.st_ino) == self._seen:
            return
        data = state.kept(self._path, _FILE, _FILE_BYTES_MAX) or b"\x90"
        try:
            rows = msgspec.msgpack.decode(data, type=list[Key])
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{self._path / _FILE} is not ours ({exc}): move it away") from None
        self._by_digest = {key.digest: key for key in rows}
        self._seen = (found.st_mtime_ns, found.st_ino)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
