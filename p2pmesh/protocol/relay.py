"""Queries in flight: forward, stream back, cancel, expire.

One `Flight` per query and peer. Each hop answers for the next one: it hears a sign of life from downstream at
least every `silence_max_s`, and gives one upstream at least every `keepalive_s`. A refusal is handled
where it arrives, by the next-best choice; a loss goes back to the origin, which alone starts a new attempt.
It asks `plan` where a query goes and `local` to serve it, and knows nothing of members, records or models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.events import (
    Deliver,
    Effect,
    Embed,
    Embedded,
    Fail,
    Failed,
    Finished,
    Generated,
    Placed,
    Send,
)
from p2pmesh.protocol.flight import Flight, Phase, verdict
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.messages import Accept, Cancel, End, Error, Forward, Refuse, Tokens
from p2pmesh.protocol.routing import Decision, Kind, Scored
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId
from p2pmesh.record import PeerId

_WHY_CHARS_MAX = 200
"""Longest reason of a hop or a refusal, in characters: the codec's bound with room for four-byte letters."""
_FINAL = frozenset({Reason.BAD_REQUEST, Reason.CANCELLED, Reason.DEADLINE})
"""Refusals that every other peer would repeat."""


def _brief(text: str) -> str:
    """Return `text` as it may travel: an engine's words are neither short nor always text."""
    return text[:_WHY_CHARS_MAX].encode("utf-8", "replace").decode()


