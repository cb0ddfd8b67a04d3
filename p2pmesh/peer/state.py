"""What a peer keeps on disk: its key, its epoch, a lock, and where its HTTP door is while it runs.

Knows paths and files; what is in them is others' business. One directory belongs to one running peer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from p2pmesh.errors import ConfigError, StateLocked

KEY = "identity.key"
_EPOCH = "epoch"
_RUNNING = "running.json"
_LOCK = "lock"
_MAGIC = "p2pmesh-kept-1"
_EPOCH_MAX = 2**48
"""Milliseconds until the year 10 889: what claims to be later is damage, not a clock that went ahead."""
_LOCK_TRIES, _LOCK_PAUSE_S = 5, 0.02
"""A verb that looks whether a peer runs holds the lock for an instant; a peer holds it for good."""


def directory(state: str) -> Path:
    """Return the state directory of a peer configured with `state`: its own, or the user's default one."""
    return Path(state).expanduser() if state else Path(platformdirs.user_data_dir("p2pmesh", appauthor=False))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` for one peer, made if missing (mode 0700).

    Raises StateLocked when another peer holds it, ConfigError when it cannot be written. The lock ends with
    the process, however it ends.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(f"cannot use the state directory {path}: {exc.strerror}") from None
    try:
        if not _take(handle):
            raise StateLocked(
                f"another peer uses {path}: stop it, or give this one a directory of its own (state, --state)"
            )
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False


def next_epoch(path: Path) -> int:
    """Return an epoch above every earlier one of this directory, and keep it.

    It is the time in milliseconds, so that a lost or damaged file does no harm, unless the clock went back.
    """
    earlier = 0
    with suppress(OSError, ValueError):
        earlier = int((path / _EPOCH).read_text(encoding="ascii").strip())
    epoch = max(time.time_ns() // 1_000_000, earlier + 1 if earlier < _EPOCH_MAX else 0)
    _replace(path / _EPOCH, f"{epoch}\n")
    return epoch


@contextmanager
def announced(path: Path, running: dict[str, Any]) -> Iterator[None]:
    """Say, while it runs, where this peer is to be had: for the command line."""
    _replace(path / _RUNNING, json.dumps(running) + "\n")
    try:
        yield
    finally:
        with suppress(OSError):
            (path / _RUNNING).unlink()


def running(path: Path) -> dict[str, Any] | None:
    """Return what the peer that runs in `path` has announced, or None where none runs."""
    try:
        told = json.loads((path / _RUNNING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or not is_held(path):
        return None  # left behind by a peer that was killed
    return told


def is_held(path: Path) -> bool:
    """Return whether a peer runs in `path`."""
    try:
        handle = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def keep(path: Path, name: str, data: bytes) -> None:
    """Keep `data` under `name` in `path`, whole or not at all. Raises ConfigError where it cannot be written;
    what was kept before is then as it was."""
    digest = hashlib.sha256(data).hexdigest()
    _replace(path / name, f"{_MAGIC}\n{digest}\n{data.hex()}\n")


def kept(path: Path, name: str, bytes_max: int) -> bytes | None:
    """Return what was kept under `name` in `path`; None: nothing ever was. Raises ConfigError where it cannot
    be read, is longer than `bytes_max`, or is not what was written: the file is then as it was."""
    target = path / name
    try:
        with open(target, "rb") as file:
            raw = file.read(2 * bytes_max + 256)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"cannot read {target}: {exc.strerror}") from None
    try:
        magic, digest, text, rest = raw.decode("ascii").split("\n")
        data = bytes.fromhex(text)
        if magic != _MAGIC or rest or hashlib.sha256(data).hexdigest() != digest or len(data) > bytes_max:
            raise ValueError("not what was written")
    except ValueError:
        raise ConfigError(f"{target} is damaged or not ours: restore it, or move it away") from None
    return data


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _replace(target: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # or a loss of power could undo it
        finally:
            os.close(folder)
    except OSError as exc:
        with suppress(OSError):
            partial.unlink()
        raise ConfigError(f"cannot write {target}: {exc.strerror}") from None
