"""A few kills amid streams, through the proxies: nothing is lost, and something was really hit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import trio

from benchmarks import chaos, scenarios
from benchmarks.history import History, Judge, counts, read, streams_of
from benchmarks.mesh import START_S, Role, children, open_mesh
from tests.integration.processes import environment, gone, until

ROOT = Path(__file__).resolve().parents[2]
KILLS = 6
DAMAGED = 60


async def test_six_kills_amid_streams_lose_nothing(tmp_path: Path):
    history = History(trio.current_time)
    told = await chaos.kills(tmp_path, 7, history, KILLS)
    found = Judge().read(history.rows)
    figures = counts(history.rows, found)
    assert found == []
    assert figures["whole"] == figures["streams"], figures["failed"]
    assert told["kills"] == {"executor": 2, "relay": 2, "idle": 2}
    assert told["died_unbidden"] == []
    assert told["gaps_measured"], "no stream was hit that went on"
    assert figures["hit"] >= 4, "each executor and each relay was amid a stream when it was killed"
    assert figures["resumed"], "nobody went on with another's answer"
    asked_at = {stream.asker for stream in streams_of(history.rows).values()}
    assert asked_at == {chaos.ASKER, chaos.LIBRARY}


async def test_damaged_bytes_and_cut_connections_end_no_peer_and_no_answer(tmp_path: Path):
    history = History(trio.current_time)
    told = await scenarios.flips(tmp_path, 3, history, DAMAGED)
    figures = counts(history.rows, Judge().read(history.rows))
    assert figures["violations"] == []
    assert figures["whole"] == figures["streams"] > 0
    assert told["flipped"] + told["cut"] >= DAMAGED
    assert told["died_unbidden"] == []
    assert told["whole_again_s"] is not None


async def test_all_is_gone_when_the_block_is_left(tmp_path: Path):
    history = History(trio.current_time)
    pids: list[int] = []
    with trio.CancelScope() as scope:
        async with open_mesh(tmp_path, 1, history, [Role("ada", (("echo", 50.0),)), Role("bea")]) as mesh:
            pids = [unit.process.pid for unit in mesh.units.values() if unit.process is not None]
            pids += children(pids[0])
            mesh.signal("bea", signal.SIGSTOP, "stopped")
            scope.cancel()
            await trio.sleep_forever()
    assert len(pids) == 3
    assert all(map(gone, pids))
    assert mesh.unbidden == []


def test_sigterm_ends_it_and_leaves_nothing(tmp_path: Path):
    kept = tmp_path / "seen"
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "1000", "--history", str(kept)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(TMPDIR=str(tmp_path)))
    try:
        file = tmp_path / "seen.kills.jsonl"
        until(lambda: file.exists() and any(row["what"] == "ready" for row in read(file)))
        peers = children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert peers
    assert all(map(gone, peers))
    assert not list(tmp_path.glob("p2pmesh-chaos-*")), "its folder is gone"
