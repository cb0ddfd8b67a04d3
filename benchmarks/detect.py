"""How soon a death is known to all, with real peers in real processes, and whether busy cores bury anybody.

    python -m benchmarks.detect [--json] [--peers 10] [--kills 5] [--busy-s 60]

Peers without models on loopback, each in a process of its own. One is killed with -9, the others are asked
over HTTP, one after the other and over again, until each has said that it holds it for dead; then it is
started again under its own key, and the next is killed. After that every core is kept busy by a process that
does nothing else, and what the peers believe is watched: nobody died, so nobody may be held for dead.

The time of a poll (some ms for each peer) is part of the figures. Everything started is ended, by pid.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2pmesh.cli import client

WAIT_S = 90.0
"""Longest wait for anything; then the benchmark says what it waited for, and fails."""
CONFIG = 'embedder = "none"\nmodels = []\nhttp.bind = "127.0.0.1:0"\nname = {name}\nnet.join = {join}\n'


class PeerProcess:
    """One peer, which can be killed and started again."""

    def __init__(self, folder: Path, name: str, join: list[str]) -> None:
        folder.mkdir()
        self.name = name
        self._folder = folder
        (folder / "peer.toml").write_text(CONFIG.format(name=json.dumps(name), join=json.dumps(join)))
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is up."""
        command = [sys.executable, "-m", "p2pmesh.peer", "--json", "--no-model"]
        command += ["--state", str(self._folder / "state"), "--config", str(self._folder / "peer.toml")]
        out = self._folder / "out"
        with out.open("w") as stdout, (self._folder / "err").open("w") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        until(f"{self.name} to start", lambda: "\n" in out.read_text())
        told = json.loads(out.read_text())
        self.url = str(told["http"])
        self.address = str(told["addresses"][0])

    def alive(self) -> set[str]:
        """Return the names of those it would give work."""
        peers: list[dict[str, Any]] = client.call(self.url, "GET", "/mesh/v1/peers")["peers"]
        return {peer["name"] for peer in peers if peer["alive"]}

    def kill(self) -> None:
        """End it as the kernel would when memory runs out."""
        self.process.kill()
        self.process.wait()


def until(what: str, true: Any) -> None:
    """Wait until `true()` is. Raises SystemExit, naming `what`, after `WAIT_S`."""
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {WAIT_S:g} s in vain for {what}")
        time.sleep(0.02)


@contextmanager
def mesh(count: int) -> Iterator[list[PeerProcess]]:
    """Yield peers that have all met."""
    peers: list[PeerProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in range(count):
                join = [peers[0].address] if peers else []
                peers.append(PeerProcess(Path(folder) / f"p{number}", f"p{number}", join))
            met(peers)
            yield peers
        finally:
            for peer in peers:
                peer.kill()


def met(peers: list[PeerProcess]) -> None:
    """Wait until each knows all."""
    names = {peer.name for peer in peers}
    for peer in peers:
        until(f"{peer.name} to know all", lambda peer=peer: peer.alive() == names)


def detection_s(peers: list[PeerProcess], victim: PeerProcess) -> list[float]:
    """Kill `victim`; return after how many seconds each of the others was first seen to know it, sorted."""
    others = [peer for peer in peers if peer is not victim]
    victim.kill()
    killed_at = time.monotonic()
    known: dict[str, float] = {}
    while len(known) < len(others):
        for peer in others:
            if peer.name not in known and victim.name not in peer.alive():
                known[peer.name] = time.monotonic() - killed_at
        if time.monotonic() - killed_at > WAIT_S:
            raise SystemExit(f"{len(others) - len(known)} peers never knew that {victim.name} was killed")
        time.sleep(0.01)
    return sorted(known.values())


def false_deaths(peers: list[PeerProcess], seconds: float) -> tuple[int, int]:
    """Keep every core busy for `seconds`; return how often a peer was seen to hold a living one for dead, and
    of how many looks."""
    names = {peer.name for peer in peers}
    spinners = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for spinner in spinners:
        spinner.start()
    try:
        wrong = looks = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for peer in peers:
                wrong += len(names - peer.alive())
                looks += len(peers) - 1
            time.sleep(0.5)
        return wrong, looks
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.join()


def _spin() -> None:
    while True:
        pass


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description="How soon real peers know of a death.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--busy-s", type=float, default=60.0)
    args = parser.parse_args()
    last: list[float] = []
    first: list[float] = []
    with mesh(args.peers) as peers:
        for number in range(args.kills):
            victim = peers[1 + number % (args.peers - 1)]
            seconds = detection_s(peers, victim)
            first.append(seconds[0])
            last.append(seconds[-1])
            victim.start()
            met(peers)
        wrong, looks = false_deaths(peers, args.busy_s)
    result = {
        "peers": args.peers,
        "kills": args.kills,
        "first_s_median": round(statistics.median(first), 3),
        "last_s_median": round(statistics.median(last), 3),
        "last_s_max": round(max(last), 3),
        "busy_s": args.busy_s,
        "busy_false_deaths": wrong,
        "busy_looks": looks,
    }
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
