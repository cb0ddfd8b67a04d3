"""This peer's own work: who runs, who waits, and when the queue is served. The exact knowledge that routing
rests on.

A model takes `slots` queries at once; the rest wait here, in order of arrival, where they can still be
cancelled or expire for nothing. It knows models by their speed only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from p2pmesh.config import Config
from p2pmesh.protocol.events import Abort, Effect, Generate
from p2pmesh.protocol.routing import ANSWER_TOKENS_TYPICAL
from p2pmesh.query import Query, QueryId
from p2pmesh.record import Load, ModelInfo

_BATCH_GAIN_PER_QUERY = 0.115
_BATCH_GAIN_MAX = 1.8
"""A batch of n decodes 1 + 0.115 (n - 1) times as fast as one alone, up to 1.8 times at 8 (measured on
SmolLM2-135M Q8_0)."""


@dataclass
class Job:
    """A query that is served here."""

    query: Query
    model: ModelInfo
    work_s: float
    """Seconds it needs alone on an idle model."""
    started_at: float | None = None
    tokens: int = 0

    def left_s(self, now: float) -> float:
        """Seconds of its work that are left, told by the tokens it has written."""
        if self.started_at is None:
            return self.work_s
        decode_s = 1.0 / max(self.model.decode_tps, 1e-3)
        if not self.tokens:
            prefill_s = max(0.0, self.work_s - decode_s * ANSWER_TOKENS_TYPICAL)
            return max(self.work_s - prefill_s, self.work_s - (now - self.started_at))
        expected = min(self.query.options.max_tokens, max(ANSWER_TOKENS_TYPICAL, self.tokens + 16))
        return decode_s * max(0, expected - self.tokens)


class Local:
    """The queue of one peer's models."""

    def __init__(self, config: Config, out: list[Effect]) -> None:
        self._config = config.relay
        self._out = out
        self._models: dict[str, ModelInfo] = {}
        self._jobs: dict[QueryId, Job] = {}
        self._waiting: deque[QueryId] = deque()

    def describe(self, models: tuple[ModelInfo, ...]) -> list[Query]:
        """These are the models now. Returns what waits for one that went; what ran, its engine fails."""
        self._models = {model.name: model for model in models}
        return [self._jobs[i].query for i in self._waiting if self._jobs[i].model.name not in self._models]

    def submit(self, query: Query, model: str, work_s: float, now: float) -> float | None:
        """Take `query`. Returns the seconds until its answer is expected to be whole, or None: queue full."""
        info = self._models[model]
        if self._running(model) >= info.slots and len(self._waiting) >= self._config.waiting_max:
            return None
        eta = self.remaining_s(now) + work_s
        self._jobs[query.id] = Job(query, info, work_s)
        self._waiting.append(query.id)
        self._start(now)
        return eta

    def abort(self, query_id: QueryId, attempt: int) -> None:
        """Nobody waits for it."""
        job = self._jobs.get(query_id)
        if job is not None and job.started_at is not None:
            self._out.append(Abort(query_id, attempt))
        self.finished(query_id)

    def progressed(self, query_id: QueryId, tokens: int, now: float) -> None:
        """It wrote `tokens` more."""
        self._jobs[query_id].tokens += tokens

    def finished(self, query_id: QueryId) -> ModelInfo | None:
        """It is over, well or badly. Returns the model that had it; `advance` starts the next."""
        job = self._jobs.pop(query_id, None)
        if job is None:
            return None
        if job.started_at is None:
            self._waiting.remove(query_id)
        return job.model

    def advance(self, now: float) -> None:
        """Start what there is a slot for."""
        self._start(now)

    def remaining_s(self, now: float) -> float:
        """Seconds until everything taken is served."""
        if not self._jobs:
            return 0.0
        running = sum(1 for job in self._jobs.values() if job.started_at is not None)
        gain = min(_BATCH_GAIN_MAX, 1.0 + _BATCH_GAIN_PER_QUERY * max(0, running - 1))
        return sum(job.left_s(now) for job in self._jobs.values()) / gain

    def load(self, now: float) -> Load:
        """How busy this peer is."""
        free = sum(max(0, m.slots - self._running(m.name)) for m in self._models.values())
        return Load(self.remaining_s(now), free, len(self._waiting))

    def _running(self, model: str) -> int:
        return sum(1 for j in self._jobs.values() if j.model.name == model and j.started_at is not None)

    def _start(self, now: float) -> None:
        for query_id in list(self._waiting):
            job = self._jobs[query_id]
            model = self._models.get(job.model.name)  # as it is now: it has no slots while it is restarted
            if model is not None and self._running(model.name) < model.slots:
                self._waiting.remove(query_id)
                job.started_at = now
                self._out.append(Generate(job.query, job.model.name))
