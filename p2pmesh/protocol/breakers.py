"""Who fails: after several failures in a row a peer gets no queries for a while, and is then tried with one.

A circuit breaker for each peer, and the share of its attempts that went well of late. It knows peers and how
attempts ended; it knows no query, link, member or candidate. It keeps nobody out for good, and whoever asks
it may overrule it: where nobody else is left, a peer that fails is better than none.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from p2pmesh.record import PeerId

FAILURES_MAX = 3
"""Failures in a row that open a breaker. A guess: one is chance, two may be the same chance."""
_OPEN_MIN_S = 5.0
"""Seconds it is open at first; each time it opens again, twice as long. A guess (Envoy ejects for 30 s, and
has a health check besides)."""
_OPEN_MAX_S = 60.0
_TRIAL_S = 10.0
"""Seconds after which the one query that was let through counts for nothing, and the next may go. A guess."""
_STEP = 0.2
"""Share by which one outcome moves the success rate. A guess: five attempts, about, are remembered."""
_HALF_LIFE_S = 30.0
"""Seconds after which half of what is held against a peer is forgotten: nobody would try it otherwise."""


@dataclass
class _Breaker:
    """One peer's."""

    failures: int = 0
    """In a row."""
    failed_at: float = -1.0
    opened: int = 0
    """Times it opened since it last served."""
    open_until: float = 0.0
    missing: float = 0.0
    """What its success rate lacked of 1, as of `at`."""
    at: float = 0.0

    def lacks(self, now: float) -> float:
        """Return what its success rate lacks of 1."""
        return float(self.missing * 2.0 ** (-(now - self.at) / _HALF_LIFE_S))

    def move(self, target: float, now: float) -> None:
        """One more outcome: 1 for a failure, 0 for a success."""
        self.missing = (1.0 - _STEP) * self.lacks(now) + _STEP * target
        self.at = now


class Breakers:
    """All of them. Peers that never failed are not remembered."""

    def __init__(self, peers_max: int) -> None:
        """`peers_max`: most that are remembered."""
        self._peers_max = peers_max
        self._table: OrderedDict[PeerId, _Breaker] = OrderedDict()

    def failed(self, peer: PeerId, now: float) -> None:
        """An attempt at `peer` failed. What fails at one moment has one cause, and counts once."""
        breaker = self._table.setdefault(peer, _Breaker(at=now))
        self._table.move_to_end(peer)
        if len(self._table) > self._peers_max:
            self._table.popitem(last=False)
        if breaker.failed_at == now:
            return
        breaker.failed_at = now
        breaker.move(1.0, now)
        breaker.failures += 1
        if breaker.failures >= FAILURES_MAX:
            breaker.open_until = now + min(_OPEN_MAX_S, _OPEN_MIN_S * 2.0 ** min(breaker.opened, 8))
            breaker.opened += 1

    def served(self, peer: PeerId, now: float) -> None:
        """`peer` gave a whole answer: whatever was, it works."""
        breaker = self._table.get(peer)
        if breaker is not None:
            breaker.failures = breaker.opened = 0
            breaker.open_until = 0.0
            breaker.move(0.0, now)

    def sent(self, peer: PeerId, now: float) -> None:
        """A query goes to `peer`. If it was on trial, no other does until that one has ended."""
        breaker = self._table.get(peer)
        if breaker is not None and breaker.failures >= FAILURES_MAX:
            breaker.open_until = max(breaker.open_until, now + _TRIAL_S)

    def open(self, now: float) -> frozenset[PeerId]:
        """Return those that should get no query now."""
        return frozenset(peer for peer, breaker in self._table.items() if breaker.open_until > now)

    def success(self, peer: PeerId, now: float) -> float:
        """Return the share of its attempts that go well, 0..1, the latest counting most."""
        breaker = self._table.get(peer)
        return 1.0 if breaker is None else 1.0 - breaker.lacks(now)
