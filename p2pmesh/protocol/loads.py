"""How busy they are, and how busy this peer is: pushed straight to the load set when it moved.

Load is never passed on: a global load table goes stale and herds. What is told is the work that is left, so
it drains without messages. It knows links and their loads; nothing of records, nor of who is alive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pmesh.config import Config
from p2pmesh.protocol.batching import Backlog, backlog_of
from p2pmesh.protocol.events import Effect, Send
from p2pmesh.protocol.messages import LoadReport
from p2pmesh.record import Load, PeerId

_SENT_MAX = 64
"""Queries sent to one link since its last report that are reckoned with."""
_PACE_MOVED = 1.2
"""Times by which a pace must have moved to be told. A guess: what moves J as much as a hop must gain."""
_HELD_PATIENCE_S = 1.0
"""Least seconds between two pushes of which only what is held has changed: the keepalive is too late for an
agent, whose next turn comes when the answer has; and whose answer took less has less than that to save."""


@dataclass
class Known:
    """The last load a link reported, and what we have sent it since."""

    load: Load
    at: float
    sent: tuple[float, ...] = ()
    """Work, in seconds, of the queries that we passed to it since: they are not in its report yet."""


class Loads:
    """The loads of the links, and our own."""

    def __init__(
        self, config: Config, load_set: Callable[[], Sequence[PeerId]], out: list[Effect], now: float
    ) -> None:
        """`load_set` returns whom to tell."""
        self._config = config.gossip
        self._load_set = load_set
        self._out = out
        self._loads: dict[PeerId, Known] = {}
        self._queued: dict[PeerId, Load] = {}
        self._own = Load()
        self._sent_at = -math.inf
        self._sent = Load()
        self._due = now + self._config.load_keepalive_s

    def own(self, load: Load, now: float) -> None:
        """Note how busy this peer is; the load set hears of it when it moved."""
        if load == self._own:
            return
        self._own = load
        moved = abs(max(0.0, self._sent.remaining_s - (now - self._sent_at)) - load.remaining_s)
        turned = (self._sent.free_slots == 0) != (load.free_slots == 0)
        waits = (self._sent.queued == 0) != (load.queued == 0)
        slowed = not 1.0 / _PACE_MOVED <= load.pace / self._sent.pace <= _PACE_MOVED
        if moved > self._config.load_delta_s or turned or waits or slowed:
            self._due = min(self._due, max(now, self._sent_at + self._config.load_interval_min_s))
        elif load.held != self._sent.held:
            patience_s = max(_HELD_PATIENCE_S, self._config.load_interval_min_s)
            self._due = min(self._due, max(now, self._sent_at + patience_s))

    # -- what others ask of it ------------------------------------------------------------------------

    def backlog(self, peer: PeerId, now: float) -> Backlog | None:
        """Return what `peer` has to do, as last reported and drained since, with what we sent it; None: it
        never reported."""
        known = self._loads.get(peer)
        if known is None:
            return None
        backlog = backlog_of(known.load).after(now - known.at)
        return backlog.plus(known.sent) if known.sent else backlog

    def of(self, peer: PeerId) -> Load | None:
        """Return what `peer` last reported, or None."""
        known = self._loads.get(peer)
        return None if known is None else known.load

    def queued(self) -> list[tuple[PeerId, Load]]:
        """Return the links at which queries waited when they last reported."""
        return list(self._queued.items())

    def sent(self, peer: PeerId, work_s: float) -> None:
        """We passed `work_s` seconds of work to `peer`, which its reports do not show yet."""
        known = self._loads.get(peer)
        if known is not None and len(known.sent) < _SENT_MAX:
            known.sent = (*known.sent, work_s)

    # -- events ---------------------------------------------------------------------------------------

    def connected(self, peer: PeerId) -> None:
        """Tell a new link how busy we are."""
        self._out.append(Send(peer, LoadReport(self._own)))

    def disconnected(self, peer: PeerId) -> None:
        """Forget its load."""
        self._loads.pop(peer, None)
        self._queued.pop(peer, None)

    def on_load(self, peer: PeerId, message: LoadReport, now: float) -> None:
        """Note how busy a link is."""
        self._loads[peer] = Known(message.load, now)
        if message.load.queued:
            self._queued[peer] = message.load
        else:
            self._queued.pop(peer, None)

    # -- time -----------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return self._due

    def advance(self, now: float) -> None:
        """Tell the load set, when it is time."""
        if now >= self._due:
            self._due = now + self._config.load_keepalive_s
            self._sent_at, self._sent = now, self._own
            report = LoadReport(self._own)
            self._out.extend(Send(peer, report) for peer in self._load_set())
