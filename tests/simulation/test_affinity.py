"""Conversations go back to whoever has them in its cache, where that is worth it, and nowhere else."""

from __future__ import annotations

import pytest

from p2pmesh.sim.arrivals import Conversation, converse
from p2pmesh.sim.engine import PrefixCache
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

ASKER = World.peer(0)
LONG = 8_000
"""Bytes of an opening: 4 s to read at 500 tokens a second."""


def mesh(prefixes: int, seed: int = 1, servers: int = 4) -> World:
    """One that asks, and some that all serve alike, each by a name of its own."""
    specs = [Spec(model=f"m{number}" if number else "", prefixes=prefixes) for number in range(servers + 1)]
    world = World(seed, specs)
    world.run(8.0)
    return world


def talk(world: World, number: int = 0, **more: object) -> list[Asking]:
    conversation = Conversation(ASKER, number, 5, LONG, number=number, **more)  # type: ignore[arg-type]
    return converse(world, conversation)


def first_token_s(turns: list[Asking]) -> list[float]:
    return [turn.first_at - turn.asked_at for turn in turns if turn.first_at is not None]


def test_a_cache_knows_what_it_has_read_and_forgets_the_least_recently_used() -> None:
    cache = PrefixCache(2)
    cache.keep(("s", "a"))
    cache.keep(("s", "b", "c"))
    assert [cache.known(p) for p in (("s", "a", "x"), ("s", "b", "y"), ("s",), ("t",), ())] == [2, 2, 1, 0, 0]
    assert cache.known(("s", "a")) == 2
    cache.keep(("d",))
    assert [cache.known(p) for p in (("s", "b", "c"), ("s", "a"), ("d",))] == [1, 2, 1]
    cache.keep(("s", "a"))
    cache.keep(("s", "a"))
    assert cache.known(("d",)) == 1
    nothing = PrefixCache(0)
    nothing.keep(("a",))
    assert nothing.known(("a",)) == 0


@pytest.mark.parametrize("think_s", [0.0, 1.0, 8.0])
def test_a_conversation_returns_to_the_peer_that_holds_it(think_s: float) -> None:
    world = mesh(8)
    turns = talk(world, think_s=think_s)
    world.run(100.0)
    assert len(turns) == 5
    assert len({turn.served_by for turn in turns}) == 1
    assert "holds 2000 tokens" in turns[1].path[0].why
    waits = first_token_s(turns)
    assert waits[0] > 4.0
    assert max(waits[1:]) < 0.5


def test_without_caches_it_reads_all_of_it_at_every_turn() -> None:
    world = mesh(0)
    turns = talk(world)
    world.run(100.0)
    assert len(turns) == 5
    assert min(first_token_s(turns)) > 4.0
    assert not any("holds" in turn.path[0].why for turn in turns)


@pytest.mark.parametrize(("busy", "returns"), [(1, True), (16, False)])
def test_it_goes_elsewhere_when_the_queue_outweighs_what_is_saved(busy: int, returns: bool) -> None:
    world = mesh(8)
    turns = talk(world, think_s=6.0)
    while turns[0].ended is None:
        world.run(0.1)
    holder = turns[0].served_by
    assert holder is not None
    for _ in range(busy):
        world.ask(holder, tokens=200, model=f"m{holder[1:]}")
    world.run(5.5)
    while len(turns) < 2 or turns[1].ended is None:
        world.run(0.1)
    assert (turns[1].served_by == holder) == returns
    assert first_token_s(turns)[1] < 5.0  # to read it anew takes 4 s


@pytest.mark.parametrize("seed", range(3))
def test_over_many_conversations_first_tokens_come_sooner_with_caches_than_without(seed: int) -> None:
    totals = {}
    for prefixes in (0, 8):
        world = mesh(prefixes, seed)
        talks = []
        for number in range(12):
            talks.append(talk(world, number, think_s=0.5 + number % 4))
            world.run(1.0)
        world.run(250.0)
        world.judge.close(world.now)
        waits = [first_token_s(turns) for turns in talks]
        assert [len(w) for w in waits] == [5] * 12
        totals[prefixes] = sum(map(sum, waits))
    assert totals[8] < 0.6 * totals[0]
