"""The fourteen points of DESIGN 5, each against the real library: what py-libp2p 0.8.1 would do, and ours
does not."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.swarm import Swarm
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.yamux.yamux import YamuxStream

import p2pmesh
from p2pmesh.config import Net
from p2pmesh.errors import ListenError
from p2pmesh.net.host import DialFailed, FrameReceived, LinkDown, LinkUp, Priority, open_host
from p2pmesh.net.identity import Identity
from p2pmesh.net.link import Link
from p2pmesh.net.secure import Connection
from tests.integration.net_peers import (
    FRAME_MAX,
    address_of,
    fails,
    hosts,
    link,
    still_works,
    stranger,
    stranger_connects,
)

pytestmark = pytest.mark.wire


async def _accepts(address: str) -> bool:
    port = int(address.rpartition("/")[2])
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _plaintext_only() -> dict[str, object]:
    keys = create_new_key_pair()
    return {"key_pair": keys, "sec_opt": {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)}}


async def test_01_a_plaintext_only_dialer_is_refused():
    """Point 1: plaintext proves nothing, and libp2p's host accepts it by default."""
    async with hosts(1) as (a,), stranger(**_plaintext_only()) as liar:
        assert await fails(stranger_connects(liar, a))
        await still_works(a)
        assert a.counters["failed handshakes"] >= 1  # it tries four times


async def test_01_a_plaintext_only_listener_is_refused():
    """Point 1, the other way round: whom we dial must prove who it is."""
    async with hosts(1) as (a,), stranger(**_plaintext_only()) as liar:
        a.dial(None, [address_of(liar)])
        assert isinstance(await a.receive(), DialFailed)
        a.dial(liar.get_id().to_base58(), [address_of(liar)])
        assert isinstance(await a.receive(), DialFailed)


async def test_02_a_bug_in_one_links_task_ends_that_link_alone(monkeypatch, caplog):
    """Point 2: an exception in a stream handler stops libp2p's host."""
    run = Link.run

    async def buggy(self, deliver):
        async def boom(data):
            if data == b"boom":
                raise ZeroDivisionError
            await deliver(data)

        return await run(self, boom)

    monkeypatch.setattr(Link, "run", buggy)
    async with hosts(3) as (a, b, c):
        await link(b, a)
        await link(c, a)
        b.send(a.id, b"boom", Priority.CONTROL)
        assert isinstance(await b.receive(), LinkDown)
        assert await a.receive() == LinkDown(b.id, "a fault of ours")
        c.send(a.id, b"alive", Priority.CONTROL)
        assert await a.receive() == FrameReceived(c.id, b"alive")
        await still_works(a)
        assert a.counters["failed tasks"] == 1
    assert "ZeroDivisionError" in caplog.text


async def test_03_cancelling_whoever_sends_or_receives_costs_nothing():
    """Point 3: a cancelled write kills libp2p's connection. Only one task ever writes, and nobody cancels
    that."""
    async with hosts(2) as (a, b):
        await link(a, b)
        got: list[bytes] = []
        sent = 0
        for turn in range(60):
            with trio.CancelScope() as scope:
                for _ in range(turn % 7):
                    a.send(b.id, b"%d" % sent, Priority.TOKENS)
                    sent += 1
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.001):
                while True:
                    got.append((await b.receive()).data)
        while len(got) < sent:
            got.append((await b.receive()).data)
        assert got == [b"%d" % i for i in range(sent)]
        assert a.links() == (b.id,)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_04_a_closed_host_listens_no_more_and_leaves_nothing(cancelled):
    """Point 4: libp2p's `run` leaves a listener that accepts and does nothing, and its connections open."""
    async with hosts(1) as (b,):
        descriptors = _descriptors()
        tasks = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope() as scope:
            async with open_host(Identity.generate(), Net(), FRAME_MAX) as a:
                await link(a, b)
                half_open = await trio.open_tcp_stream("127.0.0.1", int(a.addresses[0].rpartition("/")[2]))
                a.dial(Identity.generate().id, b.addresses)
                if cancelled:
                    scope.cancel()
        assert not await _accepts(a.addresses[0])
        assert await b.receive() == LinkDown(a.id, "it said goodbye: leaving")
        await half_open.aclose()
        b.dial(a.id, a.addresses)
        assert isinstance(await b.receive(), DialFailed)
        assert b.links() == ()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert _descriptors() == descriptors
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_05_a_taken_port_is_told_in_one_line():
    """Point 5: with SO_REUSEPORT a second peer takes half of the first one's connections, silently."""
    async with hosts(1) as (a,):
        with pytest.raises(ListenError, match="another program does; choose another port") as error:
            async with open_host(Identity.generate(), Net(listen=(a.addresses[0],)), FRAME_MAX):
                pass
        assert "\n" not in str(error.value)


