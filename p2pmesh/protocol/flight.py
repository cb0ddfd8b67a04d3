"""One query at one peer: what is remembered of it between two events. Plain state; `relay` moves it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from p2pmesh.protocol.messages import Refuse
from p2pmesh.query import Hop, Query
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
    placed: bool = False
    path: tuple[Hop, ...] = ()
    """The whole way, once placed."""
    refusal: Refuse | None = None
    """The last one heard: what to say when nobody is left."""
