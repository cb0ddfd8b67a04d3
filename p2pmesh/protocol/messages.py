"""What peers say to one another. Plain values; how they look as bytes is `codec`'s business alone.

Every `Forward` that arrives is answered: `Accept`, `Refuse`, or tokens. There is no message that may be
ignored in silence, except what is stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from p2pmesh.errors import Reason
from p2pmesh.protocol.experience import Report
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId
from p2pmesh.record import NOBODY, Load, PeerId, SignedRecord, Version


class Status(IntEnum):
    """What is believed of a peer; of one version, the higher wins (SWIM)."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


@dataclass(frozen=True)
class Update:
    """A belief about a peer's `version`, piggybacked on probes."""

    id: PeerId
    status: Status
    version: Version


@dataclass(frozen=True)
class Line:
    """One line of a digest: this version of this peer's record is to be had from me."""

    id: PeerId
    version: Version
    distance: int
    """Links between the sender and that peer; `DISTANCE_MAX`: no way known."""
    mark: bytes = b""
    """That record's: of one version there is one record, or its owner equivocates. Empty: not told."""


DISTANCE_MAX = 16
"""Farther than any path: distance-vector routing's infinity."""


@dataclass(frozen=True)
class Ping:
    """Are you there? Answered by `Ack` with the same number."""

    seq: int
    updates: tuple[Update, ...] = ()


@dataclass(frozen=True)
class Ack:
    """I am (or, relayed: the one you asked me to probe is)."""

    seq: int
    updates: tuple[Update, ...] = ()


@dataclass(frozen=True)
class PingRequest:
    """Please probe `target` for me; answered by `Ack` only if it answers you."""

    seq: int
    target: PeerId
    updates: tuple[Update, ...] = ()


@dataclass(frozen=True)
class Leave:
    """I am going, on purpose."""

    version: Version


@dataclass(frozen=True)
class Part:
    """I end this link, for want of room, and stay: hold me neither for dead nor for one to dial at once."""


@dataclass(frozen=True)
class Announce:
    """Fresh records, by name. Whoever lacks one pulls it."""

    lines: tuple[Line, ...]


DIGEST_BUCKETS = 32
"""Buckets that peers are sorted into by a hash of their id: a difference is found without naming them all."""


@dataclass(frozen=True)
class Digest:
    """What I hold, in sums. Answered by `Lines` where the receiver holds something else."""

    sums: bytes
    """For each bucket 64 bits: the exclusive or of its records' fingerprints."""


