"""One query at one peer: what is remembered of it between two events, and how it is read and sealed here.

Plain state; `flights` keeps them, and `relay` decides what becomes of each. Upstream is the peer that passed
the query on, or whoever asked here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from hashlib import sha256
from typing import TYPE_CHECKING

from p2pmesh.errors import Reason, Untrusted
from p2pmesh.protocol.flow import Flow
from p2pmesh.protocol.messages import End, Forward, Refuse
from p2pmesh.protocol.sealing import Cover, Sealing
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Query, QueryId, Search
from p2pmesh.record import GENERAL, NOBODY, PeerId

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

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
    """Received from downstream; of a sealed answer, pieces."""
    tokens_max: int = 0
    """Most that may come."""
    digest: str = ""
    """Of the model that writes, once placed."""
    mixed: bool = False
    """Whether more than one model has written."""
    written: list[int] = field(default_factory=list)
    """All tokens of the answer so far. Kept where it was asked alone, to go on from."""
    text: list[str] = field(default_factory=list)
    """What they spell."""
    said: Hash = field(default_factory=sha256)
    """Of the answer's text so far, where it was asked and where it is written."""
    onward: Forward | None = None
    """What waits for the link while it is dialled."""
    cover: Cover | None = None
    """What closes its answer here, or opens it where it was asked; None: it travels open, or only passes."""
    executor: PeerId = NOBODY
    """Whom this peer has sealed it to."""
    hop: Hop | None = None
    """What was decided here, as the asker may read it, where others may not."""
    flow: Flow = field(default_factory=Flow)
    """How fast this attempt's answer comes. Kept where it was asked alone."""
    moved: bool = False
    """Whether it went on elsewhere because it came too slowly: that is done once."""
    asker: PeerId | None = None
    """Who is charged for it here; None: nobody, it was asked here or is answered elsewhere."""
    charged: bool = False
    """Whether he was found to have enough of his quota left."""
    charged_at: float = 0.0
    """When he was charged for what it is expected to take."""
    prompt: int = 0
    foreseen: int = 0
    """Tokens of that: of what is read, and of the answer."""
    wrote: int = 0
    """Tokens that were written for it here."""
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

    def heard(self, refusal: Refuse) -> None:
        """Downstream would not. Whose quota is used up is told so, whatever ways were tried since."""
        told = self.refusal is not None and self.refusal.reason is Reason.QUOTA
        if not (told and refusal.reason in (Reason.VISITED, Reason.NO_ROUTE)):
            self.refusal = refusal

    def says(self, text: str) -> None:
        """The next piece of its text."""
        self.said.update(text.encode("utf-8", "surrogatepass"))

    def written_by(self, digest: str) -> None:
        """The model with `digest` writes what follows."""
        self.mixed = self.mixed or (self.index > 0 and digest != self.digest)
        self.digest = digest

    def uncover(self) -> None:
        """What was sealed for the one before is not for the next."""
        if not self.closes:
            self.cover, self.executor, self.hop = None, NOBODY, None

    def seal(self, sealing: Sealing, onward: Query, model: str, hop: Hop) -> Query:
        """Return what goes `onward` to a `model` of its target as others may see it: sealed, where it is of a
        zone. Raises as `Sealing.wrap` does."""
        self.uncover()
        if onward.zone == GENERAL:
            return onward
        outside, self.cover = sealing.wrap(onward, model)
        self.executor, self.hop = onward.target, hop
        return outside

    def open_chunk(self, chunk: Chunk) -> Chunk:
        """Return the next piece, which came from downstream, as it is to be read here. Raises Untrusted where
        it is not the next, has no token, is one too many, or is not what the executor closed."""
        if self.cover is not None:
            chunk, digest = self.cover.open_chunk(chunk)
            self.written_by(digest)
        self._join(chunk.index, chunk.sealed)
        # A peer that goes on for ever, or sends text that no token spells, would fill the asker's memory.
        self.tokens += len(chunk.tokens) or bool(chunk.sealed)
        endless = not (chunk.tokens or chunk.sealed) or self.tokens > self.tokens_max
        if chunk.index > self.index or endless:
            raise Untrusted("a piece of an answer that does not follow")
        return chunk

    def open_end(self, end: End) -> Ended:
        """Return the whole end as it is to be read here. Raises Untrusted as `open_chunk` does, and where
        pieces are missing."""
        if self.cover is None:
            self._join(end.chunks, end.ended.sealed)
        if end.chunks != self.index:
            raise Untrusted("an end that says of more or fewer pieces than came")
        ended = end.ended if self.cover is None else self.cover.open_end(end)
        return replace(ended, path=self.own_path(ended.path))

    def _join(self, index: int, sealed: bytes) -> None:
        """Of a sealed query it cannot be known here with which piece its answer goes on: take what comes.
        Raises Untrusted where the answer is sealed and the query is not, or the other way round."""
        if bool(sealed) != bool(self.query.sealed):
            raise Untrusted("an answer travels as its query did")
        if self.query.sealed and not self.tokens:
            self.index = index

    def own_path(self, path: tuple[Hop, ...]) -> tuple[Hop, ...]:
        """Return a `path` as told from downstream, with what was decided here."""
        if self.hop is None:
            return path
        return (self.hop, *(path[1:] if path and path[0].peer == self.hop.peer else path))

    def begin_again(
        self, excluded: tuple[PeerId, ...], tried: tuple[PeerId, ...], accepted: Accepted | None
    ) -> None:
        """It goes out anew, under the next attempt number, with what there is of its answer."""
        attempt = self.query.attempt + 1
        self.query = replace(self.query, attempt=attempt, excluded=excluded, accepted=accepted)
        self.tried, self.sent, self.placed, self.tokens = tried, False, False, len(self.written)
        self.flow = Flow()

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
