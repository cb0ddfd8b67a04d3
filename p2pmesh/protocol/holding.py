"""What this peer holds of others' answers, so that they outlive the peers they were asked at.

It takes the question and every piece from whose answer it is, says what it has, and gives it to the one who
comes for it. It knows nothing of its own queries; who may see a zone it is told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from p2pmesh.config import Config
from p2pmesh.protocol.events import Effect, Send
from p2pmesh.protocol.messages import Claim, Copy, Keep, Kept, Legacy, Settle
from p2pmesh.query import Accepted, Ended, Query, QueryId
from p2pmesh.record import PeerId

_KEPT_S = 60.0
"""Seconds for which an answer is held once it is whole, or its time is over. A guess: a client that lost its
connection comes back within seconds."""
HELD_MAX = 256
"""Most answers held for others; of more, those that nothing is added to go first. A guess: at worst, with
`limits.prompt_bytes_max` of prompt and `accepted_bytes_max` of answer each, some 100 MB."""
HELD_OF_ONE_MAX = HELD_MAX // 2
"""Most of them held for one peer: it shall not take the places of all others. A guess."""


@dataclass
class _Held:
    """An answer of another's that we hold."""

    owner: PeerId
    query: Query
    since: float
    until: float
    tokens: list[int]
    text: list[str]
    size: int
    chunks: int
    digest: str
    ended: Ended | None = None
    claimed: bool = False
    """Whether somebody came for it before it was whole: it stays as it is from then on."""


class Holding:
    """The answers held here."""

    def __init__(self, config: Config, out: list[Effect], may_see: Callable[[PeerId, str], bool]) -> None:
        self._bytes_max, self._budget_max_s = config.limits.accepted_bytes_max, config.relay.budget_max_s
        self._out = out
        self._may_see = may_see
        self._held: dict[QueryId, _Held] = {}
        self._settled: deque[tuple[PeerId, QueryId]] = deque(maxlen=HELD_MAX)
        """What is not to be held here any more, and for whom: a late copy of the question would make an empty
        answer of it."""
        self.deadline = math.inf

    def keep(self, peer: PeerId, message: Keep, now: float) -> None:
        """Hold a query of `peer`'s, and what there is of its answer. Silence says that there is no room."""
        query = message.query
        old = self._held.get(query.id)
        if query.origin != peer or (old is not None and (old.owner != peer or old.claimed)):
            return
        if (peer, query.id) in self._settled:
            return
        if old is None and not self._has_room(peer):
            return
        got = query.accepted or Accepted((), "", 0)
        if old is not None and old.chunks >= got.chunks:  # it was under way for long, or came twice
            self._out.append(Send(peer, Kept(query.id, old.chunks + (old.ended is not None))))
            return
        until = now + min(query.budget_s, self._budget_max_s) + _KEPT_S
        self._held[query.id] = _Held(
            peer,
            query,
            now,
            until,
            list(got.tokens),
            [got.text],
            len(got.text.encode()),
            got.chunks,
            got.digest,
        )
        self.deadline = min(self.deadline, until)
        self._out.append(Send(peer, Kept(query.id, got.chunks)))

    def _has_room(self, peer: PeerId) -> bool:
        """Return whether one more may be held for `peer`; one that nothing is added to makes room for it, his
        own where he has many."""
        his = [i for i, held in self._held.items() if held.owner == peer]
        if len(his) < HELD_OF_ONE_MAX and len(self._held) < HELD_MAX:
            return True
        crowd = his if len(his) >= HELD_OF_ONE_MAX else list(self._held)
        done = (i for i in crowd if self._held[i].ended is not None or self._held[i].claimed)
        if (oldest := next(done, None)) is not None:
            del self._held[oldest]
        return oldest is not None

    def copy(self, peer: PeerId, message: Copy) -> None:
        """The next piece of an answer that is held here."""
        chunk = message.chunk
        held = self._held.get(chunk.query_id)
        if held is None or held.owner != peer or held.claimed:
            return
        if chunk.index != held.chunks or not chunk.tokens:
            return
        held.size += len(chunk.text.encode())
        if (
            held.size > self._bytes_max
            or len(held.tokens) + len(chunk.tokens) > held.query.options.max_tokens
        ):
            del self._held[chunk.query_id]  # so long an answer cannot be gone on with
            return
        held.tokens.extend(chunk.tokens)
        held.text.append(chunk.text)
        held.chunks, held.digest = chunk.index + 1, message.digest
        self._out.append(Send(peer, Kept(chunk.query_id, held.chunks)))

    def settle(self, peer: PeerId, message: Settle, now: float) -> bool:
        """It is whole, or over. Returns whether it was held for `peer`; if not, it is not to be later."""
        held = self._held.get(message.query_id)
        if held is None or held.owner != peer or held.claimed:
            return False
        if message.ended is None:
            del self._held[message.query_id]
            self.never(peer, message.query_id)
        elif message.chunks == held.chunks:
            held.ended, held.until = message.ended, now + _KEPT_S
            self.deadline = min(self.deadline, held.until)
            self._out.append(Send(peer, Kept(message.query_id, held.chunks + 1)))
        return True

    def never(self, peer: PeerId, query_id: QueryId) -> None:
        """`peer` has done with a query: what is still under way of it is not to be held."""
        self._settled.append((peer, query_id))

    def claim(self, peer: PeerId, message: Claim, now: float) -> None:
        """Somebody has come for an answer at `peer`."""
        held = self._held.get(message.query_id)
        may = held is not None and self._may_see(peer, held.query.zone)
        legacy = self.take(message.query_id, now) if may else None
        self._out.append(Send(peer, legacy or Settle(message.query_id, None)))

    def take(self, query_id: QueryId, now: float) -> Legacy | None:
        """Return what is held of an answer, for the one who came for it; None: nothing. It stays for who
        comes again, as what he was given may be lost on the way or with him; but of one that is not whole no
        more is held: whose it was must not write it, too."""
        held = self._held.get(query_id)
        if held is None:
            return None
        query = held.query
        if held.ended is None and not held.claimed:
            self.never(held.owner, query_id)
            self._out.append(Send(held.owner, Settle(query_id, None)))
            held.claimed = True
        left_s = max(0.0, query.budget_s - (now - held.since))
        got = Accepted(tuple(held.tokens), "".join(held.text), held.chunks, held.digest)
        return Legacy(replace(query, budget_s=left_s, accepted=got if held.chunks else None), held.ended)

    def advance(self, now: float) -> None:
        """Forget what is held no longer."""
        if now < self.deadline:
            return
        self._held = {query_id: held for query_id, held in self._held.items() if held.until > now}
        self.deadline = min((held.until for held in self._held.values()), default=math.inf)
