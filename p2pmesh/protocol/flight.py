"""One query at one peer: what is remembered of it between two events. Plain state; `relay` moves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from p2pmesh.errors import Reason
from p2pmesh.protocol.messages import Refuse
from p2pmesh.protocol.routing import Decision
from p2pmesh.query import Hop, Query, QueryId
from p2pmesh.record import PeerId


class Phase(Enum):
    """How far a query has come at this peer."""

    EMBEDDING = auto()
    OFFERED = auto()
    """Sent downstream; not yet accepted."""
    RELAYING = auto()
    """Accepted downstream."""
    LOCAL = auto()
    """It waits or runs here."""


@dataclass
class Flight:
    """One query at this peer."""

    query: Query
    upstream: PeerId | None
    """Who wants the answer; None: somebody at this peer."""
    deadline: float
    phase: Phase
    tried: tuple[PeerId, ...] = ()
    """Asked in this attempt, and refused."""
    downstream: PeerId | None = None
    silent_at: float = 0.0
    """When `downstream` counts as lost."""
    alive_at: float = 0.0
    """When `upstream` is due a sign of life."""
    index: int = 0
    """Of the next chunk."""
    tokens: int = 0
    """Received from downstream."""
    crashes: int = 0
    """Models that crashed over it."""
    placed: bool = False
    path: tuple[Hop, ...] = ()
    """The whole way, once placed."""
    refusal: Refuse | None = None
    """The last one heard: what to say when nobody is left."""

    @property
    def ident(self) -> tuple[QueryId, int]:
        """The query and the attempt: what every message about it begins with."""
        return self.query.id, self.query.attempt


def verdict(heard: Refuse | None, decision: Decision) -> tuple[Reason, str, float]:
    """Return the most telling reason, detail and retry-after when nobody is left: what somebody who was asked
    said, else what our own decision says."""
    reason: Reason = decision.reason or Reason.NO_ROUTE
    if heard is None or heard.reason in (Reason.VISITED, Reason.NO_ROUTE):
        return reason, decision.detail, 0.0
    if heard.reason is reason is Reason.TOO_LONG:
        return reason, decision.detail, 0.0  # it knows the longest context of all
    return heard.reason, heard.detail, heard.retry_after_s
