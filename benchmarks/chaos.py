"""Real peers are killed, cut off, stopped and lied to by the wire, while they answer: is anything lost?

    python -m benchmarks.chaos [--scenario NAME] [--kills 200] [--flips 1000] [--seed N] [--json]

Peers run in processes of their own, on loopback, with echo engines of a set speed (no model: their text is a
function of prompt and place, and of one digest, so that a wrong token is known as one). Every link of two
peers goes through `benchmarks.faults`; what clients see is written down and judged by `benchmarks.history`.
Which moment is hit is drawn from the seed, but processes keep their own time: a run is not repeated exactly.
All processes are ended by their ids, whatever happens.

- `kills`: SIGKILL to an executor, a relay or an idle peer in turn, amid streams over HTTP and in Python.
- `third`: 30 % of ten peers at once. `rolling`: SIGTERM to all, one by one. `partition`: half and half, and
  one way. `stopped`: SIGSTOP, and a slow wire. `flips`: bits flipped, connections cut amid a piece.

It exits with 1 where the judge found something; a figure that misses its goal is said so, and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from benchmarks import figures, scenarios
from benchmarks.asking import Asking
from benchmarks.history import History, Judge, counts, pauses, streams_of
from benchmarks.mesh import LOOK_S, MEET_S, Mesh, Role, open_mesh
from benchmarks.processes import BenchmarkError, run
from p2pmesh import config
from p2pmesh.engine.echo import READS_FASTER
from p2pmesh.peer.peer import Peer, open_peer

RELAYS = ("relay0", "relay1")
EXECUTORS = ("exec0", "exec1", "exec2", "exec3")
ASKER, LIBRARY, BYSTANDER = "asker", "library", "bystander"
KINDS = ("executor", "relay", "idle")
SPEED = 40.0
"""Tokens a second of an echo."""
WORDS = 120
"""Of a prompt, and so of an answer: three seconds."""
STREAMS = 2
"""At once, of each asker."""
PAUSE_S = (0.5, 2.0)
"""Seconds between two kills, at least, drawn between these."""
MOMENT_S = 60.0
"""Seconds in which a stream must come along that can be hit."""
_KNOWN_ONLY = "net.dial_discovered = false"
"""Links are made by who joins whom, and by nobody else: that is why there are relays."""


def roles() -> list[Role]:
    """Return who is who: askers and executors are linked to the relays alone."""
    others = (*EXECUTORS, BYSTANDER, ASKER, LIBRARY)
    # One that was killed dials all at once; who is dialled again by those that joined him waits up to 30 s.
    made = [Role(name, join=others, rest=_KNOWN_ONLY) for name in RELAYS]
    made += [Role(name, (("echo", SPEED),), RELAYS, _KNOWN_ONLY) for name in EXECUTORS]
    made += [Role(name, join=RELAYS, rest=_KNOWN_ONLY) for name in (BYSTANDER, ASKER)]
    return [*made, Role(LIBRARY, join=RELAYS, inside=True)]


@asynccontextmanager
async def open_library(mesh: Mesh, folder: Path) -> AsyncIterator[Peer]:
    """Be a peer of the mesh in this process, to ask as a Python program does."""
    unit = mesh.units[LIBRARY]
    net = config.Net(
        listen=(unit.listen,),
        announce=(unit.address,),
        join=tuple(mesh.units[name].address for name in unit.role.join),
        dial_discovered=False,
    )
    settings = config.Config(name=LIBRARY, state=str(folder / LIBRARY), embedder="none", net=net)
    mesh.wire.pids[LIBRARY] = os.getpid()
    async with open_peer(settings) as peer:
        yield peer


class Killer:
    """Kills peers amid streams, and starts them again meanwhile."""

    def __init__(self, mesh: Mesh, asking: Asking, peer: Peer, rng: Random) -> None:
        self._mesh, self._asking, self._peer, self._rng = mesh, asking, peer, rng
        self._up = set(mesh.units)

    def _victims(self, kind: str) -> list[str]:
        """Return who may be killed now: the mesh must be able to go on without him."""
        midway = [s for s in self._asking.midway() if s.path]
        busy = {name for stream in self._asking.open for name in stream.path}
        if not all(stream.path for stream in self._asking.open):
            busy.update(EXECUTORS)  # one of them may be, and nobody has told
        able = self._up.intersection(EXECUTORS)
        ways = self._up.intersection(RELAYS)
        found: set[str] = set()
        if kind == "executor" and len(able) > 2:
            found = {stream.path[-1] for stream in midway} & able
        elif kind == "relay" and len(ways) > 1:
            found = {name for stream in midway for name in stream.path[1:-1]} & ways
        elif kind == "idle" and midway:
            found = (self._up & {*EXECUTORS, BYSTANDER}) - busy
            found = {name for name in found if name not in able or len(able) > 2}
        return sorted(found)

    async def kill(self, kind: str, nursery: trio.Nursery) -> None:
        """Kill one of a kind, as soon as there is one amid a stream."""
        await trio.sleep(self._rng.uniform(*PAUSE_S))
        with trio.move_on_after(MOMENT_S) as scope:
            while not (victims := self._victims(kind)):  # noqa: ASYNC110 - streams come and go
                await trio.sleep(0.01)
        if scope.cancelled_caught:
            raise BenchmarkError(f"no stream came along in which an {kind} could be killed")
        victim = self._rng.choice(victims)
        self._up.discard(victim)
        for stream in self._asking.open:
            if victim in stream.path:
                stream.path = ()  # it goes on elsewhere, and HTTP tells where at its end
        self._mesh.kill(victim, kind)
        nursery.start_soon(self._revive, victim)

    async def _revive(self, name: str) -> None:
        """Start one again; he counts as up once nobody needs the others' relay to reach him."""
        await self._mesh.gone(name)
        await self._mesh.start(name)
        await until_linked(self._mesh, self._peer, lambda: self._up | {name})
        self._up.add(name)


