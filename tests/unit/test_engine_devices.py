"""Which GPUs there are: read out of ggml's list, which here is a made-up one behind the same C functions."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from p2pmesh.engine import base, frames
from p2pmesh.engine.devices import gpus
from p2pmesh.errors import EngineError
from p2pmesh.record import DEVICE_BYTES_MAX, DEVICES_MAX, Device, ModelInfo

CPU, GPU, SHARED, ACCELERATOR = range(4)
SIZE = ctypes.c_size_t
INFO = ModelInfo("m", "", 1, 1.0, 1.0, 1)


def library(*rows: tuple[int, bytes | None, int, int]) -> Any:
    """Return what looks like llama.cpp's library with these devices: kind, description, free, total. Its
    functions convert as C's do, but for a null handle: the first device's is 0."""

    def memory(device: int | None, free: Any, total: Any) -> None:
        free[0], total[0] = rows[(device or 1) - 1][2:]

    def c(result: Any, arguments: list[Any], function: Any) -> Any:
        return ctypes.CFUNCTYPE(result, *arguments)(function)

    pointer = ctypes.POINTER(SIZE)
    return SimpleNamespace(
        ggml_backend_dev_count=c(SIZE, [], lambda: len(rows)),
        ggml_backend_dev_get=c(ctypes.c_void_p, [SIZE], lambda at: at + 1),
        ggml_backend_dev_type=c(ctypes.c_int, [ctypes.c_void_p], lambda d: rows[d - 1][0]),
        ggml_backend_dev_description=c(
            ctypes.c_void_p,
            [ctypes.c_void_p],
            lambda d: ctypes.cast(ctypes.c_char_p(rows[d - 1][1]), ctypes.c_void_p).value,
        ),
        ggml_backend_dev_memory=c(None, [ctypes.c_void_p, pointer, pointer], memory),
    )


def test_gpus_are_told_and_processors_are_not():
    found = gpus(library((CPU, b"EPYC", 1, 2), (GPU, b"H100", 60, 80), (ACCELERATOR, b"BLAS", 0, 0)))
    assert found == (Device("H100", 60, 80),)


def test_two_of_a_kind_are_two_and_one_that_shares_the_memory_counts():
    found = gpus(library((GPU, b"A", 1, 2), (GPU, b"A", 1, 2), (SHARED, b"B", 3, 4)))
    assert found == (Device("A", 1, 2), Device("A", 1, 2), Device("B", 3, 4, shared=True))


def test_a_long_or_strange_name_is_cut_to_one_that_can_be_told():
    (found,) = gpus(library((GPU, "ä".encode() * 40 + b"\xff", 1, 2)))
    assert found.name == "ä" * 32
    (cut,) = gpus(library((GPU, b"x" + "ä".encode() * 40, 1, 2)))
    assert len(cut.name.encode()) == DEVICE_BYTES_MAX - 1
    (unnamed,) = gpus(library((GPU, None, 1, 2)))
    assert unnamed.name == ""


def test_no_more_are_told_than_a_record_carries():
    assert len(gpus(library(*[(GPU, b"A", 1, 2)] * 20))) == DEVICES_MAX


def test_a_build_that_cannot_tell_has_none():
    assert gpus(SimpleNamespace()) == ()


def test_this_build_can_be_asked():
    llama_cpp = pytest.importorskip("llama_cpp")
    library = llama_cpp.llama_cpp._lib
    assert library.ggml_backend_dev_count() >= 1  # the CPU is one: the functions are found, and work
    assert all(device.total_bytes > 0 for device in gpus(library))


def heard(*devices: Device) -> list[base.Event]:
    return frames.EventReader().feed(frames.encode(base.Ready(INFO, devices=devices)))


def test_they_travel_to_the_parent():
    given = Device("H100", 60, 80)
    assert heard(given) == [base.Ready(INFO, devices=(given,))]


@pytest.mark.parametrize(
    "device",
    [Device("x" * 65, 1, 2), Device("A", -1, 2), Device("A", 1, -2), Device("A", 1, 2**63)],
)
def test_a_child_cannot_make_its_parent_say_what_no_record_carries(device: Device):
    with pytest.raises(EngineError, match="a GPU"):
        heard(device)


def test_a_child_cannot_tell_of_more_than_a_record_carries():
    with pytest.raises(EngineError, match="broken frame"):
        heard(*[Device("A", 1, 2)] * (DEVICES_MAX + 1))