@dataclass(frozen=True)
class Lines:
    """All the records I hold in these buckets, by name. Answered by what differs: a `Pull`, an `Announce`."""

    buckets: tuple[int, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Seek:
    """I know no way to these peers. Answered by an `Announce` of those to which the receiver knows one."""

    ids: tuple[PeerId, ...]


@dataclass(frozen=True)
class Pull:
    """Send me these records."""

    ids: tuple[PeerId, ...]


@dataclass(frozen=True)
class Records:
    """Records, byte for byte as their owners signed them."""

    records: tuple[SignedRecord, ...]


@dataclass(frozen=True)
class Spending:
    """What one asker has used in one zone."""

    asker: PeerId
    zone: str
    tokens: float
    """As of the message, and fewer from then on: they fade with the time constant of a minute."""


@dataclass(frozen=True)
class Spent:
    """What was used at me of late, by those who used most."""

    rows: tuple[Spending, ...]
    asks: bool = True
    """Whether I have quotas to keep, and want to be told likewise."""


SPENT_MAX = 64
"""Most rows of it."""


@dataclass(frozen=True)
class Evidence:
    """Two records of one peer and one version that say different things, each signed by it: it equivocates,
    as anybody can see who reads them. Whoever hears of it passes it on once."""

    first: SignedRecord
    second: SignedRecord


@dataclass(frozen=True)
class LoadReport:
    """How busy the sender is. Links keep their order, so the last one counts."""

    load: Load


@dataclass(frozen=True)
class Forward:
    """Take this query: serve it, or pass it on."""

    query: Query


@dataclass(frozen=True)
class Accept:
    """I have it. Said at once, and again as a sign of life while no token flows."""

    query_id: QueryId
    attempt: int
    placed: bool
    """True: it sits where it will be answered, and `path` tells where."""
    eta_s: float = 0.0
    """Seconds until its answer is expected to be whole."""
    path: tuple[Hop, ...] = ()
    digest: str = ""
    """Of the model that will answer."""


@dataclass(frozen=True)
class Refuse:
    """Not through me. Before the first token only; the sender has forgotten the query."""

    query_id: QueryId
    attempt: int
    reason: Reason
    detail: str = ""
    retry_after_s: float = 0.0
    prompt_tokens: int = 0
    """Exact length of the prompt, where an engine told it; else 0."""
    dead: tuple[PeerId, ...] = ()
    """Peers found dead on the way."""
    best: PeerId = NOBODY
    """Who of those on the query's path shall serve it: the search has found nobody better."""


@dataclass(frozen=True)
class Tokens:
    """The next piece of an answer."""

    chunk: Chunk


@dataclass(frozen=True)
class End:
    """The answer is whole. A stream that stops without it has failed."""

    query_id: QueryId
    attempt: int
    chunks: int
    """How many there were, so that a lost last one is noticed."""
    ended: Ended


@dataclass(frozen=True)
class Error:
    """The answer broke after its first token."""

    query_id: QueryId
    attempt: int
    reason: Reason
    detail: str = ""
    dead: tuple[PeerId, ...] = ()
    """Peers found dead on the way."""


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this any more: free the slot."""

    query_id: QueryId
    attempt: int


@dataclass(frozen=True)
class Outcomes:
    """What the sender itself saw of others' answers. Never passed on; nobody is believed about itself."""

    report: Report


@dataclass(frozen=True)
class Steal:
    """I have nothing to do: hand me a query that waits with you. Answered by a `Forward`, or by nothing."""


@dataclass(frozen=True)
class Keep:
    """Hold this query, which was asked here, and what there is of its answer. Answered by `Kept`; where there
    is no room, by nothing."""

    query: Query


@dataclass(frozen=True)
class Copy:
    """The next piece of an answer that you hold. Answered by `Kept`."""

    chunk: Chunk
    digest: str = ""
    """Of the model that wrote all of it; empty: more than one did."""


@dataclass(frozen=True)
class Kept:
    """So much of the answer I hold."""

    query_id: QueryId
    chunks: int
    """How many chunks, and one more where I hold its end."""


@dataclass(frozen=True)
class Settle:
    """An answer that is held is whole; or (None) over, nowhere to be had, or taken by somebody else."""

    query_id: QueryId
    ended: Ended | None = None
    chunks: int = 0
    """How many make up the whole."""


@dataclass(frozen=True)
class Claim:
    """Its asker is with me: give me what you hold. Answered by `Legacy`, or a `Settle` without an end."""

    query_id: QueryId


@dataclass(frozen=True)
class Legacy:
    """A query, and what there is of its answer."""

    query: Query
    ended: Ended | None = None


@dataclass(frozen=True)
class Stated:
    """What signers have said of the mesh, byte for byte: who was thrown out, who signs. Passed on by whoever
    did not know it."""

    statements: tuple[bytes, ...]


@dataclass(frozen=True)
class Shown:
    """What I show to be let in is newer than what you have seen, or old. A signer answers with `Granted`."""

    data: bytes


@dataclass(frozen=True)
class Granted:
    """A certificate of yours that lasts longer."""

    data: bytes


PeerMessage: TypeAlias = (
    Ping
    | Ack
    | PingRequest
    | Leave
    | Announce
    | Digest
    | Pull
    | Records
    | LoadReport
    | Forward
    | Accept
    | Refuse
    | Tokens
    | End
    | Error
    | Cancel
    | Steal
    | Lines
    | Seek
    | Part
    | Outcomes
    | Keep
    | Copy
    | Kept
    | Settle
    | Claim
    | Legacy
    | Stated
    | Shown
    | Granted
    | Evidence
    | Spent
)
"""All of them."""