async def until_linked(mesh: Mesh, peer: Peer, up: Callable[[], set[str]]) -> None:
    """Wait until every relay has a link with all the others that are `up`, which may change meanwhile, and
    the askers see them all: until then the death of one relay may leave no way. Raises BenchmarkError."""

    async def are_linked(names: set[str]) -> bool:
        if not names <= {m.name for m in peer.members() if m.alive and m.distance >= 0}:
            return False
        for relay in names.intersection(RELAYS):
            if not names.difference(RELAYS) <= await mesh.linked(relay):
                return False
        return names <= await mesh.alive(ASKER)

    with trio.move_on_after(MEET_S) as scope:
        while not await are_linked(up()):  # noqa: ASYNC110 - they are other processes
            await trio.sleep(LOOK_S)
    if scope.cancelled_caught:
        raise BenchmarkError(f"after {MEET_S:g} s the relays are not linked to all of {sorted(up())}")


async def kills(folder: Path, seed: int, history: History, count: int) -> dict[str, Any]:
    """Kill peers `count` times, amid streams."""
    rng, killed = Random(seed), dict.fromkeys(KINDS, 0)
    async with open_mesh(folder, seed, history, roles()) as mesh, open_library(mesh, folder) as peer:
        asking = Asking(history, mesh.url, rng, WORDS)
        await until_linked(mesh, peer, lambda: set(mesh.units))
        killer, enough = Killer(mesh, asking, peer, rng), trio.Event()
        began = trio.current_time()
        async with trio.open_nursery() as asks:
            for _ in range(STREAMS):
                asks.start_soon(asking.keep_asking, partial(asking.over_http, ASKER), enough)
                asks.start_soon(asking.keep_asking, partial(asking.by_peer, peer), enough)
            async with trio.open_nursery() as revived:
                for number in range(count):
                    kind = KINDS[number % len(KINDS)]
                    await killer.kill(kind, revived)
                    killed[kind] += 1
                    mesh.look_for_dead()
            enough.set()
        seconds = trio.current_time() - began
        unbidden = list(mesh.unbidden)
    waits = pauses(streams_of(history.rows).values())
    return {
        "kills": killed,
        "seconds": round(seconds, 1),
        "gap_s_median": figures.median(waits),
        "gap_s_p99": figures.rounded(figures.percentile(waits, 0.99), 3),
        "gap_s_max": figures.rounded(max(waits, default=None), 3),
        "gaps_measured": len(waits),
        "goal_gap_s_median": 1.0,
        "of_it_reading_again_s": round(WORDS / (READS_FASTER * SPEED), 3),
        "died_unbidden": unbidden,
    }


Scenario = Callable[[Path, int, History], Awaitable[dict[str, Any]]]


def chosen(options: argparse.Namespace) -> dict[str, Scenario]:
    """Return the scenarios to run, by name."""
    every: dict[str, Scenario] = {
        "kills": partial(kills, count=options.kills),
        "third": scenarios.third,
        "rolling": scenarios.rolling,
        "partition": scenarios.partition,
        "stopped": scenarios.stopped,
        "flips": partial(scenarios.flips, count=options.flips),
    }
    return every if options.scenario == "all" else {options.scenario: every[options.scenario]}


async def measure(named: dict[str, Scenario], seed: int, folder: Path, kept: Path | None) -> dict[str, Any]:
    """Run scenarios one after the other; return the figures of each."""
    found: dict[str, Any] = {}
    for name, scenario in named.items():
        place = folder / name
        place.mkdir()
        file = None if kept is None else kept.with_name(f"{kept.name}.{name}.jsonl")
        history = History(trio.current_time, file)
        try:
            told = await scenario(place, seed, history)
        finally:
            history.close()
        found[name] = {**told, **counts(history.rows, Judge().read(history.rows))}
    return {"engine": "echo: no model, a set speed, one digest", "seed": seed, **found}


def is_clean(figures_of_one: Any) -> bool:
    """Return whether the judge found nothing."""
    return not isinstance(figures_of_one, dict) or not figures_of_one["violations"]


def main() -> None:
    """Run it from the command line."""
    names = ("kills", "third", "rolling", "partition", "stopped", "flips", "all")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description="Real peers under faults."
    )
    parser.add_argument("--scenario", choices=names, default="kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--flips", type=int, default=1_000, help="damaged pieces, in the scenario of that name"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history", type=Path, help="keep what was seen, in FILE.SCENARIO.jsonl")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2pmesh-chaos-") as folder:
        told = run(partial(measure, chosen(options), options.seed, Path(folder), options.history))
    if options.json:
        print(json.dumps(told))
    else:
        for name, value in told.items():
            print(f"{name}: {value}" if not isinstance(value, dict) else f"\n{name}")
            for key, figure in value.items() if isinstance(value, dict) else ():
                print(f"  {key:24s} {figure}")
    raise SystemExit(not all(map(is_clean, told.values())))


if __name__ == "__main__":
    main()
