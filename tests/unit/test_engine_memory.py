"""Whether a model fits, told before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pmesh.engine import memory
from p2pmesh.engine.base import Load
from p2pmesh.engine.gguf_file import Header
from p2pmesh.errors import ModelLoadError

MIB = 2**20
SHAPE = {
    "block_count": 2,
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "embedding_length": 64,
    "context_length": 1_024,
}
"""Two layers of four groups of 8 numbers, twice, in halves: 256 bytes a token."""


def header(**numbers: int) -> Header:
    return Header("llama", 1, 1, 1, {**SHAPE, **numbers})


def test_a_token_takes_what_the_shape_says():
    assert header().cell_bytes == 256
    assert header(**{"attention.key_length": 16}).cell_bytes == 384
    assert Header("llama", 1, 1).cell_bytes == 0
    assert header(block_count=-3).cell_bytes == 0


@pytest.mark.parametrize(
    ("free_mib", "slots"),
    [(10_000, 8), (1_000 + 96 + 16 * 64, 8), (1_000 + 96 + 10 * 64, 5), (1_000 + 96 + 64, 1)],
)
def test_there_are_as_many_slots_as_contexts_fit_into_half_of_what_is_left(free_mib, slots):
    load = Load(path="/m.gguf", slots=8, context_tokens=2**18)
    shape = header(context_length=2**18)  # 64 MiB a context
    assert memory.slots_that_fit(load, shape, 1_000 * MIB, free_mib * MIB) == slots


def test_what_does_not_fit_is_refused_with_the_numbers():
    load = Load(path="/models/m.gguf", slots=8, context_tokens=2**18)
    shape = header(context_length=2**18)
    with pytest.raises(ModelLoadError) as refused:
        memory.slots_that_fit(load, shape, 5_000 * MIB, 5_096 * MIB)
    for said in ("m.gguf needs 4.88 GiB", "64 MiB for one context", "96 MiB beside", "4.98 GiB are free"):
        assert said in str(refused.value)


def test_a_context_is_no_longer_than_the_model_was_trained_for():
    load = Load(path="/m.gguf", slots=8, context_tokens=2**30)
    assert memory.slots_that_fit(load, header(), 0, 106 * MIB) == 8
    assert memory.slots_that_fit(load, header(context_length=0, block_count=0), 0, 106 * MIB) == 8


def test_where_nobody_tells_a_model_may_try():
    assert memory.slots_that_fit(Load(path="/m.gguf", slots=8), header(), 2**60, None) == 8


def test_what_is_free_is_what_the_kernel_and_the_container_say(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    5000 kB\n")
    assert memory.available_bytes() == 5_000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 5_000 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2900\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nactive_file 1200\ninactive_file 700\n")
    assert memory.available_bytes() == 2_000  # what was read of files can be had back
    (tmp_path / "memory.current").write_text("5000\n")
    assert memory.available_bytes() == 0


def test_an_engine_may_take_what_was_reckoned_and_some_more():
    load = Load(path="/m.gguf", slots=4, context_tokens=1_024, prefix_bytes_max=7)
    assert memory.limit_bytes(load, header(), 1_000) == 1_000 + 5 * 2**18 + 7 + 96 * MIB + 2**30
