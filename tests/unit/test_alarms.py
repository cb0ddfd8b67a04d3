"""Alarms: never late, in order, one for each key, and no more remembered than that needs."""

from __future__ import annotations

import math

from p2pmesh.protocol.alarms import Alarms


def test_an_alarm_rings_at_its_moment_and_once() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 5.0)
    assert alarms.ringing(4.9) == []
    assert alarms.ringing(5.0) == ["a"]
    assert alarms.ringing(9.0) == []
    assert len(alarms) == 0


def test_those_that_are_due_ring_in_the_order_of_their_moments_and_then_of_their_keys() -> None:
    alarms: Alarms[str] = Alarms()
    for key, at in (("c", 2.0), ("b", 3.0), ("a", 3.0), ("d", 1.0), ("e", 4.0)):
        alarms.set(key, at)
    assert alarms.ringing(3.0) == ["d", "c", "a", "b"]
    assert alarms.next == 4.0


def test_an_alarm_moves_forward_and_never_back() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 5.0)
    alarms.set("a", 7.0)
    assert alarms.next == 5.0
    alarms.set("a", 3.0)
    assert (alarms.next, len(alarms)) == (3.0, 1)
    assert alarms.ringing(9.0) == ["a"]  # once, though it was set for two moments


def test_after_it_rang_it_may_be_set_for_later() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 1.0)
    alarms.ringing(1.0)
    alarms.set("a", 8.0)
    assert alarms.next == 8.0


def test_what_never_comes_has_no_alarm() -> None:
    alarms: Alarms[str] = Alarms()
    assert alarms.next == math.inf
    alarms.set("a", math.inf)
    assert (alarms.next, len(alarms)) == (math.inf, 0)


def test_the_dropped_do_not_ring_and_dropping_nothing_is_nothing() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 1.0)
    alarms.set("b", 2.0)
    alarms.drop("a")
    alarms.drop("z")
    assert alarms.next == 2.0
    assert alarms.ringing(5.0) == ["b"]


def test_a_dropped_key_set_anew_rings_at_the_new_moment_only() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 1.0)
    alarms.drop("a")
    alarms.set("a", 3.0)
    assert alarms.ringing(2.0) == []
    assert alarms.ringing(3.0) == ["a"]


def test_what_came_and_went_leaves_nothing_behind() -> None:
    alarms: Alarms[str] = Alarms()
    for number in range(10_000):
        alarms.set(f"{number}", 1e6)
        alarms.drop(f"{number}")
    assert len(alarms._heap) <= 64 + 1


def test_what_was_overtaken_does_not_outgrow_the_rest() -> None:
    alarms: Alarms[str] = Alarms()
    for number in range(10_000):
        alarms.set("a", 1e6 - number)
    assert len(alarms._heap) <= 64 + 4 + 1
    assert alarms.next == 1e6 - 9_999


def test_when_the_overtaken_are_swept_up_nothing_else_is_lost() -> None:
    alarms: Alarms[str] = Alarms()
    kept = [f"k{number:03}" for number in range(20)]
    for number, key in enumerate(kept):
        alarms.set(key, 100.0 + number)
    for number in range(500):
        alarms.set("x", 99.0 - number / 1_000)
        alarms.drop("x")
    assert alarms.ringing(200.0) == kept
