"""What else may happen to a mesh of real peers: many deaths at once, restarts, cuts, slowness, damaged bytes.

Each scenario starts a mesh of its own, in which everybody may be linked to everybody, lets clients ask, does
its harm, and returns its figures beside the goals. It knows the mesh, the wire and the clients; what clients
saw is judged elsewhere.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import trio

from benchmarks.asking import Asking
from benchmarks.faults import Fault
from benchmarks.figures import over, percentile, rounded
from benchmarks.history import History, Stream, streams_of
from benchmarks.mesh import Mesh, Role, open_mesh

SPEED = 40.0
"""Tokens a second of an echo."""
WORDS = 60
"""Of a prompt, and so of an answer: a second and a half."""
STREAMS = 6
"""At once."""
MANY_STREAMS = 16
"""At once, where many are to be hit."""


def everybody(count: int, **rare: float) -> list[Role]:
    """Return peers that serve the same model and are all joined to the first; `rare` names models, and their
    speed, that the last alone has."""
    names = [f"peer{i}" for i in range(count)]
    models = (("echo", SPEED),)
    made = [Role(name, models, () if name == names[0] else (names[0],)) for name in names]
    made[-1] = Role(names[-1], (*models, *rare.items()), (names[0],))
    # The first has nobody to join when it is started anew, unless it is told of somebody else.
    made[0] = Role(names[0], models, (names[1],))
    return made


class Load:
    """Clients that go on asking, each at one of those peers that may be asked now."""

    def __init__(self, mesh: Mesh, history: History, rng: Random) -> None:
        self.asking = Asking(history, mesh.url, rng, WORDS)
        self.askers: list[str] = list(mesh.units)
        self._rng = rng

    async def ask(self) -> None:
        """Ask one query."""
        await self.asking.over_http(self._rng.choice(self.askers))

    @asynccontextmanager
    async def running(self, streams: int = STREAMS) -> AsyncIterator[None]:
        """Ask all the while; what was asked has ended when the block is left."""
        enough = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(self.asking.keep_asking, self.ask, enough)
            yield
            enough.set()


async def third(folder: Path, seed: int, history: History) -> dict[str, Any]:
    """Kill 30 % of ten peers at once, under load, five times. Three of the others are asked, more than they
    can answer alone."""
    rng, rounds, at_once, whole_again = Random(seed), 5, 3, []
    async with open_mesh(folder, seed, history, everybody(10)) as mesh:
        await mesh.until_whole()
        load = Load(mesh, history, rng)
        load.askers = list(mesh.units)[:3]
        others = list(mesh.units)[3:]
        for _ in range(rounds):
            async with load.running(MANY_STREAMS):
                await trio.sleep(rng.uniform(3.0, 5.0))
                dead = rng.sample(others, at_once)
                for name in dead:
                    mesh.kill(name, "third")
                await trio.sleep(8.0)
            async with trio.open_nursery() as nursery:
                for name in dead:
                    nursery.start_soon(_again, mesh, name)
            whole_again.append(round(await mesh.until_whole(), 1))
        mesh.look_for_dead()
        unbidden = list(mesh.unbidden)
    mine = [s for s in streams_of(history.rows).values() if not s.orphaned]
    return {
        "killed_at_once": at_once,
        "rounds": rounds,
        "share_whole": rounded(over(sum(s.over == "ended" for s in mine), len(mine)), 4),
        "goal_share_whole": 0.99,
        "whole_again_s": whole_again,
        "died_unbidden": unbidden,
    }


async def _again(mesh: Mesh, name: str) -> None:
    await mesh.gone(name)
    await mesh.start(name)


async def rolling(folder: Path, seed: int, history: History) -> dict[str, Any]:
    """Tell each peer in turn to go, wait until it has, and start it again, under load."""
    restarts, took = 0, []
    async with open_mesh(folder, seed, history, everybody(5)) as mesh:
        await mesh.until_whole()
        load = Load(mesh, history, Random(seed))
        async with load.running():
            await trio.sleep(2.0)
            for name in mesh.units:
                load.askers = [other for other in mesh.units if other != name]
                began = trio.current_time()
                mesh.signal(name, signal.SIGTERM, "drained")
                await _again(mesh, name)
                took.append(round(trio.current_time() - began, 1))
                await mesh.until_whole()
                restarts += 1
        mesh.look_for_dead()
        unbidden = list(mesh.unbidden)
    failed = [s for s in streams_of(history.rows).values() if s.over != "ended"]
    return {
        "restarts": restarts,
        "restart_s": took,
        "failed_queries": len(failed),
        "goal_failed_queries": 0,
        "died_unbidden": unbidden,
    }


CUT_S = 45.0
"""Most seconds of a cut: by then each side has buried the other, or never will."""
ASK_AT_S = (0.0, 1.0, 3.0, 8.0, 15.0)
"""Seconds after a cut at which one side asks for what only the other has."""


async def partition(folder: Path, seed: int, history: History) -> dict[str, Any]:
    """Cut six peers in two, both ways and then one way, and heal it; ask for what is on the other side."""
    found: dict[str, Any] = {"goal_heal_s": 30.0, "goal_err_s": 2.0}
    async with open_mesh(folder, seed, history, everybody(6, rare=SPEED)) as mesh:
        await mesh.until_whole()
        names = list(mesh.units)
        left, right = names[:3], names[3:]
        load = Load(mesh, history, Random(seed))
        async with load.running(3):
            for kind, ways in (("both", ((left, right), (right, left))), ("one_way", ((left, right),))):
                began = trio.current_time()
                for sources, targets in ways:
                    mesh.wire.set(sources, targets, Fault(blackhole=True))
                history.add("cut off", ways=kind)
                errs: list[float] = []
                async with trio.open_nursery() as asks:
                    asks.start_soon(_ask_for_rare, load.asking, left[1], began, errs)
                    apart = await _until_apart(mesh, left, right, began + CUT_S)
                mesh.wire.heal()
                history.add("healed", ways=kind)
                healed = await mesh.until_seen(names, names)
                found[kind] = {
                    "err_s": errs,
                    "err_s_max": max(errs, default=None),
                    "answered": len(ASK_AT_S) - len(errs),
                    "buried_after_s": apart,
                    "heal_s": rounded(healed, 1),
                }
        mesh.look_for_dead()
        found["died_unbidden"] = list(mesh.unbidden)
        found["strangers"] = mesh.wire.strangers
    return found


async def _ask_for_rare(asking: Asking, asker: str, since: float, errs: list[float]) -> None:
    """Ask for the model that only the other side has, and append how long each error took; some may be
    answered all the same, by what one way lets through."""
    for at in ASK_AT_S:
        await trio.sleep_until(since + at)
        began = trio.current_time()
        if await asking.over_http(asker, model="rare", words=10) != "ended":
            errs.append(round(trio.current_time() - began, 2))


async def _until_apart(mesh: Mesh, left: Sequence[str], right: Sequence[str], until: float) -> float | None:
    """Wait until nobody sees anybody of the other side; return the seconds; None: somebody still does."""
    began = trio.current_time()
    with trio.move_on_at(until) as scope:
        for name in (*left, *right):
            other = set(right if name in left else left)
            while not (known := await mesh.alive(name)) or known & other:  # noqa: ASYNC110 - as in Mesh
                await trio.sleep(0.2)
    return None if scope.cancelled_caught else round(trio.current_time() - began, 1)


PHASE_S = 30.0
"""Seconds of a phase: some 65 answers."""
PHASES = 8
"""Every second one is calm, and of the others half are stopped and half slow: some 130 answers of each, so
that a 99th percentile is not the slowest of them."""
SETTLE_S = 3.0
"""Seconds between two phases, which belong to neither."""
SLOW = Fault(delay_s=0.1, bytes_per_s=400.0)
"""A twentieth of what one stream needs: 40 pieces a second of some 200 bytes."""


class Phase(NamedTuple):
    """A stretch of time in which one thing is wrong, or nothing."""

    kind: str
    victim: str
    begin: float
    end: float

    def tells(self, stream: Stream) -> bool:
        """Whether a stream tells of it: of calm if it lies in it wholly, of harm if any of it does."""
        if self.kind == "calm":
            return self.begin <= stream.asked_at and stream.ended_at <= self.end
        return stream.asked_at < self.end and stream.ended_at > self.begin

    def struck(self, stream: Stream) -> bool:
        """Whether the victim had it, or passed it on, when the harm began."""
        if self.kind == "calm":
            return False
        return stream.asked_at < self.begin and self.victim in (*stream.first_path, *stream.path)


async def stopped(folder: Path, seed: int, history: History) -> dict[str, Any]:
    """Stop one peer, then make its links slow; between these nothing is wrong. The others' answers are all
    but those that were on it when it was struck: it may be asked, and may write, all the same."""
    phases: list[Phase] = []
    async with open_mesh(folder, seed, history, everybody(6)) as mesh:
        await mesh.until_whole()
        load = Load(mesh, history, Random(seed))
        names = list(mesh.units)
        async with load.running(4):
            for number in range(PHASES):
                victim = names[1 + number // 2 % (len(names) - 1)]
                kind = ("stopped", "slow")[number // 2 % 2] if number % 2 else "calm"
                load.askers = [name for name in names if name != victim]
                began = trio.current_time()
                await _harmed(mesh, kind, victim)
                phases.append(Phase(kind, victim, began, trio.current_time()))
                await mesh.until_whole()
                await trio.sleep(SETTLE_S)
        mesh.look_for_dead()
        unbidden = list(mesh.unbidden)
    streams = [s for s in streams_of(history.rows).values() if s.over == "ended" and s.times]
    found: dict[str, Any] = {"goal_ratio": 2.0, "died_unbidden": unbidden}
    for kind in ("calm", "stopped", "slow"):
        mine = [(s, phase) for phase in phases if phase.kind == kind for s in streams if phase.tells(s)]
        struck = [s for s, phase in mine if phase.struck(s)]
        others = [s for s, phase in mine if not phase.struck(s)]
        waits = [s.times[0] - s.asked_at for s in others]
        found[kind] = {
            "answers": len(others),
            "first_p50_s": rounded(percentile(waits, 0.5), 3),
            "first_p99_s": rounded(percentile(waits, 0.99), 3),
            "whole_p99_s": rounded(percentile((s.ended_at - s.asked_at for s in others), 0.99), 3),
            "moved": sum(s.path[-1:] != s.first_path[-1:] for s in others),
            "struck": len(struck),
            "struck_whole_max_s": rounded(max((s.ended_at - s.asked_at for s in struck), default=None), 3),
        }
    for kind, figure in itertools.product(("stopped", "slow"), ("first_p99_s", "whole_p99_s")):
        found[f"{kind}_{figure}_ratio"] = rounded(over(found[kind][figure], found["calm"][figure]), 2)
    return found


async def _harmed(mesh: Mesh, kind: str, victim: str) -> None:
    """Let a phase pass, and undo it."""
    others = [name for name in mesh.units if name != victim]
    if kind == "stopped":
        mesh.signal(victim, signal.SIGSTOP, "stopped")
    elif kind == "slow":
        mesh.wire.set([victim], others, SLOW)
        mesh.wire.set(others, [victim], SLOW)
    try:
        await trio.sleep(PHASE_S)
    finally:
        if kind == "stopped":
            mesh.signal(victim, signal.SIGCONT, "goes on")
        mesh.wire.heal()


DAMAGE = Fault(flips=0.01, cuts=0.005, repeats=0.001, swaps=0.001)
"""Shares of pieces: a link lasts some seconds, so that peers meet again before it is hit anew."""
FLIPS_MOST_S = 600.0


async def flips(folder: Path, seed: int, history: History, count: int) -> dict[str, Any]:
    """Flip bits and cut connections amid a piece, on all links, until it was done `count` times."""
    async with open_mesh(folder, seed, history, everybody(5)) as mesh:
        await mesh.until_whole()
        load = Load(mesh, history, Random(seed))
        began = trio.current_time()

        def done() -> int:
            said = mesh.wire.done()
            return said["flipped"] + said["cut"]

        async with load.running():
            mesh.wire.set(mesh.units, mesh.units, DAMAGE)
            with trio.move_on_after(FLIPS_MOST_S):
                while done() < count:
                    await trio.sleep(0.1)
                    mesh.look_for_dead()
            mesh.wire.heal()
        seconds = trio.current_time() - began
        whole = await mesh.until_seen(mesh.units, mesh.units)
        said = mesh.wire.done()
        mesh.look_for_dead()
        unbidden = list(mesh.unbidden)
    return {
        "flipped": said["flipped"],
        "cut": said["cut"],
        "repeated": said["repeated"],
        "swapped": said["swapped"],
        "seconds": round(seconds, 1),
        "whole_again_s": rounded(whole, 1),
        "died_unbidden": unbidden,
        "goal_died_unbidden": 0,
        "goal_corrupt_tokens": 0,
    }
