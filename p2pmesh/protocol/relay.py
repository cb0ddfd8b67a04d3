"""Queries in flight: forward, stream back, hand over, cancel, expire.

One `Flight` per query and peer. Each hop answers for the next one: it hears a sign of life from downstream at
least every `silence_max_s`, and gives one upstream at least every `keepalive_s`. What is done
where that fails is for `recovery` to say. It asks `plan` where a query goes and `serving` to answer it here,
and knows nothing of members, records or models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import LocalProtocolError, Reason, Untrusted
from p2pmesh.protocol.breakers import Breakers
from p2pmesh.protocol.events import Deliver, Effect, Embed, Embedded, Fail, Send
from p2pmesh.protocol.flight import Flight, Phase, brief
from p2pmesh.protocol.flights import Flights
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.messages import Accept, Cancel, End, Error, Forward, Refuse
from p2pmesh.protocol.origins import Origins
from p2pmesh.protocol.quotas import Quotas
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.protocol.recovery import Recovery
from p2pmesh.protocol.routing import Decision, Kind, Scored
from p2pmesh.protocol.sealing import CLOSED, Sealing
from p2pmesh.protocol.serving import FINAL, Serving
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId, Search
from p2pmesh.record import GENERAL, NOBODY, PeerId

_UNLINKED_MAX = 8
"""Peers chosen in a row to whom there is no room for a link, until a query is turned away. A guess."""
_CALM_MAX = 8
"""Queries in flight up to which one is embedded before it is known whether anybody has time. A guess."""


class Relay:
    """The flights through one peer."""

    def __init__(
        self,
        me: PeerId,
        name: str,
        config: Config,
        local: Local,
        quotas: Quotas,
        breakers: Breakers,
        sealing: Sealing,
        receipts: Receipts,
        origins: Origins,
        life_of: Callable[[PeerId], int | None],
        plan: Callable[[Query, tuple[PeerId, ...], float], Decision],
        sent: Callable[[Scored, float], None],
        reach: Callable[[PeerId, tuple[str, ...]], bool | None],
        hopes: Callable[[Query], bool],
        can_embed: Callable[[], bool],
        late_s: Callable[[PeerId, int], float],
        deliver: Callable[[Deliver | Fail], None],
        answered: Callable[[Query, Ended], None],
        out: list[Effect],
    ) -> None:
        self.me, self.name = me, name
        self.flights = Flights(config, out, deliver, answered)
        self._deliver, self._out = deliver, out
        self._config, self._limits = config.relay, config.limits
        self._local = local
        self._plan, self._sent, self._reach = plan, sent, reach
        self._can_embed = can_embed
        self._late_s = late_s
        self._breakers = breakers
        self._sealing, self._receipts, self._origins, self._life_of = sealing, receipts, origins, life_of
        self._recovery = Recovery(me, config, self.flights, local.lengths, breakers, plan, hopes, self._route)
        served = (self.flights, breakers, receipts, origins, life_of, self._recovery)
        self.serving = Serving(me, name, config, local, quotas, *served)

    @property
    def retries(self) -> int:
        """How often a query was sent anew since the start: refused, or lost."""
        return self._recovery.retries

    @property
    def deadline(self) -> float:
        """When `advance` may have something to do next."""
        return self.flights.deadline

    # -- from the asker -------------------------------------------------------------------------------

    def ask(self, query: Query, now: float) -> None:
        """Somebody at this peer asks."""
        if len(self.flights) >= self._config.flights_max:
            wait = self._local.remaining_s(now)
            self._deliver(
                Fail(query.id, Reason.OVERLOADED, "too many queries are in flight here", (), max(1.0, wait))
            )
            return
        if self.flights.get(query.id) is not None:
            self._deliver(Fail(query.id, Reason.BAD_REQUEST, "this query id is in flight already"))
            return
        self._recovery.budget.earn()
        flight = Flight(query, None, now + query.budget_s, Phase.EMBEDDING)
        self.flights.add(flight)
        self._begin(flight, now)

    def cancel(self, query_id: QueryId, now: float) -> None:
        """The asker at this peer no longer waits."""
        flight = self.flights.get(query_id)
        if flight is not None and flight.upstream is None:
            self._stop_work(flight, now)
            self.flights.forget(flight)

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
        old = self.flights.get(query.id)
        visited = any(hop.peer == self.me for hop in query.path) or self.flights.was_seen(query)
        if old is not None and (old.upstream is None or old.query.origin != query.origin):
            visited = True  # nobody else's attempt
        if visited or (old is not None and old.query.attempt >= query.attempt):
            self.flights.refuse(peer, query, Reason.VISITED, "seen before")
            return
        try:
            query, cover = self._sealing.arrived(query)
        except Untrusted:  # this peer has another key by now, or the origin lies
            self.flights.refuse(peer, query, Reason.PEER_LOST, "it does not open here", dead=(self.me,))
            return
        if old is not None:  # a newer attempt fences off the older
            self._stop_work(old, now)
            # Who forged it ends no answer: whoever still waits for the older one starts again.
            self.flights.end_badly(old, Reason.PEER_LOST, "a newer attempt came")
        if len(self.flights) >= self._config.flights_max:
            wait = max(1.0, self._local.remaining_s(now))
            full = Reason.NO_ROUTE if query.sealed else Reason.OVERLOADED  # its executor may have room
            self.flights.refuse(peer, query, full, "too many queries are in flight here", wait)
            return
        # A path has a bound, and so has what is left of it, whatever the sender says.
        query = replace(query, hops_left=min(query.hops_left, self._limits.hops_max - len(query.path)))
        self._recovery.budget.earn()
        budget_s = min(query.budget_s, self._config.budget_max_s)
        flight = Flight(query, peer, now + budget_s, Phase.EMBEDDING, cover=cover)
        flight.alive_at = now + self._config.keepalive_s
        self.flights.add(flight)
        self._begin(flight, now)
        if flight in self.flights and not flight.placed:
            self._out.append(Send(peer, Accept(query.id, query.attempt, False)))

    def on_cancel(self, peer: PeerId, message: Cancel, now: float) -> None:
        """Upstream no longer waits."""
        flight = self.flights.find(message.query_id, message.attempt)
        if flight is not None and flight.upstream == peer:
            self._stop_work(flight, now)
            self.flights.forget(flight)

    # -- links ----------------------------------------------------------------------------------------

    def connected(self, peer: PeerId, now: float) -> None:
        """A link is there: what waited for it goes."""
        for flight in self.flights:
            if flight.phase is Phase.DIALLING and flight.downstream == peer:
                self._send_onward(flight, peer, now)

    def parted(self, peer: PeerId, now: float) -> None:
        """It ended the link for want of room, and would not if it had anything of ours: what was offered
        never came to its ears, and goes elsewhere. What it has all the same is lost like any."""
        for flight in self.flights:
            if flight.phase is Phase.OFFERED and flight.downstream == peer:
                self._recovery.unheard(flight, now)
        self.disconnected(peer, now)

    def dial_failed(self, peer: PeerId, now: float) -> None:
        """There will be no link: choose anew, maybe the same peer by way of a neighbour."""
        for flight in self.flights:
            if flight.phase is Phase.DIALLING and flight.downstream == peer:
                assert flight.onward is not None, "what waits for a link has something to send"
                if flight.query.search or flight.onward.query.search:
                    flight.tried = (*flight.tried, peer)  # there is no other way to a stranger
                self.flights.release(flight)
                self._route(flight, now)

    # -- from downstream ------------------------------------------------------------------------------

    def on_accept(self, peer: PeerId, message: Accept, now: float) -> None:
        """Downstream has it, or still has it."""
        flight = self.flights.toward(peer, message.query_id, message.attempt)
        if flight is None:
            return
        flight.phase = Phase.RELAYING
        flight.silent_at = now + self._config.silence_max_s
        path = flight.own_path(message.path)
        if message.placed and (not flight.placed or path != flight.path):
            self.flights.place(flight, path, message.eta_s, message.digest, now)

    def on_refuse(self, peer: PeerId, message: Refuse, now: float) -> None:
        """Downstream will not: try the next, unless nobody would or somebody died."""
        flight = self.flights.toward(peer, message.query_id, message.attempt)
        if flight is None or (message.reason is Reason.VISITED and flight.phase is Phase.RELAYING):
            return  # what it has from us it has not from elsewhere: a frame came twice
        server = flight.path[-1].peer if flight.placed and flight.path else peer
        if flight.executor != NOBODY:
            # Whoever passed the refusal on may have made it up, and may pass the query on to another.
            server, peer = flight.executor if peer == flight.executor else NOBODY, flight.executor
        flight.downstream, flight.placed = None, False
        flight.heard(message)
        if message.prompt_tokens and flight.cover is None:
            flight.query = replace(flight.query, prompt_tokens=message.prompt_tokens)
        if message.best == self.me and not flight.begun:
            flight.query = replace(flight.query, target=self.me, search=None)
            self._recovery.elsewhere(flight, peer, now)
        elif any(hop.peer == message.best for hop in flight.query.path) and not flight.begun:
            self._give_back(flight, message.best, message.detail)
        elif message.reason is Reason.PEER_LOST:
            flight.tried = (*flight.tried, peer)  # it lives, and found no other way
            self._recovery.lost(flight, message.dead or (peer,), now)
        elif message.reason is Reason.ENGINE_FAILED:
            self._recovery.crashed(flight, peer, server, now)
        elif flight.begun or message.reason in FINAL:
            self.flights.end_badly(flight, message.reason, message.detail)
        else:
            self._recovery.refused(flight, peer, message, now)

    def on_tokens(self, peer: PeerId, chunk: Chunk, now: float) -> None:
        """The next piece. A repeated one is dropped; a gap ends the answer."""
        flight = self.flights.toward(peer, chunk.query_id, chunk.attempt)
        if flight is None or chunk.index < flight.index:
            return
        try:
            chunk = flight.open_chunk(chunk)
        except Untrusted:
            self._recovery.lost_piece(flight, peer, now)
            return
        flight.phase = Phase.RELAYING
        flight.silent_at = now + self._config.silence_max_s
        self.flights.pass_up(flight, chunk, now)
        if flight.upstream is None:
            self._recovery.flows(flight, peer, len(chunk.tokens), now)

    def on_end(self, peer: PeerId, message: End, now: float) -> None:
        """The answer is whole."""
        flight = self.flights.toward(peer, message.query_id, message.attempt)
        if flight is None:
            return
        try:
            ended = flight.open_end(message)
        except Untrusted:
            self._recovery.lost_piece(flight, peer, now)
            return
        if flight.upstream is None and not self._receipts.holds(flight.query, ended, flight.said.digest()):
            self._recovery.forged(flight, peer, now)
            return
        if not flight.query.sealed:
            self._local.lengths.observed(flight.tokens)
        for server in (peer, *(hop.peer for hop in flight.path[-1:])):
            self._breakers.served(server, now)
        self.flights.complete(flight, ended)

    def on_error(self, peer: PeerId, message: Error, now: float) -> None:
        """The answer broke downstream; where nothing of it has come through here, that is a refusal."""
        ident, why = (message.query_id, message.attempt), (message.reason, message.detail)
        self.on_refuse(peer, Refuse(*ident, *why, dead=message.dead), now)

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A link closed: what came from there is stopped, what went there is lost."""
        for flight in self.flights:
            if flight.upstream == peer:
                self._stop_work(flight, now)
                self.flights.forget(flight)
            elif flight.downstream == peer and flight.phase is not Phase.DIALLING:
                flight.downstream = None
                self._breakers.failed(peer, now)
                self._recovery.lost(flight, (peer,), now)

    # -- time -----------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do what is due: end what is out of time, give up on the silent, give signs of life. Called before
        each event, so that nothing is delivered too late."""
        for flight in self.flights.due(now):
            if now >= flight.deadline:
                self._stop_work(flight, now)
                self.flights.end_badly(flight, Reason.DEADLINE, "the query's time budget was spent")
            elif flight.phase is Phase.STRANDED:
                self._recovery.look_again(flight, now)
            elif flight.downstream is not None and now >= flight.silent_at:
                if flight.phase is Phase.DIALLING:
                    flight.onward = None
                    self._recovery.elsewhere(flight, flight.downstream, now)
                else:
                    self._recovery.silent(flight, flight.downstream, now)
            else:
                self.flights.say_alive(flight, now)
            if flight in self.flights:
                self.flights.watch(flight)

    def excuse(self, seconds: float) -> None:
        """This peer was away for `seconds`, and who was silent meanwhile may have spoken to deaf ears."""
        for flight in self.flights:
            flight.silent_at += seconds

    # -- the steps ------------------------------------------------------------------------------------

    def _begin(self, flight: Flight, now: float) -> None:
        query = flight.query
        if query.vector is None and query.text and self._can_embed() and not flight.closes:
            if len(self.flights) > _CALM_MAX:  # what is refused must cost little, or refusing is work enough
                decision = self._plan(query, flight.tried, now)
                if decision.reason is Reason.OVERLOADED:
                    return self.flights.give_up(flight, decision)
            flight.phase = Phase.EMBEDDING
            return self._out.append(Embed(query.id, query.text))
        return self._route(flight, now)

    def _route(self, flight: Flight, now: float) -> None:
        """Send the query on its way from here, or say that there is none."""
        for _ in range(_UNLINKED_MAX):
            query = flight.query = replace(flight.query, budget_s=max(0.0, flight.deadline - now))
            decision = self._plan(query, flight.tried, now)
            if decision.kind is Kind.REFUSE or decision.chosen is None:
                return self._recovery.stranded(flight, decision, now)
            hop = Hop(self.me, self.name, CLOSED if query.sealed else brief(decision.explain()))
            if decision.kind is Kind.SERVE:
                return self.serving.serve(flight, decision.chosen, hop, now)
            if decision.kind is Kind.RETURN:
                return self._give_back(flight, decision.chosen.peer, hop.why)
            barred = self._offer(flight, decision.chosen, hop, query.hops_left - 1, now, decision.search)
            if barred is None:
                return None
            flight.tried = (*flight.tried, barred)
        return self.flights.end_badly(flight, Reason.OVERLOADED, "no room for another link", 1.0)

    def _offer(
        self,
        flight: Flight,
        chosen: Scored,
        hop: Hop,
        hops_left: int,
        now: float,
        search: Search | None = None,
    ) -> PeerId | None:
        """Send it to `chosen`, to be served there; with a `search`, to go on from there. Returns past whom it
        is to be tried anew, where there is no room for a link, or nothing can be sealed to its peer."""
        flight.downstream = chosen.next_hop
        target = chosen.peer if search is None else NOBODY
        onward = flight.passed_on(hop, target, hops_left, search, self._limits.excluded_max)
        if flight.upstream is None and onward.zone == GENERAL:
            onward = self._origins.signed(onward, self._life_of(self.me) or 0)
        try:
            flight.onward = Forward(flight.seal(self._sealing, onward, chosen.model, hop))
        except Untrusted:
            flight.downstream = None
            return target
        except LocalProtocolError as exc:
            self.flights.end_badly(flight, Reason.TOO_LONG, brief(str(exc)))
            return None
        leads = (search or flight.query.search or Search()).leads
        addresses = next((lead.addresses for lead in leads if lead.peer == chosen.next_hop), ())
        linked = self._reach(chosen.next_hop, addresses)
        if linked is None:
            flight.downstream = flight.onward = None
            return chosen.next_hop
        if search is None:
            self._sent(chosen, now)
            self._breakers.sent(chosen.peer, now)
        if linked:
            self._send_onward(flight, chosen.next_hop, now)
        else:
            flight.phase, flight.silent_at = Phase.DIALLING, now + self._config.dial_patience_s
            self.flights.watch(flight)
        return None

    def _send_onward(self, flight: Flight, peer: PeerId, now: float) -> None:
        assert flight.onward is not None, "a flight that was offered has something to send"
        flight.phase, flight.sent = Phase.OFFERED, True
        flight.silent_at = now + self._late_s(peer, flight.onward.query.bytes_about)
        self.flights.watch(flight)
        self._out.append(Send(peer, flight.onward))
        flight.onward = None

    def _give_back(self, flight: Flight, best: PeerId, why: str) -> None:
        """Let the query find its way back to one that it came by."""
        assert flight.upstream is not None, "who asked has nobody behind him"
        self.flights.refuse(flight.upstream, flight.query, Reason.NO_ROUTE, why, best=best)
        self.flights.forget(flight)

    def hand_over(self, query_id: QueryId, chosen: Scored, why: str, now: float) -> None:
        """Let an idle neighbour have a query that waits here. It serves it or refuses it, and then it waits
        here again."""
        flight = self.flights.get(query_id)
        assert flight is not None, "what waits here has a flight"
        self.serving.give_up(flight, now)
        budget_s = max(0.0, flight.deadline - now)
        flight.placed, flight.query = False, replace(flight.query, budget_s=budget_s)
        barred = self._offer(flight, chosen, Hop(self.me, self.name, brief(why)), 0, now)
        if barred is not None:
            self._recovery.elsewhere(flight, barred, now)

    def _stop_work(self, flight: Flight, now: float) -> None:
        self.serving.stop(flight, now)
        self.flights.release(flight)
