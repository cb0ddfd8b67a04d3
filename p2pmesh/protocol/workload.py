"""How much work a query is: the length of its prompt and of its answer, in tokens and in a model's seconds.

It knows queries and models' speeds; it knows no peer and no queue.
"""

from __future__ import annotations

from p2pmesh.config import Routing
from p2pmesh.query import Query
from p2pmesh.record import ModelInfo

ANSWER_TOKENS_TYPICAL = 128
"""Tokens an answer is expected to have before any was seen. A guess."""
_SAMPLES_MAX = 64
"""Answers after which the mean forgets: so many, about, does it rest on."""
_OUTLIVED_SHARE = 0.75
"""Share of the mean that an answer longer than it is expected to go on for: lengths are about lognormal,
whose mean residual life hardly falls (0.7 to 1.2 of the mean for a sigma of 0.8)."""


class AnswerLength:
    """How long answers are, learned from all that pass through this peer."""

    def __init__(self) -> None:
        self.mean = float(ANSWER_TOKENS_TYPICAL)
        """Tokens of an answer."""
        self._count = 1

    def observed(self, tokens: int) -> None:
        """An answer had `tokens`."""
        self._count = min(_SAMPLES_MAX, self._count + 1)
        self.mean += (tokens - self.mean) / self._count

    def left(self, max_tokens: int, written: int = 0) -> float:
        """Return the tokens that an answer of which `written` exist is expected to get yet."""
        return max(0.0, min(max_tokens - written, max(self.mean - written, _OUTLIVED_SHARE * self.mean)))


def prompt_tokens(query: Query, config: Routing) -> int:
    """Return the prompt's length in tokens: exact where an engine has told it, else an estimate."""
    return query.prompt_tokens or max(1, round(query.prompt_bytes / config.bytes_per_token))


def work_s(query: Query, model: ModelInfo, config: Routing, lengths: AnswerLength) -> float:
    """Return the seconds `model` needs for `query` when it has nothing else to do."""
    written = 0 if query.accepted is None else len(query.accepted.tokens)
    read_s = (prompt_tokens(query, config) + written) / max(model.prefill_tps, 1e-3)
    return read_s + lengths.left(query.options.max_tokens, written) / max(model.decode_tps, 1e-3)
