"""Texts become directions: an embedding model that packs the texts of all jobs into batches.

The engine of an embedder, over `engine.batch`. It knows no pipe, no process and no clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from p2pmesh.engine.base import Embed, Embedded, Event, Failed, Generate, Load, Ready, refused
from p2pmesh.engine.batch import EMBED_TOKENS_MAX, Context, Model, Part
from p2pmesh.engine.calibrate import cpu_clock, measure
from p2pmesh.errors import ModelLoadError, Reason
from p2pmesh.record import ModelInfo

TEXT_TOKENS_MAX = 256
"""Most tokens of one text; the rest is cut. What all-MiniLM-L6-v2 was trained on."""
SEQUENCES = 16
"""Most texts in one batch."""


@dataclass(eq=False)
class _Job:
    id: str
    left: deque[list[int]]
    """Texts not yet embedded, as tokens."""
    done: list[NDArray[np.float32]] = field(default_factory=list)


class Vectors:
    """The engine of an embedding model. Implements `base.Engine`."""

    def __init__(self, model: Model, context: Context, load: Load, ready: Ready) -> None:
        self.ready = ready
        self._model, self._context, self._load = model, context, load
        self._jobs: deque[_Job] = deque()

    def submit(self, request: Generate | Embed) -> list[Event]:
        """Queue a job, or say why not."""
        if isinstance(request, Generate):
            return [Failed(request.job, Reason.BAD_REQUEST, "this model embeds and does not answer")]
        if len(self._jobs) >= self._load.jobs_max:
            return [refused(request.job, self._load.jobs_max)]
        self._jobs.append(_Job(request.job, deque(self._tokens(t) for t in request.texts)))
        return []

    def _tokens(self, text: str) -> list[int]:
        # A token is at least one byte, so longer texts need not be read to be cut.
        tokens = self._model.tokenize(text[: 32 * TEXT_TOKENS_MAX], control=False, specials=True)
        limit = min(TEXT_TOKENS_MAX, self._load.context_tokens)
        # The closing [SEP] stays.
        return tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]

    def abort(self, job: str) -> list[Event]:
        """Drop a job."""
        for found in [j for j in self._jobs if j.id == job]:
            self._jobs.remove(found)
            return [Failed(job, Reason.CANCELLED)]
        return []

    def wait_s(self) -> float | None:
        """There is work whenever there is a job."""
        return 0.0 if self._jobs else None

    def metrics(self) -> None:
        """Nothing is counted."""

    def step(self) -> list[Event]:
        """Embed one batch of texts, oldest jobs first."""
        batch: list[tuple[_Job, Part]] = []
        room = self._context.batch_tokens
        for job in self._jobs:
            while job.left and len(batch) < SEQUENCES and len(job.left[0]) <= room:
                tokens = np.array(job.left.popleft(), np.int32)
                batch.append((job, Part(len(batch), 0, tokens, True)))
                room -= len(tokens)
            if job.left:
                break
        code = self._context.decode([part for _, part in batch]) if batch else 0
        for job, part in batch:
            if code == 0:
                job.done.append(self._context.vector(part.sequence))
        return [self._end(job, code) for job in dict.fromkeys(j for j, _ in batch) if code or not job.left]

    def _end(self, job: _Job, code: int) -> Event:
        self._jobs.remove(job)
        if code:
            return Failed(job.id, Reason.ENGINE_FAILED, f"the text could not be embedded ({code})")
        return Embedded(job.id, np.stack(job.done))


def open_vectors(load: Load, name: str, digest: str) -> Vectors:
    """Load an embedding model, measure its speed and return it ready for jobs. Raises `ModelLoadError`."""
    model = Model(load.path, load.gpu_layers)
    limit = min(load.context_tokens, TEXT_TOKENS_MAX, model.train_tokens or TEXT_TOKENS_MAX)
    context = Context(
        model,
        sequences=SEQUENCES,
        tokens=EMBED_TOKENS_MAX // SEQUENCES,
        batch_tokens=EMBED_TOKENS_MAX,
        threads=load.threads,
        pooled=True,
    )

    def run(tokens: int) -> None:
        if context.decode([Part(0, 0, np.full(tokens, max(model.bos, 0), np.int32), True)]):
            raise ModelLoadError("the model loads but does not embed")

    run(1)  # the first decode allocates
    speed = measure(run, lambda: run(1), cpu_clock(load.threads))
    info = ModelInfo(name, digest, limit, speed.prefill_tps, speed.decode_tps, SEQUENCES)
    return Vectors(model, context, load, Ready(info, model.dimensions, name))
