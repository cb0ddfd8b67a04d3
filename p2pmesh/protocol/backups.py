"""An answer outlives the peer it was asked at: another one holds the question, and all that came of it.

Three parts, of one answer each played by a peer of its own: who asks lets another hold it, and gives nothing
to the asker that is not held yet; who holds it (`holding`) tells nobody but the one who comes for it; who
comes for it goes on where the asker's text broke off. It knows queries and answers; who may hold one, and how
a query is sent on its way, it is told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from typing_extensions import assert_never

from p2pmesh.config import Config
from p2pmesh.errors import Reason
from p2pmesh.protocol.events import Claimed, Deliver, Effect, Fail, Guarded, Placed, Send
from p2pmesh.protocol.flight import Flight
from p2pmesh.protocol.holding import Holding
from p2pmesh.protocol.messages import Claim, Copy, Keep, Kept, Legacy, Settle
from p2pmesh.query import Chunk, Ended, Query, QueryId, Resume
from p2pmesh.record import GENERAL, NOBODY, PeerId

_SILENT_S = 10.0
"""Seconds for which one that said nothing is not chosen again: it may be stopped, and every answer that it
holds waits for it. A guess: by then the membership knows."""
_HOLDERS_MAX = 3
"""Holders tried for one query. Then it goes on without: the asker has waited long enough."""
_CLAIM_S = 5.0
"""Seconds in which a holder must hand over what it holds. A guess: a dial and two round trips."""


@dataclass
class _Mine:
    """An answer of ours that another peer holds."""

    query: Query
    deadline: float
    """When its asker gives up, and must have all there is."""
    holder: PeerId = NOBODY
    former: PeerId = NOBODY
    """The last one before it that held something, and lets go of it as soon as `holder` has it."""
    tried: tuple[PeerId, ...] = ()
    again: bool = False
    """Whether the holder was asked a second time, as it said nothing."""
    told: bool = False
    """Whether the asker was told of a holder, this one or one before it."""
    acked: int = -1
    """Chunks that it holds, and one more for the end; -1: it has not said anything yet."""
    chunks: int = 0
    size: int = 0
    """Bytes of the answer's text."""
    due: float = math.inf
    """When the holder must have said that it holds all."""
    waiting: deque[tuple[int, float, Deliver | Fail]] = field(default_factory=deque)
    """As soon as how many chunks are held, since when, and what the asker then gets."""

    @property
    def over(self) -> bool:
        """Whether the last of it waits to be given."""
        last = self.waiting[-1][2] if self.waiting else None
        return isinstance(last, Fail) or (last is not None and isinstance(last.item, Ended))


@dataclass
class _Wanted:
    """An answer that somebody here has come for, and that `holder` has."""

    event: Claimed
    due: float
    again: bool = False
    """Whether it was asked for a second time: what it is given may be lost on the way."""


