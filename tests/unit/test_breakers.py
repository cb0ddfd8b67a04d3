"""The breaker of one peer: opens after failures in a row, lets one query through, and forgets."""

import pytest

from p2pmesh.protocol.breakers import FAILURES_MAX, Breakers
from p2pmesh.record import PeerId

IT, OTHER = PeerId("it"), PeerId("other")


def broken(at: float = 0.0) -> Breakers:
    """Return breakers of which that of `IT` has just opened, at about `at`."""
    breakers = Breakers(64)
    for number in range(FAILURES_MAX):
        breakers.failed(IT, at + 0.001 * number)
    return breakers


def test_nobody_is_kept_out_at_first() -> None:
    assert Breakers(64).open(0.0) == frozenset()
    assert Breakers(64).success(IT, 0.0) == 1.0


def test_it_opens_after_three_failures_in_a_row_and_not_before() -> None:
    breakers = Breakers(64)
    for at in (0.0, 1.0):
        breakers.failed(IT, at)
        assert not breakers.open(at)
    breakers.failed(IT, 2.0)
    assert breakers.open(2.0) == {IT}


def test_a_success_between_them_closes_it() -> None:
    breakers = Breakers(64)
    for at in (0.0, 1.0):
        breakers.failed(IT, at)
    breakers.served(IT, 1.5)
    breakers.failed(IT, 2.0)
    assert not breakers.open(2.0)


def test_what_fails_at_one_moment_counts_once() -> None:
    breakers = Breakers(64)
    for _ in range(10):
        breakers.failed(IT, 1.0)
    assert not breakers.open(1.0)
    assert breakers.success(IT, 1.0) == pytest.approx(0.8)


def test_it_is_tried_again_with_one_query() -> None:
    breakers = broken()
    assert breakers.open(4.9) == {IT}
    assert not breakers.open(5.1)
    breakers.sent(IT, 5.1)
    assert breakers.open(5.2) == {IT}
    breakers.served(IT, 6.0)
    assert not breakers.open(6.0)


def test_a_trial_of_which_nothing_is_heard_is_followed_by_the_next() -> None:
    breakers = broken()
    breakers.sent(IT, 6.0)
    assert breakers.open(15.9) == {IT}
    assert not breakers.open(16.1)


def test_a_trial_that_fails_keeps_it_out_for_twice_as_long_up_to_a_bound() -> None:
    breakers, now, periods = broken(), 0.0, []
    for _ in range(7):
        begun = now
        while IT in breakers.open(now):
            now += 0.1
        periods.append(now - begun)
        breakers.failed(IT, now)
    assert periods == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0, 60.0], abs=0.2)


def test_a_success_lets_it_begin_anew() -> None:
    breakers = broken()
    breakers.failed(IT, 6.0)
    breakers.served(IT, 20.0)
    for at in (21.0, 22.0, 23.0):
        breakers.failed(IT, at)
    assert breakers.open(27.9) == {IT}
    assert not breakers.open(28.1)


def test_a_query_to_one_that_works_bars_nobody() -> None:
    breakers = Breakers(64)
    breakers.failed(IT, 0.0)
    breakers.sent(IT, 0.1)
    breakers.sent(OTHER, 0.1)
    assert not breakers.open(0.1)


def test_the_success_rate_follows_outcomes_and_recovers_with_time() -> None:
    breakers = broken()
    low = breakers.success(IT, 0.01)
    assert low == pytest.approx(0.8**3, abs=0.001)
    assert breakers.success(IT, 30.0) == pytest.approx(1.0 - (1.0 - low) / 2, abs=0.001)
    breakers.served(IT, 0.01)
    assert breakers.success(IT, 0.01) == pytest.approx(1.0 - 0.8 * (1.0 - low))
    assert breakers.success(OTHER, 0.01) == 1.0


def test_only_so_many_are_remembered() -> None:
    breakers = broken()
    for number in range(64):
        breakers.failed(PeerId(f"p{number}"), 1.0)
    assert IT not in breakers.open(1.0)
    assert breakers.success(IT, 1.0) == 1.0
