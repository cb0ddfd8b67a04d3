"""What the asker holds: an answer that arrives piece by piece, and ends whole or in an error.

It knows neither wire nor protocol: outcomes are put in, pieces come out.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable

import trio

from p2pmesh.errors import AnswerInterrupted, BudgetSpent, NoRoute, QueryError, Reason, Refused
from p2pmesh.protocol import events as e
from p2pmesh.query import Chunk, Ended, Hop, QueryId, TokenLogprobs, Usage
from p2pmesh.receipt import Receipt
from p2pmesh.record import NOBODY, PeerId

_ERRORS: dict[Reason, type[QueryError]] = {
    Reason.OVERLOADED: Refused,
    Reason.QUOTA: Refused,
    Reason.BAD_REQUEST: Refused,
    Reason.TOO_LONG: Refused,
    Reason.DEADLINE: BudgetSpent,
}
_BOOKMARK = re.compile(r"([0-9a-f]{32})\.([0-9]{1,9})\.(\w{1,128})", re.ASCII)


def read_bookmark(text: str) -> tuple[QueryId, int, PeerId]:
    """Return an answer's id, the characters seen of it, and who holds it. Raises ValueError."""
    match = _BOOKMARK.fullmatch(text)
    if match is None:
        raise ValueError(f"not a bookmark of an answer: {text[:80]!r}")
    return QueryId(match[1]), int(match[2]), PeerId(match[3])


def _words(fail: e.Fail) -> str:
    """Return what its asker is told of a failure."""
    if fail.reason is Reason.QUOTA:
        return f"your quota is used up: ask again in {math.ceil(fail.retry_after_s)} s"
    return fail.detail or fail.reason.value


class Answer:
    """An answer on its way. Iterate over it for its pieces; afterwards `text` and the rest are whole.

    One task may iterate. What has not been read is kept, at most `max_tokens` of it.
    """

    def __init__(self, query_id: QueryId, rate: Callable[[QueryId, float], bool], before: int = 0) -> None:
        """`before` is how many characters its asker had of it before, from another peer."""
        self.id = query_id
        self._rate = rate
        self._before = before
        self.text = ""
        """What has arrived so far."""
        self.logprobs: list[TokenLogprobs] = []
        """One for each token that has arrived, where `Options.logprobs` asked for it."""
        self.usage = Usage()
        self.finish_reason = ""
        self.model = ""
        self.receipt: Receipt | None = None
        """What whoever ended it signed of it: of all of it, also where another peer began it; None before the
        end. `receipt.to_json()` is what `p2pmesh verify` reads."""
        self.path: tuple[Hop, ...] = ()
        """The peers it went through; the last one answers. Known before the first piece."""
        self.resumed: tuple[Hop, ...] = ()
        """The peers that went on with it, each after the one before was lost; empty: nobody had to."""
        self.holder = NOBODY
        """Another peer that has the question, and all that has arrived of the answer; empty: nobody."""
        self.asked_at = trio.current_time()
        self.first_at = math.nan
        """When the first piece came, on trio's clock."""
        self.ended_at = math.nan
        self._attempt = 0
        self._chunks: deque[Chunk] = deque()
        self._error: QueryError | None = None
        self._over = False
        self._news = trio.Event()

    @property
    def served_by(self) -> PeerId | None:
        """The peer that answers, once it is known."""
        return self.path[-1].peer if self.path else None

    @property
    def ttft_s(self) -> float:
        """Seconds to the first piece; NaN before it."""
        return self.first_at - self.asked_at

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second after the first piece; NaN before the end, or of a single token."""
        seconds = self.ended_at - self.first_at
        count = self.usage.completion_tokens - 1
        return count / seconds if count > 0 and seconds > 0 else math.nan

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Chunk:
        """Return the next piece. Raises QueryError when the answer breaks; its `partial` holds what came."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            await self._news.wait()
        await trio.lowlevel.checkpoint()
        return self._chunks.popleft()

    def bookmark(self, seen: int | None = None) -> str:
        """Return what another peer is to be shown, with `Peer.claim`, for the rest of the answer, should this
        one die: all that follows the first `seen` characters of this one (None: those that have arrived).
        Empty where nobody holds it."""
        place = self._before + (len(self.text) if seen is None else seen)
        return f"{self.id}.{place}.{self.holder}" if self.holder else ""

    async def begun(self) -> None:
        """Wait for the first piece or the end. Raises QueryError when it ended badly before any piece."""
        while not self._chunks and not self._over:
            await self._news.wait()
        if self._error is not None and not self._chunks:
            raise self._error

    async def whole(self) -> Answer:
        """Wait for the end, and return this answer. Raises QueryError."""
        async for _ in self:
            pass
        return self

    def rate(self, outcome: float) -> bool:
        """Say what the whole answer was worth, from 0, worthless, to 1; 0 too where it failed your own check.
        Returns False before its end, and where it was rated already. Raises ValueError outside 0..1."""
        return self._rate(self.id, outcome)

    def put(self, outcome: e.Deliver | e.Fail) -> None:
        """Take the next thing that came of the query. For the driver."""
        if isinstance(outcome, e.Fail):
            self._fail(outcome)
        else:
            match outcome.item:
                case e.Placed(path=path):
                    self.path = path
                case e.Guarded(holder=holder):
                    self.holder = holder
                case Chunk() as chunk:
                    if chunk.attempt > self._attempt and chunk.index:
                        self.resumed = (*self.resumed, *self.path[-1:])
                    self._attempt = chunk.attempt
                    self.text += chunk.text
                    self.logprobs += chunk.logprobs
                    self.first_at = trio.current_time() if math.isnan(self.first_at) else self.first_at
                    self._chunks.append(chunk)
                case Ended() as ended:
                    self.usage, self.finish_reason = ended.usage, ended.finish_reason
                    self.model, self.path, self.receipt = ended.model, ended.path, ended.receipt
                    self._over, self.ended_at = True, trio.current_time()
        self._news.set()
        self._news = trio.Event()

    def _fail(self, fail: e.Fail) -> None:
        self._over, self.ended_at = True, trio.current_time()
        self.path = fail.path or self.path
        interrupted = bool(self.text) and fail.reason is not Reason.DEADLINE
        kind = AnswerInterrupted if interrupted else _ERRORS.get(fail.reason, NoRoute)
        self._error = kind(
            _words(fail),
            reason=fail.reason,
            query_id=self.id,
            path=tuple(hop.name for hop in self.path),
            partial=self.text,
            retry_after_s=fail.retry_after_s or None,
        )
