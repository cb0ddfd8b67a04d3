"""Strangers that break the rules, made of libp2p's own host: each ends its own connection and nothing
else."""

from __future__ import annotations

import logging
import os
import random

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from p2pmesh.config import Net
from p2pmesh.errors import NetworkError
from p2pmesh.net.framing import frame
from p2pmesh.net.host import DialFailed, FrameReceived, LinkDown, LinkUp, Priority
from p2pmesh.net.link import SHOWN_BYTES_MAX
from p2pmesh.net.secure import PROTOCOL, UNREAD_BYTES_MAX
from tests.integration.net_peers import (
    FRAME_MAX,
    address_of,
    fails,
    hosts,
    link,
    still_works,
    stranger,
    stranger_connects,
    until_ended,
)

pytestmark = pytest.mark.wire

HELLO = frame(b"\x01" + b"8 bytes!")
ADMIT = frame(b"\x04")
ACCEPT = frame(b"\x02")


def _greeting(stranger: object, to: object) -> bytes:
    """What makes a link, said by a stranger: both let one another in, and the lower id accepts."""
    return HELLO + ADMIT + (ACCEPT if stranger.get_id().to_base58() < to.id else b"")


async def _tcp(host: object) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(host.addresses[0].rpartition("/")[2]))


async def _our_stream(host: object, to: object) -> object:
    """A stranger's stream that speaks our protocol so far."""
    await stranger_connects(host, to)
    return await host.new_stream(ID.from_base58(to.id), [TProtocol(PROTOCOL)])


async def test_garbage_on_the_port_is_logged_once_and_harms_nobody(caplog):
    rng = random.Random(1)
    async with hosts(2) as (a, b):
        await link(b, a)
        for size in (1, 2, 20, 1_000, 100_000):
            async with await _tcp(a) as stream:
                try:
                    await stream.send_all(rng.randbytes(size))
                    await stream.send_eof()
                    async for _ in stream:
                        pass
                except trio.BrokenResourceError:
                    pass
        async with await _tcp(a) as stream:
            await stream.send_all(b"\x13/multistream/1.0.0\n\x07/noise\n" + os.urandom(500))
            await stream.send_eof()
            try:
                async for _ in stream:
                    pass
            except trio.BrokenResourceError:
                pass
        b.send(a.id, b"undisturbed", Priority.CONTROL)
        assert await a.receive() == FrameReceived(b.id, b"undisturbed")
        await still_works(a)
        assert a.counters["failed handshakes"] == 6
    warnings = [r for r in caplog.records if r.name == "p2pmesh.net" and r.levelno >= logging.WARNING]
    assert len(warnings) == 1


async def test_half_open_connections_are_ended_in_time():
    async with hosts(1, Net(dial_timeout_s=1)) as (a,):
        silent = [await _tcp(a) for _ in range(20)]
        await silent[0].send_all(b"\x13/multistream/1.0.0\n")
        for stream in silent:
            async with stream:
                async for _ in stream:  # ends when ours closes it
                    pass
        assert a.counters["half-open connections"] == 20
        await still_works(a)


async def test_a_peer_that_opens_no_stream_of_ours_is_ended_in_time():
    async with hosts(1, Net(dial_timeout_s=1)) as (a,), stranger() as idle:
        connection = await stranger_connects(idle, a)
        await connection.muxed_conn.event_closed.wait()
        await still_works(a)


async def test_connections_beyond_the_bound_are_closed_unheard():
    async with hosts(2, Net(connections_max=4)) as (a, b):
        await link(b, a)
        first = [await _tcp(a) for _ in range(2)]  # half of the bound
        async with await _tcp(a) as one_more:
            assert await one_more.receive_some(1) in (b"", b"\x13")
        while not a.counters["refused connections"]:
            await trio.testing.wait_all_tasks_blocked(0.01)
        for stream in first:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await still_works(a)


