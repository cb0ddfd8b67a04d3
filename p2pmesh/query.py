"""What is asked, and the way it went.

Plain values, shared by the protocol, the engines and the doors. Time is always *remaining* seconds, never a
wall clock, because two machines' clocks do not agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from typing import NewType

from p2pmesh.receipt import Receipt
from p2pmesh.record import GENERAL, NOBODY, PeerId, Vector

QueryId = NewType("QueryId", str)
"""128 random bits as 32 hex digits."""

AUTO = "auto"
"""The model name that lets the mesh choose."""

PREFIXES_MAX = 16
"""Beginnings of a prompt that have a key: the longest ones. The last turn's prompt is two messages shorter
than this one's, so that even an agent that called seven tools since finds what it left."""


RANGES = {
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.1, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "logit_bias": (-100.0, 100.0),
}
"""Least and greatest value of those `Options` that are the same everywhere. OpenAI's, where it has them; a
repeat penalty of 2 makes text of nothing but rare words, and 0 is a division by it."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


@dataclass(frozen=True)
class Options:
    """How to sample an answer. Its bounds are `config.Limits` and `RANGES`; breaking one is `bad_request`."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    seed: int | None = None
    """None draws a fresh one; a fixed one repeats the same text on the same model and build. A token's dice
    depend on it and the token's place alone, so that they fall alike where a lost peer's answer goes on; only
    a near-tie may be settled otherwise there, by the last bits of what the model computes."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, themselves left out."""
    top_k: int = 0
    """Draws among so many of the likeliest; 0: the engine's own number, 64. It cuts before `top_p`, which is
    50 times dearer over a whole vocabulary (measured)."""
    min_p: float = 0.0
    """Leaves out what is less than this share as likely as the likeliest."""
    repeat_penalty: float = 1.0
    """Makes what stands among the answer's last 64 tokens less likely: llama.cpp divides a positive logit by
    it and multiplies a negative one. 1 changes nothing."""
    frequency_penalty: float = 0.0
    """Lowers a token's logit for each time it stands among them."""
    presence_penalty: float = 0.0
    """Lowers it once."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids of the model that answers, and what is added to their logits: name the model with it."""
    schema: str = ""
    """A JSON schema; the answer is JSON that fits it, if `max_tokens` let it end. Empty: any text."""
    logprobs: int | None = None
    """Tells for each token how likely it was, and so many of the likeliest beside it; None: nothing."""


@dataclass(frozen=True)
class Hop:
    """One peer's handling of a query."""

    peer: PeerId
    name: str
    why: str
    """The decision taken there, for people: "serve 3.2 s, quality 0.80"."""


@dataclass(frozen=True)
class Accepted:
    """What the asker has of an answer whose writer is lost: where the next peer goes on."""

    tokens: tuple[int, ...]
    """Ids in the vocabulary of the model with `digest`."""
    text: str
    """What they spell."""
    chunks: int
    """How many chunks it came in: the next one's index."""
    digest: str = ""
    """SHA-256 of the model that wrote all of it; empty: more than one did, and only the text counts."""


class Resume(Enum):
    """What becomes of an answer whose writer is lost after its first token."""

    ANY = "any"
    """It goes on: on the same model if another peer has it, else on whichever serves the query best, from the
    text."""
    SAME_MODEL = "same-model"
    """It goes on where the very same model file is, or ends in an error that holds what there is of it."""
    NEVER = "never"
    """It ends in that error."""


@dataclass(frozen=True)
class Lead:
    """A peer that may be near to a query, as somebody who knows it told."""

    peer: PeerId
    similarity: float
    """Cosine of its nearest skill with the query, -1..1."""
    expanded: bool = False
    """The query has been there."""
    addresses: tuple[str, ...] = ()
    """Where to dial it, for those who have never heard of it."""
    work_s: float | None = None
    """Seconds its best model would need, alone, and behind its queue where it says so itself; None: it cannot
    serve the query, and only knows others."""
    quality: float = 0.0
    """What its answer is expected to be worth, 0..1."""


@dataclass(frozen=True)
class Search:
    """What a query carries of its search among peers that do not all know one another."""

    leads: tuple[Lead, ...] = ()
    """Best first."""
    stale: int = 0
    """Peers in a row that knew nobody nearer."""


