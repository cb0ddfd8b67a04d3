"""How long a batch takes: when one more query would be answered by a peer that already has some.

Pure arithmetic on seconds of work; how fast they really pass is measured here too (`Pace`). It knows no query
and no peer. The model: a peer runs up to `slots` queries at once and shares its speed equally among them
(processor sharing), a batch of n being `gain(n)` times as fast as one query alone; the rest wait in order of
arrival.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass

from p2pmesh.record import Load

_GAIN_PER_QUERY = 0.115
_GAIN_MAX = 1.8
"""A batch of n decodes 1 + 0.115 (n - 1) times as fast as one alone, up to 1.8 times at 8 (measured on
SmolLM2-135M Q8_0)."""
PACE_MIN = 0.02
"""Slowest that a machine is held for: it would be asked nothing more, and could never show that it is well
again."""
PACE_MAX = 10.0
"""Fastest: it measured itself while others had its cores. Beyond that, some clock is wrong."""
_MEMORY_S = 3.0
"""Seconds of work that were due, after which a pace is forgotten to a third. A guess: a stall of half a
second moves it by 15 %, a fall to a fifth is known in three seconds."""
_SAMPLE_S = 0.2
"""Seconds within which pieces that come are one sample: what was held up on its way here comes at once, and
is no speed. A guess."""
_LEAP = 3.0
"""Times as fast as before that one sample may be: what was written while nobody listened comes at once."""
_REST_S = 60.0
"""Seconds of idleness after which what was measured is believed to a third: who is never asked cannot show
that it is well again. A guess."""


def gain(running: int) -> float:
    """Return how many times as fast as one query alone a batch of `running` is, all together."""
    return min(_GAIN_MAX, 1.0 + _GAIN_PER_QUERY * max(0, running - 1))


class Pace:
    """How many times as fast as it says a machine is: work done against work due, a moving average."""

    def __init__(self) -> None:
        self.value = 1.0
        """As of the last whole sample."""
        self._done = self._due = 0.0
        """Of the sample that is being taken."""
        self._since = 0.0
        """When that began."""

    def measured(self, done_s: float, due_s: float, now: float) -> None:
        """A query has got `done_s` of its work, where the machine as it describes itself does `due_s`."""
        if now - self._since >= _SAMPLE_S:
            self._close()
            self._since = now
        self._done, self._due = self._done + done_s, self._due + due_s

    def at_best(self, done_s: float, due_s: float) -> float:
        """Return what it would be if `done_s` of work came now, where `due_s` are due."""
        done_s, due_s = self._done + done_s, self._due + due_s
        if due_s <= 0.0:
            return self.value
        sample = min(done_s / due_s, _LEAP * self.value)
        value = self.value + (sample - self.value) * -math.expm1(-due_s / _MEMORY_S)
        return min(PACE_MAX, max(PACE_MIN, value))

    def rested(self, seconds: float) -> None:
        """There was nothing to do, and what was known fades: soon, where it was faster than it says, for that
        may be a batch that gains more than `gain` holds, and one query alone has nothing of it."""
        self._close()
        self.value **= math.exp(-seconds / (_REST_S if self.value < 1.0 else _MEMORY_S))

    def _close(self) -> None:
        self.value = self.at_best(0.0, 0.0)
        self._done = self._due = 0.0


@dataclass(frozen=True)
class Backlog:
    """What a peer has taken and not yet answered, in seconds that each query needs alone."""

    running: tuple[float, ...] = ()
    waiting: tuple[float, ...] = ()
    """In order of arrival."""
    slots: int = 1
    """Queries it runs at once; 0 counts as 1: a model that is being restarted will be back."""

    def finish_s(self, work_s: float) -> float:
        """Return the seconds until one more query of `work_s`, come now, would be answered."""
        if not self.running and not self.waiting:
            return work_s
        return self._sweep((*self.waiting, work_s), len(self.waiting))

    def start_s(self) -> float:
        """Return the seconds until one more query, come now, would begin."""
        if len(self.running) + len(self.waiting) < max(1, self.slots):
            return 0.0
        return self._sweep((*self.waiting, 0.0), len(self.waiting))

    def drain_s(self) -> float:
        """Return the seconds until everything taken is answered."""
        return self._sweep(self.waiting, None)

    def after(self, seconds: float) -> Backlog:
        """Return what is left of it `seconds` later, if nothing comes: a backlog drains without messages."""
        if seconds <= 0 or not self.running:
            return self
        share = gain(len(self.running)) / len(self.running) * seconds
        left = tuple(r - share for r in self.running if r > share)
        room = max(0, max(1, self.slots) - len(left))
        return Backlog(left + self.waiting[:room], self.waiting[room:], self.slots)

    def plus(self, works_s: Iterable[float]) -> Backlog:
        """Return it with queries of `works_s` more, which come in this order."""
        running, waiting = list(self.running), list(self.waiting)
        for work_s in works_s:
            (waiting if waiting or len(running) >= max(1, self.slots) else running).append(work_s)
        return Backlog(tuple(running), tuple(waiting), self.slots)

    def _sweep(self, waiting: tuple[float, ...], until: int | None) -> float:
        """Return when the `until`-th of `waiting` is answered; None: when all are.

        All that run advance at one rate, so one number, the work that each has got since the start, tells
        who ends next.
        """
        given = now = 0.0
        begun = min(len(waiting), max(0, max(1, self.slots) - len(self.running)))
        ends = [(work, -1) for work in self.running]
        ends += [(work, number) for number, work in enumerate(waiting[:begun])]
        heapq.heapify(ends)
        while ends:
            count = len(ends)
            end, number = heapq.heappop(ends)
            now += max(0.0, end - given) * count / gain(count)
            given = max(given, end)
            if number == until:
                break
            if begun < len(waiting):
                heapq.heappush(ends, (given + waiting[begun], begun))
                begun += 1
        return now


def backlog_of(load: Load) -> Backlog:
    """Return the backlog that `load` tells of: those that wait count as equally long."""
    waiting = (load.waiting_s / load.queued,) * load.queued if load.queued else ()
    return Backlog(load.running, waiting, len(load.running) + load.free_slots)
