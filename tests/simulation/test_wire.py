"""The wire in a box: each fault does what it says, and nothing else."""

from __future__ import annotations

import pytest

from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.record import PeerId
from p2pmesh.sim.world import Spec, World

A, B = PeerId("p0"), PeerId("p1")
FRAMES = 400


def heard(world: World, frames: int = FRAMES) -> list[tuple[float, int]]:
    """Send `frames` numbered pings from A to B, ten ms apart, and return when B heard which."""
    world.run(3.0)
    came: list[tuple[float, int]] = []
    happen = world.happen

    def listen(ident: PeerId, event: e.Event) -> None:
        message = event.message if isinstance(event, e.Received) and ident == B else None
        if isinstance(message, m.Ping) and message.seq >= 1_000_000:
            came.append((world.now, message.seq - 1_000_000))
            return
        happen(ident, event)

    world.happen = listen  # type: ignore[method-assign]
    for number in range(frames):
        world.wire.send(A, B, m.Ping(1_000_000 + number))
        world.run(0.01)
    world.run(2.0)
    return came


def pair(**weather: float) -> World:
    return World(1, [Spec(), Spec()], **weather)  # type: ignore[arg-type]


def test_in_good_weather_all_come_once_and_in_order() -> None:
    assert [number for _, number in heard(pair())] == list(range(FRAMES))


def test_loss_loses_a_share_and_keeps_the_order() -> None:
    numbers = [number for _, number in heard(pair(loss=0.2))]
    assert len(numbers) == pytest.approx(0.8 * FRAMES, rel=0.1)
    assert numbers == sorted(set(numbers))


def test_duplicates_come_later_and_lose_nothing() -> None:
    numbers = [number for _, number in heard(pair(duplicate=0.2))]
    assert set(numbers) == set(range(FRAMES))
    assert len(numbers) == pytest.approx(1.2 * FRAMES, rel=0.1)


def test_overtaken_frames_come_once_and_late() -> None:
    numbers = [number for _, number in heard(pair(reorder=0.2))]
    assert sorted(numbers) == list(range(FRAMES))
    assert numbers != sorted(numbers)


def test_one_link_can_be_worse_than_the_others_one_way() -> None:
    world = pair()
    world.run(3.0)
    world.wire.worsen(A, B, latency_s=(0.2, 0.2))
    world.wire.worsen(A, B, loss=0.5)
    times = heard(world)
    assert len(times) == pytest.approx(0.5 * FRAMES, rel=0.2)
    assert times[0][0] - 6.0 == pytest.approx(0.2 + 0.01 * times[0][1])
    world.wire.calm()
    assert [number for _, number in heard(world, 50)] == list(range(50))


def test_a_cut_one_way_loses_all_that_way_and_links_nobody() -> None:
    for deaf, count in ((A, 0), (B, 10)):
        world = pair()
        world.run(3.0)  # they have met
        world.partition(lambda a, b, deaf=deaf: a == deaf)  # type: ignore[misc]
        assert len(heard(world, 10)) == count
    strangers = pair()
    strangers.partition(lambda a, b: a == A)
    assert heard(strangers, 10) == []
    strangers.heal()
    assert heard(strangers, 10) == []  # whoever was told of the other dialled in vain, and knows no address


def test_bytes_are_counted_by_sender_and_by_kind() -> None:
    world = pair()
    heard(world, 10)
    wire = world.wire
    assert sum(wire.bytes_sent.values()) == sum(wire.kind_bytes.values()) > 0
    assert wire.kind_frames["Ping"] >= 10
    wire.send(A, PeerId("nobody"), m.Ping(1))
    assert "nobody" not in wire.bytes_sent


def test_a_slow_model_takes_longer_and_a_restored_one_does_not() -> None:
    world = World(1, [Spec(decode_tps=50.0)])
    times = []
    for speed in (1.0, 0.1, 1.0):
        world.slow(A, speed)
        asking = world.ask(A, tokens=20, budget_s=60.0)
        world.run(30.0)
        assert asking.over_at is not None
        times.append(asking.over_at - asking.asked_at)
    assert times[1] == pytest.approx(10.0 * times[0], rel=0.05)
    assert times[2] == pytest.approx(times[0])
    running = world.ask(A, tokens=100)  # two seconds
    world.run(1.0)
    world.slow(A, 0.5)
    world.run(1.5)
    assert running.over_at is None
    world.run(1.0)
    assert running.over_at is not None
