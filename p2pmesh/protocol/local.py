"""This peer's own work: who runs, who waits, and when the queue is served. The exact knowledge that routing
rests on.

A model takes `slots` queries at once; the rest wait here, in order of arrival, where they can still be
cancelled, expire or be handed to an idle peer for nothing. It knows models by their speed only, learns from
what they write how fast they really are, and keeps account of the conversations that they have in their
caches.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from p2pmesh.config import Config
from p2pmesh.protocol.batching import Backlog, Pace, gain
from p2pmesh.protocol.events import Abort, Effect, Generate
from p2pmesh.protocol.workload import AnswerLength, Remembered, salted, work_s
from p2pmesh.query import Query, QueryId
from p2pmesh.record import GENERAL, HELD_MAX, Load, ModelInfo

_RUNNING_MAX = 64
"""Running queries a load lists: the codec's bound."""
_LOAD_AGE_MAX_S = 0.05
"""Seconds for which a load is not worked out anew while nothing happens here: it drains as it says."""
_AWAY_S = 1.25
"""Seconds without a call that tell nothing of the models: who is linked and not stopped is called every
second, by the probes."""
_PACE_STEP = 1.1
"""Times by which the pace must have moved before all is reckoned by it anew. A guess: half of what is told.
"""
_AS_SAID = 1.05
"""Times by which the pace may miss what the models say of themselves and still be what they say. A guess."""


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
    mark: float | None = None
    """What `Local._given` was when its last piece came; None: it has none yet, or a prompt was read since."""
    piece_s: float = 0.0
    """Seconds of work of its last piece."""


