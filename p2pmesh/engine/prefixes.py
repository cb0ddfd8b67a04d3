"""What was read already: the beginnings of prompts, kept outside the context until one comes back.

Pure: tokens, and states that somebody else took out of a context and puts back. Kept inside the context they
would cost every step, for attention looks at all cells in use; outside, 2 000 tokens of a model of 135
million parameters come back in 7 ms, where reading them takes 11 s (measured).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOKENS_MIN = 16
"""Shortest beginning worth keeping or taking over, in tokens. A guess."""
ENTRIES_MAX = 32
"""Most beginnings kept; as many as a peer tells of in its load reports."""

Tokens = NDArray[np.int32]
State = NDArray[np.uint8]
"""What a sequence held in a context."""


@dataclass(eq=False)
class Kept:
    """One beginning."""

    tokens: Tokens
    state: State


class Prefixes:
    """Beginnings, the least recently used given up first."""

    def __init__(self, bytes_max: int, token_bytes: int = 1) -> None:
        """`token_bytes`: what the state of one token takes, about."""
        self._token_bytes = token_bytes
        self.bytes_max = bytes_max
        """Most that is kept, in bytes; 0: nothing."""
        self._entries: list[Kept] = []
        """The most recently used last."""
        self.bytes = 0
        """What is kept, in bytes."""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, prompt: Tokens) -> tuple[Kept, int] | None:
        """Return what shares the longest beginning with `prompt`, and how many tokens of it; None: nothing
        that is worth it. Of equals the shortest is put back soonest."""
        best: tuple[int, int, Kept] | None = None
        for entry in self._entries:
            shared = common(prompt, entry.tokens)
            if shared >= TOKENS_MIN:
                rank = (shared, -len(entry.tokens), entry)
                if best is None or rank[:2] > best[:2]:
                    best = rank
        if best is None:
            return None
        self._entries.remove(best[2])
        self._entries.append(best[2])
        return best[2], best[0]

    def has_room(self, tokens: int) -> bool:
        """Return whether so many tokens are worth keeping, and can be."""
        return TOKENS_MIN <= tokens <= self.bytes_max // self._token_bytes

    def wants(self, tokens: Tokens) -> bool:
        """Return whether `keep` would add anything: a state costs time to take."""
        if not self.has_room(len(tokens)):
            return False
        return all(common(tokens, entry.tokens) < len(tokens) for entry in self._entries)

    def keep(self, tokens: Tokens, state: State) -> None:
        """Keep the state after `tokens`, in place of every beginning of them. One that is larger than all the
        room is not kept."""
        if state.nbytes > self.bytes_max:
            return
        for entry in [e for e in self._entries if common(tokens, e.tokens) == len(e.tokens)]:
            self._drop(entry)
        self._entries.append(Kept(tokens, state))
        self.bytes += state.nbytes
        while self.bytes > self.bytes_max or len(self._entries) > ENTRIES_MAX:
            self._drop(self._entries[0])

    def _drop(self, entry: Kept) -> None:
        self._entries.remove(entry)
        self.bytes -= entry.state.nbytes


def common(a: Tokens, b: Tokens) -> int:
    """Return how many tokens `a` and `b` begin with alike."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length
