"""Whom a peer remembers over a restart, and for how long it looks for them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from p2pmesh.errors import ConfigError
from p2pmesh.peer import meeting, state
from p2pmesh.protocol import events as e
from p2pmesh.record import PeerId, PeerRecord, Version

AT = "/ip4/127.0.0.1/tcp/4001"


def record(name: str, *addresses: str) -> PeerRecord:
    return PeerRecord(PeerId(name), Version(1, 1), addresses=addresses or (AT,))


class Driver:
    """One that is linked to whom a test says."""

    def __init__(self) -> None:
        self.fed: list[e.Event] = []
        self.machine = self.membership = self
        self.met: dict[str, PeerId] = {}
        self.links: dict[PeerId, None] = {}

    def feed(self, event: e.Event) -> None:
        self.fed.append(event)

    def records(self) -> list[PeerRecord]:
        return [record(name) for name in (*self.links, "another")]


def test_those_who_are_linked_now_come_before_the_others_and_there_are_so_many() -> None:
    known = {f"old {i:02}": [AT] for i in range(20)}
    found = meeting.after(known, [record("b"), record("a", *[f"{AT}{i}" for i in range(9)])])
    assert list(found)[:3] == ["a", "b", "old 00"]
    assert len(found) == meeting.BEFORE_MAX
    assert len(found["a"]) == meeting.ADDRESSES_MAX
    assert meeting.after(found, [PeerRecord(PeerId("nowhere"), Version(1, 1))]) == found


def test_what_was_kept_comes_back_and_what_is_damaged_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert meeting.before(tmp_path) == {}
    state.keep(tmp_path, "met", msgspec.msgpack.encode({"a": [AT]}))
    assert meeting.before(tmp_path) == {"a": [AT]}
    assert not caplog.text
    for junk in (b"junk", b"\x81\xa1\xff\x90", b""):
        state.keep(tmp_path, "met", junk)
        assert meeting.before(tmp_path) == {}
    (tmp_path / "met").write_text("x")
    assert meeting.before(tmp_path) == {}
    assert caplog.text.count("is forgotten") == 4


async def test_who_is_alone_for_long_looks_less_often(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    driver: Any = Driver()
    with trio.move_on_after(600.0):
        await meeting.remember(tmp_path, driver, {"a": [AT]})
    assert 600 / meeting.RETRY_MAX_S <= len(driver.fed) <= 600 / meeting.RETRY_MAX_S + 5


async def test_while_it_is_alone_it_looks_for_those_of_before_and_then_remembers_those_of_now(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    driver: Any = Driver()
    with trio.move_on_after(2.5 * meeting.RETRY_S):
        await meeting.remember(tmp_path, driver, {"a": [AT]})
    assert driver.fed == [e.Discovered(PeerId("a"), (AT,))] * 2
    assert meeting.before(tmp_path) == {}  # there was nothing new
    driver.links[PeerId("b")] = None
    with trio.move_on_after(3 * meeting.KEEP_S):
        await meeting.remember(tmp_path, driver, {"a": [AT]})
    assert len(driver.fed) == 2
    assert meeting.before(tmp_path) == {"a": [AT], "b": [AT]}


async def test_what_cannot_be_kept_is_said_once(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep, tries = state.keep, iter(range(9))

    def full(*told: Any) -> None:
        if next(tries) < 3:
            raise ConfigError("no space")
        keep(*told)

    monkeypatch.setattr(state, "keep", full)
    driver: Any = Driver()
    with caplog.at_level(logging.WARNING), trio.move_on_after(5 * meeting.KEEP_S):
        driver.links[PeerId("b")] = None
        await meeting.remember(tmp_path, driver, {})
    assert caplog.text.count("will be forgotten: no space") == 1
    assert meeting.before(tmp_path) == {"b": [AT]}  # once there was room
    assert next(tries) == 4
