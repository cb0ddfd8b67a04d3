"""What is kept of prompts that were read, and what is given up for it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.engine.prefixes import ENTRIES_MAX, TOKENS_MIN, Prefixes, common

PER_TOKEN = 10


def tokens(*runs: tuple[int, int]) -> np.ndarray:
    """So many of each number."""
    return np.concatenate([np.full(count, number, np.int32) for number, count in runs])


def keep(prefixes: Prefixes, held: np.ndarray) -> None:
    if prefixes.wants(held):
        prefixes.keep(held, np.zeros(PER_TOKEN * len(held), np.uint8))


def found(prefixes: Prefixes, prompt: np.ndarray) -> int:
    """How much of `prompt` need not be read."""
    best = prefixes.find(prompt)
    return 0 if best is None else best[1]


def test_the_longest_beginning_is_found_and_of_two_the_shorter_entry():
    kept = Prefixes(10**6)
    keep(kept, tokens((1, 50), (2, 50)))
    keep(kept, tokens((1, 50), (3, 90)))
    keep(kept, tokens((1, 50), (3, 40), (4, 200)))
    assert found(kept, tokens((1, 50), (2, 10), (9, 9))) == 60
    assert found(kept, tokens((1, 50), (3, 95))) == 140
    best = kept.find(tokens((1, 50), (9, 9)))
    assert best is not None
    assert (len(best[0].tokens), best[1]) == (100, 50)
    assert found(kept, tokens((9, 100))) == 0


def test_what_is_short_is_neither_kept_nor_found():
    kept = Prefixes(10**6)
    keep(kept, tokens((1, TOKENS_MIN - 1)))
    assert len(kept) == 0
    keep(kept, tokens((1, TOKENS_MIN), (2, 9)))
    assert found(kept, tokens((1, TOKENS_MIN - 1), (3, 9))) == 0
    assert found(kept, tokens((1, TOKENS_MIN), (3, 9))) == TOKENS_MIN


def test_a_conversation_that_went_on_takes_the_place_of_its_beginning():
    kept = Prefixes(10**6)
    keep(kept, tokens((1, 30)))
    keep(kept, tokens((1, 30), (2, 30)))
    assert (len(kept), kept.bytes) == (1, 60 * PER_TOKEN)
    assert not kept.wants(tokens((1, 30), (2, 10)))
    assert kept.wants(tokens((1, 30), (2, 31)))


def test_the_least_recently_used_is_given_up_first():
    kept = Prefixes(100 * PER_TOKEN)
    for number in (1, 2, 3):
        keep(kept, tokens((number, 30)))
    assert found(kept, tokens((1, 30))) == 30
    keep(kept, tokens((4, 30)))
    assert [found(kept, tokens((n, 30))) for n in (1, 2, 3, 4)] == [30, 0, 30, 30]


def test_what_is_larger_than_all_the_room_is_not_kept():
    kept = Prefixes(20 * PER_TOKEN)
    keep(kept, tokens((1, 20)))
    keep(kept, tokens((2, 21)))
    assert found(kept, tokens((1, 20))) == 20
    assert found(kept, tokens((2, 21))) == 0
    assert len(Prefixes(0)) == 0


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=4), max_size=60),
    st.integers(0, 3_000),
)
def test_the_bounds_hold_and_what_is_found_is_a_beginning(held, bytes_max):
    kept = Prefixes(bytes_max)
    for runs in held:
        prompt = tokens(*runs)
        best = kept.find(prompt)
        if best is not None:
            entry, length = best
            assert TOKENS_MIN <= length <= min(len(entry.tokens), len(prompt))
            assert (entry.tokens[:length] == prompt[:length]).all()
        keep(kept, prompt)
        assert kept.bytes <= bytes_max
        assert kept.bytes == sum(e.state.nbytes for e in kept._entries)
        assert len(kept) <= ENTRIES_MAX
        assert not any(
            a is not b and common(a.tokens, b.tokens) == len(a.tokens)
            for a in kept._entries
            for b in kept._entries
        )


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_common_counts_as_one_would_by_hand(a, b):
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    assert common(np.array(a, np.int32), np.array(b, np.int32)) == shared