class Local:
    """The queue of one peer's models."""

    def __init__(self, config: Config, lengths: AnswerLength, out: list[Effect]) -> None:
        self._config = config.relay
        self._routing = config.routing
        self.lengths = lengths
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
        self.pace = 1.0
        """How many times as fast as they say its models are: all work is reckoned by it."""
        self._measured = Pace()
        self._paced_at = 0.0
        """When `pace` was last held against what was measured."""
        self._given = 0.0
        """Seconds of work that one that ran since the start would have got by `_given_at`."""
        self._given_at = 0.0
        self._sharing = 0
        """How many have run since `_given_at`."""
        self._reading = 0
        """How many of those that run have written nothing yet."""
        self._pieces: list[tuple[Job, int]] = []
        """Tokens that came since `_given_at`."""
        self._held: dict[bytes, tuple[str, bool]] = {}
        """Keys of the prompts that the models have in their caches, the least recent first: which model, and
        whether others may know."""

    def describe(self, models: tuple[ModelInfo, ...]) -> list[Query]:
        """These are the models now. Returns what waits for one that went; what ran, its engine fails."""
        before, self._models = self._models, {model.name: model for model in models}
        for name, old in before.items():
            new = self._models.get(name)
            if new is None or not new.slots or (new.digest, new.prefixes) != (old.digest, old.prefixes):
                self._held = {key: which for key, which in self._held.items() if which[0] != name}
            if new is not None and (new.prefill_tps, new.decode_tps) != (old.prefill_tps, old.decode_tps):
                self._measured, self.pace = Pace(), 1.0  # it has measured itself anew
        self._changed()
        return [self._jobs[i].query for i in self._waiting if self._jobs[i].model.name not in self._models]

    def submit(self, query: Query, model: str, now: float) -> float | None:
        """Take `query`. Returns the seconds until its answer is expected to be whole, or None: queue full."""
        info = self._models[model]
        if self._running[model] >= info.slots and len(self._waiting) >= self._config.waiting_max:
            return None
        written = 0 if query.accepted is None else len(query.accepted.tokens)
        job = Job(query, info, self._work_s(query, info), written)
        eta = self.backlog(now).finish_s(job.work_s / self.pace)
        self._jobs[query.id] = job
        self._waiting.append(query.id)
        self._changed()
        self._start(now)
        return eta

    def digest(self, model: str) -> str:
        """Return the digest of the model called `model`."""
        return self._models[model].digest

    def abort(self, query_id: QueryId, attempt: int) -> Job | None:
        """Nobody waits for it. Returns what it was."""
        job = self._jobs.get(query_id)
        if job is not None and job.started_at is not None:
            self._out.append(Abort(query_id, attempt))
        return self.finished(query_id)

    def progressed(self, query_id: QueryId, tokens: int) -> None:
        """It wrote `tokens` more."""
        job = self._jobs[query_id]
        if not job.begun:
            self._reading -= 1
        job.tokens, job.begun = job.tokens + tokens, True
        self._pieces.append((job, tokens))
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
            if not job.begun:
                self._reading -= 1
                self._forget(job)
        return job

    def advance(self, now: float) -> None:
        """Start what there is a slot for."""
        self._start(now)
        if self._load is None or now - self._given_at >= _LOAD_AGE_MAX_S:  # most events are none of ours
            self._settle(now)

    @property
    def held(self) -> Collection[bytes]:
        """The keys of all prompts that the models have in their caches: for this peer's own eyes."""
        return self._held.keys()

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
            waiting = tuple(self._jobs[i].work_s / self.pace for i in self._waiting)
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
            held=tuple(islice((k for k, (_, told) in reversed(self._held.items()) if told), HELD_MAX)),
            pace=self.pace,
        )
        return self._load

    def _changed(self) -> None:
        self._backlog = self._load = None

    def _left_s(self, job: Job, now: float) -> float:
        """Seconds of its work that are left, told by the tokens it has written."""
        assert job.started_at is not None
        decode_s = 1.0 / max(job.model.decode_tps, 1e-3)
        answer_s = decode_s * self.lengths.left(job.query.options.max_tokens, job.tokens) / self.pace
        if job.begun:
            return answer_s
        return max(answer_s, job.work_s / self.pace - (now - job.started_at))

    def _work_s(self, query: Query, model: ModelInfo) -> float:
        held = Remembered(query, self._routing).tokens(model.name, self._held)
        return work_s(query, model, self._routing, self.lengths, held)

    def _free_slots(self) -> int:
        return sum(max(0, m.slots - self._running[m.name]) for m in self._models.values())

    def _start(self, now: float) -> None:
        for query_id in list(self._waiting):
            job = self._jobs[query_id]
            model = self._models.get(job.model.name)  # as it is now: it has no slots while it is restarted
            if model is not None and self._running[model.name] < model.slots:
                self._settle(now)
                self._waiting.remove(query_id)
                job.started_at = now
                job.work_s = self._work_s(job.query, model)  # what is in the cache may have changed since
                self._running[model.name] += 1
                self._sharing += 1
                self._reading += 1
                for other in self._jobs.values():
                    other.mark = None
                self._remember(job, model)
                self._changed()
                self._out.append(Generate(job.query, job.model.name))

    # -- what the models have in their caches ---------------------------------------------------------

    def _remember(self, job: Job, model: ModelInfo) -> None:
        """The whole prompt of `job` is the most recent that `model` has in its cache."""
        if not model.prefixes or not job.query.prefixes:
            return
        key = salted(job.query.prefixes[-1][0], model.name)
        self._held.pop(key, None)
        # Whoever can guess a prompt could look for its key: that of a zone's query is told to nobody.
        self._held[key] = model.name, job.query.zone == GENERAL
        its = [key for key, (name, _) in self._held.items() if name == model.name]
        for key in its[: -model.prefixes]:
            del self._held[key]

    def _forget(self, job: Job) -> None:
        """It ended before its prompt was read."""
        if self._held and job.query.prefixes:
            self._held.pop(salted(job.query.prefixes[-1][0], job.model.name), None)

    # -- how fast they are ----------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Hold the tokens that came against the work that was due since the last ones.

        All that run are due an equal share of what a batch of them does. Only pieces between which nobody
        read a prompt count: a model that reads writes slowly, and how long a prompt is, is a guess. So the
        time to a first token is left out, and the pace is that of writing.
        """
        elapsed = now - self._given_at
        if elapsed > _AWAY_S and self._sharing:
            for job in self._jobs.values():
                job.mark = None
        elif elapsed > 0 and self._sharing:
            self._given += elapsed * gain(self._sharing) / self._sharing
        elif elapsed > 0:
            self._measured.rested(elapsed)
        self._given_at, self._sharing = now, sum(self._running.values())
        for job, tokens in self._pieces:
            model = self._models.get(job.model.name, job.model)
            job.piece_s = tokens / max(model.decode_tps, 1e-3)
            if job.mark is not None:
                self._measured.measured(job.piece_s, self._given - job.mark, now)
            job.mark = None if self._reading else self._given
        if self._pieces or now - self._paced_at >= _LOAD_AGE_MAX_S:
            self._paced_at = now
            self._keep_pace()
        self._pieces.clear()

    def _keep_pace(self) -> None:
        """Reckon by the pace as it was measured, where that has moved. A piece that should have been here is
        taken to come now: a model that is stuck is known before it writes again."""
        done_s = due_s = 0.0
        for job in self._jobs.values():
            if job.mark is not None:
                done_s, due_s = done_s + job.piece_s, due_s + self._given - job.mark
        pace = min(self._measured.value, self._measured.at_best(done_s, due_s))
        if 1.0 / _AS_SAID <= pace <= _AS_SAID:
            pace = 1.0
        elif 1.0 / _PACE_STEP <= pace / self.pace <= _PACE_STEP:
            return
        if pace != self.pace:
            self.pace = round(pace, 3)
            self._changed()
