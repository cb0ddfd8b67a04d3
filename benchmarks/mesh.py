"""A mesh of real peer processes with echo engines, each behind a proxy, to be killed and started again.

It knows processes, ports, configuration files and what a peer says of itself over HTTP. It knows nothing of
queries, and decides nothing: who is killed, and when, is its user's business. Whatever was started is ended
by its process id when `open_mesh` is left, however that comes.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from benchmarks.asking import BUDGET_S, CutOff, fetch
from benchmarks.faults import LOOPBACK, Wire
from benchmarks.history import History
from benchmarks.processes import ROOT, BenchmarkError

START_S = 60.0
"""Seconds a peer has to be ready: on busy cores it takes some."""
MEET_S = 90.0
"""Seconds in which all must see what they are to see."""
LOOK_S = 0.1
DRAIN_S = 45.0
"""Seconds a peer that is told to go has: more than `relay.drain_s`."""
GONE_S = 5.0
"""Seconds an engine has to end after its peer; they end with their stdin."""


@dataclass(frozen=True)
class Role:
    """What one peer of the mesh is."""

    name: str
    models: tuple[tuple[str, float], ...] = ()
    """Names and speeds, in tokens a second, of its echo models."""
    join: tuple[str, ...] = ()
    """Whom it joins."""
    rest: str = ""
    """More of its configuration."""
    inside: bool = False
    """Whether it is no process: its user runs it in his own, and here is only its place behind a proxy."""


class Unit:
    """One peer: its place in the mesh, and its process while it has one."""

    def __init__(self, role: Role, folder: Path, port: int) -> None:
        self.role, self.folder, self.port = role, folder, port
        self.proxy = 0
        self.process: trio.Process | None = None
        self.url = ""
        self.starts = 0

    @property
    def address(self) -> str:
        """Where others are told to find it."""
        return f"/ip4/{LOOPBACK}/tcp/{self.proxy}"

    @property
    def listen(self) -> str:
        """Where it listens."""
        return f"/ip4/{LOOPBACK}/tcp/{self.port}"

    def last_words(self) -> str:
        """Return the end of what it said of its errors since it was last started."""
        said = (self.folder / f"err{self.starts - 1}").read_text("utf-8", "replace").strip()
        return said[-2_000:]


class Mesh:
    """The peers, by name. Made by `open_mesh`."""

    def __init__(self, folder: Path, wire: Wire, history: History, roles: Sequence[Role]) -> None:
        self.wire, self.history = wire, history
        ports = free_ports(len(roles))
        self.units = {
            role.name: Unit(role, folder / role.name, port) for role, port in zip(roles, ports, strict=True)
        }
        self.ids: dict[str, str] = {}
        self.unbidden: list[str] = []
        """Those that ended without being told to."""
        self._engines: set[int] = set()
        self._expected: set[int] = set()

    def url(self, name: str) -> str:
        """Return where a peer's HTTP door is, or was last."""
        return self.units[name].url

    async def start(self, name: str) -> None:
        """Start a peer, for the first time or again. Returns when it says that it is ready."""
        unit = self.units[name]
        unit.folder.mkdir(parents=True, exist_ok=True)
        file = unit.folder / "peer.toml"
        file.write_text(self._configuration(unit))
        serving = [] if unit.role.models else ["--no-model"]  # or it would serve the embedded one
        with (unit.folder / f"err{unit.starts}").open("wb") as errors:
            unit.process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "p2pmesh.peer", "--json", "--config", str(file), *serving],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors.fileno(),
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("P2PMESH_")},
            )
        unit.starts += 1
        self.wire.pids[name] = unit.process.pid
        told = await self._told(unit)
        unit.url, self.ids[name] = told["http"], told["id"]
        self._engines.update(children(unit.process.pid))
        self.history.add("ready", peer=name)

    def _configuration(self, unit: Unit) -> str:
        models = ", ".join(
            f'{{model = "echo", name = "{name}", engine = "echo", tokens_per_s = {speed}}}'
            for name, speed in unit.role.models
        )
        join = [self.units[name].address for name in unit.role.join]
        state = json.dumps(str(unit.folder / "state"))
        return (
            f'name = "{unit.role.name}"\nembedder = "none"\nstate = {state}\n'
            f'models = [{models}]\nhttp.bind = "{LOOPBACK}:0"\nhttp.request_timeout_s = {BUDGET_S}\n'
            f'net.listen = ["{unit.listen}"]\nnet.announce = ["{unit.address}"]\n'
            f"net.join = {json.dumps(join)}\n{unit.role.rest}\n"
        )

    async def _told(self, unit: Unit) -> dict[str, Any]:
        process, raw = unit.process, b""
        assert process is not None
        assert process.stdout is not None
        with trio.move_on_after(START_S):
            while b"\n" not in raw:
                data = await process.stdout.receive_some()
                if not data:
                    break
                raw += bytes(data)
        if b"\n" not in raw:
            raise BenchmarkError(f"{unit.role.name} did not start: {unit.last_words()}")
        told: dict[str, Any] = json.loads(raw.partition(b"\n")[0])
        return told

    # -- ends -----------------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals, what: str, **told: Any) -> None:
        """Send a signal, and write down what it is for, before anything can come of it."""
        unit = self.units[name]
        assert unit.process is not None
        self.history.add(what, peer=name, **told)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._expected.add(unit.process.pid)
        unit.process.send_signal(number)

    def kill(self, name: str, kind: str = "") -> None:
        """SIGKILL a peer; `kind` says what it was to those it is killed for."""
        self.signal(name, signal.SIGKILL, "killed", kind=kind)

    async def gone(self, name: str) -> None:
        """Wait until a peer that was told to go, or killed, has ended."""
        process = self.units[name].process
        assert process is not None
        with trio.move_on_after(DRAIN_S) as scope:
            await process.wait()
        if scope.cancelled_caught:
            raise BenchmarkError(f"{name} has not ended within {DRAIN_S:g} s of being told to")
        self.wire.pids.pop(name, None)
        if process.stdout is not None:
            await process.stdout.aclose()

    def look_for_dead(self) -> None:
        """Write down who has ended unbidden."""
        for name, unit in self.units.items():
            process = unit.process
            if process is None or process.poll() is None or process.pid in self._expected:
                continue
            self._expected.add(process.pid)
            self.unbidden.append(name)
            self.history.add("died", peer=name, status=process.returncode, said=unit.last_words())

    async def close(self) -> None:
        """End every process that was started."""
        processes = [unit.process for unit in self.units.values() if unit.process is not None]
        self.look_for_dead()
        for process in processes:
            if process.poll() is None:
                self._engines.update(children(process.pid))
                process.kill()
        for process in processes:
            await process.wait()
        with trio.move_on_after(GONE_S):
            while any(map(_is_engine, self._engines)):  # noqa: ASYNC110 - they are no children of ours
                await trio.sleep(LOOK_S)
        for pid in filter(_is_engine, self._engines):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- what they say --------------------------------------------------------------------------------

    async def ask(self, name: str, path: str) -> Any:
        """Return what a peer says to a GET; None: nothing, in time."""
        with trio.move_on_after(2.0):
            with suppress(OSError, CutOff):
                return await fetch(self.url(name), path)
        return None

    async def alive(self, name: str) -> set[str]:
        """Return whom a peer takes for alive and within reach."""
        return await self._known(name, (0, math.inf))

    async def linked(self, name: str) -> set[str]:
        """Return whom a peer has a link with."""
        return await self._known(name, (1, 1))

    async def _known(self, name: str, distances: tuple[float, float]) -> set[str]:
        least, most = distances
        said = await self.ask(name, "/mesh/v1/peers")
        peers = said["peers"] if said else ()
        return {p["name"] for p in peers if p["alive"] and least <= p["distance"] <= most}

    async def until_seen(self, who: Iterable[str], by: Iterable[str], most_s: float = MEET_S) -> float | None:
        """Wait until each of the one is seen by each of the other; return the seconds it took, None: too
        many."""
        wanted, began = set(who), trio.current_time()
        with trio.move_on_after(most_s) as scope:
            for name in by:
                while not wanted <= await self.alive(name):  # noqa: ASYNC110 - it is another process's
                    await trio.sleep(LOOK_S)
        return None if scope.cancelled_caught else trio.current_time() - began

    async def until_whole(self, most_s: float = MEET_S) -> float:
        """Wait until everybody sees everybody. Raises BenchmarkError."""
        took = await self.until_seen(self.units, self.units, most_s)
        if took is None:
            raise BenchmarkError(f"not everybody saw everybody within {most_s:g} s")
        return took


