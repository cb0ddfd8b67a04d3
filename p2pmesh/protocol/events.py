"""What happened (events, past participles), and what to do about it (effects, imperatives).

The whole boundary between the mesh and its two hosts, the simulator and the real driver. An event carries no
time: `handle(event, now)` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2pmesh.errors import Reason
from p2pmesh.protocol.messages import PeerMessage
from p2pmesh.query import Chunk, Ended, Hop, Query, QueryId, TokenLogprobs, Usage
from p2pmesh.record import Capability, PeerId, Vector


@dataclass(frozen=True)
class Received:
    """A message came from a linked peer."""

    peer: PeerId
    message: PeerMessage


@dataclass(frozen=True)
class Connected:
    """A link came up."""

    peer: PeerId


@dataclass(frozen=True)
class Disconnected:
    """A link went down."""

    peer: PeerId


@dataclass(frozen=True)
class Discovered:
    """Somebody outside the mesh (mDNS, an invitation) says that this peer is to be had here."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class DialFailed:
    """A `Dial` found nobody."""

    peer: PeerId


@dataclass(frozen=True)
class Stated:
    """Somebody at this peer has a statement of a signer's that everybody shall know. Its `Trust` has learnt
    it."""

    statement: bytes


@dataclass(frozen=True)
class Asked:
    """Somebody at this peer asks. Ends in exactly one `Deliver` of an `Ended`, or one `Fail`, unless
    `Cancelled` comes first."""

    query: Query
    guarded: bool = False
    """Whether another peer shall hold the query and its answer, should this one die."""


@dataclass(frozen=True)
class Claimed:
    """Somebody at this peer comes for an answer that was begun at another. Ends as `Asked` does."""

    query_id: QueryId
    """By which it is known from now on."""
    held_id: QueryId
    """By which it was, when it was asked."""
    holder: PeerId
    """Who holds it, as `Guarded` told."""
    seen: int
    """Characters of its text that the asker has: what follows them is delivered."""
    zones: tuple[str, ...] | None = None
    """Zones beside the general one that whoever comes may read; None: all that this peer may."""


@dataclass(frozen=True)
class Cancelled:
    """The one who asked no longer waits."""

    query_id: QueryId


@dataclass(frozen=True)
class Embedded:
    """The answer to `Embed`; None: the embedder failed, and the query goes on without a vector."""

    query_id: QueryId
    vector: Vector | None


@dataclass(frozen=True)
class Rated:
    """Whoever asked says what the answer was worth, or that it failed his check."""

    query_id: QueryId
    outcome: float
    """0: worthless, 1: all that could be asked for."""


@dataclass(frozen=True)
class Generated:
    """The model wrote something. `index` counts from 0 in this run."""

    query_id: QueryId
    attempt: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The model is done."""

    query_id: QueryId
    attempt: int
    usage: Usage
    finish_reason: str


@dataclass(frozen=True)
class Failed:
    """The model could not, or broke off."""

    query_id: QueryId
    attempt: int
    reason: Reason
    detail: str = ""
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Described:
    """What this peer says of itself has changed: a model came or went, an address is known."""

    capability: Capability
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Drained:
    """This peer is about to go: it takes no new work, hands over what waits, and finishes what runs."""


@dataclass(frozen=True)
class Departed:
    """This peer leaves the mesh, on purpose."""


@dataclass(frozen=True)
class Tick:
    """Nothing happened; it is later."""


Event: TypeAlias = (
    Received
    | Connected
    | Disconnected
    | Discovered
    | DialFailed
    | Asked
    | Claimed
    | Cancelled
    | Embedded
    | Rated
    | Generated
    | Finished
    | Failed
    | Described
    | Stated
    | Drained
    | Departed
    | Tick
)


@dataclass(frozen=True)
class Send:
    """Put `message` on the link to `peer`; if there is none, drop it: `Disconnected` tells."""

    peer: PeerId
    message: PeerMessage


@dataclass(frozen=True)
class Dial:
    """Try to make a link. Answered by `Connected` or `DialFailed`."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Hangup:
    """End the link. Answered by `Disconnected`."""

    peer: PeerId


@dataclass(frozen=True)
class Embed:
    """Turn `text` into a vector. Answered by `Embedded`."""

    query_id: QueryId
    text: str


@dataclass(frozen=True)
class Generate:
    """Let the model called `model` answer. Answered by `Generated`s and one `Finished` or `Failed`."""

    query: Query
    model: str


@dataclass(frozen=True)
class Abort:
    """Stop generating; nothing more is to be said of it."""

    query_id: QueryId
    attempt: int


@dataclass(frozen=True)
class Placed:
    """The query sits where it will be answered."""

    path: tuple[Hop, ...]
    eta_s: float


@dataclass(frozen=True)
class Guarded:
    """From now on the answer is to be had from `holder`, should this peer die; "": from nobody."""

    holder: PeerId


@dataclass(frozen=True)
class Deliver:
    """Give this to the one who asked here."""

    query_id: QueryId
    item: Placed | Guarded | Chunk | Ended


@dataclass(frozen=True)
class Fail:
    """Tell the one who asked here that there will be no more."""

    query_id: QueryId
    reason: Reason
    detail: str
    path: tuple[Hop, ...] = ()
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class Notify:
    """Something a person may want to see in a log."""

    peer: PeerId
    what: str


Effect: TypeAlias = Send | Dial | Hangup | Embed | Generate | Abort | Deliver | Fail | Notify
