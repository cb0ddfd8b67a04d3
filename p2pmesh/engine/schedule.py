"""Who runs when: jobs wait for a slot, share every step, and leave it the moment they end.

Continuous batching over `engine.batch`, which it is given. It knows no pipe and no process. One
step decodes one token of every running answer and one chunk of the oldest unread prompt; a job that fails,
ends or is aborted frees its slot without touching the others.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from p2pmesh.engine.answer import AnswerText
from p2pmesh.engine.base import (
    Embed,
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
from p2pmesh.engine.batch import Context, Model, Part, Sampler, Tokens
from p2pmesh.engine.calibrate import PREFILL_TOKENS, Speed, cpu_clock, measure
from p2pmesh.engine.grammar import SchemaError, gbnf
from p2pmesh.engine.template import Template
from p2pmesh.errors import EngineError, ModelLoadError, Reason
from p2pmesh.query import LOGPROBS_BYTES_MAX, Message, TokenLogprobs, Usage
from p2pmesh.record import ModelInfo

PREFIX_TOKENS_MAX = 512
"""Longest beginning that is kept for the next prompt, in tokens: a system prompt, not a conversation."""
PREFIX_TOKENS_MIN = 8
"""Shortest beginning worth keeping, in tokens."""
FAILURES_MAX = 3
"""Steps in a row in which nothing could be decoded, after which the engine gives itself up."""


@dataclass(eq=False)
class _Job:
    id: str
    prompt: Tokens
    budget: int
    """Most tokens it may write."""
    request: Generate
    text: AnswerText
    grammar: str = ""
    """What the answer must follow, as GBNF; empty: nothing."""
    slot: int = -1
    sampler: Sampler | None = None
    position: int = 0
    """Tokens of it that the context holds."""
    last: int = -1
    """The token to decode next; -1 while the prompt is being read."""
    written: int = 0
    accepted: int = 0
    """Tokens of the answer that stand at the end of the prompt: an earlier attempt wrote them."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the tokens that are held back, where asked for."""
    known: int = 0
    """Tokens of its prompt that an earlier prompt shares: where the common prefix is taken."""

    @property
    def cells(self) -> int:
        return len(self.prompt) + self.budget


