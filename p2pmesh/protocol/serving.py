"""Flights that end here: this peer's own models answer them, write for them, and fail them.

It gives a query to `local` and what the models write to `flights`; what becomes of one that they do not take
is for `recovery` to say. It knows nothing of where a query could go instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.breakers import Breakers
from p2pmesh.protocol.events import Failed, Finished, Generated
from p2pmesh.protocol.flight import Flight, Phase, brief
from p2pmesh.protocol.flights import Flights
from p2pmesh.protocol.local import Job, Local
from p2pmesh.protocol.messages import Refuse
from p2pmesh.protocol.origins import Origins
from p2pmesh.protocol.quotas import Quotas
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.protocol.recovery import Recovery
from p2pmesh.protocol.routing import Scored
from p2pmesh.protocol.workload import prompt_tokens_by_bytes
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
        life_of: Callable[[PeerId], int | None],
        recovery: Recovery,
    ) -> None:
        """`life_of` returns the epoch of a peer's life, of those that are known."""
        self._me, self._name, self._routing = me, name, config.routing
        self._local, self._quotas = local, quotas
        self._flights, self._breakers = flights, breakers
        self._receipts, self._origins, self._recovery = receipts, origins, recovery
        self._life_of = life_of

    def serve(self, flight: Flight, chosen: Scored, hop: Hop, now: float) -> None:
        """Let the model that was chosen answer it, or look elsewhere for want of room. Who has used up his
        quota is refused."""
        flight.phase, flight.sent, flight.downstream = Phase.LOCAL, True, None
        flight.uncover()
        if not flight.charged:
            asker, zone = self._asker(flight), flight.query.zone
            slack = _SLACK if flight.query.accepted is not None else 1.0
            wait_s = 0.0 if asker is None else self._quotas.wait_s(asker, zone, now, slack)
            if wait_s:  # others may have it, but not as a favour of ours: it goes back to whoever brought it
                why = "whoever asked has used up his quota"
                return self._flights.end_badly(flight, Reason.QUOTA, why, wait_s)
            flight.asker, flight.charged = asker, True  # what was taken here once is not turned away for it
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
        """Return who is charged for it: whoever asked, where that is certain, as it came from him, or he is a
        member that is known here and has sealed or signed it; else whoever passed it on. None: this peer's
        own user, whose machine it is, or nobody, where nobody counts."""
        origin, upstream = flight.query.origin, flight.upstream
        if upstream is None or not self._quotas.counts:
            return None
        if origin == upstream or not self._quotas.knows(origin, flight.query.zone):
            return upstream
        life = self._life_of(origin)
        sure = flight.closes or (life is not None and self._origins.proven(flight.query, life))
        return origin if sure else upstream

    def _reserve(self, flight: Flight, now: float) -> None:
        """Charge for it what it is expected to be: or he could ask for any number before the first is
        answered. How long the prompt is nobody on the way may say."""
        if flight.asker is not None:
            written = 0 if flight.query.accepted is None else len(flight.query.accepted.tokens)
            answer = self._local.lengths.left(flight.query.options.max_tokens, written)
            flight.prompt = prompt_tokens_by_bytes(flight.query, self._routing) + written
            flight.foreseen, flight.wrote, flight.charged_at = math.ceil(answer), 0, now
            self._quotas.charge(flight.asker, flight.query.zone, flight.prompt + flight.foreseen, now)

    def _wrote(self, flight: Flight, tokens: int, now: float) -> None:
        """Charge at once what was not foreseen."""
        over = flight.wrote + tokens - max(flight.wrote, flight.foreseen)
        flight.wrote += tokens
        if flight.asker is not None and over > 0:
            self._quotas.charge(flight.asker, flight.query.zone, over, now)

    def _settle(self, flight: Flight, job: Job | None, now: float, prompt: int = 0) -> None:
        """It is over here: what was foreseen and not written is given back, and the prompt too, where no
        model has begun to read it; else it counts as long as it was, where that is known."""
        if flight.asker is None:
            return
        begun = job is not None and job.started_at is not None
        back = max(0, flight.foreseen - flight.wrote) + flight.prompt
        back -= (prompt or flight.prompt) if begun else 0
        if back > 0:
            self._quotas.refund(flight.asker, flight.query.zone, back, flight.charged_at)
        else:
            self._quotas.charge(flight.asker, flight.query.zone, -back, now)
        flight.prompt = flight.foreseen = flight.wrote = 0

    def stop(self, flight: Flight, now: float) -> None:
        """Nobody waits for it."""
        if flight.phase is Phase.LOCAL:
            self._settle(flight, self._local.abort(flight.query.id, flight.query.attempt), now)

    def give_up(self, flight: Flight, now: float) -> None:
        """It is not answered here, or not any longer."""
        self._settle(flight, self._local.finished(flight.query.id), now)

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
        written = 0 if flight.query.accepted is None else len(flight.query.accepted.tokens)
        self._settle(flight, job, now, event.usage.prompt_tokens + written)
        self._breakers.served(self._me, now)
        ended = Ended(event.usage, event.finish_reason, job.model.name, job.model.digest, flight.path)
        self._flights.complete(flight, self._receipts.signed(flight.query, ended, flight.said.digest()))

    def failed(self, event: Failed, now: float) -> None:
        """Our model could not, or broke off."""
        flight = self._flights.here(event.query_id, event.attempt)
        if flight is None:
            return
        self.give_up(flight, now)
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
