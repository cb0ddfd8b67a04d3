"""All queries at one peer: which there are, what falls due, and what upstream is told of each.

A table and its ends; what a flight is says `flight`, what becomes of it decides `relay`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.alarms import Alarms
from p2pmesh.protocol.events import Deliver, Effect, Fail, Placed, Send
from p2pmesh.protocol.flight import Flight, Phase
from p2pmesh.protocol.messages import Accept, Cancel, End, Error, Refuse, Tokens
from p2pmesh.protocol.routing import Decision
from p2pmesh.protocol.sealing import veiled
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId
from p2pmesh.record import GENERAL, NOBODY, PeerId


class Flights:
    """All of them, by query. Of one query there is one flight: the newest attempt."""

    def __init__(
        self,
        config: Config,
        out: list[Effect],
        deliver: Callable[[Deliver | Fail], None],
        answered: Callable[[Query, Ended], None],
    ) -> None:
        """`deliver` gives to whoever asked here; `answered` hears of each answer that he has got."""
        self._deliver = deliver
        self._answered = answered
        self._config = config.relay
        self._limits = config.limits
        self._out = out
        self._table: dict[QueryId, Flight] = {}
        self._alarms: Alarms[QueryId] = Alarms()
        self._seen: OrderedDict[tuple[QueryId, int, PeerId], None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._table)

    def __iter__(self) -> Iterator[Flight]:
        """Go through those that there are now, whatever becomes of them meanwhile."""
        return iter(list(self._table.values()))

    def __contains__(self, flight: Flight) -> bool:
        """Return whether `flight` still flies."""
        return self._table.get(flight.query.id) is flight

    # -- which ----------------------------------------------------------------------------------------

    def get(self, query_id: QueryId) -> Flight | None:
        """Return the flight of a query, whatever its attempt."""
        return self._table.get(query_id)

    def find(self, query_id: QueryId, attempt: int) -> Flight | None:
        """Return the flight of this very attempt; None: what is said of it is stale."""
        flight = self._table.get(query_id)
        return flight if flight is not None and flight.query.attempt == attempt else None

    def toward(self, peer: PeerId, query_id: QueryId, attempt: int) -> Flight | None:
        """Return the flight of this attempt whose downstream is `peer`."""
        flight = self.find(query_id, attempt)
        return flight if flight is not None and flight.downstream == peer else None

    def here(self, query_id: QueryId, attempt: int) -> Flight | None:
        """Return the flight of this attempt if this peer serves it."""
        flight = self.find(query_id, attempt)
        return flight if flight is not None and flight.phase is Phase.LOCAL else None

    def was_seen(self, query: Query) -> bool:
        """Return whether this attempt of `query` has been here, and is over."""
        return _seen_as(query) in self._seen

    # -- time -----------------------------------------------------------------------------------------

    def watch(self, flight: Flight) -> None:
        """Something of it falls due earlier than it did."""
        self._alarms.set(flight.query.id, flight.due)

    def due(self, now: float) -> list[Flight]:
        """Return those about which something has to be done; each must be watched again."""
        flights = []
        for query_id in self._alarms.ringing(now):
            flight = self._table.get(query_id)
            if flight is None:
                continue
            if flight.due <= now:
                flights.append(flight)
            else:
                self._alarms.set(query_id, flight.due)  # it was put off since
        return flights

    @property
    def deadline(self) -> float:
        """When `due` may have something to return next."""
        return self._alarms.next

    # -- begin and end --------------------------------------------------------------------------------

    def add(self, flight: Flight) -> None:
        """A query has come."""
        query = flight.query
        flight.tokens_max = self._limits.max_tokens_max if query.sealed else query.options.max_tokens
        if flight.query.accepted is not None:
            flight.index = flight.query.accepted.chunks
            flight.tokens = len(flight.query.accepted.tokens)
            flight.says(flight.query.accepted.text)
            if flight.upstream is None:  # it was asked at another peer first
                flight.written, flight.text = [*flight.query.accepted.tokens], [flight.query.accepted.text]
                flight.digest = flight.query.accepted.digest
                flight.mixed = not flight.digest
        self._table[flight.query.id] = flight
        self.watch(flight)

    def forget(self, flight: Flight) -> None:
        """It is over here; that it was here is remembered for a while."""
        self._table.pop(flight.query.id, None)
        self._alarms.drop(flight.query.id)
        self._seen[_seen_as(flight.query)] = None
        if len(self._seen) > self._config.seen_max:
            self._seen.popitem(last=False)

    def complete(self, flight: Flight, ended: Ended) -> None:
        """The answer is whole."""
        if flight.upstream is None:
            self._deliver(Deliver(flight.query.id, ended))
            self._answered(flight.query, ended)
        else:
            end = End(*flight.ident, flight.index, ended)
            if flight.cover is not None:
                end = flight.cover.close_end(end)
            self._out.append(Send(flight.upstream, end))
        self.forget(flight)

    def end_badly(
        self,
        flight: Flight,
        reason: Reason,
        detail: str,
        retry_after_s: float = 0.0,
        dead: tuple[PeerId, ...] = (),
    ) -> None:
        """There will be no more from here; `dead` were found dead."""
        if flight.closes:  # both may tell how long the prompt is
            detail, retry_after_s = "", _in_steps(retry_after_s)
        if flight.upstream is None:
            path = flight.path or flight.query.path
            self._deliver(Fail(flight.query.id, reason, detail, path, retry_after_s))
        elif flight.begun:
            error = Error(*flight.ident, reason, detail, dead[: self._limits.excluded_max])
            self._out.append(Send(flight.upstream, error))
        else:
            self.refuse(flight.upstream, flight.query, reason, detail, retry_after_s, dead)
        self.forget(flight)

    def give_up(self, flight: Flight, decision: Decision) -> None:
        """Nobody is left to serve it."""
        reason, detail, retry_after_s = verdict(flight.refusal, decision)
        if flight.closes and not flight.sent and reason is Reason.ENGINE_FAILED:
            reason = Reason.NO_ROUTE  # no model crashed over it: it is being started again, or goes
        dead = () if flight.refusal is None else flight.refusal.dead
        self.end_badly(flight, reason, detail, retry_after_s, dead)

    # -- what is said of it ---------------------------------------------------------------------------

    def refuse(
        self,
        peer: PeerId,
        query: Query,
        reason: Reason,
        detail: str,
        retry_after_s: float = 0.0,
        dead: tuple[PeerId, ...] = (),
        best: PeerId = NOBODY,
    ) -> None:
        """Tell `peer` that `query` is not for us, but for `best` of those it came by."""
        refusal = Refuse(
            query.id,
            query.attempt,
            reason,
            detail,
            retry_after_s,
            query.prompt_tokens,
            dead[: self._limits.excluded_max],
            best,
        )
        self._out.append(Send(peer, refusal))

    def place(self, flight: Flight, path: tuple[Hop, ...], eta_s: float, digest: str, now: float) -> None:
        """It sits where it will be answered, by the model with `digest`; of a sealed one that comes with the
        first piece."""
        if flight.executor == NOBODY:
            flight.written_by(digest)
        flight.placed, flight.path = True, path
        flight.stranded_at = None
        if flight.upstream is None:
            self._deliver(Deliver(flight.query.id, Placed(path, eta_s)))
        else:
            flight.alive_at = now + self._config.keepalive_s
            self._say_placed(flight, eta_s)

    def pass_up(self, flight: Flight, chunk: Chunk, now: float) -> None:
        """The next piece of its answer."""
        flight.mixed = flight.mixed or (not flight.placed and flight.index > 0)  # nobody told whose it is
        flight.index = chunk.index + 1
        if flight.upstream is None or flight.phase is Phase.LOCAL:
            flight.says(chunk.text)
        if flight.upstream is None:
            flight.written.extend(chunk.tokens)
            flight.text.append(chunk.text)
            self._deliver(Deliver(flight.query.id, chunk))
        else:
            flight.alive_at = now + self._config.keepalive_s
            if flight.cover is not None:
                chunk = flight.cover.close_chunk(chunk, flight.digest)
            self._out.append(Send(flight.upstream, Tokens(chunk)))

    def say_alive(self, flight: Flight, now: float) -> None:
        """No token flows, and it is still being seen to."""
        flight.alive_at = now + self._config.keepalive_s
        if flight.upstream is not None:
            self._say_placed(flight, 0.0)

    def _say_placed(self, flight: Flight, eta_s: float) -> None:
        assert flight.upstream is not None, "who asked is told otherwise"
        path, digest = flight.path, flight.digest
        if flight.closes:
            path, digest, eta_s = veiled(path), "", 0.0
        self._out.append(Send(flight.upstream, Accept(*flight.ident, flight.placed, eta_s, path, digest)))

    def release(self, flight: Flight) -> None:
        """Downstream need not go on."""
        if flight.downstream is not None and flight.phase is not Phase.DIALLING:
            self._out.append(Send(flight.downstream, Cancel(*flight.ident)))
        flight.downstream = flight.onward = None


def _in_steps(seconds: float) -> float:
    """Return the next power of two: what is told in the open of a sealed query."""
    return 2.0 ** math.ceil(math.log2(seconds)) if seconds > 0.0 else 0.0


def _seen_as(query: Query) -> tuple[QueryId, int, PeerId]:
    """Return what is remembered of a query that was here. Sealed to another it is another: it passes here
    again when the first would not have it. One of a zone was sealed when it came."""
    sealed = query.sealed or query.zone != GENERAL
    return query.id, query.attempt, query.target if sealed else NOBODY


def verdict(heard: Refuse | None, decision: Decision) -> tuple[Reason, str, float]:
    """Return the most telling reason, detail and retry-after when nobody is left: what somebody who was asked
    said, else what our own decision says."""
    reason: Reason = decision.reason or Reason.NO_ROUTE
    if heard is None or heard.reason in (Reason.VISITED, Reason.NO_ROUTE):
        return reason, decision.detail, decision.retry_after_s
    if heard.reason is reason is Reason.TOO_LONG:
        return reason, decision.detail, 0.0  # it knows the longest context of all
    return heard.reason, heard.detail, heard.retry_after_s
