"""Which GPUs this build of llama.cpp can use, and how much memory of theirs is free.

Knows ggml's list of devices; loads nothing and decides nothing. llama_cpp has no names for these functions,
but its library finds them among those it is linked with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from p2pmesh.record import DEVICE_BYTES_MAX, DEVICES_MAX, Device

_GPU, _SHARED_GPU = 1, 2
"""Of ggml_backend_dev_type: with memory of its own, and with the CPU's."""


def gpus(library: Any) -> tuple[Device, ...]:
    """Return the GPUs that `library` (llama.cpp's, a `ctypes.CDLL`) sees at this moment, at most
    `DEVICES_MAX`; none where it cannot tell."""
    try:
        return tuple(_gpus(library))[:DEVICES_MAX]
    except AttributeError:  # a build whose parts are hidden in one another
        return ()


def offloads(library: Any) -> bool:
    """Return whether this build can use a GPU, were there one."""
    return bool(library.llama_supports_gpu_offload())


def room_bytes(devices: tuple[Device, ...], layers: int, all_layers: int, weights_bytes: int) -> int:
    """Return how much of a model's weights GPUs take off the CPU's memory: those of `layers` layers (-1: all)
    of `all_layers` and the output, as far as there is room."""
    share = 1.0 if layers < 0 else min(1.0, layers / (all_layers + 1))
    return min(round(share * weights_bytes), sum(d.free_bytes for d in devices if not d.shared))


def _gpus(library: Any) -> Iterator[Device]:
    count, get = library.ggml_backend_dev_count, library.ggml_backend_dev_get
    kind, describe, memory = (
        library.ggml_backend_dev_type,
        library.ggml_backend_dev_description,
        library.ggml_backend_dev_memory,
    )
    count.restype, get.restype = ctypes.c_size_t, ctypes.c_void_p
    get.argtypes = [ctypes.c_size_t]
    kind.argtypes = describe.argtypes = [ctypes.c_void_p]
    kind.restype, describe.restype = ctypes.c_int, ctypes.c_char_p
    size = ctypes.c_size_t
    memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(size), ctypes.POINTER(size)]
    memory.restype = None
    for at in range(count()):
        device = get(at)
        if kind(device) in (_GPU, _SHARED_GPU):
            free, total = size(), size()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            name = (describe(device) or b"")[:DEVICE_BYTES_MAX].decode("utf-8", "ignore")
            yield Device(name, free.value, total.value, kind(device) == _SHARED_GPU)
