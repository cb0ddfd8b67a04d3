"""What a child asks of its machine before it loads a model."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from p2pmesh.engine import devices, digest, gguf_file, memory, worker
from p2pmesh.engine.base import Load
from p2pmesh.errors import ModelLoadError
from p2pmesh.record import Device
from tests.unit.test_engine_catalog import tiny

GPU = Device("H100", 60, 80)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked, and of which: a load gets no further than to the reading of its file."""
    pytest.importorskip("llama_cpp")
    found: dict[str, Any] = {"path": str(tmp_path / "m.gguf"), "limits": []}
    Path(found["path"]).write_bytes(tiny())

    def slots_that_fit(load: Load, header: gguf_file.Header, size: int, free: int | None) -> int:
        found["free"] = free
        return load.slots

    def unread(path: Path) -> str:
        raise OSError("not today")

    monkeypatch.setattr(memory, "available_bytes", lambda: 1_000)
    monkeypatch.setattr(memory, "slots_that_fit", slots_that_fit)
    monkeypatch.setattr(digest, "sha256_of", unread)
    monkeypatch.setattr(worker, "_confine", lambda limit, most: found["limits"].append(limit))
    return found


@pytest.mark.parametrize(
    ("gpus", "layers", "free", "limits"),
    [
        ((), 0, 1_000, [resource.RLIMIT_DATA]),
        ((), -1, 1_000, [resource.RLIMIT_DATA]),  # layers for a GPU that is not there
        ((GPU,), 0, 1_000, []),
        ((GPU, GPU), -1, 1_120, []),  # a driver takes what it likes, but what it has counts
    ],
)
def test_the_memory_of_gpus_counts_for_who_uses_it(
    asked: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[Device, ...],
    layers: int,
    free: int,
    limits: list[int],
):
    monkeypatch.setattr(devices, "gpus", lambda library: gpus)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        worker.open_engine(Load(path=asked["path"], gpu_layers=layers))
    assert (asked["free"], asked["limits"]) == (free, limits)


def test_a_file_that_is_not_there_is_intact_and_one_that_was_touched_is_not(tmp_path: Path):
    path = tmp_path / "m.gguf"
    assert worker._watch("")()
    assert worker._watch(str(path))()
    path.write_bytes(b"weights")
    intact = worker._watch(str(path))
    assert intact()
    with path.open("ab") as file:
        file.write(b"!")
    assert not intact()
