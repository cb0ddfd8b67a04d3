"""What a host promises to the peer above it, on real connections over loopback."""

from __future__ import annotations

import pytest
import trio

from p2pmesh.config import Net
from p2pmesh.errors import ConfigError, LocalProtocolError
from p2pmesh.net.address import parse
from p2pmesh.net.host import DialFailed, FrameReceived, LinkDown, LinkUp, Priority, open_host
from p2pmesh.net.identity import Identity
from tests.integration.net_peers import FRAME_MAX, HANG_S, hosts, link

pytestmark = pytest.mark.wire


async def test_frames_both_ways_whole_and_in_order():
    async with hosts(2) as (a, b):
        await link(a, b)
        sent = [bytes([i % 251]) * size for i, size in enumerate((0, 1, 63, 65_000, 65_001, FRAME_MAX) * 3)]
        for there, back in ((a, b), (b, a)):
            for data in sent:
                assert there.send(back.id, data, Priority.TOKENS)
            assert [(await back.receive()) for _ in sent] == [FrameReceived(there.id, data) for data in sent]
        assert a.links() == (b.id,)
        assert a.counters == {}


async def test_the_urgent_overtake_the_bulky():
    async with hosts(2) as (a, b):
        await link(a, b)
        for i in range(20):  # no await in between: all are queued before any leaves
            a.send(b.id, b"bulk%d" % i, Priority.BULK)
            a.send(b.id, b"tokens%d" % i, Priority.TOKENS)
            a.send(b.id, b"control%d" % i, Priority.CONTROL)
        got = [(await b.receive()).data for _ in range(60)]
        assert got == [kind + b"%d" % i for kind in (b"control", b"tokens", b"bulk") for i in range(20)]


async def test_dial_without_an_id_learns_it():
    async with hosts(2) as (a, b):
        a.dial(None, [b.addresses[0]])
        assert await a.receive() == LinkUp(b.id, b.addresses[0], inbound=False)


async def test_addresses_are_tried_in_turn_and_may_end_in_the_id():
    async with hosts(2) as (a, b):
        a.dial(b.id, ["/ip4/127.0.0.1/tcp/1", "nonsense", f"{b.addresses[0]}/p2p/{b.id}"])
        assert await a.receive() == LinkUp(b.id, b.addresses[0], inbound=False)


async def test_a_linked_peer_is_not_dialled_again():
    async with hosts(2) as (a, b):
        a.dial(b.id, b.addresses)
        a.dial(b.id, b.addresses)
        assert isinstance(await a.receive(), LinkUp)
        a.dial(b.id, b.addresses)
        a.dial(None, [f"{b.addresses[0]}/p2p/{b.id}"])
        a.dial(None, b.addresses)  # this one cannot know before it is there
        assert isinstance(await b.receive(), LinkUp)
        while a._dialling:
            await trio.testing.wait_all_tasks_blocked(0.01)
        b.send(a.id, b"only this", Priority.CONTROL)
        assert await a.receive() == FrameReceived(b.id, b"only this")


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ((), "no address"),
        (("/ip4/127.0.0.1/tcp/1",), "/ip4/127.0.0.1/tcp/1: "),
        (("/ip4/127.0.0.1/udp/1/quic",), "is not an address"),
        (("/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGarbage",), "/tcp/1/p2p/"),
    ],
)
async def test_a_dial_that_cannot_succeed_says_so_once(addresses, why):
    async with hosts(1) as (a,):
        other = Identity.generate().id
        a.dial(other, addresses)
        failed = await a.receive()
        assert isinstance(failed, DialFailed)
        assert failed.peer == other
        assert why in failed.detail


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example", "a\0b", "\ud800"])
async def test_a_name_that_cannot_be_one_is_a_failed_dial(name):
    async with hosts(1) as (a,):
        with pytest.raises(ValueError, match="is not a DNS name"):
            parse(f"/dns4/{name}/tcp/1")
        a.dial(None, [f"/dns4/{name}/tcp/1"])
        failed = await a.receive()
        assert isinstance(failed, DialFailed)
        assert "is not a DNS name" in failed.detail
        assert not a.counters["failed tasks"]


async def test_a_name_that_the_resolver_cannot_spell_is_a_failed_dial(monkeypatch):
    async def resolver(*_: object) -> None:
        raise UnicodeError("label too long")

    async with hosts(1) as (a,):
        monkeypatch.setattr(trio, "open_tcp_stream", resolver)
        a.dial(None, ["/dns4/a.example/tcp/1"])
        assert await a.receive() == DialFailed(
            None, "/dns4/a.example/tcp/1", "/dns4/a.example/tcp/1: label too long"
        )


@pytest.mark.parametrize(
    "asked", [(True,), (False,), (True, False), (False, True), (False, True, True, False)]
)
async def test_each_who_dialled_a_peer_is_told_that_it_failed(asked):
    """By id or by an address that ends in it: one dial, and an answer to each way of asking."""
    async with hosts(1) as (a,):
        other = Identity.generate().id
        told = "/ip4/127.0.0.1/tcp/1"
        for by_id in asked:
            a.dial(other if by_id else None, [told if by_id else f"{told}/p2p/{other}"])
        failed = {(event.peer, event.address) for event in [await a.receive() for _ in set(asked)]}
        assert failed == {(other, told) if by_id else (None, f"{told}/p2p/{other}") for by_id in asked}
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.05) as silence:
            await a.receive()
        assert silence.cancelled_caught


