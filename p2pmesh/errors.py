"""Everything that can go wrong, and what state it leaves you in.

Foreign exceptions (libp2p, llama.cpp, the operating system) are mapped to these at one door each and never
travel further. On the wire an error is a `Reason` and a short text, never a pickled exception.
"""

from __future__ import annotations

from enum import Enum


class MeshError(Exception):
    """Base of every error this library raises on purpose."""


class ConfigError(MeshError, ValueError):
    """A setting is wrong. Raised before anything starts; there is nothing to undo."""


class StateLocked(ConfigError):
    """Another peer uses this state directory. Nothing was started; choose another, or stop that peer."""


class ProtocolError(MeshError):
    """A message breaks the protocol."""


class LocalProtocolError(ProtocolError):
    """We tried to say something illegal: a bug of ours, or an argument out of bounds. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """A peer sent garbage. The frame was dropped; our state is as it was before."""


class Untrusted(MeshError):
    """Nobody who may say so has said so, or not in a way that holds. What was known before is as it was."""


class NetworkError(MeshError):
    """The wire failed. Every libp2p and socket exception is mapped to this once, in `p2pmesh.net`."""


class ListenError(NetworkError):
    """The address cannot be listened on (taken, or not ours). The host did not start."""


class EngineError(MeshError):
    """The model failed. The peer lives on; the engine restarts by itself unless the text says otherwise."""


class ModelLoadError(EngineError):
    """The model cannot be loaded: missing, damaged, of another digest, or too large. It was not started."""


class Reason(str, Enum):
    """Why a query was refused or ended: the words peers use on the wire, and the codes a user reads."""

    OVERLOADED = "mesh_overloaded"
    """A queue was full. Ask again after a while."""
    NO_ROUTE = "no_route"
    """No living peer that may and can serve this was within reach."""
    MODEL_NOT_FOUND = "model_not_found"
    """No known peer serves a model of that name."""
    TOO_LONG = "context_length_exceeded"
    """The prompt is longer than every model's context."""
    DEADLINE = "deadline_exceeded"
    """The query's time budget was spent."""
    PEER_LOST = "peer_lost"
    """The peer that was answering went away."""
    ENGINE_FAILED = "engine_failed"
    """The model that was to answer crashed and is being restarted, or its peer is about to go."""
    CANCELLED = "cancelled"
    """The asker went away, or said stop."""
    VISITED = "already_visited"
    """This peer has seen this attempt of the query before: a loop, or a duplicate."""
    FORGED = "answer_forged"
    """What came is not what the peer that answered signed: somebody on the way changed it, or made it up."""
    ANSWER_NOT_FOUND = "answer_not_found"
    """Nobody holds the answer that somebody came for: it is too old, or its holder died as well."""
    BAD_REQUEST = "invalid_request"
    """The query itself is wrong; no peer would answer it."""
    QUOTA = "rate_limit_exceeded"
    """Whoever asks has used up his quota. Ask again after a while: the mesh has room, for others."""


class QueryError(MeshError):
    """A query ended without a whole answer. The peer is unharmed and takes the next query.

    `partial` is the text received before the end, `path` the names of the peers it went through.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Reason = Reason.NO_ROUTE,
        query_id: str = "",
        path: tuple[str, ...] = (),
        partial: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.query_id = query_id
        self.path = path
        self.partial = partial
        self.retry_after_s = retry_after_s


class NoRoute(QueryError):
    """Nobody within reach can serve it, or holds it (`reason` tells what was missing)."""


class Refused(QueryError):
    """Somebody could, and would not: overloaded, or your quota is used up (`retry_after_s` says when to ask
    again), or a bad request."""


class BudgetSpent(QueryError):
    """The query's time ran out. Work for it has been cancelled along the way."""


class AnswerInterrupted(QueryError):
    """The stream broke after the first token; `partial` holds what had arrived."""
