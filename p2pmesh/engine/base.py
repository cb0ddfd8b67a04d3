"""The contract between a peer and the process its model lives in: what is asked of it, what it says.

Plain values and one protocol. This module knows no pipe, no clock and no model; how the values travel is
`engine.frames`' business. Every job gets exactly one of `Finished`, `Embedded` and `Failed`, at its end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pmesh.config import Limits
from p2pmesh.errors import Reason
from p2pmesh.query import RANGES, Message, Options, TokenLogprobs, Usage
from p2pmesh.record import DEVICES_MAX, Device, ModelInfo

LIMITS = Limits()
TEXTS_MAX = 64
"""Most texts of one `Embed`."""
DETAIL_CHARS_MAX = 2_000
"""Longest detail of a failure, in characters."""
ROLES = ("system", "user", "assistant")
"""Who may speak in a conversation. A free role would be written into the prompt unquoted."""

JobId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
"""Names one job of one engine; unique while the job lives."""
Detail = Annotated[str, msgspec.Meta(max_length=DETAIL_CHARS_MAX)]
TOKENS_MAX = 1_024
"""Most tokens of one piece of an answer: what a chunk on the wire has room for."""
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Tokens = Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=TOKENS_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]

Kind = Literal["llama", "embed", "echo"]
"""A GGUF that answers; a GGUF that embeds; a model with no weights, which does both."""
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Become this model. The first request, and the only one of its kind."""

    path: str = ""
    """The GGUF file; empty for an echo."""
    digest: str = ""
    """SHA-256 in hex the file must have; empty: any."""
    adapter: str = ""
    """The GGUF file of a LoRA adapter that is laid over it; empty: none."""
    adapter_scale: float = 1.0
    kind: Kind = "llama"
    name: str = ""
    """The name others ask for, or of an embedder's space; empty: the file's stem."""
    context_tokens: Positive = 2_048
    """Longest prompt plus answer; cut to what the model was trained for."""
    slots: Positive = 8
    """Jobs it runs at once."""
    threads: Positive = 1
    gpu_layers: int = 0
    prefill_chunk: Positive = 96
    """Most prompt tokens read in one step."""
    jobs_max: Positive = 256
    """Most jobs it holds, running and waiting."""
    prefix_bytes_max: Count = 268_435_456
    """Most memory for the beginnings of prompts that were read already; 0: each is read anew."""
    tokens_per_s: float = 50.0
    """Speed of each slot of an echo."""

    @property
    def served_name(self) -> str:
        """The name it is served under: both sides of the pipe work it out, neither takes the other's word."""
        return self.name or ("echo" if self.kind == "echo" else Path(self.path).stem)


@dataclass(frozen=True)
class Generate:
    """Answer a conversation."""

    job: JobId
    messages: Annotated[tuple[Message, ...], msgspec.Meta(max_length=LIMITS.messages_max)]
    options: Options = field(default_factory=Options)
    accepted: Annotated[tuple[Count, ...], msgspec.Meta(max_length=LIMITS.max_tokens_max)] = ()
    """Tokens of the answer that exist already, in this model's vocabulary: it goes on after them."""
    accepted_text: str = ""
    """Their text, where another model wrote them; it goes on after it."""


@dataclass(frozen=True)
class Embed:
    """Turn texts into vectors. What the model cannot hold is cut: a direction needs no last word."""

    job: JobId
    texts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=TEXTS_MAX)]


@dataclass(frozen=True)
class Abort:
    """End a job; it answers `Failed` with `Reason.CANCELLED` unless it had ended before."""

    job: JobId


@dataclass(frozen=True)
class Ready:
    """Loaded and measured."""

    info: ModelInfo
    dimensions: Count = 0
    """Length of its vectors; 0: it does not embed."""
    space: str = ""
    """Names the embedding space of its vectors."""
    memory_bytes: Count = 0
    """Most memory its process has held so far."""
    devices: Annotated[tuple[Device, ...], msgspec.Meta(max_length=DEVICES_MAX)] = ()
    """The GPUs it sees, and what is free on them now that it is loaded."""


@dataclass(frozen=True)
class LoadFailed:
    """The model cannot be loaded, as things are. The process exits."""

    detail: Detail


@dataclass(frozen=True)
class Generated:
    """A piece of an answer. `text` is exactly what `tokens` spell: what is held back is held back whole."""

    job: JobId
    tokens: Tokens
    text: str
    logprobs: Annotated[tuple[TokenLogprobs, ...], msgspec.Meta(max_length=LIMITS.max_tokens_max + 1)] = ()
    """One for each of `tokens` where `Options.logprobs` asked for it, within `LOGPROBS_BYTES_MAX`."""


@dataclass(frozen=True)
class Finished:
    """The whole end of an answer."""

    job: JobId
    usage: Usage
    finish_reason: FinishReason


