"""Every peer of a mesh is restarted, one after the other, while it is asked: nothing fails."""

from __future__ import annotations

from random import Random

import pytest

from p2pmesh.protocol import events as e
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

PEERS = 5
GRACE_S = 30.0


def roll(seed: int, *, drained: bool = True) -> list[Asking]:
    """Ask a world of slow peers without a pause, and restart each."""
    world, rng, asked = World(seed, [Spec(slots=2) for _ in range(PEERS)]), Random(seed), []
    world.run(5.0)

    def ask(seconds: float) -> None:
        until = world.now + seconds
        while world.now < until:
            # Whoever asks at a peer that goes is refused at its door, and asks another.
            able = [i for i in world.awake() if not world.nodes[i].machine.draining.begun]
            asked.append(world.ask(rng.choice(able), tokens=rng.randint(20, 200), budget_s=120.0))
            world.run(rng.expovariate(1.2))

    ask(5.0)
    for number in range(PEERS):
        ident = World.peer(number)
        node = world.nodes[ident]
        if drained:
            world.happen(ident, e.Drained())
            until = world.now + GRACE_S
            while node.machine.relay.flights and world.now < until:
                ask(0.5)
        world.leave(ident)
        ask(1.0)
        contact = next(i for i in world.awake() if i != ident)
        world.restart(ident, node.spec, contact, node.epoch + 1)
        ask(4.0)
    world.run(130.0)
    world.judge.close(world.now)
    return asked


@pytest.mark.parametrize("seed", range(4))
def test_no_query_fails_while_each_peer_is_restarted(seed: int) -> None:
    asked = roll(seed)
    assert len(asked) > 40
    assert [a.failed for a in asked if a.ended is None] == []
    assert not any(a.orphaned for a in asked)


@pytest.mark.parametrize("seed", range(3))
def test_when_all_are_told_to_go_at_once_each_finishes_what_it_has(seed: int) -> None:
    world, rng = World(seed, [Spec(slots=1) for _ in range(3)]), Random(seed)
    world.run(5.0)
    asked = [world.ask(rng.choice(world.awake()), tokens=100, budget_s=120.0) for _ in range(12)]
    world.run(rng.uniform(0.0, 1.0))
    for ident in world.awake():
        world.happen(ident, e.Drained())
    world.run(100.0)
    assert [a.failed for a in asked if a.ended is None] == []
    assert all(not node.machine.draining.left for node in world.nodes.values())


def test_without_it_some_are_lost_with_the_peer_that_they_were_asked_at() -> None:
    assert any(a.failed or a.orphaned for seed in range(4) for a in roll(seed, drained=False))
