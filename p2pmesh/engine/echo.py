"""A model with no weights and a set speed: for tests and demos.

It says what it was asked, one word a token, and each slot keeps its speed whatever the others do. Text and
token ids depend on the prompt alone. It embeds by hashing words. It knows no pipe; its clock is given.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from p2pmesh.engine.answer import AnswerText
from p2pmesh.engine.base import (
    Embed,
    Embedded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Generated,
    Load,
    Ready,
    complaint,
    overlong,
    refused,
)
from p2pmesh.engine.embedder import HASH_DIMENSIONS, HASH_SPACE, HashEmbedder
from p2pmesh.errors import Reason
from p2pmesh.query import Message, Usage
from p2pmesh.record import ModelInfo

READS_FASTER = 8
"""It reads prompts this many times as fast as it writes, roughly as a small real model does."""
DIGEST = hashlib.sha256(b"p2pmesh echo 1").hexdigest()
"""All echoes have the same mind."""


def words(messages: tuple[Message, ...]) -> list[str]:
    """Return the tokens of the whole answer to `messages`, as text."""
    said = next((m.content for m in reversed(messages) if m.role == "user"), "")
    return ["echo:", *(f" {word}" for word in said.split())]


def token_id(word: str) -> int:
    """Return the id of a word: the same in every process."""
    return zlib.crc32(word.encode("utf-8", "replace")) & 0x7FFF_FFFF


@dataclass(eq=False)
class _Job:
    request: Generate
    answer: list[str]
    prompt_tokens: int
    text: AnswerText
    budget: int
    due: float = 0.0
    """When its next token is."""
    written: int = 0


class Echo:
    """The engine of an echo. Implements `base.Engine`."""

    def __init__(self, load: Load, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._load, self._clock = load, clock
        self._prefill_tps = READS_FASTER * load.tokens_per_s
        speeds = (self._prefill_tps, load.tokens_per_s)
        self.ready = Ready(
            ModelInfo(name, DIGEST, load.context_tokens, *speeds, load.slots), HASH_DIMENSIONS, HASH_SPACE
        )
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._vectors: deque[Embedded] = deque()

    def submit(self, request: Generate | Embed) -> list[Event]:
        """Queue a job, or say why not."""
        if len(self._waiting) + len(self._running) + len(self._vectors) >= self._load.jobs_max:
            return [refused(request.job, self._load.jobs_max)]
        if isinstance(request, Embed):
            self._vectors.append(Embedded(request.job, HashEmbedder().embed(request.texts)))
            return []
        wrong = complaint(request)
        if wrong:
            return [Failed(request.job, Reason.BAD_REQUEST, wrong)]
        length = sum(len(m.content.split()) for m in request.messages)
        if length >= self._load.context_tokens:
            return [overlong(length, self._load.context_tokens, request.job)]
        budget = min(request.options.max_tokens, self._load.context_tokens - length)
        written = len(request.accepted) or len(request.accepted_text.split())
        if written >= budget:
            return [Finished(request.job, Usage(length, written), "length")]
        text = AnswerText(request.options.stop)
        self._waiting.append(_Job(request, words(request.messages), length, text, budget, written=written))
        return []

    def abort(self, job: str) -> list[Event]:
        """End a job at once and free its slot."""
        held = (len(self._waiting), len(self._running), len(self._vectors))
        self._waiting = deque(j for j in self._waiting if j.request.job != job)
        self._running = [j for j in self._running if j.request.job != job]
        self._vectors = deque(e for e in self._vectors if e.job != job)
        ended = held != (len(self._waiting), len(self._running), len(self._vectors))
        return [Failed(job, Reason.CANCELLED)] if ended else []

    def wait_s(self) -> float | None:
        """Return the seconds until the next token is due; None: no job."""
        if self._vectors or (self._waiting and len(self._running) < self._load.slots):
            return 0.0
        if not self._running:
            return None
        return max(0.0, min(j.due for j in self._running) - self._clock())

    def metrics(self) -> None:
        """Nothing is counted."""

    def step(self) -> list[Event]:
        """Say every word that is due."""
        events: list[Event] = list(self._vectors)
        self._vectors.clear()
        now = self._clock()
        while self._waiting and len(self._running) < self._load.slots:
            job = self._waiting.popleft()
            job.due = now + job.prompt_tokens / self._prefill_tps + 1 / self._load.tokens_per_s
            self._running.append(job)
        for job in list(self._running):
            ended = False
            while not ended and job.due <= now:
                job.due += 1 / self._load.tokens_per_s
                ended = self._say(job, events)
            if ended:
                self._running.remove(job)
        return events

    def _say(self, job: _Job, events: list[Event]) -> bool:
        """Write one token. Returns whether the answer has ended."""
        reason: FinishReason | None = "stop" if job.written >= len(job.answer) else None
        if reason is None:
            word = job.answer[job.written]
            job.written += 1
            released = job.text.push(token_id(word), word.encode("utf-8", "replace"))
            self._release(job, released, events)
            if job.text.stopped:
                reason = "stop"
            elif job.written == job.budget:
                reason = "length"
        if reason is None:
            return False
        if not job.text.stopped:
            self._release(job, job.text.flush(), events)
        events.append(Finished(job.request.job, Usage(job.prompt_tokens, job.written), reason))
        return True

    def _release(self, job: _Job, released: tuple[tuple[int, ...], str], events: list[Event]) -> None:
        tokens, text = released
        if tokens:
            events.append(Generated(job.request.job, tokens, text))
