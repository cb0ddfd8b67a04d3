"""What becomes of a query that went wrong downstream: chosen anew from here, begun anew, kept, or ended.

A refusal, and a loss before the first token, is made good where it is noticed; a loss amid the answer goes
back to the origin, which alone starts a new attempt, and keeps for a moment what nobody can take. Retries
have a budget, so that they never make an overload worse. It knows flights and how they fail; how a query is
sent, and to whom, is `relay`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.breakers import Breakers
from p2pmesh.protocol.flight import Flight, Phase
from p2pmesh.protocol.flights import Flights
from p2pmesh.protocol.messages import Refuse
from p2pmesh.protocol.routing import Decision, Kind
from p2pmesh.protocol.workload import AnswerLength
from p2pmesh.query import Accepted, Query, Resume
from p2pmesh.record import GENERAL, NOBODY, PeerId

RETRY_SHARE = 0.05
"""Most retries for each query that comes here, on average. Half of what Google's SRE book allows: each peer
on the way may retry."""
_RETRIES_MAX = 16.0
"""Retries that may be made at once, when there were none for a while. A guess."""
_RETRIES_PER_S = 0.5
"""Retries a second that are allowed however few queries come. A guess (Finagle: 10)."""

_LOOK_S = 0.25
"""Seconds after which it is looked again whether somebody can take a stranded query. A guess."""
ROUTE_PATIENCE_S = 1.0
"""Most seconds that a query whose server was lost waits for a way to another: who cannot be helped is to be
told so within two, half a second of which had passed when it was noticed."""
MODEL_PATIENCE_S = 10.0
"""Most seconds that a query waits for the one model that can take it and crashed: it is loaded again within
2.3 s, median of 200 kills (docs/engine.md), and a large one takes longer. A guess."""

_SOONER_TIMES = 3.0
_SOONER_S = 1.0
"""An answer goes on elsewhere if it takes so many times as long as it would there, and so much more: what it
would take there is an estimate, and the prompt is read anew. A guess."""

ON_THE_WAY = frozenset({Reason.NO_ROUTE, Reason.VISITED, Reason.PEER_LOST})
"""Refusals of a sealed query that those on the way make; all others are its executor's."""


