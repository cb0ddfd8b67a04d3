"""Meshes for your tests: real peers on a real wire, on loopback, with models that need no weights."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import trio

from p2pmesh.config import Config, ModelConfig
from p2pmesh.peer.peer import Peer, open_peer

_TOGETHER_S = 30.0
"""Seconds the peers have to find one another; a hang, not a slow machine, takes longer."""


@asynccontextmanager
async def open_cluster(
    peers: int | Sequence[Config], *, tokens_per_s: float = 200.0
) -> AsyncIterator[tuple[Peer, ...]]:
    """Start peers on loopback and yield them when each knows all the others.

    `peers`: how many, each with an echo model of that speed, or their configurations; empty `state`, `name`
    and `net.join` are filled in. Raises TooSlowError when they do not find one another within 30 s.
    """
    echo = ModelConfig(model="echo", engine="echo", tokens_per_s=tokens_per_s)
    configs = [Config(models=(echo,), embedder="hash")] * peers if isinstance(peers, int) else list(peers)
    async with AsyncExitStack() as stack:
        opened: list[Peer] = []
        for index, config in enumerate(configs):
            state = config.state or stack.enter_context(tempfile.TemporaryDirectory(prefix="p2pmesh-"))
            join = config.net.join or tuple(p.addresses[0] for p in opened[:1])
            given = replace(
                config, name=config.name or f"peer{index}", state=state, net=replace(config.net, join=join)
            )
            opened.append(await stack.enter_async_context(open_peer(given)))
        with trio.fail_after(_TOGETHER_S):
            while not all(_knows(peer, len(opened)) for peer in opened):  # noqa: ASYNC110 - no event for it
                await trio.sleep(0.02)
        yield tuple(opened)


def _knows(peer: Peer, count: int) -> bool:
    return sum(member.alive and member.distance >= 0 for member in peer.members()) >= count
