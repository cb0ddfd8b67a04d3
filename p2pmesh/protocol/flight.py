"""The queries at one peer: what is remembered of each between two events, and what upstream is told of it.

Plain state and its ends; `relay` decides what becomes of it. Upstream is the peer that passed the query on,
or whoever asked here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from p2pmesh.config import Config
from p2pmesh.errors import Reason, Untrusted
from p2pmesh.protocol.alarms import Alarms
from p2pmesh.protocol.events import Deliver, Effect, Fail, Placed, Send
from p2pmesh.protocol.messages import Accept, Cancel, End, Error, Forward, Refuse, Tokens
from p2pmesh.protocol.routing import Decision
from p2pmesh.protocol.sealing import Cover, veiled
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Query, QueryId, Search
from p2pmesh.record import GENERAL, NOBODY, PeerId

_WHY_CHARS_MAX = 200
"""Longest reason of a hop or a refusal, in characters: the codec's bound with room for four-byte letters."""


def brief(text: str) -> str:
    """Return `text` as it may travel: an engine's words are neither short nor always text."""
    return text[:_WHY_CHARS_MAX].encode("utf-8", "replace").decode()


class Phase(Enum):
    """How far a query has come at this peer."""

    EMBEDDING = auto()
    DIALLING = auto()
    """It goes downstream as soon as there is a link."""
    OFFERED = auto()
    """Sent downstream; not yet accepted."""
    RELAYING = auto()
    """Accepted downstream."""
    LOCAL = auto()
    """It waits or runs here."""
    STRANDED = auto()
    """Nobody could go on with it when last looked; there may be somebody in a moment."""


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
    sent: bool = False
    """Whether anybody was given it in this attempt."""
    downstream: PeerId | None = None
    silent_at: float = 0.0
    """When `downstream` counts as lost; of a stranded one, when it is looked again for somebody."""
    stranded_at: float | None = None
    """Since when it is stranded; None: it was not since it was last placed."""
    patient_until: float = 0.0
    """Until when it may be."""
    alive_at: float = 0.0
    """When `upstream` is due a sign of life."""
    index: int = 0
    """Of the next chunk."""
    tokens: int = 0
    """Received from downstream."""
    digest: str = ""
    """Of the model that writes, once placed."""
    mixed: bool = False
    """Whether more than one model has written."""
    written: list[int] = field(default_factory=list)
    """All tokens of the answer so far. Kept where it was asked alone, to go on from."""
    text: list[str] = field(default_factory=list)
    """What they spell."""
    onward: Forward | None = None
    """What waits for the link while it is dialled."""
    cover: Cover | None = None
    """What closes its answer here, or opens it where it was asked; None: it travels open, or only passes."""
    executor: PeerId = NOBODY
    """Whom this peer has sealed it to."""
    hop: Hop | None = None
    """What was decided here, as the asker may read it, where others may not."""
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

    def accepted(self) -> Accepted | None:
        """Return what there is of the answer, for another peer to go on from; None: nothing."""
        if not self.index:
            return None
        digest = "" if self.mixed else self.digest
        return Accepted(tuple(self.written), "".join(self.text), self.index, digest)

    def passed_on(
        self, hop: Hop, target: PeerId, hops_left: int, search: Search | None, excluded_max: int
    ) -> Query:
        """Return the query as it goes downstream: one hop longer, for `target` or for whom it finds."""
        return replace(
            self.query,
            path=(*self.query.path, hop),
            target=target,
            search=search,
            hops_left=hops_left,
            excluded=(*self.query.excluded, *self.tried)[:excluded_max],
        )

    def excluded_with(self, dead: tuple[PeerId, ...]) -> tuple[PeerId, ...]:
        """Return whom it must not be sent to, the `dead` too."""
        known = self.query.excluded
        return (*known, *dict.fromkeys(peer for peer in dead if peer not in known))

    def written_by(self, digest: str) -> None:
        """The model with `digest` writes what follows."""
        self.mixed = self.mixed or (self.index > 0 and digest != self.digest)
        self.digest = digest

    def uncover(self) -> None:
        """What was sealed for the one before is not for the next."""
        if not self.closes:
            self.cover, self.executor, self.hop = None, NOBODY, None

    def open_chunk(self, chunk: Chunk) -> Chunk:
        """Return the next piece, which came from downstream, as it is to be read here. Raises Untrusted where
        it is not the next, has no token, is one too many, or is not what the executor closed."""
        if self.cover is not None:
            chunk, digest = self.cover.open_chunk(chunk)
            self.written_by(digest)
        self._join(chunk.index)
        # A peer that goes on for ever, or sends text that no token spells, would fill the asker's memory.
        self.tokens += len(chunk.tokens) or bool(chunk.sealed)
        endless = not (chunk.tokens or chunk.sealed) or self.tokens > self.query.options.max_tokens
        if chunk.index > self.index or endless:
            raise Untrusted("a piece of an answer that does not follow")
        return chunk

    def open_end(self, end: End) -> Ended:
        """Return the whole end as it is to be read here. Raises Untrusted as `open_chunk` does, and where
        pieces are missing."""
        self._join(end.chunks)
        if end.chunks != self.index:
            raise Untrusted("an end that says of more or fewer pieces than came")
        ended = end.ended if self.cover is None else self.cover.open_end(end)
        return replace(ended, path=self.own_path(ended.path))

    def _join(self, index: int) -> None:
        """Of a sealed query it cannot be known here with which piece its answer goes on: take what comes."""
        if self.query.sealed and not self.tokens:
            self.index = index

    def own_path(self, path: tuple[Hop, ...]) -> tuple[Hop, ...]:
        """Return a `path` as told from downstream, with what was decided here."""
        return path if self.hop is None else (self.hop, *path[1:])

    def begin_again(
        self, excluded: tuple[PeerId, ...], tried: tuple[PeerId, ...], accepted: Accepted | None
    ) -> None:
        """It goes out anew, under the next attempt number, with what there is of its answer."""
        attempt = self.query.attempt + 1
        self.query = replace(self.query, attempt=attempt, excluded=excluded, accepted=accepted)
        self.tried, self.sent, self.placed, self.tokens = tried, False, False, len(self.written)

    @property
    def closes(self) -> bool:
        """Whether it was sealed to this peer, and so is its answer."""
        return self.cover is not None and self.upstream is not None

    @property
    def begun(self) -> bool:
        """Whether anything of this attempt's answer has passed through here."""
        accepted = self.query.accepted
        return self.index > (0 if accepted is None else accepted.chunks)

    @property
    def due(self) -> float:
        """When something has to be done about it."""
        due = self.deadline
        if self.downstream is not None or self.phase is Phase.STRANDED:
            due = min(due, self.silent_at)
        if self.upstream is not None:
            due = min(due, self.alive_at)
        return due


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
        self._excluded_max = config.limits.excluded_max
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
        if flight.query.accepted is not None:
            flight.index = flight.query.accepted.chunks
            flight.tokens = len(flight.query.accepted.tokens)
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
        if flight.closes:
            detail = ""  # it may tell how long the prompt is
        if flight.upstream is None:
            path = flight.path or flight.query.path
            self._deliver(Fail(flight.query.id, reason, detail, path, retry_after_s))
        elif flight.begun:
            error = Error(*flight.ident, reason, detail, dead[: self._excluded_max])
            self._out.append(Send(flight.upstream, error))
        else:
            self.refuse(flight.upstream, flight.query, reason, detail, retry_after_s, dead)
        self.forget(flight)

    def give_up(self, flight: Flight, decision: Decision) -> None:
        """Nobody is left to serve it."""
        reason, detail, retry_after_s = verdict(flight.refusal, decision)
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
            dead[: self._excluded_max],
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
            path, digest = veiled(path), ""
        self._out.append(Send(flight.upstream, Accept(*flight.ident, flight.placed, eta_s, path, digest)))

    def release(self, flight: Flight) -> None:
        """Downstream need not go on."""
        if flight.downstream is not None and flight.phase is not Phase.DIALLING:
            self._out.append(Send(flight.downstream, Cancel(*flight.ident)))
        flight.downstream = flight.onward = None


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