async def test_who_dialled_a_peer_is_told_where_another_one_was_reached():
    async with hosts(2) as (a, b):
        other = Identity.generate().id
        a.dial(None, [f"/ip4/127.0.0.1/tcp/1/p2p/{other}", b.addresses[0]])
        a.dial(other, ["/ip4/127.0.0.1/tcp/1"])
        events = [await a.receive(), await a.receive()]
        assert LinkUp(b.id, b.addresses[0], inbound=False) in events
        assert [event.peer for event in events if isinstance(event, DialFailed)] == [other]


async def test_a_host_does_not_link_to_itself():
    async with hosts(1) as (a,):
        a.dial(None, a.addresses)
        failed = await a.receive()
        assert isinstance(failed, DialFailed)
        assert "this peer itself" in failed.detail
        assert a.links() == ()


async def test_send_says_whether_there_is_a_link():
    async with hosts(2) as (a, b):
        assert not a.send(b.id, b"x", Priority.CONTROL)
        await link(a, b)
        with pytest.raises(LocalProtocolError):
            a.send(b.id, b"x" * (FRAME_MAX + 1), Priority.BULK)
        assert a.send(b.id, b"x", Priority.CONTROL)


async def test_hangup_delivers_what_was_queued_and_then_says_goodbye():
    async with hosts(2) as (a, b):
        await link(a, b)
        a.send(b.id, b"last words", Priority.BULK)
        a.hangup(b.id)
        assert a.links() == ()
        assert not a.send(b.id, b"x", Priority.CONTROL)
        assert await b.receive() == FrameReceived(a.id, b"last words")
        assert await b.receive() == LinkDown(a.id, "it said goodbye: hung up")
        assert await a.receive() == LinkDown(b.id, "hung up")
        await link(b, a)


async def test_a_peer_started_anew_replaces_its_old_link():
    """Its old one is not yet known to be dead at the other end: the greeting tells the two starts apart."""
    low, high = sorted((Identity.generate(), Identity.generate()), key=lambda i: i.id)
    with trio.fail_after(HANG_S):
        for stays, restarts in ((low, high), (high, low)):
            async with open_host(stays, Net(), FRAME_MAX) as a, open_host(restarts, Net(), FRAME_MAX) as b1:
                await link(b1, a)
                async with open_host(restarts, Net(), FRAME_MAX) as b2:
                    b2.dial(a.id, a.addresses)
                    assert isinstance(await b2.receive(), LinkUp)
                    down, up = await a.receive(), await a.receive()
                    assert isinstance(down, LinkDown)
                    assert isinstance(up, LinkUp)
                    a.send(b2.id, b"to the living", Priority.CONTROL)
                    assert await b2.receive() == FrameReceived(a.id, b"to the living")


async def test_a_full_outbox_ends_the_link():
    async with hosts(2, Net(outbox_frames_max=100)) as (a, b):
        await link(a, b)
        taken = 0
        while a.send(b.id, b"x", Priority.BULK):
            taken += 1
        assert taken == 100
        assert a.links() == ()
        down = await a.receive()
        assert isinstance(down, LinkDown)
        assert "outbox" in down.detail
        assert isinstance(await b.receive(), LinkDown)


async def test_a_full_inbox_pauses_reading_and_loses_nothing():
    async with hosts(2, Net(inbox_frames_max=4)) as (a, b):
        await link(a, b)
        for i in range(200):
            assert a.send(b.id, b"%d" % i, Priority.TOKENS)
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(b._inbox) == 4
        assert [(await b.receive()).data for _ in range(200)] == [b"%d" % i for i in range(200)]


async def test_a_host_whose_inbox_is_full_can_still_close():
    async with hosts(1, Net(inbox_frames_max=2)) as (a,):
        async with open_host(Identity.generate(), Net(inbox_frames_max=2), FRAME_MAX) as b:
            await link(a, b)
            for _ in range(50):
                a.send(b.id, b"x", Priority.TOKENS)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await a.receive() == LinkDown(b.id, "it said goodbye: leaving")


async def test_64_links_at_once():
    async with hosts(65) as everyone:
        hub, spokes = everyone[30], everyone[:30] + everyone[31:]
        for spoke in spokes:
            spoke.dial(hub.id, hub.addresses)
        ups = {(await hub.receive()).peer for _ in spokes}
        assert ups == {spoke.id for spoke in spokes} == set(hub.links())
        for spoke in spokes:
            assert isinstance(await spoke.receive(), LinkUp)
            assert hub.send(spoke.id, b"hello", Priority.CONTROL)
        for spoke in spokes:
            assert await spoke.receive() == FrameReceived(hub.id, b"hello")


async def test_what_the_body_raises_comes_out_as_it_was():
    with pytest.raises(KeyError):
        async with open_host(Identity.generate(), Net(), FRAME_MAX):
            raise KeyError


@pytest.mark.parametrize("field", ["listen", "announce"])
async def test_an_address_that_is_none_is_told_before_anything_starts(field):
    with pytest.raises(ConfigError, match=f"net.{field}"):
        async with open_host(Identity.generate(), Net(**{field: ("localhost:80",)}), FRAME_MAX):
            pass


async def test_announce_overrides_what_is_told_to_others():
    net = Net(announce=("/dns4/peer.example.org/tcp/4001",))
    async with open_host(Identity.generate(), net, FRAME_MAX) as host:
        assert host.addresses == net.announce