async def test_05_nor_can_the_port_be_shared_with_a_libp2p_host():
    """Point 5: whichever of the two comes second is refused."""
    async with hosts(1) as (a,):
        port = int(a.addresses[0].rpartition("/")[2])
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                thief.bind(("127.0.0.1", port))
    async with stranger() as host:
        with pytest.raises(ListenError, match="another program"):
            async with open_host(Identity.generate(), Net(listen=(address_of(host),)), FRAME_MAX):
                pass


async def test_05_an_address_of_another_machine_is_told_too():
    """Point 5: nothing is left listening where the second of two addresses fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"
    with pytest.raises(ListenError, match="no interface"):
        async with open_host(Identity.generate(), Net(listen=(first, "/ip4/192.0.2.1/tcp/0")), FRAME_MAX):
            pass
    assert not await _accepts(first)


async def test_06_a_dial_goes_past_happy_eyeballs_and_the_blacklist(monkeypatch):
    """Point 6: libp2p waits 250 ms for each connection, and refuses a peer for 60 s after a failed dial."""

    async def never(*args: object) -> None:
        raise AssertionError("dialled through libp2p's swarm")

    monkeypatch.setattr(Swarm, "dial_peer", never)
    monkeypatch.setattr(Swarm, "dial_addr", never)
    identity = Identity.generate()
    async with hosts(1) as (a,):
        async with open_host(identity, Net(), FRAME_MAX) as gone:
            address = gone.addresses[0]
        for _ in range(3):
            a.dial(identity.id, [address])
            assert isinstance(await a.receive(), DialFailed)
        async with open_host(identity, Net(listen=(address,)), FRAME_MAX):
            a.dial(identity.id, [address])
            assert isinstance(await a.receive(), LinkUp)


async def test_07_an_end_without_goodbye_is_a_failure():
    """Point 7: libp2p reports a reset as the clean end of the stream."""
    async with hosts(2) as (a, b):
        await link(a, b)
        b._links[a.id]._stream._socket.abort()
        assert await a.receive() == LinkDown(b.id, "the connection broke without a goodbye")
        assert isinstance(await b.receive(), LinkDown)
        await link(a, b)
        with trio.CancelScope(shield=True):
            await b._links[a.id]._stream._stream.reset()
        assert await a.receive() == LinkDown(b.id, "the connection broke without a goodbye")
        assert isinstance(await b.receive(), LinkDown)
        await link(a, b)
        b.hangup(a.id)
        assert await a.receive() == LinkDown(b.id, "it said goodbye: hung up")


async def test_08_a_slow_reader_harms_nobody_else():
    """Point 8: its window closes, its outbox fills, its link ends; the others never wait for it."""
    async with hosts(3, Net(inbox_frames_max=8, outbox_frames_max=64)) as (a, slow, quick):
        await link(a, slow)
        await link(a, quick)
        blocked = 0
        while a.send(slow.id, bytes(50_000), Priority.BULK):
            blocked += 1
            a.send(quick.id, b"%d" % blocked, Priority.TOKENS)
            assert await quick.receive() == FrameReceived(a.id, b"%d" % blocked)
        down = await a.receive()
        assert isinstance(down, LinkDown)
        assert (down.peer, "reads too slowly" in down.detail) == (slow.id, True)
        a.send(quick.id, b"still here", Priority.TOKENS)
        assert await quick.receive() == FrameReceived(a.id, b"still here")


async def test_09_hanging_up_on_a_stopped_peer_completes():
    """Point 9: libp2p never notices a stopped peer; who does (the probes above) must be able to end the
    link."""
    frozen = trio.Event()

    async def pipe(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async with source:
            async for data in source:
                if frozen.is_set():
                    await trio.sleep_forever()
                await sink.send_all(data)

    async with hosts(2) as (a, b), trio.open_nursery() as nursery:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]

        async def proxy() -> None:
            inward = await listener.accept()
            outward = await trio.open_tcp_stream("127.0.0.1", int(b.addresses[0].rpartition("/")[2]))
            nursery.start_soon(pipe, inward, outward)
            nursery.start_soon(pipe, outward, inward)
            await listener.aclose()

        nursery.start_soon(proxy)
        a.dial(b.id, [f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"])
        assert isinstance(await a.receive(), LinkUp)
        frozen.set()
        for _ in range(30):  # more than the window and the sockets hold: the writer is stuck in a write
            a.send(b.id, bytes(FRAME_MAX), Priority.BULK)
            await trio.lowlevel.checkpoint()
        a.hangup(b.id)
        assert await a.receive() == LinkDown(b.id, "hung up")
        nursery.cancel_scope.cancel()


async def test_10_small_frames_cost_no_window_update_each(monkeypatch):
    """Point 10: libp2p writes one encrypted frame for each small read."""
    updates = 0
    send = YamuxStream.send_window_update

    async def counted(self, *args, **kwargs):
        nonlocal updates
        updates += 1
        await send(self, *args, **kwargs)

    monkeypatch.setattr(YamuxStream, "send_window_update", counted)
    async with hosts(2) as (a, b):
        await link(a, b)
        assert updates == 0
        for i in range(500):
            a.send(b.id, b"token %d" % i, Priority.TOKENS)
            assert await b.receive() == FrameReceived(a.id, b"token %d" % i)
        assert updates == 0
        for _ in range(8):  # and yet the window of 256 KiB never closes
            a.send(b.id, bytes(FRAME_MAX), Priority.BULK)
            assert (await b.receive()).data == bytes(FRAME_MAX)
        assert 0 < updates <= 40


async def test_11_one_stream_for_a_neighbour_and_few_writes_for_many_frames(monkeypatch):
    """Point 11: a stream for each request costs 12 frames, and a frame costs the same up to 4 KB."""
    writes = 0
    write = Connection.write

    async def counted(self, data):
        nonlocal writes
        writes += 1
        await write(self, data)

    monkeypatch.setattr(Connection, "write", counted)
    async with hosts(2) as (a, b):
        await link(a, b)
        writes = 0
        for i in range(1000):
            a.send(b.id, b"%064d" % i, Priority.TOKENS)
        assert [(await b.receive()).data for _ in range(1000)] == [b"%064d" % i for i in range(1000)]
        assert writes <= 3
        assert len(a._links[b.id]._stream._muxed.streams) == len(b._links[a.id]._stream._muxed.streams) == 1


@pytest.mark.parametrize("while_linked", [False, True])
async def test_12_a_thousand_raw_streams_end_their_connection_only(while_linked):
    """Point 12: one connection opened more than 11 000 streams to libp2p's host."""
    async with hosts(2) as (a, b), stranger() as flooder:
        if while_linked:
            await link(b, a)
        connection = await stranger_connects(flooder, a)
        connection.muxed_conn.stream_backlog_semaphore = trio.Semaphore(1_000_000)
        opened = 0
        while opened < 1_000 and not await fails(connection.muxed_conn.open_stream()):
            opened += 1
        await connection.muxed_conn.event_closed.wait()
        assert a.counters["stream floods"] == 1
        assert a.links() == ((b.id,) if while_linked else ())
        await still_works(a)


