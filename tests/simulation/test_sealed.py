"""Queries of a zone, over relays that may not see it. What nobody may be told, the judge watches."""

from __future__ import annotations

import pytest

from p2pmesh.config import Config, Net
from p2pmesh.errors import Reason
from p2pmesh.protocol.sealing import CLOSED
from p2pmesh.query import Resume
from p2pmesh.record import GENERAL
from p2pmesh.sim.world import Spec, World

RED = (GENERAL, "red")
ASKER = Spec(model="")


def row(*specs: Spec, links: list[tuple[int, int]] | None = None) -> World:
    """Peers each linked to the next alone, or by `links`."""
    links = links or [(i, i + 1) for i in range(len(specs) - 1)]
    return World(3, list(specs), config=Config(net=Net(dial_discovered=False)), links=links)


@pytest.mark.parametrize("zones", [RED, ("red",)], ids=["also general", "only of the zone"])
def test_over_two_relays_that_may_not_see_it_an_answer_comes_back(zones: tuple[str, ...]) -> None:
    world = row(ASKER, Spec(), Spec(model=""), Spec(zones=zones))
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=12, zone="red")
    world.run(10.0)
    assert asking.ended is not None
    assert asking.text == "".join(f"{i} " for i in range(12))
    assert [hop.peer for hop in asking.path] == [world.peer(i) for i in range(4)]
    whys = [hop.why for hop in asking.path]
    assert "quality" in whys[0], "the asker may know why"
    assert whys[1:3] == [CLOSED, CLOSED]
    assert "quality" in whys[3]
    assert asking.ended.model == "sim-model"
    assert asking.ended.usage.completion_tokens == 12


def test_a_model_that_is_for_a_zone_is_left_alone_by_all_others_and_also_when_no_other_is_left() -> None:
    world = row(ASKER, Spec(), Spec(zones=RED, labels=("red",), decode_tps=900.0))
    world.run(8.0)
    secret, plain = world.ask(world.peer(0), zone="red"), world.ask(world.peer(0))
    world.run(5.0)
    assert secret.served_by == world.peer(2)
    assert plain.served_by == world.peer(1)
    world.crash(world.peer(1))
    world.introduce(world.peer(0), world.peer(2))
    world.run(20.0)
    plain, secret = world.ask(world.peer(0)), world.ask(world.peer(0), zone="red")
    world.run(5.0)
    assert plain.failed is Reason.NO_ROUTE
    assert secret.served_by == world.peer(2)


def test_one_that_may_see_it_and_cannot_be_reached_is_no_reason_to_ask_another() -> None:
    world = row(ASKER, Spec(), Spec(zones=RED))
    world.run(8.0)
    world.crash(world.peer(2))
    world.run(20.0)
    asked_at = world.now
    asking = world.ask(world.peer(0), zone="red")
    world.run(5.0)
    assert asking.failed is Reason.NO_ROUTE
    assert asking.over_at is not None
    assert asking.over_at - asked_at <= 2.0


@pytest.mark.parametrize("victim", ["relay", "executor"])
def test_whoever_is_killed_amid_a_sealed_answer_it_is_whole(victim: str) -> None:
    """p0 - p1 - p3 and p4, and p0 - p2 - p3 and p4."""
    links = [(0, 1), (0, 2), (1, 3), (2, 3), (1, 4), (2, 4)]
    world = row(ASKER, ASKER, ASKER, Spec(zones=RED), Spec(zones=RED), links=links)
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=100, zone="red")
    world.run(1.0)
    assert 0 < len(asking.chunks) < 100
    world.crash(asking.path[1 if victim == "relay" else 2].peer)
    world.run(20.0)
    assert asking.ended is not None
    assert asking.text == "".join(f"{i} " for i in range(100))


def test_another_model_goes_on_with_a_sealed_answer_unless_that_is_forbidden() -> None:
    for resume, whole in ((Resume.ANY, True), (Resume.SAME_MODEL, False), (Resume.NEVER, False)):
        other = Spec(model="other", digest="11" * 32, decode_tps=10.0, zones=RED)
        world = row(ASKER, ASKER, Spec(zones=RED), other, links=[(0, 1), (1, 2), (1, 3)])
        world.run(8.0)
        asking = world.ask(world.peer(0), tokens=60, zone="red", resume=resume)
        world.run(0.9)
        assert 0 < len(asking.chunks) < 60
        assert asking.served_by == world.peer(2)
        world.crash(world.peer(2))
        world.run(30.0)
        assert (asking.ended is not None) is whole, resume
        assert whole or asking.failed is Reason.PEER_LOST


def test_a_full_executor_is_passed_over_for_another() -> None:
    relay = Config().relay
    config = Config(net=Net(dial_discovered=False), relay=type(relay)(waiting_max=1))
    specs = [ASKER, ASKER, Spec(zones=RED, slots=1), Spec(zones=RED, slots=1, decode_tps=45.0)]
    world = World(3, specs, config=config, links=[(0, 1), (1, 2), (1, 3)])
    world.run(8.0)
    askings = [world.ask(world.peer(0), tokens=40, zone="red", budget_s=30.0) for _ in range(4)]
    world.run(30.0)
    assert all(asking.ended is not None for asking in askings), [a.failed for a in askings]
    assert {asking.served_by for asking in askings} == {world.peer(2), world.peer(3)}


def test_an_executor_that_came_back_with_another_key_is_asked_anew() -> None:
    """What is sealed to the key of before is refused, and another of the zone answers."""
    world = row(ASKER, Spec(zones=RED), Spec(zones=RED, decode_tps=20.0), links=[(0, 1), (0, 2)])
    world.run(8.0)
    sealer = world.nodes[world.peer(1)].machine._sealing._sealer
    sealer._key = bytes(32)  # type: ignore[attr-defined]
    asking = world.ask(world.peer(0), zone="red")
    world.run(10.0)
    assert asking.ended is not None
    assert asking.served_by == world.peer(2)


def test_a_relay_that_lost_one_executor_is_the_way_to_the_next() -> None:
    """p0 - p1 - p2 and p3: whom it was sealed to is killed before its first token."""
    world = row(ASKER, ASKER, Spec(zones=RED), Spec(zones=RED), links=[(0, 1), (1, 2), (1, 3)])
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=100, zone="red")
    world.run(0.007)  # it is embedded by then, and on its way
    flight = world.nodes[world.peer(0)].machine.relay.flights.get(asking.query.id)
    assert flight is not None
    assert not asking.chunks
    first = flight.executor
    world.crash(first)
    world.run(15.0)
    assert asking.ended is not None, asking.detail
    assert asking.served_by not in (None, first)
