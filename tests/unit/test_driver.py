"""The driver as far as it is pure: whom it tells, and whom no more."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import trio

from p2pmesh.config import Config, ModelConfig
from p2pmesh.net.events import DialFailed, FrameReceived, LinkDown, LinkUp
from p2pmesh.net.identity import Identity
from p2pmesh.peer.driver import BAD_FRAMES_MAX, Driver
from p2pmesh.peer.models import Models
from p2pmesh.protocol import events as e
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Message, Query, QueryId
from p2pmesh.record import PeerId
from p2pmesh.sim.sealer import SimSealer
from p2pmesh.trust import keys


class Signer:
    def __init__(self, identity: Identity) -> None:
        self.sign, self.verify = identity.sign, keys.verify


class Wire:
    """A host that only notes what it is told."""

    def __init__(self) -> None:
        self.hung_up: list[PeerId] = []

    def hangup(self, peer: PeerId) -> None:
        self.hung_up.append(peer)


@pytest.fixture
async def made() -> Any:
    identity, wire = Identity.generate(), Wire()
    config = Config(models=(ModelConfig(model="echo", engine="echo"),))
    machine = Machine(
        identity.id,
        "ada",
        1,
        config,
        Signer(identity),
        SimSealer(identity.id),
        Random(1),
        trio.current_time(),
    )
    return Driver(machine, wire, Models(config, lambda _: None)), wire  # type: ignore[arg-type]


def query(driver: Driver, name: str) -> Query:
    return Query(QueryId(name * 32), driver.machine.me, (Message("user", "x"),))


async def test_one_who_asks_is_told_the_end_once(made: Any):
    driver, _ = made
    told: list[Any] = []
    driver.ask(e.Asked(query(driver, "a")), told.append)
    assert [outcome.reason.value for outcome in told] == ["no_route"]
    driver.cancel(QueryId("a" * 32))
    driver.close()
    assert len(told) == 1


async def test_one_who_asks_while_effects_are_performed_is_served_after_them(made: Any):
    driver, _ = made
    order: list[str] = []

    def first(_: Any) -> None:
        driver.ask(e.Asked(query(driver, "b")), lambda _: order.append("b"))
        order.append("a")

    driver.ask(e.Asked(query(driver, "a")), first)
    assert order == ["a", "b"]


async def test_a_closed_driver_answers_everybody(made: Any):
    driver, _ = made
    driver.close()
    told: list[Any] = []
    driver.ask(e.Asked(query(driver, "a")), told.append)
    assert [(o.reason.value, o.detail) for o in told] == [("peer_lost", "this peer has left the mesh")]


async def test_the_wire_speaks_events(made: Any):
    driver, _ = made
    peer = Identity.generate().id
    assert driver._from_wire(LinkUp(peer, "/x", True)) == e.Connected(peer)
    assert driver._from_wire(LinkDown(peer, "why")) == e.Disconnected(peer)
    assert driver._from_wire(DialFailed(peer, "/x", "why")) == e.DialFailed(peer)
    assert driver._from_wire(DialFailed(None, "/x", "why")) is None, "nobody known could not be reached"


async def test_a_series_of_bad_frames_ends_a_link_and_a_new_one_starts_afresh(made: Any):
    driver, wire = made
    peer = Identity.generate().id
    bad = FrameReceived(peer, b"garbage")
    for _ in range(BAD_FRAMES_MAX - 1):
        assert driver._from_wire(bad) is None
    assert wire.hung_up == []
    driver._from_wire(LinkUp(peer, "/x", True))
    driver._from_wire(bad)
    assert wire.hung_up == []
    for _ in range(BAD_FRAMES_MAX - 1):
        driver._from_wire(bad)
    assert wire.hung_up == [peer]
    assert driver.counters["bad_frames"] == 2 * BAD_FRAMES_MAX - 1


async def test_an_address_somebody_gave_is_warned_of_once_and_forgotten_when_it_answers(
    made: Any, caplog: pytest.LogCaptureFixture
):
    driver, _ = made
    address, found = "/ip4/127.0.0.1/tcp/1", PeerId("b")
    for _ in range(3):
        assert driver._from_wire(DialFailed(None, address, f"{address}: refused")) is None
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == [f"cannot reach a peer: {address}: refused; trying on"]
    assert driver.unreachable == {address: f"{address}: refused"}
    driver._from_wire(LinkUp(found, address, False))
    assert (driver.unreachable, driver.met) == ({}, {address: found})


async def test_a_peer_heard_of_that_is_not_reached_is_no_warning(made: Any, caplog: pytest.LogCaptureFixture):
    driver, _ = made
    driver._from_wire(DialFailed(PeerId("b"), "/ip4/127.0.0.1/tcp/1", "refused"))
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert not driver.unreachable
