"""This peer's own work: who runs, who waits, and when the queue is served. The exact knowledge that routing
rests on.

A model takes `slots` queries at once; the rest wait here, in order of arrival, where they can still be
cancelled, expire or be handed to an idle peer for nothing. It knows models by their speed only.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from p2pmesh.config import Config
from p2pmesh.protocol.batching import Backlog, gain
from p2pmesh.protocol.events import Abort, Effect, Generate
from p2pmesh.protocol.workload import AnswerLength, work_s
from p2pmesh.query import Query, QueryId
from p2pmesh.record import Load, ModelInfo

_RUNNING_MAX = 64
"""Running queries a load lists: the codec's bound."""
_LOAD_AGE_MAX_S = 0.05
"""Seconds for which a load is not worked out anew while nothing happens here: it drains as it says."""


@dataclass
class Job:
    """A query that is served here."""

    query: Query
    model: ModelInfo
    work_s: float
    """Seconds it needs alone on an idle model."""
    tokens: int = 0
    """Written, in earlier attempts too."""
    started_at: float | None = None
    begun: bool = False
    """Whether it has written anything in this one."""


class Local:
    """The queue of one peer's models."""

    def __init__(self, config: Config, lengths: AnswerLength, out: list[Effect]) -> None:
        self._config = config.relay
        self._routing = config.routing
        self._lengths = lengths
        self._out = out
        self._models: dict[str, ModelInfo] = {}
        self._jobs: dict[QueryId, Job] = {}
        self._waiting: deque[QueryId] = deque()
        self._running: Counter[str] = Counter()
        """How many run, by model."""
        self._backlog: Backlog | None = None
        """What was left at `_at`; None: something happened since."""
        self._at = 0.0
        self._load: Load | None = None
        """As of `_load_at`; None: something happened since."""
        self._load_at = 0.0

    def describe(self, models: tuple[ModelInfo, ...]) -> list[Query]:
        """These are the models now. Returns what waits for one that went; what ran, its engine fails."""
        self._models = {model.name: model for model in models}
        self._changed()
        return [self._jobs[i].query for i in self._waiting if self._jobs[i].model.name not in self._models]

    def submit(self, query: Query, model: str, now: float) -> float | None:
        """Take `query`. Returns the seconds until its answer is expected to be whole, or None: queue full."""
        info = self._models[model]
        if self._running[model] >= info.slots and len(self._waiting) >= self._config.waiting_max:
            return None
        written = 0 if query.accepted is None else len(query.accepted.tokens)
        job = Job(query, info, work_s(query, info, self._routing, self._lengths), written)
        eta = self.backlog(now).finish_s(job.work_s)
        self._jobs[query.id] = job
        self._waiting.append(query.id)
        self._changed()
        self._start(now)
        return eta

    def digest(self, model: str) -> str:
        """Return the digest of the model called `model`."""
        return self._models[model].digest

    def abort(self, query_id: QueryId, attempt: int) -> None:
        """Nobody waits for it."""
        job = self._jobs.get(query_id)
        if job is not None and job.started_at is not None:
            self._out.append(Abort(query_id, attempt))
        self.finished(query_id)

    def progressed(self, query_id: QueryId, tokens: int) -> None:
        """It wrote `tokens` more."""
        job = self._jobs[query_id]
        job.tokens, job.begun = job.tokens + tokens, True
        self._changed()

    def finished(self, query_id: QueryId) -> Job | None:
        """It is over, well or badly. Returns what it was; `advance` starts the next."""
        job = self._jobs.pop(query_id, None)
        if job is None:
            return None
        self._changed()
        if job.started_at is None:
            self._waiting.remove(query_id)
        else:
            self._running[job.model.name] -= 1
        return job

    def advance(self, now: float) -> None:
        """Start what there is a slot for."""
        self._start(now)

    def waiting(self) -> list[Job]:
        """Return what waits for a slot, the first to start first."""
        return [self._jobs[query_id] for query_id in self._waiting]

    @property
    def idle(self) -> bool:
        """Whether a slot is free and nothing waits for one."""
        return not self._waiting and self._free_slots() > 0

    def backlog(self, now: float) -> Backlog:
        """Return what is left of all that was taken."""
        if self._backlog is None:
            running = [job for job in self._jobs.values() if job.started_at is not None]
            left = tuple(self._left_s(job, now) for job in running)
            waiting = tuple(self._jobs[i].work_s for i in self._waiting)
            self._backlog = Backlog(left, waiting, sum(m.slots for m in self._models.values()))
            self._at = now
        elapsed = now - self._at
        if elapsed <= 0 or not self._backlog.running:
            return self._backlog
        # A slot is free when its query has ended, whatever was expected of it.
        count = len(self._backlog.running)
        share = elapsed * gain(count) / count
        left = tuple(max(0.0, work - share) for work in self._backlog.running)
        return Backlog(left, self._backlog.waiting, self._backlog.slots)

    def remaining_s(self, now: float) -> float:
        """Return the seconds until everything taken is served."""
        return self.backlog(now).drain_s()

    def load(self, now: float) -> Load:
        """Return how busy this peer is, or was at most `_LOAD_AGE_MAX_S` ago."""
        if self._load is not None and (not self._jobs or now - self._load_at < _LOAD_AGE_MAX_S):
            return self._load
        backlog = self.backlog(now)
        self._load_at = now
        self._load = Load(
            remaining_s=backlog.drain_s(),
            free_slots=self._free_slots(),
            queued=len(self._waiting),
            running=tuple(round(work, 2) for work in backlog.running[:_RUNNING_MAX]),
            waiting_s=sum(backlog.waiting),
        )
        return self._load

    def _changed(self) -> None:
        self._backlog = self._load = None

    def _left_s(self, job: Job, now: float) -> float:
        """Seconds of its work that are left, told by the tokens it has written."""
        assert job.started_at is not None
        decode_s = 1.0 / max(job.model.decode_tps, 1e-3)
        answer_s = decode_s * self._lengths.left(job.query.options.max_tokens, job.tokens)
        if job.begun:
            return answer_s
        return max(answer_s, job.work_s - (now - job.started_at))

    def _free_slots(self) -> int:
        return sum(max(0, m.slots - self._running[m.name]) for m in self._models.values())

    def _start(self, now: float) -> None:
        for query_id in list(self._waiting):
            job = self._jobs[query_id]
            model = self._models.get(job.model.name)  # as it is now: it has no slots while it is restarted
            if model is not None and self._running[model.name] < model.slots:
                self._waiting.remove(query_id)
                job.started_at = now
                self._running[model.name] += 1
                self._changed()
                self._out.append(Generate(job.query, job.model.name))
