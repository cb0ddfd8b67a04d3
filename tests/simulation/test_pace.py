"""How fast a peer really is: learnt while it works, believed by the others, and not imagined."""

from __future__ import annotations

import os
from random import Random
from statistics import fmean

import pytest

from p2pmesh.protocol.batching import Pace
from p2pmesh.sim import arrivals
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

SOAK = bool(os.environ.get("P2PMESH_SOAK"))
"""Whether there is a night for it: these worlds are long."""
PEERS = 6
SICK = World.peer(1)
FIFTH = 0.2


def rush(world: World, seconds: float, rate: float, seed: int = 1) -> list[Asking]:
    """Ask for `seconds`, at any peer, for answers of 100 tokens: 2 s of work of a model alone."""
    rng, asked = Random(f"rush {seed}"), []
    until = world.now + seconds
    while (at := world.now + rng.expovariate(rate)) < until:
        world.run(at - world.now)
        asked.append(world.ask(rng.choice(world.awake()), tokens=100, budget_s=500.0))
    world.run(until - world.now)
    return asked


def share(asked: list[Asking]) -> float:
    return sum(a.served_by == SICK for a in asked) / len(asked)


def mean_s(asked: list[Asking]) -> float:
    """J but for the quality, which is the same everywhere."""
    return fmean(a.over_at - a.asked_at for a in asked if a.over_at is not None)


def fallen(rate: float, seed: int, *, says_so: bool = False) -> list[Asking]:
    """The queries that came from 6 s after a peer fell to a fifth of its speed; or was so slow all along, and
    says so."""
    specs = [Spec() for _ in range(PEERS)]
    if says_so:
        specs[1] = Spec(prefill_tps=500.0 * FIFTH, decode_tps=50.0 * FIFTH)
    world = World(seed, specs)
    world.run(8.0)
    rush(world, 15.0, rate, seed)
    if not says_so:
        world.slow(SICK, FIFTH)
    rush(world, 6.0, rate, seed + 100)
    asked = rush(world, 40.0, rate, seed + 200)
    world.run(200.0)
    world.judge.close(world.now)
    return asked


@pytest.mark.parametrize(("rate", "seed"), [(2.0, 0), *([(3.0, 1), (4.5, 2), (2.0, 1)] if SOAK else [])])
def test_a_peer_that_falls_to_a_fifth_soon_gets_what_one_of_that_speed_gets_and_that_is_worth_it(
    rate: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt, honest = fallen(rate, seed), fallen(rate, seed, says_so=True)
    assert share(learnt) == pytest.approx(share(honest), abs=0.02)
    assert share(learnt) < 0.6 / PEERS
    assert mean_s(learnt) < 1.05 * mean_s(honest)
    if rate == 2.0:
        monkeypatch.setattr(Pace, "at_best", lambda self, done_s, due_s: 1.0)
        assert mean_s(learnt) < 0.95 * mean_s(fallen(rate, seed))


def paces(world: World) -> list[float]:
    return [node.machine._local.pace for node in world.nodes.values()]


def test_the_others_hear_of_it_within_seconds_of_work_and_of_its_recovery_too() -> None:
    world = World(1, [Spec(model=""), Spec()])
    world.run(8.0)
    asker = world.nodes[World.peer(0)].machine
    world.slow(SICK, FIFTH)
    world.ask(World.peer(0), tokens=500, budget_s=500.0)
    world.run(4.0)
    load = asker.load(SICK)
    assert load is not None
    assert load.pace < 0.5
    world.run(6.0)
    load = asker.load(SICK)
    assert load is not None
    assert load.pace == pytest.approx(FIFTH, rel=0.3)
    world.slow(SICK, 1.0)
    world.run(7.0)
    load = asker.load(SICK)
    assert load is not None
    assert load.pace > 0.75


def test_who_is_asked_nothing_is_tried_again_after_a_while() -> None:
    world = World(1, [Spec(model=""), Spec()])
    world.run(8.0)
    world.slow(SICK, FIFTH)
    world.ask(World.peer(0), tokens=100, budget_s=500.0)
    world.run(15.0)
    assert max(paces(world)[1:]) < 0.3
    world.run(240.0)
    load = world.nodes[World.peer(0)].machine.load(SICK)
    assert load is not None
    assert load.pace > 0.8


@pytest.mark.parametrize(
    ("load", "chunk_s"), [(0.9, 0.0), (0.5, 0.5), *([(0.5, 0.0), (0.9, 0.5)] if SOAK else [])]
)
def test_peers_that_are_as_fast_as_they_say_are_held_for_that(load: float, chunk_s: float) -> None:
    specs = arrivals.peers(8, 4, 1)
    world = World(1, specs, chunk_s=chunk_s)
    world.run(8.0)
    begin = world.now
    for arrival in arrivals.arrivals(specs, 4, load, 150, 1):
        world.run(begin + arrival.at - world.now)
        peer, most = World.peer(arrival.peer), arrivals.MAX_TOKENS
        world.ask(peer, arrival.topic, tokens=most, answer=arrival.answer, budget_s=3_000.0)
        assert 0.8 < min(paces(world)) <= max(paces(world)) < 1.25


@pytest.mark.parametrize("stopped_s", [0.5, 1.2, 1.9, 8.0])
def test_a_stopped_peer_that_goes_on_is_as_fast_as_before(stopped_s: float) -> None:
    world = World(1, [Spec(model=""), Spec()])
    world.run(8.0)
    world.ask(World.peer(0), tokens=1_000, budget_s=500.0)
    world.run(3.0)
    world.pause(SICK)
    world.run(stopped_s)  # all that its model wrote meanwhile comes at once
    world.resume(SICK)
    for _ in range(50):
        world.run(0.1)
        assert 0.8 < min(paces(world)) <= max(paces(world)) < 1.25
