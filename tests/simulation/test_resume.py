"""Whoever writes an answer is killed in the midst of it: another goes on, without a gap or a duplicate."""

from __future__ import annotations

import pytest

from p2pmesh.config import Config, Limits, Net
from p2pmesh.errors import Reason
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

ASKER = Spec(model="")


def streaming(specs: list[Spec], *, seed: int = 1, tokens: int = 100, **more: object) -> tuple[World, Asking]:
    """A mesh in which p0 has asked, and some of the answer has come."""
    world = World(seed, [ASKER, *specs], **more)  # type: ignore[arg-type]
    world.run(5.0)
    asking = world.ask(world.peer(0), tokens=tokens)
    world.run(1.0)
    assert 0 < len(asking.chunks) < tokens
    return world, asking


@pytest.mark.parametrize("silent", [False, True])
def test_another_peer_goes_on_when_the_one_that_writes_is_killed(silent: bool) -> None:
    world, asking = streaming([Spec(), Spec()])
    writer = asking.served_by
    assert writer is not None
    world.crash(writer, silent)
    world.run(20.0)
    assert asking.ended is not None
    assert asking.served_by not in (None, writer)
    assert asking.text == "".join(f"{i} " for i in range(100))
    assert {chunk.attempt for chunk in asking.chunks} == {0, 1}


def test_it_goes_on_when_one_writer_after_the_other_is_killed() -> None:
    world, asking = streaming([Spec(decode_tps=20.0) for _ in range(4)])
    for _ in range(3):
        writer = asking.served_by
        assert writer is not None
        world.crash(writer)
        world.run(1.5)
        assert asking.served_by != writer
    world.run(30.0)
    assert asking.ended is not None


def test_with_nobody_to_go_on_the_asker_is_told_why() -> None:
    world, asking = streaming([Spec()])
    assert asking.served_by is not None
    world.crash(asking.served_by)
    world.run(20.0)
    assert asking.failed is Reason.PEER_LOST
    assert "went away" in asking.detail


def test_a_relay_that_is_killed_is_gone_round() -> None:
    """p0 - p1 - p3 and p0 - p2 - p3: two ways to the one peer with a model."""
    world = World(
        1,
        [ASKER, ASKER, ASKER, Spec()],
        config=Config(net=Net(dial_discovered=False)),
        links=[(0, 1), (0, 2), (1, 3), (2, 3)],
    )
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=100)
    world.run(1.0)
    assert 0 < len(asking.chunks) < 100
    world.crash(asking.path[1].peer)
    world.run(20.0)
    assert asking.ended is not None
    assert asking.served_by == world.peer(3)


def test_the_same_model_is_preferred_to_a_faster_other_one() -> None:
    world, asking = streaming([Spec(), Spec(decode_tps=30.0)], tokens=300)
    assert asking.served_by == world.peer(1)
    newcomer = world.add(Spec(model="other", digest="11" * 32, decode_tps=500.0))
    world.introduce(newcomer, world.peer(0))
    world.run(3.0)
    assert newcomer in world.nodes[world.peer(0)].machine.membership.links
    world.crash(world.peer(1))
    world.run(20.0)
    assert asking.ended is not None
    assert asking.served_by == world.peer(2)


def test_another_model_goes_on_from_the_text_where_the_same_is_not_to_be_had() -> None:
    world, asking = streaming([Spec(), Spec(model="other", digest="11" * 32, decode_tps=10.0)])
    assert asking.served_by == world.peer(1)
    world.crash(world.peer(1))
    world.run(30.0)
    assert asking.ended is not None
    assert asking.ended.digest == "11" * 32


def test_an_answer_too_long_to_send_along_is_not_resumed() -> None:
    limits = Limits(accepted_bytes_max=8)
    world, asking = streaming([Spec(), Spec()], config=Config(limits=limits))
    assert asking.served_by is not None
    world.crash(asking.served_by)
    world.run(20.0)
    assert asking.failed is Reason.PEER_LOST
    assert "so long" in asking.detail
