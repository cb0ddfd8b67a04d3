"""Tasks that live as long as a block, whose own error comes out as it is and in no exception group."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """Yield a nursery whose tasks are cancelled when the block ends. A task that fails ends the block, and
    what it raised comes out in an exception group, since it is a bug and not the block's doing."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as exc:  # noqa: BLE001 - raised below, as it was
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