class Schedule:
    """The engine of a generating model. Implements `base.Engine`."""

    def __init__(self, model: Model, context: Context, load: Load, ready: Ready, *, cells: int) -> None:
        """`context` has `load.slots` + 1 sequences and `PREFIX_TOKENS_MAX` tokens more room than `cells`."""
        self.ready = ready
        self._model, self._context, self._load = model, context, load
        self._context_tokens = ready.info.context_tokens
        self._room = cells
        self._free = list(range(load.slots))[::-1]
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._template = Template(
            model.template, bos=model.control_text(model.bos), eos=model.control_text(model.eos)
        )
        self._prefix: Tokens = np.empty(0, np.int32)
        self._prefix_slot = load.slots
        self._recent: Tokens = np.empty(0, np.int32)
        """The prompt admitted last: what two in a row have in common becomes the prefix."""
        self._failures = 0

    # ---------------------------------------------------------------- jobs

    def submit(self, request: Generate | Embed) -> list[Event]:
        """Queue a job, or say why not."""
        if isinstance(request, Embed):
            return [Failed(request.job, Reason.BAD_REQUEST, "this model answers and does not embed")]
        wrong = complaint(request)
        if wrong:
            return [Failed(request.job, Reason.BAD_REQUEST, wrong)]
        if len(self._waiting) + len(self._running) >= self._load.jobs_max:
            return [refused(request.job, self._load.jobs_max)]
        prompt = np.array(self.prompt_tokens(request.messages), np.int32)
        if len(prompt) >= self._context_tokens:
            return [overlong(len(prompt), self._context_tokens, request.job)]
        accepted = self._accepted(request)
        if accepted is None:
            return [Failed(request.job, Reason.BAD_REQUEST, "it cannot go on after tokens it does not have")]
        unkept, grammar = self._grammar(request)
        if unkept:
            return [Failed(request.job, Reason.BAD_REQUEST, unkept)]
        budget = min(request.options.max_tokens, self._context_tokens - len(prompt)) - len(accepted)
        if budget <= 0:  # whoever wrote it was lost before it could say that this is all
            return [Finished(request.job, Usage(len(prompt), len(accepted)), "length")]
        stop = request.options.stop if self._template.own else (*request.options.stop, "<|im_end|>")
        job = _Job(request.job, prompt, budget, request, AnswerText(stop), grammar)
        job.prompt, job.accepted = np.concatenate([prompt, accepted]), len(accepted)
        self._waiting.append(job)
        return []

    def _accepted(self, request: Generate) -> Tokens | None:
        """Return what it is to go on after, in our tokens; None: some are none of ours."""
        ids = request.accepted or self._model.tokenize(request.accepted_text, control=False)
        tokens = np.array(ids, np.int64)
        return tokens.astype(np.int32) if (tokens < self._model.tokens).all() else None

    def _grammar(self, request: Generate) -> tuple[str, str]:
        """Return what of a request this model cannot keep, and the grammar of its answer; "" for none."""
        bad = next((token for token, _ in request.options.logit_bias if token >= self._model.tokens), None)
        if bad is not None:
            return (
                f"logit_bias names token {bad}, and this model has {self._model.tokens}: name the model",
                "",
            )
        try:
            return "", gbnf(request.options.schema) if request.options.schema else ""
        except SchemaError as error:
            return f"the JSON schema is refused: {error}", ""

    def prompt_tokens(self, messages: tuple[Message, ...]) -> list[int]:
        """Return the whole prompt in tokens. What people wrote never becomes a control token."""
        tokens: list[int] = []
        for piece in self._template.render(messages):
            tokens += self._model.tokenize(piece.text, control=not piece.spoken)
        if self._model.add_bos and tokens[:1] != [self._model.bos]:
            tokens.insert(0, self._model.bos)
        return tokens

    def abort(self, job: str) -> list[Event]:
        """End a job at once and free its slot."""
        for found in [j for j in (*self._waiting, *self._running) if j.id == job]:
            self._leave(found)
            return [Failed(job, Reason.CANCELLED)]
        return []

    def wait_s(self) -> float | None:
        """There is work whenever there is a job."""
        return 0.0 if self._running or self._waiting else None

    def _leave(self, job: _Job) -> None:
        if job.slot < 0:
            self._waiting.remove(job)
            return
        self._running.remove(job)
        self._context.forget(job.slot)
        self._free.append(job.slot)
        self._room += job.cells
        if job.sampler is not None:
            job.sampler.close()

    # ---------------------------------------------------------------- steps

    def step(self) -> list[Event]:
        """Decode one batch and return what came of it."""
        events: list[Event] = []
        self._admit(events)
        parts = self._assemble()
        if not parts:
            return events
        lost = self._decode(parts, events)
        self._failures = self._failures + 1 if lost == len(parts) else 0
        if self._failures >= FAILURES_MAX:
            raise EngineError(f"{FAILURES_MAX} batches in a row could not be decoded")
        return events

    def _admit(self, events: list[Event]) -> None:
        """Give slots to the oldest jobs. Room is set aside for all a job may write, so that none starves."""
        while self._waiting and self._free and self._waiting[0].cells <= self._room:
            job = self._waiting.popleft()
            options = job.request.options
            seed = options.seed if options.seed is not None else secrets.randbits(31)
            accepted = job.prompt[len(job.prompt) - job.accepted :]
            try:
                job.sampler = Sampler(self._model, options, seed, job.grammar, accepted)
            except ValueError as error:
                events.append(Failed(job.id, Reason.BAD_REQUEST, str(error)))
                continue
            job.slot = self._free.pop()
            self._room -= job.cells
            self._running.append(job)
            # Attention is summed in the order of the cells, so a prompt read in other pieces may move the
            # last bit. Who sets a seed wants the same text again: that prompt is always read whole.
            if self._model.sliceable and options.seed is None:
                self._reuse(job)

    def _reuse(self, job: _Job) -> None:
        """Take the kept prefix over, and note how far this prompt agrees with the one before it."""
        # The last token is always read anew: its logits are wanted.
        end = min(_common(job.prompt, self._prefix), len(job.prompt) - 1)
        if end >= PREFIX_TOKENS_MIN:
            self._context.share(self._prefix_slot, job.slot, end)
            job.position = end
        common = min(_common(job.prompt, self._recent), len(job.prompt) - 1, PREFIX_TOKENS_MAX)
        # A longer prefix gives way only to one that serves this prompt better.
        job.known = common if common >= PREFIX_TOKENS_MIN and common > end else 0
        self._recent = job.prompt

    def _assemble(self) -> list[tuple[_Job, Part]]:
        parts = [
            (job, Part(job.slot, job.position, np.array([job.last], np.int32), True))
            for job in self._running
            if job.last >= 0
        ]
        room = min(self._load.prefill_chunk, self._context.batch_tokens - len(parts))
        for job in self._running:
            if job.last < 0 and room > 0:
                end = min(job.position + room, len(job.prompt))
                chunk = job.prompt[job.position : end]
                parts.append((job, Part(job.slot, job.position, chunk, end == len(job.prompt))))
                room -= len(chunk)
        return parts

    def _decode(self, parts: list[tuple[_Job, Part]], events: list[Event]) -> int:
        """Decode `parts` together; when that fails, each alone. Returns how many failed alone."""
        code = self._context.decode([part for _, part in parts])
        if code == 0:
            for job, part in parts:
                job.position += len(part.tokens)
                self._keep_prefix(job)
            for job, part in parts:
                if part.wanted:
                    self._accept(job, part.row, events)
            return 0
        for _, part in parts:
            self._context.forget(part.sequence, part.start)
        if len(parts) == 1:
            job = parts[0][0]
            self._leave(job)
            detail = f"the model could not go on after {job.position} tokens (llama_decode said {code})"
            events.append(Failed(job.id, Reason.ENGINE_FAILED, detail))
            return 1
        return sum(self._decode([part], events) for part in parts)

    def _keep_prefix(self, job: _Job) -> None:
        """Keep what this prompt had in common with the last one, once it has been read."""
        if job.known and job.position >= job.known:
            self._context.forget(self._prefix_slot)
            self._context.share(job.slot, self._prefix_slot, job.known)
            self._prefix, job.known = job.prompt[: job.known], 0

    def _accept(self, job: _Job, row: int, events: list[Event]) -> None:
        assert job.sampler is not None
        token = self._context.sample(job.sampler, row)
        if token < 0:
            self._leave(job)
            # Nobody's engine is at fault: another of the same model could not either.
            detail = "the schema demands characters that this model's vocabulary cannot spell"
            events.append(Failed(job.id, Reason.BAD_REQUEST, detail))
            return
        if self._model.ends(token):
            self._finish(job, "stop", events)
            return
        if (top := job.request.options.logprobs) is not None:
            job.logprobs.append(self._context.logprobs(self._model, token, row, top))
        job.last = token
        job.written += 1
        self._say(job, job.text.push(token, self._model.piece(token)), events)
        if job.text.stopped:
            self._finish(job, "stop", events)
        elif job.written >= job.budget:
            self._finish(job, "length", events)

    def _finish(self, job: _Job, reason: FinishReason, events: list[Event]) -> None:
        if not job.text.stopped:
            self._say(job, job.text.flush(), events)
        self._leave(job)
        usage = Usage(len(job.prompt) - job.accepted, job.accepted + job.written)
        events.append(Finished(job.id, usage, reason))

    def _say(self, job: _Job, released: tuple[tuple[int, ...], str], events: list[Event]) -> None:
        tokens, text = released
        if tokens:
            told, job.logprobs = job.logprobs[: len(tokens)], job.logprobs[len(tokens) :]
            events.append(Generated(job.id, tokens, text, _within_a_chunk(told)))


