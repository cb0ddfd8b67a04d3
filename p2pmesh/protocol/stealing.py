"""Idle peers take work: who has a free slot asks a loaded neighbour for one query that has not begun.

It corrects what routing could not know when it decided: how long answers turned out to be. It knows the queue
here and what the links say of theirs; `compare` tells what a query would gain, and `relay` hands it over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from p2pmesh.config import Config
from p2pmesh.protocol.batching import Backlog
from p2pmesh.protocol.events import Effect, Send
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.messages import Steal
from p2pmesh.protocol.relay import Relay
from p2pmesh.protocol.routing import Scored
from p2pmesh.query import Query
from p2pmesh.record import Load, PeerId

LOOKED_AT_MAX = 16
"""Waiting queries that are weighed for one request: those that start first."""


class Stealing:
    """Both sides: the idle peer that asks, and the loaded one that gives."""

    def __init__(
        self,
        config: Config,
        local: Local,
        relay: Relay,
        queued: Callable[[], Iterable[tuple[PeerId, Load]]],
        compare: Callable[[Query, PeerId, Backlog, float], tuple[Scored, float] | None],
        out: list[Effect],
    ) -> None:
        """`compare` returns what a query would be there, and the seconds of J that it would gain, if it may
        go there at all."""
        self._config = config.routing
        self._local = local
        self._relay = relay
        self._queued = queued
        self._compare = compare
        self._out = out
        self._next_at = 0.0
        self._asked: dict[PeerId, Load] = {}
        """Whom we asked, on the strength of which report: asking again before the next gains nothing."""

    def advance(self, now: float) -> None:
        """Ask the most loaded neighbour, where this peer has nothing to do."""
        if now < self._next_at or not self._local.idle:
            return
        loaded = [
            (load.waiting_s, peer, load) for peer, load in self._queued() if self._asked.get(peer) is not load
        ]
        if not loaded:
            return
        _, peer, load = max(loaded, key=lambda row: row[:2])
        self._next_at = now + self._config.steal_interval_s
        if len(self._asked) > LOOKED_AT_MAX:
            self._asked.clear()
        self._asked[peer] = load
        self._out.append(Send(peer, Steal()))

    def on_steal(self, peer: PeerId, now: float) -> None:
        """An idle neighbour asks: give it the query that gains most, if one gains enough."""
        backlog = self._local.backlog(now)
        best: tuple[float, Query, Scored] | None = None
        for ahead, job in enumerate(self._local.waiting()[:LOOKED_AT_MAX]):
            before = Backlog(backlog.running, backlog.waiting[:ahead], backlog.slots)
            found = self._compare(job.query, peer, before, now)
            if found is not None and found[1] > (best[0] if best else self._config.steal_gain_min_s):
                best = (found[1], job.query, found[0])
        if best is not None:
            gain_s, query, row = best
            self._relay.hand_over(query.id, row, f"to {row.name}, idle: {gain_s:.1f} s sooner", now)