@dataclass(frozen=True)
class Query:
    """A question on its way."""

    id: QueryId
    origin: PeerId
    messages: tuple[Message, ...]
    options: Options = Options()
    model: str = AUTO
    zone: str = GENERAL
    """Only peers with this label may see it."""
    attempt: int = 0
    """Counts the origin's tries; a higher one fences off the lower."""
    vector: Vector | None = None
    """What it is about, int8 shape (384,); None until a peer that can embed has seen it."""
    space: str = ""
    """The embedding space of `vector`."""
    prompt_tokens: int = 0
    """Exact length where an engine has told it, else 0."""
    hops_left: int = 16
    """Peers it may still be passed to; at most `limits.hops_max`."""
    budget_s: float = 120.0
    """Seconds that remain until the asker gives up."""
    path: tuple[Hop, ...] = ()
    """The peers it went through, this one last: forbids loops, explains the answer."""
    excluded: tuple[PeerId, ...] = ()
    """The dead and the tried."""
    target: PeerId = NOBODY
    """Who was chosen to serve it: those on the way there pass it on. Empty: whoever has it chooses."""
    accepted: Accepted | None = None
    """What an earlier attempt brought; None: nothing."""
    search: Search | None = None
    """How far the search for its peer has come; None: it is over, or there is none."""
    resume: Resume = Resume.ANY
    """What becomes of its answer when whoever writes it is lost."""
    sealed: bytes = b""
    """The query itself, for `target` alone to read: what is outside then tells no more than the way. Nothing:
    it travels open, as those of the general zone do."""
    signature: bytes = b""
    """Its origin's, under what it asks, of an open one that travels."""

    @property
    def text(self) -> str:
        """The last thing the user said: what the query is about."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @cached_property
    def prefixes(self) -> tuple[tuple[bytes, int], ...]:
        """The beginnings of the prompt, the shortest first and the whole last: a key of 8 bytes for the first
        k messages, which nothing but these in this order has, and the UTF-8 bytes of their contents."""
        key, length, found = b"", 0, []
        for message in self.messages:
            role, content = (s.encode("utf-8", "surrogatepass") for s in (message.role, message.content))
            # Their lengths come first, or ("a", "bc") and ("ab", "c") would be one.
            head = b"%d %d " % (len(role), len(content))
            key = blake2b(key + head + role + content, digest_size=8).digest()
            length += len(content)
            found.append((key, length))
        return tuple(found[-PREFIXES_MAX:])

    @property
    def bytes_about(self) -> int:
        """About how many bytes it is on the wire: prompt, what there is of an answer, what is sealed."""
        accepted = 0 if self.accepted is None else len(self.accepted.text) + 3 * len(self.accepted.tokens)
        return self.prompt_bytes + len(self.sealed) + accepted

    @cached_property
    def prompt_bytes(self) -> int:
        """Length of all messages in UTF-8 bytes."""
        return sum(len(m.content.encode("utf-8", "surrogatepass")) for m in self.messages)


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was to the model itself, before penalties, temperature or a schema had their say."""

    spelled: bytes
    """What it spells in UTF-8, maybe a part of a character; a control token as templates write it."""
    logprob: float
    """Natural logarithm of its probability, `LOGPROB_MIN`..0."""
    top: tuple[tuple[bytes, float], ...] = ()
    """The likeliest tokens at its place, the likeliest first."""


LOGPROB_MIN = -9_999.0
"""Stands for a probability of nothing. As OpenAI's."""
SPELLED_BYTES_MAX = 255
"""Longest spelling that is told of a token, in bytes; of the longer, the beginning."""
LOGPROBS_BYTES_MAX = 98_304
"""All the log-probabilities of a chunk, in bytes on the wire: three quarters of a frame. Where a long stop
text held many tokens back, the last of them come without their `top`."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: the unit of "no gap, no duplicate"."""

    query_id: QueryId
    attempt: int
    index: int
    """Counts from 0 without a gap within an attempt."""
    tokens: tuple[int, ...]
    """Ids in the executor's vocabulary; several where steps were coalesced."""
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `tokens`, where asked for; an echo has none."""
    sealed: bytes = b""
    """The chunk itself, for the asker's peer alone to read: it answers a sealed query."""


@dataclass(frozen=True)
class Usage:
    """What an answer cost, in tokens of the model that gave it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Ended:
    """The whole end of an answer."""

    usage: Usage
    finish_reason: str
    """"stop": the model or a stop text ended it; "length": `max_tokens` or the context did."""
    model: str
    digest: str
    path: tuple[Hop, ...] = ()
    sealed: bytes = b""
    """The end itself, for the asker's peer alone to read: it answers a sealed query."""
    receipt: Receipt | None = None
    """What its executor signed of it; None: nothing was signed, and the asker's peer does not take it."""
