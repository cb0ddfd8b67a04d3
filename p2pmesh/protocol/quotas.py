"""How much of the mesh each asker has used of late, so that nobody uses all of it.

Whoever answers counts, for each asker and zone, the tokens that it has worked on, and forgets them at an even
rate: with the time constant of a minute, the count of one who uses so many tokens a minute settles at so
many. Counts that decay alike may be added (Cormode et al., Forward Decay, 2009), so peers tell their links
what they have counted, and each adds up: there is no ledger, and no clock to agree on. It counts tokens by
who is charged for them; what a query is, and whether who asked it is known, is not its business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from p2pmesh.config import Config
from p2pmesh.protocol.events import Effect, Send
from p2pmesh.protocol.messages import SPENT_MAX, Spending, Spent
from p2pmesh.record import GENERAL, PeerId

_MINUTE_S = 60.0
ASKERS_MAX = 1_024
"""Most askers, each in each of his zones, that are counted: those that used least are forgotten. A guess."""
TOLD_BY_MAX = 128
"""Most links whose words are remembered: as many as there can be at once, and some that went."""
_BELIEVED = 0.5
"""Times a quota that one link's word counts for at most: nobody alone can say that another has used up his.
So who asks of several may get half as much again. A guess."""
_TELL_S = 1.0
"""Least seconds between two reports. A guess: what an asker uses meanwhile he may use beyond his quota."""
_NOTHING = 0.5
"""Tokens of which nothing is said, and nothing remembered."""

_Account = tuple[PeerId, str]
"""An asker, and the zone that he asked in."""


@dataclass
class _Count:
    """Tokens that decay."""

    tokens: float
    at: float

    def value(self, now: float) -> float:
        """Return what is left of them."""
        return self.tokens * math.exp((self.at - now) / _MINUTE_S)


class Quotas:
    """What was used at this peer, what its links say was used at them, and what may be."""

    def __init__(
        self,
        config: Config,
        links: Collection[PeerId],
        may_see: Callable[[PeerId, str], bool],
        out: list[Effect],
    ) -> None:
        """`links`: whom this peer is linked to, a live view. `may_see` says who may hear of a zone."""
        self._config = config.quota
        self._links, self._may_see, self._out = links, may_see, out
        self._own: dict[_Account, _Count] = {}
        self._told: dict[PeerId, tuple[dict[_Account, float], float]] = {}
        """What each link said last, and when."""
        self._asks: set[PeerId] = set()
        """Links that want to be told, as they have quotas to keep."""
        self._changed: set[PeerId] = set()
        """Those of them to whom there is something new to tell."""
        self._tell_at = math.inf

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return self._tell_at

    # -- what is used ---------------------------------------------------------------------------------

    def limit(self, zone: str) -> int:
        """Return how many tokens a minute an asker may use in `zone`; 0: as many as there are."""
        return self._config.zones.get(zone, self._config.tokens_per_minute)

    def used(self, asker: PeerId, zone: str, now: float) -> float:
        """Return the tokens that `asker` has used of late, here and at the links, in one zone."""
        account = (asker, zone)
        own = self._own.get(account)
        total = 0.0 if own is None else own.value(now)
        most = _BELIEVED * self.limit(zone)
        for rows, at in self._told.values():
            said = _Count(rows.get(account, 0.0), at).value(now)
            total += min(said, most) if most else said
        return total

    def wait_s(self, asker: PeerId, zone: str, now: float, slack: float = 1.0) -> float:
        """Return the seconds until `asker` may use more in `zone`, of `slack` times his quota; 0: he may."""
        limit = slack * self.limit(zone)
        used = self.used(asker, zone, now) if limit else 0.0
        return _MINUTE_S * math.log(used / limit) if used > limit else 0.0

    def charge(self, asker: PeerId, zone: str, tokens: int, now: float) -> None:
        """A model here works on `tokens` for `asker`, or is about to."""
        account = (asker, zone)
        count = self._own.setdefault(account, _Count(0.0, now))
        count.tokens, count.at = count.value(now) + tokens, now
        if len(self._own) > ASKERS_MAX:
            del self._own[min(self._own, key=lambda account: self._own[account].value(now))]
        self._news(self._asks, now)

    def refund(self, asker: PeerId, zone: str, tokens: int, since: float) -> None:
        """`tokens` that `asker` was charged for at `since` are not to count, or what is left of them."""
        count = self._own.get((asker, zone))
        if count is not None:
            count.tokens = max(0.0, count.tokens - _Count(tokens, since).value(count.at))

    def knows(self, asker: PeerId, zone: str) -> bool:
        """Return whether `asker` is a member that may see `zone`, as far as is known here."""
        return self._may_see(asker, zone)

    @property
    def counts(self) -> bool:
        """Whether anybody wants to know what was used."""
        return bool(self._asks) or self._enforces

    @property
    def _enforces(self) -> bool:
        return bool(self._config.tokens_per_minute or any(self._config.zones.values()))

    # -- what is told ---------------------------------------------------------------------------------

    def connected(self, peer: PeerId, now: float) -> None:
        """Let a new link know that this peer wants to be told, if it has quotas to keep."""
        if self._enforces:
            self._news((peer,), now)

    def disconnected(self, peer: PeerId) -> None:
        """It is told no more; what it said holds, and fades."""
        self._asks.discard(peer)
        self._changed.discard(peer)

    def on_spent(self, peer: PeerId, message: Spent, now: float) -> None:
        """A link says what was used at it, and whether it wants to be told what was used here."""
        if not message.asks:
            self._asks.discard(peer)
        elif peer not in self._asks:
            self._asks.add(peer)
            self._news((peer,), now)
        self._told.pop(peer, None)
        while len(self._told) >= TOLD_BY_MAX:  # the one that was silent for longest
            del self._told[next(iter(self._told))]
        rows = [row for row in message.rows if row.zone == GENERAL or self._may_see(peer, row.zone)]
        self._told[peer] = {(row.asker, row.zone): row.tokens for row in rows}, now

    def advance(self, now: float) -> None:
        """Tell those who want to know."""
        if now < self._tell_at:
            return
        self._tell_at = math.inf
        self._own = {account: count for account, count in self._own.items() if count.value(now) > _NOTHING}
        most = sorted(self._own, key=lambda account: -self._own[account].value(now))
        for peer in sorted(self._changed & set(self._links)):
            known = [a for a in most if a[1] == GENERAL or self._may_see(peer, a[1])][:SPENT_MAX]
            rows = tuple(Spending(*account, round(self._own[account].value(now), 1)) for account in known)
            self._out.append(Send(peer, Spent(rows, self._enforces)))
        self._changed.clear()

    def _news(self, peers: Collection[PeerId], now: float) -> None:
        self._changed.update(peers)
        if self._changed:
            self._tell_at = min(self._tell_at, now + _TELL_S)