class Backups:
    """All three parts, as one peer plays them."""

    def __init__(
        self,
        me: PeerId,
        config: Config,
        out: list[Effect],
        holders: Callable[[str], Collection[PeerId]],
        late_s: Callable[[PeerId, int], float],
        may_see: Callable[[PeerId, str], bool],
        flight: Callable[[QueryId], Flight | None],
        reach: Callable[[PeerId, tuple[str, ...]], bool | None],
        ask: Callable[[Query, float], None],
        cancel: Callable[[QueryId, float], None],
    ) -> None:
        """`holders` returns the links that may see a zone, `late_s` the seconds in which one must say that it
        holds what has so many bytes, `flight` a query in flight here; `ask` and `cancel` do so for somebody
        at this peer; `reach` as in `relay`."""
        self._me = me
        self.holding = Holding(config, out, may_see)
        self._bytes_max = config.limits.accepted_bytes_max
        self._out = out
        self._holders, self._late_s, self._flight = holders, late_s, flight
        self._reach, self._ask, self._cancel = reach, ask, cancel
        self._mine: dict[QueryId, _Mine] = {}
        self._wanted: dict[QueryId, _Wanted] = {}
        self._silent: dict[PeerId, float] = {}
        """Who said nothing, and until when that is held against him."""
        self._due = math.inf
        self._now = 0.0

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        return min(self._due, self.holding.deadline)

    def received(
        self, peer: PeerId, message: Keep | Copy | Kept | Settle | Claim | Legacy, now: float
    ) -> None:
        """A peer that plays one of the other two says something."""
        match message:
            case Keep():
                self.holding.keep(peer, message, now)
            case Copy():
                self.holding.copy(peer, message)
            case Kept():
                self._on_kept(peer, message, now)
            case Settle():
                self._on_settle(peer, message, now)
            case Claim():
                self.holding.claim(peer, message, now)
            case Legacy():
                self._on_legacy(peer, message, now)
            case _:
                assert_never(message)

    # -- who asks -------------------------------------------------------------------------------------

    def guard(self, query: Query, now: float) -> None:
        """Let another peer hold `query`, which somebody asks here, and its answer."""
        mine = self._mine[query.id] = _Mine(replace(query, vector=None, space=""), now + query.budget_s)
        if query.accepted is not None:
            mine.chunks, mine.size = query.accepted.chunks, len(query.accepted.text.encode())
        self._next_holder(mine, now)

    def deliver(self, effect: Deliver | Fail) -> None:
        """Give the asker the next thing, as soon as it is held elsewhere what he has by then."""
        mine = self._mine.get(effect.query_id)
        if mine is None:
            return self._out.append(effect)
        held = mine.chunks
        if isinstance(effect, Fail):
            if effect.reason is not Reason.PEER_LOST:  # which alone another peer may make good
                self._let_go(mine)
        elif isinstance(effect.item, Chunk):
            held = mine.chunks = effect.item.index + 1
            mine.size += len(effect.item.text.encode())
            if mine.size > self._bytes_max:  # so long an answer cannot travel: it goes on unheld
                self._unheld(mine)
                return self._out.append(effect)
            flight = self._flight(mine.query.id)
            digest = "" if flight is None or flight.mixed else flight.digest
            self._send(mine, Copy(replace(effect.item, logprobs=()), digest))
        elif isinstance(effect.item, Ended):
            held += 1
            self._send(mine, Settle(mine.query.id, effect.item, mine.chunks))
        mine.waiting.append((held, self._now, effect))
        self._flush(mine)
        if mine.waiting and mine.due == math.inf:
            self._watch(mine, self._now)
        return None

    def cancelled(self, query_id: QueryId) -> None:
        """Nobody waits for it any more."""
        self._wanted.pop(query_id, None)
        mine = self._mine.pop(query_id, None)
        if mine is not None:
            self._let_go(mine)

    def _on_kept(self, peer: PeerId, message: Kept, now: float) -> None:
        """A holder says how much it holds."""
        mine = self._mine.get(message.query_id)
        if mine is None or mine.holder != peer or message.chunks <= mine.acked:
            return
        if mine.acked < 0:
            mine.told = True
            self._dismiss(mine)
            self._out.append(Deliver(message.query_id, Guarded(peer)))
        mine.acked, mine.due = message.chunks, math.inf
        self._flush(mine)
        if mine.waiting:  # one that says something, but ever later, is as bad as one that says nothing
            since = mine.waiting[0][1]
            mine.again = mine.again and since + self._late_s(peer, 0) <= now
            self._watch(mine, since)
        else:
            mine.again = False

    def _unheard(self, mine: _Mine, now: float) -> None:
        """The holder has not said that it holds all: a piece may have been lost."""
        if mine.acked >= 0 and not mine.again and not mine.over and now < mine.deadline:
            mine.again = True
            self._let_hold(mine, now)
            return
        if mine.acked < 0:
            self._send(mine, Settle(mine.query.id, None))
        else:
            self._dismiss(mine)
            mine.former = mine.holder
        if now < mine.deadline:
            self._silent = {peer: until for peer, until in self._silent.items() if until > now}
            self._silent[mine.holder] = now + _SILENT_S
        self._next_holder(mine, now)

    def _next_holder(self, mine: _Mine, now: float) -> None:
        """Choose one, a near one, in an order that no two queries share; nobody, where there is none left."""
        mine.holder, mine.acked, mine.due, mine.again = NOBODY, -1, math.inf, False
        silent = [peer for peer, until in self._silent.items() if until > now]
        left = set(self._holders(mine.query.zone)).difference(mine.tried, silent)
        if left and len(mine.tried) < _HOLDERS_MAX and not mine.over and now < mine.deadline:

            def order(peer: PeerId) -> tuple[int, bytes]:
                lot = blake2b(f"{mine.query.id} {peer}".encode()).digest()
                return round(math.log2(self._late_s(peer, 0))), lot

            mine.holder = min(left, key=order)
            mine.tried = (*mine.tried, mine.holder)
            self._let_hold(mine, now)
        else:
            self._unheld(mine)

    def _unheld(self, mine: _Mine) -> None:
        """Nobody holds it from here on, and the asker, if he was told of a holder, is told that: he gets all
        there is."""
        self._let_go(mine)
        if mine.told:
            self._out.append(Deliver(mine.query.id, Guarded(NOBODY)))
        self._flush(mine)
        self._mine.pop(mine.query.id, None)

    def _let_go(self, mine: _Mine) -> None:
        """Whoever holds it need not any longer."""
        self._send(mine, Settle(mine.query.id, None))
        mine.holder = NOBODY
        self._dismiss(mine)

    def _dismiss(self, mine: _Mine) -> None:
        if mine.former != NOBODY:
            self._out.append(Send(mine.former, Settle(mine.query.id, None)))
            mine.former = NOBODY

    def _let_hold(self, mine: _Mine, now: float) -> None:
        flight = self._flight(mine.query.id)
        accepted = None if flight is None else flight.accepted()
        query = replace(mine.query, accepted=accepted or mine.query.accepted)
        self._send(mine, Keep(query))
        self._watch(mine, now, query.bytes_about)

    def _flush(self, mine: _Mine) -> None:
        while mine.waiting and (mine.holder == NOBODY or mine.waiting[0][0] <= mine.acked):
            effect = mine.waiting.popleft()[2]
            self._out.append(effect)
            if isinstance(effect, Fail) or isinstance(effect.item, Ended):
                self._mine.pop(mine.query.id, None)

    def _send(self, mine: _Mine, message: Keep | Copy | Settle) -> None:
        if mine.holder != NOBODY:
            self._out.append(Send(mine.holder, message))

    def _watch(self, mine: _Mine, now: float, size: int = 0) -> None:
        # It delays what the asker reads. The next has twice as long: where all are slow, one is good enough.
        doubled = 1.0 if mine.acked >= 0 else 2.0 ** (len(mine.tried) - 1)
        mine.due = min(now + self._late_s(mine.holder, size) * doubled, mine.deadline)
        self._due = min(self._due, mine.due)

    # -- what is over ----------------------------------------------------------------------------------

    def _on_settle(self, peer: PeerId, message: Settle, now: float) -> None:
        """It is over; or it is not held where it was looked for; or somebody else has come for it."""
        if self.holding.settle(peer, message, now):
            return None
        mine = self._mine.get(message.query_id)
        if mine is not None and peer in (mine.holder, mine.former):
            del self._mine[message.query_id]
            self._cancel(message.query_id, now)
            how = "somebody came for this answer at another peer"
            # If he came for it here, what he gets follows.
            return self._out.append(Fail(message.query_id, Reason.CANCELLED, how))
        for wanted in [w for w in self._wanted.values() if w.event.holder == peer]:
            if wanted.event.held_id == message.query_id:
                return self._not_found(wanted)
        return self.holding.never(peer, message.query_id)

    # -- who comes for it -----------------------------------------------------------------------------

    def claimed(self, event: Claimed, now: float) -> None:
        """Somebody here comes for an answer that was begun elsewhere."""
        wanted = _Wanted(event, now + _CLAIM_S / 2)
        if event.holder == self._me:
            legacy = self.holding.take(event.held_id, now)
            return self._not_found(wanted) if legacy is None else self._go_on(event, legacy, now)
        self._wanted[event.query_id] = wanted
        self._due = min(self._due, wanted.due)
        linked = self._reach(event.holder, ())
        if linked:
            self._out.append(Send(event.holder, Claim(event.held_id)))
        elif linked is None:
            self._not_found(wanted)
        return None

    def _on_legacy(self, peer: PeerId, message: Legacy, now: float) -> None:
        """Here it is."""
        for wanted in list(self._wanted.values()):
            if wanted.event.holder == peer and wanted.event.held_id == message.query.id:
                del self._wanted[wanted.event.query_id]
                self._go_on(wanted.event, message, now)
                return

    def _go_on(self, event: Claimed, legacy: Legacy, now: float) -> None:
        """Give whoever came what he has not seen, and go on from there."""
        if event.zones is not None and legacy.query.zone not in (GENERAL, *event.zones):
            self._not_found(_Wanted(event, now))
            return
        got = legacy.query.accepted
        text = "" if got is None else got.text
        if event.seen > len(text):
            how = f"{event.seen} characters were seen of an answer of which there were {len(text)}"
            self._out.append(Fail(event.query_id, Reason.BAD_REQUEST, how))
            return
        if got is not None and text[event.seen :]:
            rest = Chunk(event.query_id, 0, got.chunks - 1, (), text[event.seen :])
            self._out.append(Deliver(event.query_id, rest))
        if legacy.ended is not None:
            self._out.append(Deliver(event.query_id, Placed(legacy.ended.path, 0.0)))
            self._out.append(Deliver(event.query_id, legacy.ended))
        elif got is not None and legacy.query.resume is Resume.NEVER:
            self._out.append(Fail(event.query_id, Reason.PEER_LOST, "the peer it was asked at went away"))
        else:
            again = {"id": event.query_id, "origin": self._me, "attempt": int(got is not None)}
            self._ask(replace(legacy.query, **again, path=(), excluded=(), target=NOBODY, search=None), now)  # type: ignore[arg-type]

    def _not_found(self, wanted: _Wanted) -> None:
        self._wanted.pop(wanted.event.query_id, None)
        how = "nobody holds this answer any more: ask anew"
        self._out.append(Fail(wanted.event.query_id, Reason.ANSWER_NOT_FOUND, how))

    # -- links and time -------------------------------------------------------------------------------

    def connected(self, peer: PeerId) -> None:
        """A link is there: what was waited for is claimed."""
        for wanted in self._wanted.values():
            if wanted.event.holder == peer:
                self._out.append(Send(peer, Claim(wanted.event.held_id)))

    def unreachable(self, peer: PeerId, now: float) -> None:
        """A link closed, or there will be none."""
        for mine in [mine for mine in self._mine.values() if peer in (mine.holder, mine.former)]:
            if mine.former == peer:
                mine.former = NOBODY
            else:
                self._next_holder(mine, now)
        for wanted in [wanted for wanted in self._wanted.values() if wanted.event.holder == peer]:
            self._not_found(wanted)

    def excuse(self, seconds: float) -> None:
        """This peer was away for `seconds`, and who was silent meanwhile may have spoken to deaf ears."""
        for mine in self._mine.values():
            mine.due = min(mine.due + seconds, max(mine.due, mine.deadline))
            mine.waiting = deque((held, since + seconds, effect) for held, since, effect in mine.waiting)
        for wanted in self._wanted.values():
            wanted.due += seconds

    def advance(self, now: float) -> None:
        """Do what is due."""
        self._now = now
        self.holding.advance(now)
        if now < self._due:
            return
        for mine in [mine for mine in self._mine.values() if mine.due <= now]:
            self._unheard(mine, now)
        for wanted in [wanted for wanted in self._wanted.values() if wanted.due <= now]:
            if wanted.again:
                self._not_found(wanted)
                continue
            wanted.again, wanted.due = True, now + _CLAIM_S / 2
            if self._reach(wanted.event.holder, ()):
                self._out.append(Send(wanted.event.holder, Claim(wanted.event.held_id)))
        dues = [mine.due for mine in self._mine.values()] + [w.due for w in self._wanted.values()]
        self._due = min(dues, default=math.inf)