async def test_another_version_of_the_protocol_is_told_apart_both_ways():
    async with hosts(1, Net(dial_timeout_s=2)) as (a,), stranger() as other:

        async def handler(stream: object) -> None:
            """Never reached."""

        other.set_stream_handler(TProtocol("/p2pmesh/2.0.0"), handler)
        a.dial(other.get_id().to_base58(), [address_of(other)])
        failed = await a.receive()
        assert isinstance(failed, DialFailed)
        assert failed.detail.endswith(f"it does not speak {PROTOCOL}")
        await stranger_connects(other, a)
        assert await fails(other.new_stream(ID.from_base58(a.id), [TProtocol("/p2pmesh/2.0.0")]))
        await still_works(a)
        assert a.counters["refused streams"] >= 1


@pytest.mark.parametrize(
    ("linked", "said"),
    [
        (False, frame(b"\x00not a greeting")),
        (False, frame(b"\x01short")),
        (False, frame(b"")),
        (False, b"\xff\xff\xff\xff"),
        (False, HELLO + frame(b"\x09unknown")),
        (False, HELLO + ACCEPT),
        (False, HELLO + ADMIT + frame(b"\x09unknown")),
        (False, frame(b"\x01" + bytes(8 + SHOWN_BYTES_MAX + 1))),
        (True, frame(b"")),
        (True, frame(b"\x09unknown")),
        (True, ACCEPT),
        (True, (FRAME_MAX + 2).to_bytes(4, "big")),
    ],
)
async def test_bad_frames_end_their_link_and_are_counted(linked, said):
    async with hosts(2) as (a, b), stranger() as rude:
        await link(b, a)
        stream = await _our_stream(rude, a)
        await stream.write((_greeting(rude, a) if linked else b"") + said)
        await until_ended(stream)
        while not a.counters["bad frames"]:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert a.links() == (b.id,)
        b.send(a.id, b"undisturbed", Priority.CONTROL)
        while (event := await a.receive()) != FrameReceived(b.id, b"undisturbed"):
            assert isinstance(event, (LinkUp, LinkDown))
        await still_works(a)


async def test_a_peer_that_ignores_its_window_is_ended():
    """libp2p only logs it, and would hold everything: the bound is ours."""
    async with hosts(1, Net(inbox_frames_max=2)) as (a,), stranger() as flooder:
        stream = await _our_stream(flooder, a)
        await stream.write(_greeting(flooder, a))
        assert isinstance(await a.receive(), LinkUp)
        stream.muxed_stream.send_window = 1_000_000_000
        sent = 0
        chunk = frame(b"\x00" + bytes(10_000)) * 6
        while sent < 100 * UNREAD_BYTES_MAX and not await fails(stream.write(chunk)):
            sent += len(chunk)
        assert sent < 20 * UNREAD_BYTES_MAX  # what the kernel's buffers hold comes on top
        while not isinstance(await a.receive(), LinkDown):
            pass
        await still_works(a)


def _held(link: object) -> int:
    """Bytes of a link's connection that nobody has read yet."""
    return sum(map(len, link._stream._muxed.stream_buffers.values()))


async def _write_raw(stream: object, data: bytes) -> None:
    """One frame on a stranger's stream, whatever its own side of it thinks of that."""
    header = b"\0\0\0\0" + stream.stream_id.to_bytes(4, "big") + len(data).to_bytes(4, "big")
    await stream.conn.secured_conn.write(header + data)


