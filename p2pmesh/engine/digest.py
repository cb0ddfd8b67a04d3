"""Which mind is this: the SHA-256 of a model file, computed once per file and remembered.

Remembered by path, size, time of change and inode, in a small JSON file in the cache directory: reading 20 GB
at every start would take a minute. A cache that is missing, damaged or not writable only costs that time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

import platformdirs

ENTRIES_MAX = 256
_BLOCK = 1 << 20


def cache_file() -> Path:
    """Return where digests are remembered: $XDG_CACHE_HOME/p2pmesh/digests.json."""
    return platformdirs.user_cache_path("p2pmesh") / "digests.json"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex. Raises `OSError` when it cannot be read."""
    path = path.resolve()
    stat = path.stat()
    # The name is hashed too: the cache then tells nobody what else lies on this machine.
    identity = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    known = _read()
    if key in known:
        return known[key]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    known[key] = digest.hexdigest()
    _write(dict(list(known.items())[-ENTRIES_MAX:]))
    return known[key]


def _read() -> dict[str, str]:
    try:
        with cache_file().open("rb") as file:
            found = json.loads(file.read(ENTRIES_MAX * 256))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str) and len(v) == 64}


def _write(known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        replace_file(cache_file(), json.dumps(known).encode())


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: readers see the old one or the new one. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
