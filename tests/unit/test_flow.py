"""How fast an answer comes: what a stall, a crawl and a bunch of pieces look like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocol.flow import Flow


def rates(flow: Flow, gaps: list[float], tokens: int = 1) -> list[tuple[int, float]]:
    """Let a piece come after each gap; return what was told, and with which piece."""
    now, told = 100.0, []
    for number, gap in enumerate(gaps):
        now += gap
        rate = flow.came(tokens, now)
        if rate is not None:
            told.append((number, rate))
    return told


def test_nothing_is_told_before_two_windows_are_over() -> None:
    assert rates(Flow(), [0.2, *[0.05] * 19]) == []


def test_a_steady_rate_is_told_less_and_less_often() -> None:
    told = rates(Flow(), [0.2, *[0.1] * 80])
    assert [rate for _, rate in told] == pytest.approx([10.0] * len(told), rel=0.25)
    assert 3 <= len(told) <= 4  # after 1, 3 and 7 s


def test_the_time_to_the_first_piece_counts_for_nothing() -> None:
    assert rates(Flow(), [60.0, *[0.1] * 12]) == rates(Flow(), [0.0, *[0.1] * 12])


def test_pieces_that_come_in_bunches_have_the_rate_of_their_bunches() -> None:
    told = rates(Flow(), [0.0, *([0.5, 0.0, 0.0, 0.0] * 6)])
    assert told[-1][1] == pytest.approx(8.0, rel=0.3)


def test_a_slow_model_s_single_tokens_are_windows_of_their_own() -> None:
    assert rates(Flow(), [0.0, 2.0, 2.0], tokens=1) == [(2, pytest.approx(0.5))]


@given(at=st.integers(1, 60), stall=st.floats(0.1, 2.9))
def test_one_stall_is_never_taken_for_slowness(at: int, stall: float) -> None:
    gaps = [0.025] * 160
    gaps[at] = stall
    told = rates(Flow(), gaps)
    assert told
    assert all(rate > 20.0 for _, rate in told)
