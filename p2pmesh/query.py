"""What is asked, and the way it went.

Plain values, shared by the protocol, the engines and the doors. Time is always *remaining* seconds, never a
wall clock, because two machines' clocks do not agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import NewType

from p2pmesh.record import GENERAL, NOBODY, PeerId, Vector

QueryId = NewType("QueryId", str)
"""128 random bits as 32 hex digits."""

AUTO = "auto"
"""The model name that lets the mesh choose."""

PREFIXES_MAX = 16
"""Beginnings of a prompt that have a key: the longest ones. The last turn's prompt is two messages shorter
than this one's, so that even an agent that called seven tools since finds what it left."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


@dataclass(frozen=True)
class Options:
    """How to sample an answer. The bounds are `config.QueryLimits`; who breaks them gets `bad_request`."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    seed: int | None = None
    """None draws a fresh one; a fixed one repeats the same text on the same model and build."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, themselves left out."""


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

    @cached_property
    def prompt_bytes(self) -> int:
        """Length of all messages in UTF-8 bytes."""
        return sum(len(m.content.encode("utf-8", "surrogatepass")) for m in self.messages)


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
