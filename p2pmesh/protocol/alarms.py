"""When something may be due: the earliest of many moments, without looking at all of them.

An alarm may ring early and never late, so whoever moves a moment back need not say so: it looks when the
alarm rings, and sets it anew. It knows keys and moments, not what for.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

K = TypeVar("K", bound=str)
"""Texts, so that two alarms of one moment ring in the same order in every run."""


class Alarms(Generic[K]):
    """At most one alarm for each key."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def __len__(self) -> int:
        """Return how many keys have one."""
        return len(self._at)

    def set(self, key: K, at: float) -> None:
        """Let it ring for `key` at `at`, or earlier where it would have rung earlier anyway."""
        if at < self._at.get(key, math.inf):
            self._at[key] = at
            heapq.heappush(self._heap, (at, key))
            self._sweep()

    def drop(self, key: K) -> None:
        """Forget the alarm of `key`."""
        self._at.pop(key, None)
        self._sweep()

    def _sweep(self) -> None:
        """What was overtaken or dropped stays in the heap until its moment; it must not outgrow the rest."""
        if len(self._heap) > 64 + 4 * len(self._at):
            self._heap = [(at, k) for k, at in self._at.items()]
            heapq.heapify(self._heap)

    def ringing(self, now: float) -> list[K]:
        """Return the keys whose alarm is due, in order; they have none any more."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, key = heapq.heappop(self._heap)
            if self._at.get(key) == at:
                del self._at[key]
                due.append(key)
        return due

    @property
    def next(self) -> float:
        """The moment of the first alarm; infinity where there is none."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf
