"""Peers for the tests of the wire: ours, and libp2p's own as strangers. Knows no test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from libp2p import new_host
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pmesh.config import Net
from p2pmesh.net.host import Host, LinkUp, open_host
from p2pmesh.net.identity import Identity

FRAME_MAX = 262_144
HANG_S = 30
"""Only a guard: nothing here depends on how long anything takes."""


@asynccontextmanager
async def hosts(n: int, net: Net | None = None) -> AsyncIterator[list[Host]]:
    """Open `n` hosts, by ascending id."""
    identities = sorted((Identity.generate() for _ in range(n)), key=lambda i: i.id)
    with trio.fail_after(HANG_S):
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(open_host(i, net or Net(), FRAME_MAX)) for i in identities]


async def link(dialler: Host, other: Host) -> None:
    """Link two hosts and take both LinkUps."""
    dialler.dial(other.id, other.addresses)
    up, theirs = await dialler.receive(), await other.receive()
    assert isinstance(up, LinkUp), up
    assert isinstance(theirs, LinkUp), theirs
    assert (up.peer, theirs.peer, up.inbound, theirs.inbound) == (other.id, dialler.id, False, True)


async def still_works(host: Host) -> None:
    """A new peer can link to `host` and be heard. What `host` was told before is dropped."""
    async with open_host(Identity.generate(), Net(), FRAME_MAX) as probe:
        probe.dial(host.id, host.addresses)
        assert isinstance(await probe.receive(), LinkUp)
        while True:
            event = await host.receive()
            if isinstance(event, LinkUp) and event.peer == probe.id:
                return


@asynccontextmanager
async def stranger(**options: object) -> AsyncIterator[object]:
    """A libp2p host as it comes, listening on loopback."""
    host = new_host(**options)
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True):
                await host.close()


async def stranger_connects(host: object, to: Host) -> object:
    """Return the libp2p connection from a stranger to one of ours."""
    return await host.get_network().dial_addr(Multiaddr(to.addresses[0]), ID.from_base58(to.id))


def address_of(host: object) -> str:
    """Return where a stranger listens, without its id."""
    return str(host.get_addrs()[0]).partition("/p2p/")[0]


async def fails(work: Awaitable[object]) -> bool:
    """Return whether `work` raises; libp2p raises anything, with or without a text."""
    try:
        await work
    except Exception:  # noqa: BLE001
        return True
    return False


async def until_ended(stream: object) -> None:
    """Read a stranger's stream until it raises or ends."""
    while not await fails(stream.read(65_536)):
        pass
