"""Whoever has shown no key stands in nobody's way."""

from __future__ import annotations

from p2pmesh.gateway.app import Guest
from p2pmesh.gateway.server import make_room

MOST = 32
"""Of whom 8 may be unknown, and 2 of one address."""


def crowd(*addresses: str, known: bool = False) -> list[Guest]:
    return [Guest(address, known) for address in addresses]


def gone(before: list[Guest], guests: list[Guest]) -> list[int]:
    return [index for index, guest in enumerate(before) if guest not in guests]


def test_there_is_room_for_a_few_and_nobody_goes() -> None:
    guests = crowd("a", "b", "c", "d", "e", "f", "g")
    assert make_room(guests, "h", MOST)
    assert len(guests) == 7


def test_of_one_address_the_one_who_stands_there_for_longest_gives_way() -> None:
    guests = crowd("b", "a", "a")
    before = [*guests]
    assert make_room(guests, "a", MOST)
    assert gone(before, guests) == [1]
    assert [guest.unwanted.is_set() for guest in before] == [False, True, False]


def test_where_all_places_of_strangers_are_taken_the_address_that_has_most_gives_way() -> None:
    guests = crowd("b", "a", "a", "c", "d", "e", "f", "g")
    before = [*guests]
    assert make_room(guests, "h", MOST)
    assert gone(before, guests) == [1]


def test_who_is_known_never_goes() -> None:
    guests = crowd(*"abcdefgh" * 4, known=True)
    assert not make_room(guests, "i", MOST)
    assert not make_room(guests, "a", MOST)
    assert len(guests) == MOST
    guests[5].known = False
    before = [*guests]
    assert make_room(guests, "i", MOST)
    assert gone(before, guests) == [5]


def test_there_is_a_place_for_one_stranger_however_few_there_are() -> None:
    for most in (1, 4):
        guests: list[Guest] = []
        assert make_room(guests, "a", most)
        guests += crowd("a")
        assert make_room(guests, "a", most)
        assert guests == []
