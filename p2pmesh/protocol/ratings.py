"""What answers were worth: rated by who asked here, learnt from, and told to the links.

An outcome is about a peer and a topic, and it is this peer that says which topic: the executor could name
the one that flatters it. Reports go to links only and are never passed on, so the link proves who speaks. It
knows answered queries and links; `experience` makes estimates of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from p2pmesh.protocol.events import Effect, Send
from p2pmesh.protocol.experience import Experience
from p2pmesh.protocol.messages import Outcomes
from p2pmesh.query import Ended, Query, QueryId
from p2pmesh.record import PeerId

ANSWERED_MAX = 256
"""Answers that can still be rated; of older ones nobody knows any more what they were about. A guess."""
TELL_INTERVAL_S = 10.0
"""Least seconds between two reports to one link. A guess: half a kilobyte a second in a busy mesh."""


class Ratings:
    """The outcomes at one peer."""

    def __init__(
        self,
        experience: Experience,
        load_set: Callable[[], Iterable[PeerId]],
        topic_of: Callable[[Query, PeerId, str], tuple[str, float] | None],
        out: list[Effect],
        now: float,
    ) -> None:
        """`topic_of` tells for which skill a peer's model would be chosen for a query, and what the peer
        claims to be worth in it; None: it is not known any more. `load_set`: whom to tell."""
        self._experience = experience
        self._load_set = load_set
        self._topic_of = topic_of
        self._out = out
        self._answered: OrderedDict[QueryId, tuple[Query, PeerId, str]] = OrderedDict()
        self._told: dict[PeerId, int] = {}
        """How far each link has been told."""
        self._due = math.inf
        self._told_at = now

    def answered(self, query: Query, ended: Ended) -> None:
        """A query that was asked here is answered, and may be rated from now on."""
        if not ended.path:
            return  # whoever passed it on does not say who gave it
        slim = replace(query, messages=(), accepted=None, path=())
        self._answered[query.id] = (slim, ended.path[-1].peer, ended.model)
        if len(self._answered) > ANSWERED_MAX:
            self._answered.popitem(last=False)

    def awaits(self, query_id: QueryId) -> bool:
        """Return whether a rating of that answer would be learnt from."""
        return query_id in self._answered

    def rated(self, query_id: QueryId, outcome: float, now: float) -> None:
        """Whoever asked says what the answer was worth, 0..1. The first word counts."""
        known = self._answered.pop(query_id, None)
        topic = None if known is None else self._topic_of(*known)
        if known is None or topic is None:
            return
        self._experience.observed(known[1], topic[0], min(1.0, max(0.0, outcome)), topic[1])
        self._due = min(self._due, max(now, self._told_at + TELL_INTERVAL_S))

    def on_outcomes(self, peer: PeerId, message: Outcomes) -> None:
        """A link tells what it saw of others."""
        self._experience.heard(peer, message.report)

    def connected(self, peer: PeerId, now: float) -> None:
        """A new link has been told nothing."""
        self._told[peer] = 0
        if self._experience.rows_count:
            self._due = min(self._due, max(now, self._told_at + TELL_INTERVAL_S))

    def disconnected(self, peer: PeerId) -> None:
        """Forget how far it was told."""
        self._told.pop(peer, None)

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return self._due

    def advance(self, now: float) -> None:
        """Tell each link of the load set what it has not been told."""
        if now < self._due:
            return
        self._due, self._told_at = math.inf, now
        for peer in self._load_set():
            report, told = self._experience.report(self._told.get(peer, 0))
            if report.rows:
                self._told[peer] = told
                self._out.append(Send(peer, Outcomes(report)))
                self._due = now + TELL_INTERVAL_S  # there may be more than one report holds
