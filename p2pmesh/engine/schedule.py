"""Who runs when: jobs wait for a slot, share every step, and leave it the moment they end.

Continuous batching over `engine.batch`, which it is given. It knows no pipe and no process. One step decodes
one token of every running answer, the oldest short prompts as far as they fit into a chunk, and a small piece
of a long one; a job that fails, ends or is aborted frees its slot without touching the others.
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
    Metrics,
    Ready,
    complaint,
    overlong,
    refused,
)
from p2pmesh.engine.batch import Context, Model, Part, Sampler, Tokens
from p2pmesh.engine.calibrate import Speed
from p2pmesh.engine.grammar import SchemaError, gbnf
from p2pmesh.engine.meter import Meter
from p2pmesh.engine.prefixes import TOKENS_MIN, Prefixes, common
from p2pmesh.engine.template import Template
from p2pmesh.errors import EngineError, Reason
from p2pmesh.query import LOGPROBS_BYTES_MAX, Message, TokenLogprobs, Usage

REPLAY_S = 1.0
"""Seconds that it may take to read an answer that goes on one token at a time, as it was written: rows that
are multiplied together round unlike single ones, and a near-tie then falls the other way (measured: of 20
answers that went on 9 differed, and so none). Longer ones are read as prompts are, four times as fast."""
BESIDE_SHARE = 0.5
"""Share of a step's time that may go to a long prompt while others write: their tokens then come at two
thirds of their pace, and not once in half a second (measured: gaps grew tenfold). Of quick steps more:
`meter.UNSEEN_GAP_S`."""
BESIDE_TOKENS_MIN = 4
"""Fewest tokens of a long prompt read in a step: it must come to its end. Beside a single answer that is what
is read of it. A guess."""
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
    long: bool = False
    """Whether its prompt takes several steps to read, in which others' answers must not stall."""
    replayed: bool = False
    """Whether those are read one by one, as they were written."""
    leader: _Job | None = None
    """One that is about to read the same beginning: this one waits, and takes it over."""
    shared: int = 0
    """Tokens of that beginning."""
    came_at: float = 0.0
    said: list[int] = field(default_factory=list)
    """Tokens written and decoded: with the prompt, what its sequence holds."""


