"""Flights that end here: this peer's own models answer them, write for them, and fail them.

It gives a query to `local` and what the models write to `flights`; what becomes of one that they do not take
is for `recovery` to say. It knows nothing of where a query could go instead.
"""

from __future__ import annotations

import math
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.breakers import Breakers
from p2pmesh.protocol.events import Failed, Finished, Generated
from p2pmesh.protocol.flight import Flight, Phase, brief
from p2pmesh.protocol.flights import Flights
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.messages import Refuse
from p2pmesh.protocol.origins import Origins
from p2pmesh.protocol.quotas import Quotas
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.protocol.recovery import Recovery
from p2pmesh.protocol.routing import Scored
from p2pmesh.protocol.workload import prompt_tokens
from p2pmesh.query import Chunk, Ended, Hop
from p2pmesh.record import PeerId

_SLACK = 2.0
"""Times his quota that an asker may have used when an answer is to go on here that was begun elsewhere: it
should end. A guess."""
FINAL = frozenset({Reason.BAD_REQUEST, Reason.CANCELLED, Reason.DEADLINE})
"""Refusals that every other peer, and every other model, would repeat."""


class Serving:
    """The flights that this peer's own models answer."""

    def __init__(
        self,
        me: PeerId,
        name: str,
        config: Config,
        local: Local,
        quotas: Quotas,
        flights: Flights,
        breakers: Breakers,
        receipts: Receipts,
        origins: Origins,
        recovery: Recovery,
    ) -> None:
        self._me, self._name, self._routing = me, name, config.routing
        self._local, self._quotas = local, quotas
        self._flights, self._breakers = flights, breakers
        self._receipts, self._origins, self._recovery = receipts, origins, recovery

    def serve(self, flight: Flight, chosen: Scored, hop: Hop, now: float) -> None:
        """Let the model that was chosen answer it, or look elsewhere: for want of room, or as its asker has
        used up his share."""
        flight.phase, flight.sent, flight.downstream = Phase.LOCAL, True, None
        flight.uncover()
        flight.asker, zone = self._asker(flight), flight.query.zone
        slack = _SLACK if flight.query.attempt else 1.0
        wait_s = 0.0 if flight.asker is None else self._quotas.wait_s(flight.asker, zone, now, slack)
        if wait_s:  # others may have it, but not as a favour of ours: it goes back to whoever brought it
            flight.asker = None
            why = "whoever asked has used up his quota"
            return self._flights.end_badly(flight, Reason.QUOTA, why, wait_s)
        self._breakers.sent(self._me, now)
        eta = self._local.submit(flight.query, chosen.model, now)
        if eta is None:
            wait_s, why = max(1.0, self._local.remaining_s(now)), f"{self._name} has a full queue"
            flight.refusal = Refuse(*flight.ident, Reason.OVERLOADED, why, wait_s)
            return self._recovery.elsewhere(flight, self._me, now)
        self._reserve(flight, now)
        digest = self._local.digest(chosen.model)
        return self._flights.place(flight, (*flight.query.path, hop), eta, digest, now)

    def _asker(self, flight: Flight) -> PeerId | None:
        """Return who is charged for it: whoever asked, where that is certain, as it came from him, or he has
        sealed or signed it; else whoever passed it on. None: this peer's own user, whose machine it is, or
        nobody, where nobody counts."""
        origin, upstream = flight.query.origin, flight.upstream
        if upstream is None or not self._quotas.counts:
            return None
        sure = origin == upstream or flight.closes or self._origins.proven(flight.query)
        return origin if sure else upstream

    def _reserve(self, flight: Flight, now: float) -> None:
        """Charge for it what it is expected to be: or he could ask for any number before the first is
        answered."""
        if flight.asker is not None:
            written = 0 if flight.query.accepted is None else len(flight.query.accepted.tokens)
            answer = self._local.lengths.left(flight.query.options.max_tokens, written)
            flight.reserved = math.ceil(answer)
            tokens = prompt_tokens(flight.query, self._routing) + flight.reserved
            self._quotas.charge(flight.asker, flight.query.zone, tokens, now)

    def _wrote(self, flight: Flight, tokens: int, now: float) -> None:
        """Charge what was not foreseen."""
        if flight.asker is not None:
            over = max(0, tokens - flight.reserved)
            flight.reserved -= tokens - over
            self._quotas.charge(flight.asker, flight.query.zone, over, now)

    def _settle(self, flight: Flight) -> None:
        """It is over here: what was foreseen and not written is given back."""
        if flight.asker is not None:
            self._quotas.refund(flight.asker, flight.query.zone, flight.reserved)
            flight.asker, flight.reserved = None, 0

    def stop(self, flight: Flight) -> None:
        """Nobody waits for it."""
        if flight.phase is Phase.LOCAL:
            self._local.abort(flight.query.id, flight.query.attempt)
            self._settle(flight)

    def give_up(self, flight: Flight) -> None:
        """It is not answered here, or not any longer."""
        self._local.finished(flight.query.id)
        self._settle(flight)

    def generated(self, event: Generated, now: float) -> None:
        """Our model wrote something."""
        flight = self._flights.here(event.query_id, event.attempt)
        if flight is not None:
            self._local.progressed(event.query_id, len(event.tokens))
            self._wrote(flight, len(event.tokens), now)
            piece = Chunk(*flight.ident, flight.index, event.tokens, event.text, event.logprobs)
            self._flights.pass_up(flight, piece, now)

    def finished(self, event: Finished, now: float) -> None:
        """Our model is done."""
        flight = self._flights.here(event.query_id, event.attempt)
        if flight is None:
            return
        job = self._local.finished(event.query_id)
        assert job is not None, "a flight in phase LOCAL has a job"
        self._local.lengths.observed(event.usage.completion_tokens)
        self._settle(flight)
        self._breakers.served(self._me, now)
        ended = Ended(event.usage, event.finish_reason, job.model.name, job.model.digest, flight.path)
        self._flights.complete(flight, self._receipts.signed(flight.query, ended, flight.said.digest()))

    def failed(self, event: Failed, now: float) -> None:
        """Our model could not, or broke off."""
        flight = self._flights.here(event.query_id, event.attempt)
        if flight is None:
            return
        self.give_up(flight)
        detail = brief(event.detail)
        if event.prompt_tokens and not flight.closes:
            flight.query = replace(flight.query, prompt_tokens=event.prompt_tokens)
        flight.refusal = Refuse(flight.query.id, event.attempt, event.reason, detail)
        if event.reason is Reason.ENGINE_FAILED:
            self._recovery.crashed(flight, self._me, self._me, now)
        elif flight.begun or event.reason in FINAL:
            self._flights.end_badly(flight, event.reason, detail)
        else:
            self._recovery.elsewhere(flight, self._me, now)