class Relay:
    """The flights through one peer."""

    def __init__(
        self,
        me: PeerId,
        name: str,
        config: Config,
        local: Local,
        plan: Callable[[Query, tuple[PeerId, ...], float], Decision],
        sent: Callable[[Scored, float], None],
        can_embed: Callable[[], bool],
        out: list[Effect],
    ) -> None:
        self.me, self.name = me, name
        self.flights: dict[QueryId, Flight] = {}
        self._config = config.relay
        self._limits = config.limits
        self._local = local
        self._plan = plan
        self._sent = sent
        self._can_embed = can_embed
        self._out = out
        self._seen: OrderedDict[tuple[QueryId, int], None] = OrderedDict()

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return min((self._due(f) for f in self.flights.values()), default=float("inf"))

    def _due(self, flight: Flight) -> float:
        due = flight.deadline
        if flight.downstream is not None:
            due = min(due, flight.silent_at)
        if flight.upstream is not None:
            due = min(due, flight.alive_at)
        return due

    # -- from the asker -------------------------------------------------------------------------------

    def ask(self, query: Query, now: float) -> None:
        """Somebody at this peer asks."""
        if len(self.flights) >= self._config.flights_max:
            wait = self._local.remaining_s(now)
            self._out.append(
                Fail(query.id, Reason.OVERLOADED, "too many queries are in flight here", (), max(1.0, wait))
            )
            return
        if query.id in self.flights:
            self._out.append(Fail(query.id, Reason.BAD_REQUEST, "this query id is in flight already"))
            return
        flight = Flight(query, None, now + query.budget_s, Phase.EMBEDDING)
        self.flights[query.id] = flight
        self._begin(flight, now)

    def cancel(self, query_id: QueryId, now: float) -> None:
        """The asker at this peer no longer waits."""
        flight = self.flights.get(query_id)
        if flight is not None and flight.upstream is None:
            self._stop_work(flight)
            self._forget(flight)

    def embedded(self, event: Embedded, space: str, now: float) -> None:
        """The vector is here, or there will be none."""
        flight = self.flights.get(event.query_id)
        if flight is not None and flight.phase is Phase.EMBEDDING:
            if event.vector is not None:
                flight.query = replace(flight.query, vector=event.vector, space=space)
            self._route(flight, now)

    # -- from upstream --------------------------------------------------------------------------------

    def on_forward(self, peer: PeerId, query: Query, now: float) -> None:
        """A peer passes a query to us. It is answered in any case."""
        key = (query.id, query.attempt)
        old = self.flights.get(query.id)
        visited = any(hop.peer == self.me for hop in query.path) or key in self._seen
        if visited or (old is not None and (old.upstream is None or old.query.attempt >= query.attempt)):
            self._refuse(peer, query, Reason.VISITED, "seen before")
            return
        if old is not None:  # a newer attempt fences off the older
            self._stop_work(old)
            self._end_badly(old, Reason.CANCELLED, "a newer attempt came", now)
        if len(self.flights) >= self._config.flights_max:
            wait = max(1.0, self._local.remaining_s(now))
            self._refuse(peer, query, Reason.OVERLOADED, "too many queries are in flight here", wait)
            return
        # A path has a bound, and so has what is left of it, whatever the sender says.
        query = replace(query, hops_left=min(query.hops_left, self._limits.hops_max - len(query.path)))
        budget_s = min(query.budget_s, self._config.budget_max_s)
        flight = Flight(query, peer, now + budget_s, Phase.EMBEDDING)
        flight.alive_at = now + self._config.keepalive_s
        self.flights[query.id] = flight
        self._begin(flight, now)
        if self.flights.get(query.id) is flight and not flight.placed:
            self._out.append(Send(peer, Accept(query.id, query.attempt, False)))

    def on_cancel(self, peer: PeerId, message: Cancel, now: float) -> None:
        """Upstream no longer waits."""
        flight = self._flight(message.query_id, message.attempt)
        if flight is not None and flight.upstream == peer:
            self._stop_work(flight)
            self._forget(flight)

    # -- from downstream ------------------------------------------------------------------------------

    def on_accept(self, peer: PeerId, message: Accept, now: float) -> None:
        """Downstream has it, or still has it."""
        flight = self._flight_to(peer, message.query_id, message.attempt)
        if flight is None:
            return
        flight.phase = Phase.RELAYING
        flight.silent_at = now + self._config.silence_max_s
        if message.placed and (not flight.placed or message.path != flight.path):
            self._place(flight, message.path, message.eta_s, now)

    def on_refuse(self, peer: PeerId, message: Refuse, now: float) -> None:
        """Downstream will not: try the next, unless nobody would or somebody died."""
        flight = self._flight_to(peer, message.query_id, message.attempt)
        if flight is None:
            return
        flight.downstream, flight.placed, flight.refusal = None, False, message
        if message.prompt_tokens:
            flight.query = replace(flight.query, prompt_tokens=message.prompt_tokens)
        if flight.index > 0 or message.reason in _FINAL:
            self._end_badly(flight, message.reason, message.detail, now)
        elif message.reason is Reason.PEER_LOST:
            self._lost(flight, message.dead or (peer,), now)
        elif message.reason is Reason.ENGINE_FAILED:
            self._crashed(flight, peer, now)
        else:
            flight.tried = (*flight.tried, peer)
            self._route(flight, now)

    def on_tokens(self, peer: PeerId, chunk: Chunk, now: float) -> None:
        """The next piece. A repeated one is dropped; a gap ends the answer."""
        flight = self._flight_to(peer, chunk.query_id, chunk.attempt)
        if flight is None or chunk.index < flight.index:
            return
        flight.tokens += len(chunk.tokens)
        # A peer that goes on for ever, or sends text that no token spells, would fill the asker's memory.
        endless = not chunk.tokens or flight.tokens > flight.query.options.max_tokens
        if chunk.index > flight.index or endless:
            self._lost_piece(flight, peer, now)
            return
        flight.phase = Phase.RELAYING
        flight.silent_at = now + self._config.silence_max_s
        self._pass_up(flight, chunk, now)

    def on_end(self, peer: PeerId, message: End, now: float) -> None:
        """The answer is whole."""
        flight = self._flight_to(peer, message.query_id, message.attempt)
        if flight is None:
            return
        if message.chunks != flight.index:
            self._lost_piece(flight, peer, now)
            return
        self._complete(flight, message.ended)

    def _lost_piece(self, flight: Flight, peer: PeerId, now: float) -> None:
        self._send_cancel(flight)
        self._lost(flight, (peer,), now, "a piece of the answer went missing")

    def on_error(self, peer: PeerId, message: Error, now: float) -> None:
        """The answer broke downstream; where nothing of it has come through here, that is a refusal."""
        self.on_refuse(peer, Refuse(message.query_id, message.attempt, message.reason, message.detail), now)

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A link closed: what came from there is stopped, what went there is lost."""
        for flight in list(self.flights.values()):
            if flight.upstream == peer:
                self._stop_work(flight)
                self._forget(flight)
            elif flight.downstream == peer:
                flight.downstream = None
                self._lost(flight, (peer,), now)

    # -- from our own models --------------------------------------------------------------------------

    def generated(self, event: Generated, now: float) -> None:
        """Our model wrote something."""
        flight = self._flight_here(event.query_id, event.attempt)
        if flight is not None:
            chunk = Chunk(event.query_id, event.attempt, flight.index, event.tokens, event.text)
            self._local.progressed(event.query_id, len(event.tokens), now)
            self._pass_up(flight, chunk, now)

    def finished(self, event: Finished, now: float) -> None:
        """Our model is done."""
        flight = self._flight_here(event.query_id, event.attempt)
        if flight is None:
            return
        model = self._local.finished(event.query_id)
        assert model is not None, "a flight in phase LOCAL has a job"
        ended = Ended(event.usage, event.finish_reason, model.name, model.digest, flight.path)
        self._complete(flight, ended)

    def failed(self, event: Failed, now: float) -> None:
        """Our model could not, or broke off."""
        flight = self._flight_here(event.query_id, event.attempt)
        if flight is None:
            return
        self._local.finished(event.query_id)
        detail = _brief(event.detail)
        if event.prompt_tokens:
            flight.query = replace(flight.query, prompt_tokens=event.prompt_tokens)
        if flight.index > 0 or event.reason in _FINAL:
            self._end_badly(flight, event.reason, detail, now)
            return
        flight.placed = False
        flight.refusal = Refuse(flight.query.id, event.attempt, event.reason, detail)
        if event.reason is Reason.ENGINE_FAILED:
            self._crashed(flight, self.me, now)
        else:
            flight.tried = (*flight.tried, self.me)
            self._route(flight, now)

    def _crashed(self, flight: Flight, peer: PeerId, now: float) -> None:
        """A model crashed over it. The origin alone tries another, and not for ever: it may be the query that
        kills them, and would travel through the mesh from model to model."""
        assert flight.refusal is not None
        flight.crashes += 1
        if flight.upstream is not None or flight.crashes >= self._config.crashes_max:
            self._end_badly(flight, Reason.ENGINE_FAILED, flight.refusal.detail, now)
            return
        flight.tried = (*flight.tried, peer)
        self._route(flight, now)

    # -- time -----------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """End what is out of time. Called before each event, so that nothing is delivered too late."""
        for flight in [f for f in self.flights.values() if now >= f.deadline]:
            self._stop_work(flight)
            self._end_badly(flight, Reason.DEADLINE, "the query's time budget was spent", now)

    def advance(self, now: float) -> None:
        """Do what is due: give up on the silent, give signs of life."""
        for flight in list(self.flights.values()):
            if flight.downstream is not None and now >= flight.silent_at:
                silent = flight.downstream
                self._send_cancel(flight)
                self._lost(flight, (silent,), now)
            if self.flights.get(flight.query.id) is flight and now >= flight.alive_at:
                self._say_alive(flight, now)

    def _say_alive(self, flight: Flight, now: float) -> None:
        flight.alive_at = now + self._config.keepalive_s
        if flight.upstream is not None:
            sign = Accept(flight.query.id, flight.query.attempt, flight.placed, 0.0, flight.path)
            self._out.append(Send(flight.upstream, sign))

    # -- the steps ------------------------------------------------------------------------------------

    def _begin(self, flight: Flight, now: float) -> None:
        query = flight.query
        if query.vector is None and query.text and self._can_embed():
            flight.phase = Phase.EMBEDDING
            self._out.append(Embed(query.id, query.text))
        else:
            self._route(flight, now)

    def _route(self, flight: Flight, now: float) -> None:
        """Send the query on its way from here, or say that there is none."""
        query = replace(flight.query, budget_s=max(0.0, flight.deadline - now))
        flight.query = query
        decision = self._plan(query, flight.tried, now)
        if decision.kind is Kind.REFUSE or decision.chosen is None:
            self._nobody_left(flight, decision, now)
            return
        hop = Hop(self.me, self.name, _brief(decision.explain()))
        if decision.kind is Kind.SERVE:
            self._serve(flight, decision.chosen, hop, now)
            return
        peer = decision.chosen.next_hop
        flight.phase, flight.downstream = Phase.OFFERED, peer
        flight.silent_at = now + self._config.accept_timeout_s
        self._sent(decision.chosen, now)
        onward = replace(
            query,
            path=(*query.path, hop),
            hops_left=query.hops_left - 1,
            excluded=(*query.excluded, *flight.tried)[: self._limits.excluded_max],
        )
        self._out.append(Send(peer, Forward(onward)))

    def _serve(self, flight: Flight, chosen: Scored, hop: Hop, now: float) -> None:
        flight.phase, flight.downstream = Phase.LOCAL, None
        eta = self._local.submit(flight.query, chosen.model, chosen.work_s, now)
        if eta is None:
            flight.tried = (*flight.tried, self.me)
            wait = max(1.0, self._local.remaining_s(now))
            flight.refusal = Refuse(*flight.ident, Reason.OVERLOADED, f"{self.name} has a full queue", wait)
            self._route(flight, now)
            return
        self._place(flight, (*flight.query.path, hop), eta, now)

    def _place(self, flight: Flight, path: tuple[Hop, ...], eta_s: float, now: float) -> None:
        flight.placed, flight.path = True, path
        if flight.upstream is None:
            self._out.append(Deliver(flight.query.id, Placed(path, eta_s)))
        else:
            flight.alive_at = now + self._config.keepalive_s
            self._out.append(Send(flight.upstream, Accept(*flight.ident, True, eta_s, path)))

    def _pass_up(self, flight: Flight, chunk: Chunk, now: float) -> None:
        flight.index = chunk.index + 1
        if flight.upstream is None:
            self._out.append(Deliver(flight.query.id, chunk))
        else:
            flight.alive_at = now + self._config.keepalive_s
            self._out.append(Send(flight.upstream, Tokens(chunk)))

    def _complete(self, flight: Flight, ended: Ended) -> None:
        if flight.upstream is None:
            self._out.append(Deliver(flight.query.id, ended))
        else:
            self._out.append(Send(flight.upstream, End(*flight.ident, flight.index, ended)))
        self._forget(flight)

    def _nobody_left(self, flight: Flight, decision: Decision, now: float) -> None:
        reason, detail, retry_after_s = verdict(flight.refusal, decision)
        self._end_badly(flight, reason, detail, now, retry_after_s)

    def _lost(
        self, flight: Flight, dead: tuple[PeerId, ...], now: float, how: str = "the answering peer went away"
    ) -> None:
        """Downstream is gone. Only the origin may start again, under a new attempt number."""
        flight.downstream = None
        if flight.index > 0:
            self._end_badly(flight, Reason.PEER_LOST, how, now)
            return
        known = (self.me, *flight.query.excluded)  # whatever others say, we are not dead
        excluded = (*flight.query.excluded, *dict.fromkeys(p for p in dead if p not in known))
        if flight.upstream is not None:
            self._refuse(
                flight.upstream, flight.query, Reason.PEER_LOST, "the next peer went away", dead=dead
            )
            self._forget(flight)
            return
        if flight.query.attempt + 1 >= self._config.attempts_max or len(excluded) > self._limits.excluded_max:
            self._end_badly(flight, Reason.PEER_LOST, "too many peers went away", now)
            return
        flight.query = replace(flight.query, attempt=flight.query.attempt + 1, excluded=excluded)
        flight.tried, flight.placed, flight.refusal, flight.tokens = (), False, None, 0
        self._route(flight, now)

    def _end_badly(
        self, flight: Flight, reason: Reason, detail: str, now: float, retry_after_s: float = 0.0
    ) -> None:
        if flight.upstream is None:
            path = flight.path or flight.query.path
            self._out.append(Fail(flight.query.id, reason, detail, path, retry_after_s))
        elif flight.index > 0:
            self._out.append(Send(flight.upstream, Error(*flight.ident, reason, detail)))
        else:
            self._refuse(flight.upstream, flight.query, reason, detail, retry_after_s)
        self._forget(flight)

    def _refuse(
        self,
        peer: PeerId,
        query: Query,
        reason: Reason,
        detail: str,
        retry_after_s: float = 0.0,
        dead: tuple[PeerId, ...] = (),
    ) -> None:
        most = self._limits.excluded_max
        refusal = Refuse(
            query.id, query.attempt, reason, detail, retry_after_s, query.prompt_tokens, dead[:most]
        )
        self._out.append(Send(peer, refusal))

    def _stop_work(self, flight: Flight) -> None:
        if flight.phase is Phase.LOCAL:
            self._local.abort(flight.query.id, flight.query.attempt)
        self._send_cancel(flight)

    def _send_cancel(self, flight: Flight) -> None:
        if flight.downstream is not None:
            self._out.append(Send(flight.downstream, Cancel(*flight.ident)))
            flight.downstream = None

    def _forget(self, flight: Flight) -> None:
        self.flights.pop(flight.query.id, None)
        self._seen[flight.ident] = None
        if len(self._seen) > self._config.seen_max:
            self._seen.popitem(last=False)

    # -- whose is it ----------------------------------------------------------------------------------

    def _flight(self, query_id: QueryId, attempt: int) -> Flight | None:
        flight = self.flights.get(query_id)
        return flight if flight is not None and flight.query.attempt == attempt else None

    def _flight_to(self, peer: PeerId, query_id: QueryId, attempt: int) -> Flight | None:
        """The flight whose downstream is `peer`, in this attempt; what else arrives is stale."""
        flight = self._flight(query_id, attempt)
        return flight if flight is not None and flight.downstream == peer else None

    def _flight_here(self, query_id: QueryId, attempt: int) -> Flight | None:
        flight = self._flight(query_id, attempt)
        return flight if flight is not None and flight.phase is Phase.LOCAL else None
