"""How soon real peers know of a death, and whether busy cores make them bury the living.

    python -m benchmarks.detect [--json] [--peers N] [--kills K] [--busy-s S]

Ten peers with echo models, one process each, on loopback. One is killed with SIGKILL, five times, and started
again; what is measured is how long it takes until the last of the others no longer calls it alive, by asking
each over its HTTP door every 50 ms. Then every core gets a busy loop of normal priority while peers answer
queries for a minute, and every living peer that somebody calls dead is counted. All processes are ended by
their ids, whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from p2pmesh.cli.client import NoPeer, Unsuccessful, call
from tests.integration.processes import PeerProcess, echo_config

POLL_S = 0.05
GOAL_S = 3.0
READY_S = 90.0
"""Seconds in which all peers must have met."""
KNOWN_S = 60.0
"""Seconds after a death in which all must know of it."""
BUSY_POLL_S = 0.25


class Mesh:
    """The peers, by name, and all that has to be ended at the end."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._join: list[str] = []
        self.urls: dict[str, str] = {}
        self.peers: dict[str, PeerProcess] = {}
        self._others: list[subprocess.Popen[bytes]] = []
        self._engines: list[int] = []
        self.names = [f"peer{i}" for i in range(count)]

    def start(self, name: str) -> None:
        """Start one peer, or start it again; it meets the first, which is never killed."""
        args = echo_config(self._folder / name, name, tokens_per_s=100.0, join=self._join)
        peer = self.peers[name] = PeerProcess(self._folder / name, args)
        self.urls[name] = peer.url
        self._engines.extend(peer.engine_pids())
        if not self._join:
            self._join = peer.told["addresses"]

    def burn(self) -> None:
        """Keep every core busy."""
        for _ in range(os.cpu_count() or 1):
            self._others.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))

    def close(self) -> None:
        """End everything that was started."""
        processes = [*self._others, *(peer.process for peer in self.peers.values())]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for pid in self._engines:
            try:
                ours = b"p2pmesh" in Path(f"/proc/{pid}/cmdline").read_bytes()
                if ours:
                    os.kill(pid, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue

    def alive(self, name: str) -> set[str]:
        """Return whom a peer calls alive; nobody, where it does not answer in time."""
        try:
            found = call(self.urls[name], "GET", "/mesh/v1/peers")["peers"]
        except (NoPeer, Unsuccessful, OSError):
            return set()
        return {p["name"] for p in found if p["alive"]}

    def wait_whole(self) -> None:
        """Wait until everybody calls everybody alive."""
        deadline = time.monotonic() + READY_S
        for name in self.names:
            while self.alive(name) != set(self.names):
                if time.monotonic() > deadline:
                    raise SystemExit(f"{name} has not met everybody within {READY_S:g} s")
                time.sleep(POLL_S)

    def kill(self, victim: str) -> list[float]:
        """Kill a peer; return the seconds after which each of the others knew."""
        watchers = [name for name in self.names if name != victim]
        process = self.peers[victim].process
        with ThreadPoolExecutor(len(watchers)) as pool:
            at = time.monotonic()
            process.kill()
            times = list(pool.map(lambda name: self._knows(name, victim, at), watchers))
        process.wait()
        return times

    def _knows(self, name: str, victim: str, at: float) -> float:
        while time.monotonic() < at + KNOWN_S:
            known = self.alive(name)
            if known and victim not in known:
                return time.monotonic() - at
            time.sleep(POLL_S)
        return float("inf")

    def ask(self, name: str) -> bool:
        """Ask one query, and return whether it was answered."""
        body = {"model": "auto", "max_tokens": 40, "messages": [{"role": "user", "content": "tell me more"}]}
        try:
            call(self.urls[name], "POST", "/v1/chat/completions", body)
        except (NoPeer, Unsuccessful, OSError):
            return False
        return True


@contextmanager
def _mesh(count: int) -> Iterator[Mesh]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="p2pmesh-detect-") as folder:
        mesh = Mesh(Path(folder), count)
        try:
            yield mesh
        finally:
            mesh.close()


def deaths(mesh: Mesh, kills: int) -> list[dict[str, Any]]:
    """Kill one after the other, and start each again."""
    rows = []
    for number in range(kills):
        victim = mesh.names[1 + number % (len(mesh.names) - 1)]
        times = mesh.kill(victim)
        rows.append({"victim": victim, "first_s": round(min(times), 3), "last_s": round(max(times), 3)})
        mesh.start(victim)
        mesh.wait_whole()
    return rows


def busy(mesh: Mesh, seconds: float) -> dict[str, Any]:
    """Keep all cores busy and the peers answering; count who is wrongly called dead."""
    rng = Random(1)
    mesh.burn()
    until = time.monotonic() + seconds
    looks, silent, answered, failed = 0, 0, 0, 0
    false: list[dict[str, Any]] = []

    def asking(worker: int) -> tuple[int, int]:
        good = bad = 0
        while time.monotonic() < until:
            if mesh.ask(rng.choice(mesh.names)):
                good += 1
            else:
                bad += 1
        return good, bad

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(asking, worker) for worker in range(4)]
        while time.monotonic() < until:
            for name in mesh.names:
                looks += 1
                known = mesh.alive(name)
                silent += not known
                if known and (missing := set(mesh.names) - known):
                    at = seconds - (until - time.monotonic())
                    false.append({"at_s": round(at, 2), "by": name, "of": sorted(missing)})
            time.sleep(BUSY_POLL_S)
        for future in asked:
            good, bad = future.result()
            answered, failed = answered + good, failed + bad
    return {
        "seconds": seconds,
        "looks": looks,
        "unanswered_looks": silent,
        "queries_answered": answered,
        "queries_failed": failed,
        "false_deaths": len(false),
        "false": false[:20],
    }


def measure(count: int, kills: int, busy_s: float) -> dict[str, Any]:
    """Run the benchmark; return its figures as `--json` prints them."""
    with _mesh(count) as mesh:
        for name in mesh.names:
            mesh.start(name)
        mesh.wait_whole()
        rows = deaths(mesh, kills)
        under_load = busy(mesh, busy_s)
    last = [row["last_s"] for row in rows]
    return {
        "peers": count,
        "detect_p50_s": statistics.median(last) if last else None,
        "detect_max_s": max(last, default=None),
        "goal_s": GOAL_S,
        "kills": rows,
        "busy": under_load,
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detect", description="How soon death is known."
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--busy-s", type=float, default=60.0, help="seconds with all cores busy")
    options = parser.parse_args()
    figures = measure(options.peers, options.kills, options.busy_s)
    if options.json:
        print(json.dumps(figures))
        return
    for row in figures.pop("kills"):
        print(f"{row['victim']} killed: the first knew after {row['first_s']} s, the last {row['last_s']} s")
    for key, value in figures.items():
        print(f"{key:14s} {value}")


if __name__ == "__main__":
    main()
