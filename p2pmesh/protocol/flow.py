"""How fast an answer comes: tokens a second, over a stretch of it.

One stall is not slowness: whatever it is, it lies in one window, and only what two in a row have in common
is told. It knows pieces and when they came; no peer, query or clock.
"""

from __future__ import annotations

_WINDOW_S = 0.5
"""Least seconds of a window. A guess: twenty tokens of a fast model, one or two of a slow one."""


class Flow:
    """The pieces of one attempt's answer, as they come."""

    def __init__(self) -> None:
        self._window_s = _WINDOW_S
        self._since: float | None = None
        """When the window began: with a piece, as it ends; None: there was none yet."""
        self._tokens = 0
        self._before: float | None = None
        """Tokens a second in the window before, of the two that are compared."""

    def came(self, tokens: int, now: float) -> float | None:
        """A piece of `tokens` came. Returns the tokens a second in the faster of two windows, when the second
        is over. The next two are twice as long: it is looked at less and less often."""
        if self._since is None:  # how long the first took tells of the prompt
            self._since = now
            return None
        self._tokens += tokens
        seconds = now - self._since
        if seconds < self._window_s:
            return None
        rate, before = self._tokens / seconds, self._before
        self._since, self._tokens = now, 0
        if before is None:
            self._before = rate
            return None
        self._before = None
        self._window_s *= 2.0
        return max(rate, before)