def _within_a_chunk(logprobs: list[TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    """Leave out the likeliest of the last tokens where a chunk could not carry them all."""
    room, told = LOGPROBS_BYTES_MAX - sum(6 + len(token.spelled) for token in logprobs), []
    for token in logprobs:
        room -= sum(5 + len(spelled) for spelled, _ in token.top)
        told.append(token if room >= 0 else replace(token, top=()))
    return tuple(told)


def _common(a: Tokens, b: Tokens) -> int:
    """Return how many tokens `a` and `b` begin with alike."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def open_schedule(load: Load, name: str, digest: str) -> Schedule:
    """Load a model, measure its speed and return it ready for jobs. Raises `ModelLoadError`."""
    model = Model(load.path, load.gpu_layers)
    context_tokens = min(load.context_tokens, model.train_tokens or load.context_tokens)
    # Few answers fill their context: room for a quarter of the slots to do so keeps the memory small.
    cells = context_tokens * max(1, load.slots // 4)
    context = Context(
        model,
        sequences=load.slots + 1,
        cells=cells + PREFIX_TOKENS_MAX,
        batch_tokens=load.slots + max(load.prefill_chunk, PREFILL_TOKENS),
        threads=load.threads,
    )
    speed = _measure(context, load)
    info = ModelInfo(name, digest, context_tokens, speed.prefill_tps, speed.decode_tps, load.slots)
    return Schedule(model, context, load, Ready(info), cells=cells)


def _measure(context: Context, load: Load) -> Speed:
    position = 0

    def run(tokens: int) -> None:
        nonlocal position
        # Which tokens is all the same to the speed; 0 is in every vocabulary.
        if context.decode([Part(0, position, np.zeros(tokens, np.int32), True)]):
            raise ModelLoadError("the model loads but does not run")
        position += tokens

    run(1)  # the first decode allocates
    # On a GPU the work is not the CPU's, and the wall clock is the nearest thing.
    clock = time.monotonic if load.gpu_layers else cpu_clock(load.threads)
    speed = measure(run, lambda: run(1), clock)
    context.clear()
    return speed
