"""The physics of a model: a batch that shares its speed, in virtual time.

`slots` queries run at once and advance at one rate; a batch of n is `gain(n)` times as fast as one query
alone. It knows no peer and no message. The router's estimates rest on the same law (`protocol.batching`),
but it alone knows how long an answer will really be, and what is in its cache.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Generic, TypeVar

from p2pmesh.protocol.batching import gain

K = TypeVar("K")


class PrefixCache:
    """The prompts that a model has read of late: what a new one begins with it need not read again.

    It holds the texts themselves, and nothing of how peers name them to one another: it is what they are
    right or wrong about.
    """

    def __init__(self, size: int) -> None:
        """`size`: prompts it keeps; 0: none."""
        self._size = size
        self._prompts: list[tuple[str, ...]] = []
        """The least recently used first."""

    def known(self, prompt: Sequence[str]) -> int:
        """Return how many of the first texts of `prompt` some prompt it keeps begins with, too."""
        best, which = 0, -1
        for number, kept in enumerate(self._prompts):
            pairs = enumerate(zip(kept, prompt, strict=False))
            same = next((i for i, (a, b) in pairs if a != b), min(len(kept), len(prompt)))
            if same >= best > 0 or same > best:
                best, which = same, number
        if which >= 0:
            self._prompts.append(self._prompts.pop(which))
        return best

    def keep(self, prompt: Sequence[str]) -> None:
        """`prompt` has been read."""
        if tuple(prompt) in self._prompts:
            self._prompts.remove(tuple(prompt))
        self._prompts = [*self._prompts, tuple(prompt)][-self._size :] if self._size else []


class BatchEngine(Generic[K]):
    """Runs of one model. A run has milestones, in seconds of work that it needs alone."""

    def __init__(self, speed: float = 1.0) -> None:
        """`speed`: how many times as fast as it says of itself it really is."""
        self._speed = speed
        self._now = 0.0
        self._given = 0.0
        """Work that a run that began at the very start would have got by now."""
        self._heap: list[tuple[float, int, K]] = []
        self._began: dict[K, tuple[float, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return how many run."""
        return len(self._began)

    def start(self, key: K, now: float) -> None:
        """A run begins."""
        self._advance(now)
        self._count += 1
        self._began[key] = (self._given, self._count)

    def await_(self, key: K, work_s: float) -> None:
        """Let `next` tell when the run of `key` has got `work_s` in all."""
        began, number = self._began[key]
        heapq.heappush(self._heap, (began + work_s, number, key))

    def stop(self, key: K, now: float) -> None:
        """A run is over."""
        self._advance(now)
        self._began.pop(key, None)

    def set_speed(self, speed: float, now: float) -> None:
        """From now on it is so many times as fast as it says."""
        self._advance(now)
        self._speed = speed

    def next(self) -> tuple[float, K] | None:
        """Return when the next milestone is reached if nothing changes, and by whom."""
        while self._heap:
            target, number, key = self._heap[0]
            if self._began.get(key, (0.0, 0))[1] != number:
                heapq.heappop(self._heap)
                continue
            return self._now + max(0.0, target - self._given) / self._rate(), key
        return None

    def reach(self, now: float) -> list[K]:
        """Move on to `now`; return whose milestones have been reached, in order."""
        self._advance(now)
        reached = []
        while (following := self.next()) is not None and following[0] <= now + 1e-9:
            heapq.heappop(self._heap)
            reached.append(following[1])
        return reached

    def _rate(self) -> float:
        count = len(self._began)
        return self._speed * gain(count) / count

    def _advance(self, now: float) -> None:
        if self._began and now > self._now:
            self._given += (now - self._now) * self._rate()
        self._now = max(now, self._now)
