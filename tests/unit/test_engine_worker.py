"""What a child asks of its machine and of its files, and that nobody who came first is forgotten."""

from __future__ import annotations

import queue
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from p2pmesh.engine import devices, digest, gguf_file, memory, worker
from p2pmesh.engine.base import Generate, Load
from p2pmesh.errors import EngineError, ModelLoadError
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
    monkeypatch.setattr(devices, "room_bytes", lambda gpus, *_: sum(d.free_bytes for d in gpus))
    monkeypatch.setattr(digest, "sha256_of", unread)
    monkeypatch.setattr(worker, "_confine", lambda limit, most: found["limits"].append(limit))
    return found


@pytest.mark.parametrize("offloads", [True, False])
def test_a_driver_of_gpus_takes_what_it_likes_and_no_other_engine_does(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, offloads: bool
):
    monkeypatch.setattr(devices, "gpus", lambda library: (GPU,))
    monkeypatch.setattr(devices, "offloads", lambda library: offloads)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        worker.open_engine(Load(path=asked["path"], gpu_layers=-1))
    assert asked["free"] == 1_000 + 60
    assert asked["limits"] == ([] if offloads else [resource.RLIMIT_DATA])


@pytest.mark.parametrize(
    ("gpus", "layers", "room"),
    [
        ((), -1, 0),
        ((GPU,), 0, 0),
        ((GPU,), -1, 60),  # no more than is free
        ((GPU, GPU), -1, 100),  # no more than there is of the model
        ((GPU,), 1, 20),  # of four layers and the output
        ((GPU, GPU), 99, 100),
        ((Device("inside", 60, 80, shared=True),), -1, 0),  # the CPU's memory does not count twice
    ],
)
def test_gpus_take_their_share_of_the_weights_and_no_more(gpus: tuple[Device, ...], layers: int, room: int):
    assert devices.room_bytes(gpus, layers, 4, 100) == room


def test_files_that_are_left_alone_are_in_order(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    for files in (
        worker.Files(),
        worker.Files("", str(tmp_path / "none")),
        worker.Files(str(path), str(path)),
    ):
        files.check()
        files.check_loaded()


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_was_written_to_is_not(tmp_path: Path, which: int):
    paths = [tmp_path / "m.gguf", tmp_path / "adapter.gguf"]
    for path in paths:
        path.write_bytes(b"weights")
    files = worker.Files(*map(str, paths))
    with paths[which].open("ab") as file:
        file.write(b"!")
    for check in (files.check, files.check_loaded):
        with pytest.raises(EngineError, match="was written to"):
            check()


def test_a_file_that_was_replaced_is_in_order_once_it_is_loaded_and_not_before(tmp_path: Path):
    """Its head, digest and weights would be of two files: an answer would go on with another mind."""
    path, other = tmp_path / "m.gguf", tmp_path / "other.gguf"
    path.write_bytes(b"weights")
    other.write_bytes(b"weights")
    files = worker.Files(str(path))
    other.replace(path)
    files.check()
    with pytest.raises(EngineError, match="was replaced while it was being loaded"):
        files.check_loaded()
    path.unlink()
    with pytest.raises(EngineError, match="was replaced while it was being loaded"):
        files.check_loaded()


class Slow:
    """An engine that takes its time over each request, and writes for ever."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def submit(self, request: Any) -> list[Any]:
        self.log.append(request.job)
        time.sleep(0.02)
        return []

    def step(self) -> list[Any]:
        self.log.append("step")
        if self.log.count("step") == 3:
            raise EngineError("enough")
        return []

    def wait_s(self) -> float:
        return 0.0

    def metrics(self) -> None:
        return None


def test_however_many_come_at_once_running_answers_go_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "TAKE_S", 0.05)
    inbox: worker.Inbox = queue.Queue()
    for i in range(20):
        inbox.put(Generate(str(i), ()))
    engine = Slow()
    with pytest.raises(EngineError, match="enough"):
        worker.serve(engine, inbox, -1)  # type: ignore[arg-type]
    assert engine.log.index("step") < 10
    assert inbox.qsize() > 0


def test_nothing_is_said_that_may_be_wrong():
    def spoiled() -> None:
        raise EngineError("its model file was written to")

    inbox: worker.Inbox = queue.Queue()
    engine = Slow()
    with pytest.raises(EngineError, match="written to"):
        worker.serve(engine, inbox, -1, spoiled)  # type: ignore[arg-type]
    assert engine.log == ["step"]
