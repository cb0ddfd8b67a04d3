"""What is asked: its last words and its length."""

from __future__ import annotations

from dataclasses import replace

from p2pmesh.query import Message
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
