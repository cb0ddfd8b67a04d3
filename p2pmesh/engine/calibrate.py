"""How fast am I, measured in a blink, and refined by real work.

Pure but for the clock it is given. Speed is what the model does when nobody disturbs it, hence CPU time:
contention is load, which a peer reports elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PREFILL_TOKENS = 64
DECODE_STEPS = 8
ALONE_ROWS_MAX = 3
"""Most rows that may be worth decoding one by one: from four on no kernel we measured was slower together."""
ALONE_GAIN = 0.9
"""One by one must take less than this share of the time that rows take together: beneath is noise."""


@dataclass(frozen=True)
class Speed:
    """Of one uncontended slot, in tokens per second."""

    prefill_tps: float
    decode_tps: float


def cpu_clock(threads: int) -> Callable[[], float]:
    """Return a clock of CPU seconds per thread. Without waiting it runs as the wall clock does."""
    return lambda: time.process_time() / threads


def measure(prefill: Callable[[int], None], decode: Callable[[], None], clock: Callable[[], float]) -> Speed:
    """Read `PREFILL_TOKENS` tokens at once, write `DECODE_STEPS` one by one, and return the speed of both.

    Takes about 0.4 s with a model of 135 million parameters; figures repeat within 3 and 6 % (measured).
    """
    start = clock()
    prefill(PREFILL_TOKENS)
    read = clock()
    for _ in range(DECODE_STEPS):
        decode()
    end = clock()
    return Speed(PREFILL_TOKENS / max(read - start, 1e-6), DECODE_STEPS / max(end - read, 1e-6))


def rows_alone(decode: Callable[[int], None], rows_max: int, clock: Callable[[], float]) -> int:
    """Return the most rows, up to `rows_max`, that are decoded sooner one by one than together; 1: none.

    Two rows together should cost little more than one, as the weights are read once. But llama.cpp has one
    kernel for a row and another for several, and where the second waits for memory two rows took 29 ms
    together and 9 ms each alone (Q8_0 of 135 million parameters, Zen 4, measured; 24 and 12 for Q4_1).
    """

    def seconds(rows: int) -> float:
        taken = []
        for _ in range(2):
            start = clock()
            decode(rows)
            taken.append(clock() - start)
        return min(taken)

    single, alone = seconds(1), 1
    for rows in range(2, min(rows_max, ALONE_ROWS_MAX) + 1):
        if rows * single >= ALONE_GAIN * seconds(rows):
            break
        alone = rows
    return alone


class Ewma:
    """A speed that follows real work: an exponentially weighted moving average of tokens per second.

    Work counts by its length, so that one long answer outweighs many short ones.
    """

    def __init__(self, tokens_per_s: float, *, memory_tokens: float = 512.0) -> None:
        """Start from `tokens_per_s`; what is older than `memory_tokens` tokens weighs less than 1/e."""
        self.tokens_per_s = tokens_per_s
        self._memory = memory_tokens

    def add(self, tokens: int, seconds: float) -> float:
        """Count `tokens` done in `seconds` and return the new average. Nothing done changes nothing."""
        if tokens > 0 and seconds > 0:
            weight = tokens / (tokens + self._memory)
            # Times are averaged, not rates: a rate's mean overstates.
            per_token = (1 - weight) / self.tokens_per_s + weight * seconds / tokens
            self.tokens_per_s = 1 / per_token
        return self.tokens_per_s