@dataclass(frozen=True)
class Failed:
    """The job ended without a whole answer; the engine takes the next one."""

    job: JobId
    reason: Reason
    detail: Detail = ""
    tokens: TokenId | None = None
    """Exact length of the prompt, where that was the reason."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """The vectors of one `Embed`: float32, unit length, shape (texts, dimensions)."""

    job: JobId
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Alive:
    """No news, still working: said each second in which nothing else was, so that silence means a hang."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How the engine does: said each second while it works, and when its work is done.

    Speeds are moving averages over its real work, in tokens per second of all answers together: of the wall
    clock, and of CPU time, by which others' load on the machine shows.
    """

    waiting: Count = 0
    running: Count = 0
    prompt_tokens: Count = 0
    """Tokens of prompts read since it was loaded."""
    reused_tokens: Count = 0
    """Tokens of prompts that were not read again, because they were kept."""
    answer_tokens: Count = 0
    """Tokens written since it was loaded."""
    prefill_tps: float = 0.0
    prefill_cpu_tps: float = 0.0
    decode_tps: float = 0.0
    decode_cpu_tps: float = 0.0
    ttft_s: float = 0.0
    """Seconds from a job's coming to its first token, the mean of the last ones."""
    gap_s: float = 0.0
    """Seconds between two tokens of an answer, the mean of the last ones."""


Request = Load | Generate | Embed | Abort
Event = Ready | LoadFailed | Generated | Finished | Failed | Embedded | Alive | Metrics


class Engine(Protocol):
    """What `engine.worker` drives. One thread owns it; nothing here blocks longer than one step."""

    @property
    def ready(self) -> Ready: ...

    def submit(self, request: Generate | Embed) -> list[Event]:
        """Queue a job. Returns its `Failed` when it is refused."""
        ...

    def abort(self, job: str) -> list[Event]:
        """End a job at once and free its slot. Unknown jobs are ignored: they had ended."""
        ...

    def step(self) -> list[Event]:
        """Do a bounded piece of work and return what came of it.

        Raises `EngineError` when the model is beyond use; the process must then end.
        """
        ...

    def wait_s(self) -> float | None:
        """Return the seconds until `step` has something to do; None: not before the next job."""
        ...

    def metrics(self) -> Metrics | None:
        """Return how it does; None: it keeps no count."""
        ...


def complaint(request: Generate) -> str:
    """Return what is wrong with a request in itself, or "" when nothing is."""
    options = request.options
    if not request.messages:
        return "a conversation needs at least one message"
    # To cut a megabyte into tokens takes a second, in which nobody's answer goes on.
    size = sum(len(m.content.encode("utf-8", "surrogatepass")) for m in request.messages)
    if size > LIMITS.prompt_bytes_max:
        return f"the messages have {size} bytes, at most {LIMITS.prompt_bytes_max} fit"
    role = next((m.role for m in request.messages if m.role not in ROLES), None)
    if role is not None:
        return f"unknown role {role[:32]!r}; known are {', '.join(ROLES)}"
    if not 1 <= options.max_tokens <= LIMITS.max_tokens_max:
        return f"max_tokens must lie within 1..{LIMITS.max_tokens_max}, not {options.max_tokens}"
    if not 0.0 <= options.temperature <= 2.0:
        return f"temperature must lie within 0..2, not {options.temperature}"
    if not 0.0 < options.top_p <= 1.0:
        return f"top_p must lie within 0..1, not {options.top_p}"
    if len(options.stop) > LIMITS.stop_max or not all(
        0 < len(s.encode("utf-8", "surrogatepass")) <= LIMITS.stop_bytes_max for s in options.stop
    ):
        return f"at most {LIMITS.stop_max} stop texts of 1..{LIMITS.stop_bytes_max} bytes each"
    return _sampling_complaint(options)


def _sampling_complaint(options: Options) -> str:
    if not 0 <= options.top_k <= LIMITS.top_k_max:
        return f"top_k must lie within 0..{LIMITS.top_k_max}, not {options.top_k}; 0 leaves it to the engine"
    for name in ("min_p", "repeat_penalty", "frequency_penalty", "presence_penalty"):
        low, high = RANGES[name]
        if not low <= getattr(options, name) <= high:
            return f"{name} must lie within {low:g}..{high:g}, not {getattr(options, name)}"
    if not 0 <= (options.logprobs or 0) <= LIMITS.top_logprobs_max:
        return f"logprobs may tell of at most {LIMITS.top_logprobs_max} others, not {options.logprobs}"
    low, high = RANGES["logit_bias"]
    if len(options.logit_bias) > LIMITS.logit_bias_max:
        return f"logit_bias may shift at most {LIMITS.logit_bias_max} tokens, not {len(options.logit_bias)}"
    if any(token < 0 or not low <= bias <= high for token, bias in options.logit_bias):
        return f"logit_bias takes token ids from 0 on, and shifts within {low:g}..{high:g}"
    return ""


def refused(job: str, jobs_max: int) -> Failed:
    """Return the failure of a job that finds the engine full."""
    return Failed(job, Reason.OVERLOADED, f"{jobs_max} jobs are running or waiting")


def overlong(prompt_tokens: int, context_tokens: int, job: str) -> Failed:
    """Return the failure of a prompt that leaves no room for an answer."""
    detail = f"the prompt is {prompt_tokens} tokens, the context {context_tokens}"
    return Failed(job, Reason.TOO_LONG, detail, prompt_tokens)
