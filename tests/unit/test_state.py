"""The directory of one peer: a lock, an epoch that only rises, and where its door is."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from p2pmesh.errors import ConfigError, StateLocked
from p2pmesh.peer import state

if TYPE_CHECKING:
    from pathlib import Path


def test_a_directory_serves_one_peer_at_a_time(tmp_path: Path):
    path = tmp_path / "deep" / "state"
    assert not state.is_held(path)
    with state.locked(path):
        assert path.stat().st_mode & 0o777 == 0o700
        assert state.is_held(path)
        with (
            pytest.raises(StateLocked, match=f"another peer uses {path}: stop it, or give this one"),
            state.locked(path),
        ):
            pass
        assert state.is_held(path), "the one that was refused did not take it away"
    assert not state.is_held(path)
    with state.locked(path):
        pass


def test_one_who_only_looks_keeps_nobody_from_starting(tmp_path: Path):
    with state.locked(tmp_path):
        pass
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            state.is_held(tmp_path)
            time.sleep(0.0005)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            with state.locked(tmp_path):
                pass
    finally:
        stop.set()
        looking.join()


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path):
    program = (
        "import sys, time, pathlib\nfrom p2pmesh.peer import state\npath = pathlib.Path(sys.argv[1])\n"
        "with state.locked(path), state.announced(path, {'http': 'x'}):\n"
        "    print(flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert state.running(tmp_path) == {"http": "x"}
        holder.kill()
    assert (tmp_path / "running.json").exists()
    assert state.running(tmp_path) is None, "what a killed peer announced is not believed"


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x"])
def test_a_directory_that_cannot_be_is_refused(place: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot use the state directory"), state.locked(tmp_path / place):
        pass


def test_the_epoch_rises_though_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [5_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0] * 1_000_000)
    first = state.next_epoch(tmp_path)
    assert first == 5_000_000_000_000
    now[0] -= 1_000_000
    assert [state.next_epoch(tmp_path) for _ in range(3)] == [first + 1, first + 2, first + 3]
    now[0] += 2_000_000
    assert state.next_epoch(tmp_path) == now[0]


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff", b"-5", b"9" * 30, b"9" * 5_000, str(2**63).encode()])
def test_a_damaged_epoch_is_no_harm(tmp_path: Path, damage: bytes):
    (tmp_path / "epoch").write_bytes(damage)
    epoch = state.next_epoch(tmp_path)
    assert abs(epoch - time.time() * 1e3) < 1e6
    assert state.next_epoch(tmp_path) > epoch


def test_an_epoch_that_cannot_be_kept_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot write"):
        state.next_epoch(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_what_runs_is_told_while_it_runs(tmp_path: Path):
    told = {"http": "http://127.0.0.1:1", "pid": 7}
    assert state.running(tmp_path) is None
    with state.locked(tmp_path):
        with state.announced(tmp_path, told):
            assert state.running(tmp_path) == told
        assert state.running(tmp_path) is None
        for garbage in ("", "[]", "{", "3"):
            (tmp_path / "running.json").write_text(garbage)
            assert state.running(tmp_path) is None
    (tmp_path / "running.json").write_text(json.dumps(told))
    assert state.running(tmp_path) is None


def test_the_directory_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/ada")
    assert state.directory("") == tmp_path / "p2pmesh"
    assert str(state.directory("~/mesh")) == "/home/ada/mesh"
