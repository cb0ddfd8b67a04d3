"""The peer an answer was asked at dies amid it, and its asker gets the rest elsewhere."""

from __future__ import annotations

import pytest

from p2pmesh.sim.world import Spec, World


@pytest.mark.parametrize("seed", range(12))
def test_the_rest_of_an_answer_is_to_be_had_at_any_other_peer(seed: int) -> None:
    world = World(seed, [Spec() for _ in range(5)], loss=0.02 if seed % 2 else 0.0)
    world.run(3.0)
    asker = world.peer(seed % 5)
    asking = world.ask(asker, tokens=60, guarded=True)
    while len(asking.chunks) < 1 + 3 * seed and asking.over_at is None:
        world.run(0.01)
    if asking.over_at is not None:  # a piece was lost, which costs a second, and many came at once
        assert seed % 2
        assert asking.text == "".join(f"{number} " for number in range(60))
        return
    assert asking.holder
    world.crash(asker, silent=seed % 3 == 0)
    world.run(0.5)
    rest = world.claim(asking, world.peer((seed + 1 + seed % 4) % 5))
    world.run(40.0)
    assert rest.ended is not None, rest.detail
    assert rest.text == "".join(f"{number} " for number in range(60))
    world.judge.over(world.nodes, world.now)


def test_an_answer_that_was_whole_is_given_again() -> None:
    world = World(1, [Spec() for _ in range(3)])
    world.run(3.0)
    asking = world.ask(world.peer(0), tokens=10, guarded=True)
    world.run(10.0)
    assert asking.ended is not None
    world.crash(world.peer(0))
    rest = world.claim(asking, world.peer(1))
    world.run(5.0)
    assert rest.ended == asking.ended


@pytest.mark.parametrize("seed", range(4))
def test_who_was_given_the_rest_may_die_before_he_passes_it_on(seed: int) -> None:
    """It was given once, and the next to come found nothing."""
    world = World(seed, [Spec() for _ in range(5)])
    world.run(3.0)
    asking = world.ask(world.peer(0), tokens=60, guarded=True)
    while len(asking.chunks) < 10:
        world.run(0.01)
    world.crash(world.peer(0))
    others = [ident for ident in world.awake() if ident != asking.holder]
    lost = world.claim(asking, others[0])
    world.run(0.1 * seed)
    world.crash(others[0])
    rest = world.claim(asking, others[1])
    world.run(40.0)
    assert lost.ended is None
    assert rest.ended is not None, rest.detail
    assert rest.text == "".join(f"{number} " for number in range(60))


def test_who_comes_while_the_first_peer_lives_takes_it_over() -> None:
    world = World(2, [Spec() for _ in range(4)])
    world.run(3.0)
    asking = world.ask(world.peer(0), tokens=60, guarded=True)
    while len(asking.chunks) < 10:
        world.run(0.01)
    rest = world.claim(asking, world.peer(2))
    world.run(30.0)
    assert asking.failed is not None
    assert rest.text == "".join(f"{number} " for number in range(60))


def test_holding_costs_the_asker_a_round_trip_and_nothing_else() -> None:
    took = []
    for guarded in (False, True):
        world = World(3, [Spec() for _ in range(3)])
        world.run(3.0)
        asking = world.ask(world.peer(0), tokens=40, guarded=guarded)
        world.run(20.0)
        assert asking.over_at is not None
        took.append(asking.over_at - asking.asked_at)
    assert took[1] - took[0] < 0.01
