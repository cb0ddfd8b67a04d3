"""What is asked: its last words and its length."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.query import PREFIXES_MAX, Message, Query
from tests.machines import query

TALK = (
    Message("system", "be brief"),
    Message("user", "one"),
    Message("assistant", "é"),
    Message("user", "two"),
)


def test_a_query_is_about_the_last_thing_the_user_said() -> None:
    assert replace(query(), messages=TALK).text == "two"
    assert replace(query(), messages=TALK[:3]).text == "one"
    assert replace(query(), messages=TALK[:1]).text == ""


def test_a_prompts_length_is_that_of_all_messages_in_utf8() -> None:
    assert replace(query(), messages=TALK).prompt_bytes == 8 + 3 + 2 + 3
    assert query(text="\ud800").prompt_bytes == 3  # what cannot travel is measured and refused later


# -- the beginnings of a prompt -------------------------------------------------------------------------


def said(*messages: Message) -> Query:
    return replace(query(), messages=messages)


def test_each_beginning_of_a_prompt_has_a_key_and_a_length_in_utf8() -> None:
    prefixes = said(*TALK).prefixes
    assert [length for _, length in prefixes] == [8, 11, 13, 16]
    assert len({key for key, _ in prefixes}) == 4
    assert all(len(key) == 8 for key, _ in prefixes)
    assert prefixes[-1][1] == said(*TALK).prompt_bytes


def test_the_next_turn_begins_with_the_keys_of_the_last_one() -> None:
    assert said(*TALK).prefixes[:2] == said(*TALK[:2]).prefixes
    assert query(7).prefixes == query(8).prefixes  # it is the words that count, not who asks


@pytest.mark.parametrize(
    "other",
    [
        (Message("user", "ab"), Message("user", "d")),
        (Message("user", "a"), Message("user", "bcd")),
        (Message("user", "abc"), Message("assistant", "d")),
        (Message("user", "abcd"),),
        (Message("us", "erabc"), Message("user", "d")),
        (Message("user", "abc"), Message("user", "d"), Message("user", "")),
    ],
)
def test_what_differs_in_words_roles_or_borders_has_another_key(other: tuple[Message, ...]) -> None:
    mine = said(Message("user", "abc"), Message("user", "d")).prefixes
    assert said(*other).prefixes[-1][0] != mine[-1][0]


def test_only_the_longest_beginnings_have_a_key() -> None:
    many = [Message("user", f"{i}") for i in range(PREFIXES_MAX + 5)]
    prefixes = said(*many).prefixes
    assert len(prefixes) == PREFIXES_MAX
    assert prefixes[0] == said(*many[:6]).prefixes[-1]


def test_what_cannot_travel_has_a_key_too_and_nothing_has_none() -> None:
    assert len(query(text="\ud800").prefixes) == 1
    assert said().prefixes == ()
