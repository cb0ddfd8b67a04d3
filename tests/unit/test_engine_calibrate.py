"""Speed, measured and refined."""

from __future__ import annotations

import pytest

from p2pmesh.engine.calibrate import DECODE_STEPS, PREFILL_TOKENS, Ewma, Speed, measure, rows_alone


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


@pytest.mark.parametrize(
    ("together_ms", "slots", "alone"),
    [
        ({1: 9, 2: 29, 3: 34, 4: 37}, 8, 3),  # Q8_0 on Zen 4
        ({1: 9, 2: 29, 3: 28, 4: 37}, 8, 2),
        ({1: 12, 2: 24, 3: 32, 4: 39}, 8, 1),  # Q4_1 there
        ({1: 12, 2: 26, 3: 60, 4: 90}, 8, 1),  # nearly a tie is none
        ({1: 9, 2: 99, 3: 99, 4: 999}, 8, 3),
        ({1: 9, 2: 29, 3: 34, 4: 37}, 2, 2),
        ({1: 9}, 1, 1),
    ],
)
def test_rows_are_decoded_alone_where_that_takes_less_time(
    together_ms: dict[int, int], slots: int, alone: int
):
    now, calls = 0.0, 0

    def decode(rows: int) -> None:
        nonlocal now, calls
        calls += 1
        now += together_ms[rows] / 1e3 * (3 if calls % 2 else 1)  # each first time something else got in

    assert rows_alone(decode, slots, lambda: now) == alone


def test_the_average_follows_real_work_and_ignores_none():
    speed = Ewma(100.0, memory_tokens=100)
    assert speed.add(0, 1.0) == 100.0
    assert speed.add(5, 0.0) == 100.0
    # 100 tokens at 50 a second weigh as much as the memory: the mean of 10 and 20 ms a token.
    assert speed.add(100, 2.0) == pytest.approx(1 / 0.015)
    for _ in range(50):
        speed.add(100, 2.0)
    assert speed.tokens_per_s == pytest.approx(50.0, rel=1e-6)
