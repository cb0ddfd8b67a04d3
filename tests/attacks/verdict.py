"""What came of an attack."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """Whether it was blocked, and what was seen that says so."""

    blocked: bool
    seen: str