async def test_side_streams_that_ignore_their_windows_fill_nothing_while_the_link_is_read():
    """Each frame of the link is read at once; the streams beside it are talked on without an end."""
    async with hosts(1, Net(inbound_streams_max=50)) as (a,), stranger() as flooder:
        stream = await _our_stream(flooder, a)
        await stream.write(_greeting(flooder, a))
        up = await a.receive()
        assert isinstance(up, LinkUp)
        ours = a._links[up.peer]
        sides = [await stream.muxed_conn.open_stream() for _ in range(4)]
        for side in sides:
            await _write_raw(side, b"\x13/multistream/1.0.0\n")
        most = sent = 0
        while sent < 8 * UNREAD_BYTES_MAX and a.links():
            for side in sides:
                await fails(_write_raw(side, b"\x02x\n" * 20_000))
                sent += 60_000
            if await fails(stream.write(frame(b"\x00tiny"))):
                break
            await a.receive()
            most = max(most, _held(ours))
        assert most <= UNREAD_BYTES_MAX
        await still_works(a)


async def test_what_nobody_reads_is_bounded_while_the_link_is_read():
    """Whatever the cause: what all streams hold together ends the connection."""
    async with hosts(1, Net(inbound_streams_max=50)) as (a,), stranger() as flooder:
        stream = await _our_stream(flooder, a)
        await stream.write(_greeting(flooder, a))
        up = await a.receive()
        assert isinstance(up, LinkUp)
        ours = a._links[up.peer]
        await ours._stream._negotiating.acquire()  # as if to refuse a stream took for ever
        sides = [await stream.muxed_conn.open_stream() for _ in range(4)]
        most = sent = 0
        event = None
        while sent < 8 * UNREAD_BYTES_MAX and not isinstance(event, LinkDown):
            for side in sides:
                await fails(_write_raw(side, bytes(60_000)))
                sent += 60_000
            await fails(stream.write(frame(b"\x00tiny")))
            event = await a.receive()
            most = max(most, _held(ours))
        assert isinstance(event, LinkDown)
        assert "more than its windows" in event.detail
        assert UNREAD_BYTES_MAX // 2 < most <= UNREAD_BYTES_MAX
        assert a.counters["unread floods"] == 1
        await still_works(a)


async def test_why_a_link_ended_is_not_what_an_earlier_stream_did():
    """libp2p opens streams of its own, and one refused before ours came was once named as the cause."""
    async with hosts(1) as (a,), stranger() as other:
        connection = await stranger_connects(other, a)
        foreign = await connection.muxed_conn.open_stream()
        await fails(foreign.write(b"\x05junk\n"))
        while not a.counters["refused streams"]:
            await trio.testing.wait_all_tasks_blocked(0.01)
        stream = await other.new_stream(ID.from_base58(a.id), [TProtocol(PROTOCOL)])
        await stream.write(_greeting(other, a))
        up = await a.receive()
        assert isinstance(up, LinkUp)
        a._links[up.peer]._stream.abort("it sent more than its windows")
        down = await a.receive()
        assert isinstance(down, LinkDown)
        assert "more than its windows" in down.detail


async def test_why_a_link_ended_is_told_by_a_write_that_met_the_end_first():
    """A busy machine's writer noticed before the reader: "Stream is closed" was told as the cause."""
    async with hosts(1) as (a,), stranger() as other:
        stream = await _our_stream(other, a)
        await stream.write(_greeting(other, a))
        up = await a.receive()
        assert isinstance(up, LinkUp)
        carrier = a._links[up.peer]._stream
        carrier.abort("it sent more than its windows")
        with pytest.raises(NetworkError, match="more than its windows"):
            await carrier.write(b"late")


async def test_a_stream_beside_the_link_is_refused_without_a_word():
    async with hosts(1) as (a,), stranger() as other:
        stream = await _our_stream(other, a)
        await stream.write(_greeting(other, a))
        up = await a.receive()
        assert isinstance(up, LinkUp)
        side = await stream.muxed_conn.open_stream()
        assert await fails(side.read(1))  # and not multistream's greeting
        assert a.counters["refused streams"] >= 1  # libp2p opens one of its own, too
        assert a.links() == (up.peer,)
        assert len(a._links[up.peer]._stream._muxed.streams) == 1


