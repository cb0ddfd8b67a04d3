"""How much work a query is: the length of its prompt and of its answer, in tokens and in a model's seconds.

What a model has in its KV cache it need not read again. It knows queries and models' speeds; it knows no peer
and no queue.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

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
    return query.prompt_tokens or prompt_tokens_by_bytes(query, config)


def prompt_tokens_by_bytes(query: Query, config: Routing) -> int:
    """Return about the prompt's length in tokens, whatever anybody on the way says of it."""
    return max(1, round(query.prompt_bytes / config.bytes_per_token))


def salted(key: bytes, model: str) -> bytes:
    """Return the key of a beginning as the model called `model` holds it: what one model of a peer has in its
    cache is of no use to another."""
    return blake2b(key + model.encode("utf-8", "surrogatepass"), digest_size=8).digest()


class Remembered:
    """How much of one query's prompt need not be read by those who hold a beginning of it.

    An approximation: a beginning counts only where it was a whole prompt once, so that a system prompt alone
    saves nothing; the answer that followed counts as unread, though it is in the cache too; tokens are
    reckoned from bytes, and a template's own are left out.
    """

    def __init__(self, query: Query, config: Routing) -> None:
        self._query = query
        self._config = config
        self._lengths: dict[str, dict[bytes, int]] = {}
        """Bytes of each beginning under its key, by model."""

    def tokens(self, model: str, held: Collection[bytes]) -> int:
        """Return the tokens of the longest beginning among `held`, the keys of what `model` has in its cache;
        never more than the prompt has."""
        if not held:
            return 0
        lengths = self._lengths.get(model)
        if lengths is None:
            prefixes = self._query.prefixes
            lengths = self._lengths[model] = {salted(key, model): length for key, length in prefixes}
        longest = max((length for key, length in lengths.items() if key in held), default=0)
        return min(prompt_tokens(self._query, self._config), round(longest / self._config.bytes_per_token))


def work_s(query: Query, model: ModelInfo, config: Routing, lengths: AnswerLength, held: int = 0) -> float:
    """Return the seconds `model` needs for `query` when it has nothing else to do, and `held` tokens of the
    prompt in its cache."""
    written = 0 if query.accepted is None else len(query.accepted.tokens)
    read_s = (max(0, prompt_tokens(query, config) - held) + written) / max(model.prefill_tps, 1e-3)
    return read_s + lengths.left(query.options.max_tokens, written) / max(model.decode_tps, 1e-3)