class Schedule:
    """The engine of a generating model. Implements `base.Engine`."""

    def __init__(
        self,
        model: Model,
        context: Context,
        load: Load,
        ready: Ready,
        token_bytes: int = 1,
        rows_alone: int = 1,
    ) -> None:
        """`context` has `load.slots` sequences with room for `ready.info.context_tokens` each, which take
        `token_bytes` apiece. Up to `rows_alone` single rows are decoded one by one."""
        self.ready = ready
        self._model, self._context, self._load = model, context, load
        self._context_tokens = ready.info.context_tokens
        self._free = set(range(load.slots))
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._template = Template(
            model.template, bos=model.control_text(model.bos), eos=model.control_text(model.eos)
        )
        self._prefixes = Prefixes(load.prefix_bytes_max if model.sliceable else 0, token_bytes)
        self._rows_alone = rows_alone
        self._failures = 0
        self._meter = Meter(Speed(ready.info.prefill_tps, ready.info.decode_tps))

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
        text = AnswerText(stop)
        job = _Job(request.job, prompt, budget, request, text, grammar, came_at=time.monotonic())
        job.prompt, job.accepted = np.concatenate([prompt, accepted]), len(accepted)
        job.replayed = len(accepted) <= REPLAY_S * self.ready.info.decode_tps
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

    def metrics(self) -> Metrics:
        """Return how it does."""
        return self._meter.metrics(len(self._waiting), len(self._running))

    def _leave(self, job: _Job) -> None:
        if job.slot < 0:
            self._waiting.remove(job)
            return
        self._running.remove(job)
        self._keep(job)
        self._context.forget(job.slot)
        self._free.add(job.slot)
        if job.sampler is not None:
            job.sampler.close()

    # ---------------------------------------------------------------- steps

    def step(self) -> list[Event]:
        """Decode one batch and return what came of it."""
        events: list[Event] = []
        self._admit(events)
        self._close_ranks()
        parts = self._assemble()
        if not parts:
            return events
        began, began_cpu = time.monotonic(), time.process_time()
        if len(parts) <= self._rows_alone and all(len(part.tokens) == 1 for _, part in parts):
            lost = sum(self._decode([part], events) for part in parts)
        else:
            lost = self._decode(parts, events)
        wrote = sum(len(part.tokens) for job, part in parts if job.position > len(job.prompt))
        self._meter.stepped(
            sum(len(part.tokens) for _, part in parts) - wrote,
            wrote,
            time.monotonic() - began,
            time.process_time() - began_cpu,
        )
        self._failures = self._failures + 1 if lost == len(parts) else 0
        if self._failures >= FAILURES_MAX:
            raise EngineError(f"{FAILURES_MAX} batches in a row could not be decoded")
        return events

    def _admit(self, events: list[Event]) -> None:
        """Give slots to the oldest jobs, the lowest ones."""
        while self._waiting and self._free:
            job = self._waiting.popleft()
            options = job.request.options
            seed = options.seed if options.seed is not None else secrets.randbits(31)
            accepted = job.prompt[len(job.prompt) - job.accepted :]
            try:
                job.sampler = Sampler(self._model, options, seed, job.grammar, accepted)
            except ValueError as error:
                events.append(Failed(job.id, Reason.BAD_REQUEST, str(error)))
                continue
            job.slot = min(self._free)
            self._free.remove(job.slot)
            self._running.append(job)
            job.long = len(job.prompt) > self._load.prefill_chunk
            # What was written was multiplied row by row, and read anew it would be rounded differently. Who
            # sets a seed wants the same text again: that prompt is read by itself.
            if self._prefixes.bytes_max and options.seed is None:
                self._reuse(job)

    def _close_ranks(self) -> None:
        """Move the last jobs into the gaps that others left: it takes a step's time or less, and each step
        that follows is the faster for it."""
        last = max(self._running, key=lambda job: job.slot, default=None)
        while last is not None and self._free and min(self._free) < last.slot:
            slot = min(self._free)
            state = self._context.save(last.slot) if last.position else None
            if last.position and (state is None or not self._context.restore(slot, state)):
                return
            self._context.forget(last.slot)
            self._free.remove(slot)
            self._free.add(last.slot)
            last.slot = slot
            last = max(self._running, key=lambda job: job.slot)

    def _reuse(self, job: _Job) -> None:
        """Take over what was read already, and note who is about to read more of it."""
        # The last token is always read anew: its logits are wanted.
        prompt = job.prompt[:-1]
        found = self._prefixes.find(prompt)
        if found is not None and found[1] > job.position:
            (kept, length), before = found, job.position
            self._context.forget(job.slot)
            job.position = 0
            if self._context.restore(job.slot, kept.state):
                self._context.forget(job.slot, length)
                job.position = length
                self._meter.reused_tokens += length - before
        for other in self._running[: self._running.index(job)]:
            length = common(prompt, other.prompt)
            if length >= max(job.position, job.shared) + TOKENS_MIN and self._prefixes.has_room(length):
                job.leader, job.shared = other, length
        ahead = job.position if job.leader is None else job.shared
        job.long = len(job.prompt) - ahead > self._load.prefill_chunk

    def _follow(self, job: _Job) -> bool:
        """Return whether it may go on with its prompt: not while another reads what it could take over."""
        leader = job.leader
        if leader is None:
            return True
        if leader in self._running:
            if leader.position < job.shared:
                return False
            if self._prefixes.wants(job.prompt[: job.shared]):
                self._keep(leader)
        job.leader = None
        self._reuse(job)
        return job.leader is None

    def _keep(self, job: _Job) -> None:
        """Keep what a job that leaves has read and written: the next turn of its conversation begins so."""
        held = np.concatenate([job.prompt, np.array(job.said, np.int32)])[: job.position]
        if self._prefixes.wants(held) and (state := self._context.save(job.slot)) is not None:
            self._prefixes.keep(held, state)

    def _assemble(self) -> list[tuple[_Job, Part]]:
        parts = [
            (job, Part(job.slot, job.position, np.array([job.last], np.int32), True))
            for job in self._running
            if job.last >= 0
        ]
        reading = [job for job in self._running if job.last < 0 and self._follow(job)]
        room = self._load.prefill_chunk
        for job in (job for job in reading if not job.long):
            end = self._piece_end(job, room)
            if end < self._chunk_end(job) and room < self._load.prefill_chunk:
                break  # in two pieces it would be read no sooner, and those before it later
            parts.append((job, self._piece(job, end)))
            room -= end - parts[-1][1].start
        left = self._context.batch_tokens - sum(len(part.tokens) for _, part in parts)
        beside = max(BESIDE_TOKENS_MIN, self._meter.tokens_beside(BESIDE_SHARE))
        room = min(beside if parts else left, left, self._load.prefill_chunk)
        for job in (job for job in reading if job.long):
            if room < min(BESIDE_TOKENS_MIN, self._load.prefill_chunk):
                break
            parts.append((job, self._piece(job, self._piece_end(job, room))))
            room -= len(parts[-1][1].tokens)
        return parts

    def _piece(self, job: _Job, end: int) -> Part:
        return Part(job.slot, job.position, job.prompt[job.position : end], end == len(job.prompt))

    def _piece_end(self, job: _Job, room: int) -> int:
        """Return up to where `room` tokens reach. None is left over alone: a single row is rounded unlike
        several, and the pieces a prompt is read in must not be seen in its answer."""
        whole = self._chunk_end(job)
        end = min(job.position + room, whole)
        return end - 1 if whole - end == 1 and end - job.position > 2 else end

    def _chunk_end(self, job: _Job) -> int:
        """Return up to where the prompt may be read in one step."""
        asked = len(job.prompt) - job.accepted
        if not job.replayed or not job.accepted:
            return len(job.prompt)
        return asked if job.position < asked else job.position + 1

    def _decode(self, parts: list[tuple[_Job, Part]], events: list[Event]) -> int:
        """Decode `parts` together; when that fails, each alone. Returns how many failed alone."""
        code = self._context.decode([part for _, part in parts])
        if code == 0:
            for job, part in parts:
                job.position += len(part.tokens)
                if job.last >= 0:
                    job.said.append(job.last)
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
        if job.written == 1:
            self._meter.began(time.monotonic() - job.came_at)
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
