"""Meshes in which nobody can know all: the machines themselves find who is good at a topic, by asking on."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from p2pmesh.config import Config, Membership
from p2pmesh.record import cosine
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

PEERS = TOPICS = 100
"""One peer is good at each topic."""
KNOWN_MAX = 16
"""A sixth of the mesh."""


@pytest.fixture(scope="module")
def world() -> World:
    """A mesh that has grown one by one, and had a minute to find itself."""
    config = Config(membership=Membership(members_max=KNOWN_MAX, links_max=8, links_far=3))
    rng, made = Random(5), World(1, [Spec((0,))], config=config)
    for number in range(1, PEERS):
        made.introduce(made.add(Spec((number % TOPICS,))), made.peer(rng.randrange(number)))
        made.run(0.05)
    made.run(60.0)
    return made


def ask(world: World, count: int, seed: int) -> list[Asking]:
    rng, asked = Random(seed), []
    for _ in range(count):
        asked.append(world.ask(rng.choice(world.awake()), rng.randrange(TOPICS), tokens=5))
        world.run(0.2)
    world.run(20.0)
    return asked


def hits(asked: list[Asking]) -> float:
    """The share that was served by one who is good at it."""
    near = 0
    for asking in asked:
        topic, server = int(asking.query.text.split()[1]), asking.served_by
        if server is not None:
            near += cosine(World.topic(topic), World.topic(int(server[1:]))) >= Config().routing.near
    return near / len(asked)


def test_a_query_finds_the_one_specialist_among_a_hundred_strangers(world: World) -> None:
    assert all(node.machine.membership.partial for node in world.nodes.values())
    asked = ask(world, 100, seed=7)
    assert all(asking.ended is not None for asking in asked)
    assert hits(asked) >= 0.97
    assert sum(len(asking.path) - 1 for asking in asked) / len(asked) < 4.0  # as the stream goes


def test_without_the_search_it_often_stops_at_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in world.nodes.values():
        monkeypatch.setattr(node.machine._planning._seeking, "wanted", lambda query: False)
    assert hits(ask(world, 100, seed=8)) < 0.9


def test_what_the_mesh_itself_costs_stays_small_where_no_two_know_the_same(world: World) -> None:
    before = Counter(world.wire.kind_bytes)
    world.run(20.0)
    spent = Counter(world.wire.kind_bytes) - before
    assert sum(spent.values()) / 20.0 / PEERS < 500.0
    assert spent["Announce"] > 0
    assert spent["Lines"] + spent["Digest"] == 0


def test_when_a_quarter_dies_in_silence_everybody_is_served_all_the_same(world: World) -> None:
    rng = Random(9)
    for victim in rng.sample(world.awake(), PEERS // 4):
        world.crash(victim, silent=True)
    asked = ask(world, 60, seed=10)
    assert all(asking.ended is not None for asking in asked)
    alive = [asking for asking in asked if f"p{asking.query.text.split()[1]}" in world.nodes]
    assert hits(alive) >= 0.9
    world.run(30.0)
    world.judge.settled(world.nodes)