@pytest.mark.parametrize("turn", range(12))
async def test_13_peers_that_dial_each_other_at_once_get_one_link_the_same_at_both(turn):
    """Point 13: libp2p keeps two connections."""
    async with hosts(2) as (a, b):
        pairs = [(a, b), (b, a)][:: 1 if turn % 2 else -1]
        for dialler, other in pairs:
            dialler.dial(other.id, other.addresses)
            for _ in range(turn // 2):
                await trio.lowlevel.checkpoint()
        up_a, up_b = await a.receive(), await b.receive()
        assert isinstance(up_a, LinkUp)
        assert isinstance(up_b, LinkUp)
        assert up_a.inbound != up_b.inbound  # one connection has one end of each kind
        a.send(b.id, b"to b", Priority.CONTROL)
        b.send(a.id, b"to a", Priority.CONTROL)
        assert await a.receive() == FrameReceived(b.id, b"to a")  # no LinkDown for the one that lost
        assert await b.receive() == FrameReceived(a.id, b"to b")
        while a._dialling or b._dialling:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(a._inbox) == len(b._inbox) == 0
        assert (a.links(), b.links()) == ((b.id,), (a.id,))


async def test_13_addresses_told_to_others_are_concrete():
    """Point 13: libp2p announces 0.0.0.0 as it is."""
    async with hosts(1, Net(listen=("/ip4/0.0.0.0/tcp/0",))) as (a,):
        assert a.addresses
        assert not any("0.0.0.0" in address or "/p2p/" in address for address in a.addresses)
        async with hosts(1) as (b,):
            b.dial(a.id, [a.addresses[0]])
            assert isinstance(await b.receive(), LinkUp)


async def test_13_a_loopback_address_beside_others_is_dialled():
    """Point 13: libp2p drops loopback addresses where a peer has another one."""
    async with hosts(2) as (a, b):
        a.dial(b.id, ["/dns4/localhost/tcp/1", *b.addresses])
        assert isinstance(await a.receive(), LinkUp)


async def test_14_a_wrong_id_is_a_failed_dial_and_no_foreign_exception():
    """Point 14: whatever libp2p raises comes out as an event with a text."""
    async with hosts(3) as (a, b, other):
        a.dial(other.id, b.addresses)
        failed = await a.receive()
        assert isinstance(failed, DialFailed)
        assert failed.peer == other.id
        assert re.search("peer id", failed.detail, re.IGNORECASE)
        a.dial(other.id, [f"{b.addresses[0]}/p2p/{b.id}"])
        assert "another peer's" in (await a.receive()).detail
        await still_works(b)


def test_14_libp2p_is_imported_in_one_file_only():
    """Point 14: one door."""
    root = Path(p2pmesh.__file__).parent
    speaks = re.compile(r"^\s*(from|import) (libp2p|multiaddr)\b", re.MULTILINE)
    assert [p.name for p in root.rglob("*.py") if speaks.search(p.read_text())] == ["secure.py"]
