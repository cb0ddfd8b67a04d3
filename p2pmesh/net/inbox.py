"""A bounded queue from many links to one reader, with as few task switches as can be.

Knows sizes, not what it holds. A full one makes whoever puts wait, in order of arrival; it never drops.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")
_STREAK_MAX = 32
"""Items taken without letting other tasks run."""


class Inbox(Generic[T]):
    """Bounded by items and by bytes; one item is always taken, however large."""

    def __init__(self, items_max: int, bytes_max: int) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._items_max = items_max
        self._bytes = 0
        self._bytes_max = bytes_max
        self._putters = trio.lowlevel.ParkingLot()
        self._getters = trio.lowlevel.ParkingLot()
        self._streak = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T, size: int = 0) -> None:
        """Add `item` of `size` bytes; wait while there is no room. Cancelled, it has added nothing."""
        if self._full() or len(self._putters):
            await self._putters.park()
            while self._full():
                await self._putters.park()
        if self._closed:
            return
        self._items.append((item, size))
        self._bytes += size
        self._getters.unpark()

    async def get(self) -> T:
        """Remove and return the oldest item; wait for one. Cancelled, it has removed nothing."""
        self._streak += 1
        if self._streak >= _STREAK_MAX:
            self._streak = 0
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while not self._items:
            self._streak = 0
            await self._getters.park()
        item, size = self._items.popleft()
        self._bytes -= size
        if not self._full():
            self._putters.unpark()
        return item

    def close(self) -> None:
        """Nobody reads any more: who waits with an item goes on, and what is put is forgotten."""
        self._closed = True
        self._putters.unpark_all()

    def _full(self) -> bool:
        return not self._closed and (len(self._items) >= self._items_max or self._bytes >= self._bytes_max)