class RetryBudget:
    """How many retries there may be: a share of the queries, and a few."""

    def __init__(self) -> None:
        self._left, self._at = _RETRIES_MAX, 0.0

    def earn(self) -> None:
        """A query came."""
        self._left = min(_RETRIES_MAX, self._left + RETRY_SHARE)

    def spend(self, now: float) -> bool:
        """Return whether there may be one more retry; if so, it is counted."""
        self._left = min(_RETRIES_MAX, self._left + _RETRIES_PER_S * (now - self._at))
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Recovery:
    """What to do about flights that failed downstream."""

    def __init__(
        self,
        me: PeerId,
        config: Config,
        flights: Flights,
        lengths: AnswerLength,
        breakers: Breakers,
        plan: Callable[[Query, tuple[PeerId, ...], float], Decision],
        hopes: Callable[[Query], bool],
        route: Callable[[Flight, float], None],
    ) -> None:
        """`plan` tells where a query would go, `hopes` whether somebody lives who could serve it, and to
        whom there is no way just now; `route` sends a flight on its way anew, past those it was `tried`
        with."""
        self._me = me
        self._config, self._limits = config.relay, config.limits
        self._flights, self._lengths = flights, lengths
        self._breakers = breakers
        self._plan, self._hopes, self._route = plan, hopes, route
        self.budget = RetryBudget()
        self.retries = 0
        """How often a query was sent anew since the start."""

    def elsewhere(self, flight: Flight, without: PeerId, now: float) -> None:
        """Choose anew, past one that will not or cannot."""
        flight.downstream, flight.placed, flight.tried = None, False, (*flight.tried, without)
        self._anew(flight, now)

    def unheard(self, flight: Flight, now: float) -> None:
        """Choose anew: it never came to the ears of whom it was offered to, who may be reached otherwise."""
        flight.downstream, flight.placed = None, False
        self._anew(flight, now)

    def _anew(self, flight: Flight, now: float) -> None:
        self.retries += 1
        self._route(flight, now)

    def stranded(self, flight: Flight, decision: Decision, now: float) -> None:
        """Nobody can take it, as was decided. The origin keeps it for a moment where it was lost, its model
        crashed, or somebody lives to whom there is no way: links and models come back."""
        patience_s = self._patience_s(flight, decision) if flight.upstream is None else 0.0
        if flight.stranded_at is None:
            flight.stranded_at = now
        flight.patient_until = flight.stranded_at + patience_s
        if now >= flight.patient_until:
            return self._flights.give_up(flight, decision)
        flight.phase, flight.silent_at = Phase.STRANDED, now + _LOOK_S
        return self._flights.watch(flight)

    def _patience_s(self, flight: Flight, decision: Decision) -> float:
        heard = None if flight.refusal is None else flight.refusal.reason
        if flight.sent and flight.query.attempt + 1 >= self._config.attempts_max:
            return 0.0  # it could not be sent anyway
        if Reason.ENGINE_FAILED in (heard, decision.reason):
            return MODEL_PATIENCE_S
        if flight.query.attempt or heard is Reason.PEER_LOST:
            return ROUTE_PATIENCE_S
        if flight.query.zone != GENERAL and heard in ON_THE_WAY:
            return ROUTE_PATIENCE_S  # it was refused on the way, and ways change
        helpless = decision.reason in (Reason.NO_ROUTE, Reason.MODEL_NOT_FOUND)
        return ROUTE_PATIENCE_S if helpless and self._hopes(flight.query) else 0.0

    def look_again(self, flight: Flight, now: float) -> None:
        """Send a stranded query out anew if somebody can take it by now, those too that were lost or refused
        before: they may have come back."""
        # One that keeps being lost ends when its time is up; one that nobody has had takes who is there.
        patient = now < flight.patient_until or not flight.query.attempt
        excluded, tried = ((), ()) if patient else (flight.query.excluded, flight.tried)
        query = replace(flight.query, excluded=excluded, budget_s=max(0.0, flight.deadline - now))
        decision = self._plan(query, tried, now)
        if decision.kind is Kind.REFUSE:
            return self.stranded(flight, decision, now)
        if flight.sent:
            flight.begin_again(excluded, tried, flight.accepted())
        flight.query, flight.tried = replace(flight.query, excluded=excluded), tried
        return self._anew(flight, now)

    def refused(self, flight: Flight, peer: PeerId, refusal: Refuse, now: float) -> None:
        """`peer` has no room. The next one has, or all are busy, and busier if each of them is asked. What is
        sealed can be given to nobody else from here."""
        bound = flight.query.sealed and refusal.reason not in ON_THE_WAY
        if bound or (refusal.reason in (Reason.OVERLOADED, Reason.QUOTA) and not self.budget.spend(now)):
            self._flights.end_badly(flight, refusal.reason, refusal.detail, refusal.retry_after_s)
        else:
            self.elsewhere(flight, peer, now)

    def silent(self, flight: Flight, peer: PeerId, now: float) -> None:
        """`peer`, which was sent it, gives no sign of life."""
        if flight.phase is Phase.OFFERED and not self.budget.spend(now):
            flight.silent_at = now + self._config.silence_max_s  # so many are slow: it may be they are busy
            return
        self._breakers.failed(peer, now)
        self._flights.release(flight)
        self.lost(flight, (peer,), now)

    def flows(self, flight: Flight, peer: PeerId, tokens: int, now: float) -> None:
        """The next `tokens` of an answer asked here came. If they trickle, and somebody with the very same
        model would have it whole much sooner, it goes on there: a slow peer loses its work, no query."""
        rate = flight.flow.came(tokens, now)
        if rate is None or flight.moved or flight.query.resume is Resume.NEVER:
            return
        left_s = self._lengths.left(flight.query.options.max_tokens, len(flight.written)) / max(rate, 1e-3)
        if left_s <= _SOONER_S:
            return
        slow = (peer, flight.path[-1].peer) if flight.path else (peer,)
        excluded, accepted = flight.excluded_with(slow), flight.accepted()
        if self._cannot_go_on(flight, excluded, accepted):
            return
        budget_s = max(0.0, flight.deadline - now)
        query = replace(flight.query, excluded=excluded, accepted=accepted, budget_s=budget_s)
        row = self._plan(query, (), now).chosen
        if row is None or not row.continues or left_s <= _SOONER_TIMES * row.time_s + _SOONER_S:
            return
        if self.budget.spend(now):
            flight.moved = True
            self._breakers.failed(slow[-1], now)
            self._flights.release(flight)
            self._again(flight, slow, Reason.PEER_LOST, "the answer came too slowly", now)

    def crashed(self, flight: Flight, peer: PeerId, server: PeerId, now: float) -> None:
        """A model of `server` crashed over it (NOBODY: whether one did nobody knows), as `peer` says, to whom
        it was sent. The origin alone tries another, and not for ever: it may be the query that kills them,
        and would travel on and on."""
        assert flight.refusal is not None
        if server != NOBODY:
            self._breakers.failed(server, now)
        flight.crashes += 1
        if flight.upstream is not None or flight.crashes >= self._config.crashes_max:
            self._flights.end_badly(flight, Reason.ENGINE_FAILED, flight.refusal.detail)
        elif flight.begun:
            self._again(flight, (peer,), Reason.ENGINE_FAILED, flight.refusal.detail, now)
        else:
            self.elsewhere(flight, peer, now)

    def lost_piece(self, flight: Flight, peer: PeerId, now: float) -> None:
        """What `peer` sent does not follow on what it sent before. Of a sealed answer its writer may be at
        fault as well as any on the way: both are left out, and it is held against nobody."""
        suspects = (peer,) if flight.executor in (NOBODY, peer) else (peer, flight.executor)
        if len(suspects) == 1:
            self._breakers.failed(peer, now)
        self._flights.release(flight)
        self.lost(flight, suspects, now, "a piece of the answer went missing")

    def forged(self, flight: Flight, peer: PeerId, now: float) -> None:
        """`peer` brought an end that its writer did not sign. What of it was changed nobody can tell, and so
        nobody can go on from it."""
        self._breakers.failed(peer, now)
        how = "this is not what the peer that answered signed: somebody on the way changed it, or made it up"
        self._flights.end_badly(flight, Reason.FORGED, how)

    def lost(
        self, flight: Flight, dead: tuple[PeerId, ...], now: float, how: str = "the answering peer went away"
    ) -> None:
        """Downstream is gone. Who lost it finds another way on from here, while nothing of the answer has
        come; after that the origin alone starts again, with what it has, under a new attempt number."""
        flight.downstream = None
        dead = tuple(p for p in dead if p != self._me)  # whatever they say, we are not dead
        if flight.upstream is None:
            self._again(flight, dead, Reason.PEER_LOST, how, now)
            return
        excluded = flight.excluded_with(dead)
        # Sealed it is known further on, in this attempt: the origin starts another.
        if flight.begun or flight.query.sealed or len(excluded) > self._limits.excluded_max:
            self._flights.end_badly(flight, Reason.PEER_LOST, how, dead=dead)
            return
        flight.query, flight.placed = replace(flight.query, excluded=excluded), False
        flight.refusal = Refuse(*flight.ident, Reason.PEER_LOST, how, dead=dead)
        self._anew(flight, now)

    def _again(
        self, flight: Flight, without: tuple[PeerId, ...], reason: Reason, how: str, now: float
    ) -> None:
        """Send the query out anew, with what has been written of its answer, past those it was lost with."""
        excluded = flight.excluded_with(tuple(p for p in without if p != self._me))
        accepted = flight.accepted()
        if accepted is not None and flight.query.resume is Resume.NEVER:
            return self._flights.end_badly(flight, reason, how)
        why_not = self._cannot_go_on(flight, excluded, accepted)
        if why_not:
            return self._flights.end_badly(flight, reason, f"{how}, and {why_not}")
        flight.begin_again(excluded, tuple(p for p in without if p == self._me), accepted)
        # If nobody can go on, the asker is told why his answer stopped, not that there is no route.
        flight.refusal = Refuse(*flight.ident, reason, how) if accepted is not None else None
        return self._anew(flight, now)

    def _cannot_go_on(self, flight: Flight, excluded: tuple[PeerId, ...], accepted: Accepted | None) -> str:
        """Return why there is no further attempt, past all the `excluded`; empty: there may be."""
        if flight.query.attempt + 1 >= self._config.attempts_max or len(excluded) > self._limits.excluded_max:
            return "too many before it"
        if accepted is not None and len(accepted.text.encode()) > self._limits.accepted_bytes_max:
            return "so long an answer cannot be resumed"
        return ""
