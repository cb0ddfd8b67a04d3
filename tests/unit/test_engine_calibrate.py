"""Speed, measured and refined."""

from __future__ import annotations

import pytest

from p2pmesh.engine.calibrate import DECODE_STEPS, PREFILL_TOKENS, Ewma, Speed, measure


def test_speed_is_tokens_by_the_given_clock():
    now = 0.0

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    speed = measure(lambda tokens: work(tokens / 200), lambda: work(1 / 50), lambda: now)
    assert speed == Speed(pytest.approx(200.0), pytest.approx(50.0))
    assert now == pytest.approx(PREFILL_TOKENS / 200 + DECODE_STEPS / 50)


def test_a_clock_that_stands_still_gives_no_infinity():
    assert measure(lambda _: None, lambda: None, lambda: 0.0).decode_tps < 1e9


def test_the_average_follows_real_work_and_ignores_none():
    speed = Ewma(100.0, memory_tokens=100)
    assert speed.add(0, 1.0) == 100.0
    assert speed.add(5, 0.0) == 100.0
    # 100 tokens at 50 a second weigh as much as the memory: the mean of 10 and 20 ms a token.
    assert speed.add(100, 2.0) == pytest.approx(1 / 0.015)
    for _ in range(50):
        speed.add(100, 2.0)
    assert speed.tokens_per_s == pytest.approx(50.0, rel=1e-6)