@pytest.mark.parametrize("said", [b"\x02x\n" * 20_000, b"\xff\xff\xff\x7f" + bytes(60_000)])
async def test_a_long_talk_about_a_protocol_is_cut_short(said):
    """libp2p would answer for ever, and hold a name of any length."""
    async with hosts(1) as (a,), stranger() as talker:
        connection = await stranger_connects(talker, a)
        stream = await connection.muxed_conn.open_stream()
        await fails(stream.write(b"\x13/multistream/1.0.0\n" + said))
        while not a.counters["refused streams"]:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await until_ended(stream)
        await still_works(a)


async def test_one_stream_at_a_time_is_asked_for_its_protocol():
    async with hosts(1) as (a,), stranger() as other:
        connection = await stranger_connects(other, a)
        first, second = [await connection.muxed_conn.open_stream() for _ in range(2)]
        assert await first.read(20) == b"\x13/multistream/1.0.0\n"
        with trio.move_on_after(0.3) as silence:
            await second.read(20)
        assert silence.cancelled_caught
        await first.reset()
        assert await second.read(20) == b"\x13/multistream/1.0.0\n"


async def test_an_announced_giant_of_a_mux_frame_is_not_waited_for():
    async with hosts(1) as (a,), stranger() as flooder:
        stream = await _our_stream(flooder, a)
        await stream.write(_greeting(flooder, a))
        assert isinstance(await a.receive(), LinkUp)
        secured = stream.muxed_conn.secured_conn
        header = (
            b"\x00\x00\x00\x00"
            + stream.muxed_stream.stream_id.to_bytes(4, "big")
            + (2**24).to_bytes(4, "big")
        )
        await secured.write(header)
        for _ in range(2**24 // 60_000 + 1):
            await fails(secured.write(bytes(60_000)))
        assert isinstance(await a.receive(), LinkDown)
        assert not a.counters["bad frames"]  # which the giant would be, were it ever whole
        await still_works(a)


async def test_a_peer_that_ends_within_the_greeting_harms_nobody():
    async with hosts(1) as (a,), stranger() as fickle:
        for said in (b"", HELLO[:3], HELLO, HELLO + frame(b"\x03bye"), HELLO + ADMIT):
            stream = await _our_stream(fickle, a)
            if said:
                await stream.write(said)
            await fickle.get_network().close_peer(ID.from_base58(a.id))
        await still_works(a)


async def test_a_goodbye_is_printable_and_short():
    async with hosts(1) as (a,), stranger() as rude:
        stream = await _our_stream(rude, a)
        await stream.write(_greeting(rude, a) + frame(b"\x03" + b"\x1b[31m\nfake log line\xff" * 1000))
        assert isinstance(await a.receive(), LinkUp)
        down = await a.receive()
        assert isinstance(down, LinkDown)
        assert down.detail.isprintable()
        assert len(down.detail) < 300


async def test_libp2p_is_kept_off_stderr_and_the_root_logger_is_left_alone():
    root = list(logging.getLogger().handlers)
    async with hosts(1) as (a,):
        a.dial(None, ["/ip4/127.0.0.1/tcp/1"])
        await a.receive()
    assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger("libp2p").handlers)
    assert logging.getLogger().handlers == root


async def test_a_stranger_that_dials_in_plain_libp2p_reaches_us_by_multiaddress():
    """Interoperation: nothing but libp2p is needed to speak the protocol."""
    async with hosts(1) as (a,), stranger() as other:
        await other.get_network().dial_addr(Multiaddr(a.addresses[0]), ID.from_base58(a.id))
        stream = await other.new_stream(ID.from_base58(a.id), [TProtocol(PROTOCOL)])
        await stream.write(_greeting(other, a))
        up = await a.receive()
        assert isinstance(up, LinkUp)
        assert up.peer == other.get_id().to_base58()
        a.send(up.peer, b"hello", Priority.CONTROL)
        got = b""
        while not got.endswith(frame(b"\x00hello")):
            got += await stream.read(65_536)
