"""Tokens become text: whole characters, and never a part of a stop text.

Pure. What is released is always whole tokens and exactly the text they spell, so that an answer that breaks
can be resumed from its tokens without a gap or a duplicate. Only the last release may hold fewer characters
than its tokens: there a stop text was cut away.
"""

from __future__ import annotations

import codecs

HELD_TOKENS_MAX = 512
"""Most tokens held back: a chunk on the wire has room for twice as many. Beyond it, which takes hundreds of
tokens that spell nothing, a stop text that may have begun is not waited for."""


class AnswerText:
    """The text of one answer as it grows. Holds back at most the longest stop text and one token, or
    `HELD_TOKENS_MAX` tokens."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._tokens: list[tuple[int, int]] = []
        """Held tokens: id, and the length of `_held` after it; -1 within a character."""
        self.stopped = False
        """Whether a stop text was met. Nothing may be pushed after."""

    def push(self, token: int, piece: bytes) -> tuple[tuple[int, ...], str]:
        """Add a token and the bytes it spells. Returns the tokens and the text that are free to go."""
        self._held += self._utf8.decode(piece)
        whole = not self._utf8.getstate()[0]
        self._tokens.append((token, len(self._held) if whole else -1))
        cut = self._cut()
        if cut is not None:
            self.stopped = True
            return self._release(len(self._tokens), cut)
        if len(self._tokens) > HELD_TOKENS_MAX:
            return self.flush()
        safe = len(self._held) - self._suspect()
        count = max((i + 1 for i, (_, end) in enumerate(self._tokens) if 0 <= end <= safe), default=0)
        return self._release(count, self._tokens[count - 1][1] if count else 0)

    def flush(self) -> tuple[tuple[int, ...], str]:
        """End the answer. Returns all that was held back."""
        self._held += self._utf8.decode(b"", final=True)
        cut = self._cut()
        self.stopped = self.stopped or cut is not None
        return self._release(len(self._tokens), len(self._held) if cut is None else cut)

    def _cut(self) -> int | None:
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        return min(found) if found else None

    def _suspect(self) -> int:
        """Return how many of the last characters may be the beginning of a stop text."""
        longest = 0
        for stop in self._stop:
            reach = min(len(stop) - 1, len(self._held))
            longest = max(longest, next((n for n in range(reach, 0, -1) if self._held.endswith(stop[:n])), 0))
        return longest

    def _release(self, count: int, chars: int) -> tuple[tuple[int, ...], str]:
        tokens, text = tuple(t for t, _ in self._tokens[:count]), self._held[:chars]
        self._held = self._held[chars:]
        self._tokens = [(t, end - chars if end >= 0 else -1) for t, end in self._tokens[count:]]
        return tokens, text
