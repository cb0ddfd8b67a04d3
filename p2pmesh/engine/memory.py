"""Does it fit? The memory a model needs, reckoned from its file before it is loaded, against what is free.

Knows sizes and what the kernel tells; loads nothing. Where it cannot tell it lets a model try.
"""

from __future__ import annotations

from pathlib import Path

from p2pmesh.engine.base import Load
from p2pmesh.engine.gguf_file import Header
from p2pmesh.errors import ModelLoadError

OVERHEAD_BYTES = 96 * 2**20
"""An interpreter with llama.cpp in it, and the buffers a batch is computed in: 80 MiB of a small model
(measured), and a sixth more."""
SPARE_BYTES = 2**30
"""What an engine may take beyond what was reckoned, before it is stopped: larger vocabularies, adapters."""
CONTEXTS_SHARE = 0.5
"""Most of the memory left beside the weights that contexts may take: others live there, too. A guess."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Return the memory that can be had without swapping, within this container; None: nobody tells."""
    try:
        told = _MEMINFO.read_text("ascii")
        free = int(told.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    try:
        most = int((_CGROUP / "memory.max").read_text("ascii"))
        used = int((_CGROUP / "memory.current").read_text("ascii"))
        rows = (line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
        # Files that were read, this model among them, count as used, and give way to whoever needs the room.
        files = sum(int(row[1]) for row in rows if row[0] in ("active_file", "inactive_file"))
        return max(0, min(free, most - used + files))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def slots_that_fit(load: Load, header: Header, file_bytes: int, free_bytes: int | None) -> int:
    """Return how many contexts there is room for, `load.slots` at most.

    Raises `ModelLoadError`, with the numbers, where not even one fits beside the weights.
    """
    trained_tokens = header.numbers.get("context_length", 0)
    context_bytes = header.cell_bytes * min(load.context_tokens, trained_tokens or load.context_tokens)
    if free_bytes is None:
        return load.slots
    left = free_bytes - file_bytes - OVERHEAD_BYTES
    if left < context_bytes:
        raise ModelLoadError(
            f"{Path(load.path).name} needs {_size(file_bytes)} for its weights, {_size(context_bytes)} for "
            f"one context and {_size(OVERHEAD_BYTES)} beside, and {_size(free_bytes)} are free: "
            "lower engine.context_tokens, end something else, or take a smaller model"
        )
    return max(1, min(load.slots, int(left * CONTEXTS_SHARE) // max(1, context_bytes)))


def limit_bytes(load: Load, header: Header, file_bytes: int) -> int:
    """Return the most memory of its own that an engine of `load.slots` contexts may take. Weights count, too,
    though they are mostly mapped: some formats are rearranged for the CPU, and then they are its own."""
    contexts = (load.slots + 1) * load.context_tokens * header.cell_bytes  # one more, on its way out
    return file_bytes + contexts + load.prefix_bytes_max + OVERHEAD_BYTES + SPARE_BYTES


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
