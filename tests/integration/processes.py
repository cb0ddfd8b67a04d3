"""Peers as a user starts them, in processes of their own, for the tests. Knows no test.

What a peer says goes to files, so that nothing here can fill a pipe; every wait is only a guard.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from p2pmesh.cli import client

HANG_S = 60.0
PEER = (sys.executable, "-m", "p2pmesh.peer")
VERB = (sys.executable, "-m", "p2pmesh")


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without the P2PMESH_ variables a developer may have set."""
    return {k: v for k, v in os.environ.items() if not k.startswith("P2PMESH_")} | extra


def run(command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def verb(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `p2pmesh` with `args`."""
    return run([*VERB, *args], env)


def until(true: Callable[[], Any]) -> Any:
    """Wait until `true()` is, and return what it is."""
    deadline = time.monotonic() + HANG_S
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    """Return whether a process has ended; one whose new parent does not reap it has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class PeerProcess:
    """A running peer."""

    def __init__(self, folder: Path, args: Sequence[str], env: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = folder / "state"
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*PEER, "--state", str(self.state), "--json", *args],
                env=env or environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    @property
    def told(self) -> dict[str, Any]:
        """What it said when it was ready; waits for that."""

        def line() -> str:
            text = self._out.read_text()
            assert "\n" in text or self.process.poll() is None, f"it ended before it was ready: {self.stderr}"
            return text if "\n" in text else ""

        found: dict[str, Any] = json.loads(until(line))
        return found

    @property
    def url(self) -> str:
        return str(self.told["http"])

    def get(self, path: str) -> Any:
        return client.call(self.url, "GET", path)

    def status(self) -> Any:
        return self.get("/mesh/v1/status")

    def engine_pids(self) -> list[int]:
        return [engine["pid"] for engine in self.status()["engines"]]

    def alive(self) -> set[str]:
        """The names of those it takes for alive and within reach."""
        peers = self.get("/mesh/v1/peers")["peers"]
        return {p["name"] for p in peers if p["alive"] and p["distance"] >= 0}

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def echo_config(
    folder: Path, name: str, *, tokens_per_s: float = 500.0, join: Sequence[str] = (), rest: str = ""
) -> list[str]:
    """Write the configuration of an echo peer and return the arguments that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "peer.toml"
    file.write_text(
        f'name = {json.dumps(name)}\nembedder = "hash"\n'
        f'models = [{{model = "echo", engine = "echo", tokens_per_s = {tokens_per_s}}}]\n'
        f'http.bind = "127.0.0.1:0"\nnet.join = {json.dumps(list(join))}\n{rest}'
    )
    return ["--config", str(file)]


@contextmanager
def peers(folder: Path, rest: str = "", **speeds: float) -> Iterator[dict[str, PeerProcess]]:
    """Start echo peers of those names and speeds, and yield them when each knows all."""
    started: dict[str, PeerProcess] = {}
    address = f"/ip4/127.0.0.1/tcp/{_free_port()}"
    try:
        for name, speed in speeds.items():
            join = [address] if started else []
            args = echo_config(folder / name, name, tokens_per_s=speed, join=join, rest=rest)
            started[name] = PeerProcess(folder / name, args if started else [*args, "--listen", address])
        until(lambda: all(peer.alive() == set(speeds) for peer in started.values()))
        yield started
    finally:
        for peer in started.values():
            if peer.process.poll() is None:
                peer.process.terminate()
        for peer in started.values():
            try:
                peer.process.wait(10)
            except subprocess.TimeoutExpired:
                peer.process.kill()
                peer.process.wait()


def _free_port() -> int:
    """A port that is free now: known before the peers start, so that they can start all at once. Below those
    that the system gives to connections, one of which would take it before the peer does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("a hundred ports in use")
