"""Peers find each other by multicast DNS, on 127.0.0.1 only: no packet leaves the machine."""

from __future__ import annotations

import pytest
import trio

from p2pmesh.config import Net
from p2pmesh.errors import ListenError
from p2pmesh.net.discovery import open_discovery
from p2pmesh.net.identity import Identity
from tests.integration.net_peers import HANG_S, hosts

pytestmark = pytest.mark.wire

LOOPBACK = Net(mdns=True, mdns_interface="127.0.0.1")


async def test_two_peers_find_each_other_and_can_be_dialled():
    async with (
        hosts(2) as (a, b),
        open_discovery(a.id, a.addresses, LOOPBACK) as heard_by_a,
        open_discovery(b.id, b.addresses, LOOPBACK) as heard_by_b,
    ):
        assert await heard_by_a.receive() == (b.id, b.addresses)
        assert await heard_by_b.receive() == (a.id, a.addresses)


async def test_leaving_ends_its_threads():
    with trio.fail_after(HANG_S):
        async with open_discovery(Identity.generate().id, ["/ip4/127.0.0.1/tcp/4001"], LOOPBACK) as heard:
            pass
        with pytest.raises(trio.EndOfChannel):
            await heard.receive()


async def test_an_interface_that_is_not_ours_is_told():
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        async with open_discovery(Identity.generate().id, [], Net(mdns_interface="192.0.2.1")):
            pass