@asynccontextmanager
async def open_mesh(folder: Path, seed: int, history: History, roles: Sequence[Role]) -> AsyncIterator[Mesh]:
    """Open the proxies, start the peers, and end them all when the block ends."""
    wire = Wire(seed)
    mesh = Mesh(folder, wire, history, roles)
    async with trio.open_nursery() as nursery:
        try:
            for name, unit in mesh.units.items():
                unit.proxy = await nursery.start(wire.proxy, name, unit.port)
            async with trio.open_nursery() as starting:
                for name, unit in mesh.units.items():
                    if not unit.role.inside:
                        starting.start_soon(mesh.start, name)
            yield mesh
        finally:
            with trio.CancelScope(shield=True):
                await mesh.close()
            nursery.cancel_scope.cancel()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now. Below those that the system gives to connections, one of which would
    take a peer's while it is being started again."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 100 + count):
        if len(found) == count:
            return found
        with suppress(OSError), socket.create_server((LOOPBACK, port)):
            found.append(port)
    raise BenchmarkError("no free ports")


def children(pid: int) -> list[int]:
    """Return the processes that a process has started: a peer's engines."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found.extend(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
    return found


def _is_engine(pid: int) -> bool:
    """Return whether an engine's process still runs, and the number is not another's by now."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        # One that is about to end has no command line any more, and is there for a moment still.
        return state not in "ZX" and (not command or b"p2pmesh.engine.worker" in command)
    except (OSError, IndexError):
        return False
