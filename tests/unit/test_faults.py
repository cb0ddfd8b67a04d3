"""What the fault proxy does to bytes: without a socket first, then through one with nobody else behind it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing

from benchmarks import faults
from benchmarks.faults import (
    LOOPBACK,
    RESEND_S,
    STRANGER,
    Course,
    Fault,
    Way,
    Wire,
    flipped,
    halves_swapped,
    inode_of,
    owner_of,
    sliced,
)

DATA = bytes(range(256)) * 4


def course(fault: Fault, seed: int = 1) -> Course:
    way = Way(Random(seed))
    way.fault = fault
    return Course(way)


def bits_apart(one: bytes, other: bytes) -> int:
    assert len(one) == len(other)
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def test_without_a_fault_all_arrives_at_once():
    assert course(Fault()).take(DATA, 5.0) == [(5.0, DATA)]


@pytest.mark.parametrize("size", [1, 7, 1_024, 5_000])
def test_slices_are_the_whole_and_no_longer_than_they_may_be(size: int):
    pieces = sliced(DATA, size)
    assert b"".join(pieces) == DATA
    assert max(map(len, pieces)) == min(size, len(DATA))


def test_delay_and_jitter_put_off_and_nothing_overtakes():
    late = course(Fault(delay_s=1.0, jitter_s=3.0))
    dues = [late.take(b"x", at / 10)[0][0] for at in range(100)]
    assert dues == sorted(dues)
    assert all(at / 10 + 1.0 <= due for at, due in enumerate(dues))
    assert max(due - at / 10 for at, due in enumerate(dues)) > 2.0


def test_a_lost_piece_comes_later_and_holds_up_what_is_behind_it():
    lossy = course(Fault(loss=0.5), seed=3)
    dues = [lossy.take(b"x", 0.0)[0][0] for _ in range(50)]
    first = next(i for i, due in enumerate(dues) if due)
    assert dues == [0.0] * first + [RESEND_S] * (50 - first)
    assert 10 < lossy._way.done["lost"] < 40


def test_a_narrow_way_takes_its_time_and_a_rest_does_not_save_up():
    narrow = course(Fault(bytes_per_s=100.0))
    assert [due for due, _ in narrow.take(b"x" * 50, 0.0) + narrow.take(b"x" * 50, 0.0)] == [0.5, 1.0]
    assert narrow.take(b"x" * 50, 9.0)[0][0] == 9.5


@pytest.mark.parametrize("seed", range(5))
def test_a_flip_is_one_bit(seed: int):
    assert bits_apart(flipped(DATA, Random(seed)), DATA) == 1


def test_so_many_flips_are_ordered_and_no_more():
    ordered = course(Fault())
    ordered._way.flips_due = 3
    spoilt = [ordered.take(DATA, 0.0)[0][1] for _ in range(10)]
    assert [bits_apart(piece, DATA) for piece in spoilt] == [1, 1, 1] + [0] * 7
    assert ordered._way.done["flipped"] == 3


def test_flips_come_as_often_as_they_should_and_the_same_for_a_seed():
    def hit(seed: int) -> list[bool]:
        often = course(Fault(flips=0.3), seed)
        return [often.take(DATA, 0.0)[0][1] != DATA for _ in range(200)]

    assert 30 < sum(hit(1)) < 90
    assert hit(1) == hit(1) != hit(2)


def test_repeats_and_swaps_are_that():
    assert [part for _, part in course(Fault(repeats=1.0)).take(b"abcd", 0.0)] == [b"abcd", b"abcd"]
    assert [part for _, part in course(Fault(swaps=1.0)).take(b"abcd", 0.0)] == [b"cdab"]
    same = course(Fault(swaps=1.0))
    assert [part for _, part in same.take(b"aa", 0.0)] == [b"aa"]
    assert not same._way.done["swapped"], "what changes nothing is no damage"
    assert halves_swapped(b"x") == b"x"


@pytest.mark.parametrize("left", [0, 1, 4, 9, 10])
def test_a_connection_is_cut_after_so_many_bytes_and_the_next_is_not(left: int):
    way = Way(Random(1))
    way.bytes_left = left
    one, next_ = Course(way), Course(way)
    said = [part for _ in range(4) for _, part in ([] if one.over else one.take(b"abcd", 0.0))]
    assert b"".join(said) == (b"abcd" * 4)[:left]
    assert one.over
    assert way.done["cut"] == 1
    assert next_.take(b"abcd", 0.0) == [(0.0, b"abcd")]


def test_cuts_fall_amid_a_piece():
    lengths = set()
    for seed in range(30):
        cut = course(Fault(cuts=1.0), seed)
        lengths.add(sum(len(part) for _, part in cut.take(b"abcd", 0.0)))
        assert cut.over
    assert lengths == {0, 1, 2, 3}


TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 111 1 0 100 0 0 10 0
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  0  0 222 1 0 20 4 0 10 -1
   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  0  0 333 1 0 20 4 0 10 -1
"""


def test_a_socket_is_found_by_its_two_ports():
    assert inode_of(TABLE, 0xC350, 0x1F90) == "222"
    assert inode_of(TABLE, 0x1F90, 0xC350) == "333"
    assert inode_of(TABLE, 0xC350, 0x1F91) == ""


# -- through sockets ----------------------------------------------------------------------------------


@asynccontextmanager
async def proxied(
    handle: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncIterator[tuple[Wire, Callable[[], Awaitable[trio.SocketStream]]]]:
    """A peer `b` that does as `handle` does, its proxy, and how this process, which is `a`, connects."""
    wire = Wire(1)
    wire.pids["a"] = os.getpid()
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        port = await nursery.start(wire.proxy, "b", listeners[0].socket.getsockname()[1])

        async def connect() -> trio.SocketStream:
            return await trio.open_tcp_stream(LOOPBACK, port)

        yield wire, connect
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    with trio.move_on_after(30.0):
        try:
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()
        except trio.BrokenResourceError:
            return


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    with trio.fail_after(10.0):
        while len(data) < size:
            more = await stream.receive_some(size - len(data))
            assert more, data
            data += bytes(more)
    return data


async def nothing_comes(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.2):
        await stream.receive_some()
        return False
    return True


async def test_it_carries_both_ways_to_the_end_and_knows_who_dialled():
    async with proxied(echo) as (wire, connect):
        stream = await connect()
        await stream.send_all(DATA)
        assert await read_exactly(stream, len(DATA)) == DATA
        assert [c.pair for c in wire._connections] == [("a", "b")]
        await stream.send_eof()
        with trio.fail_after(10.0):
            assert await stream.receive_some() == b""
            while wire.connections:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await stream.aclose()


async def test_who_is_not_found_at_once_is_looked_for_again(monkeypatch: pytest.MonkeyPatch):
    found = iter(["", "1", *[""] * faults.LOOKS])
    monkeypatch.setattr(faults, "inode_of", lambda *seen: inode_of(*seen) if next(found) else "")
    async with proxied(echo) as (wire, connect):
        for pair in (("a", "b"), (STRANGER, "b")):
            async with await connect() as stream:
                await stream.send_all(b"x")
                assert await read_exactly(stream, 1) == b"x"
                assert [c.pair for c in wire._connections][-1] == pair
        assert wire.strangers == 1


async def test_who_is_none_of_the_peers_is_a_stranger():
    assert owner_of("1", {"a": os.getpid(), "gone": 2**22 - 1}) == STRANGER


async def test_slices_and_delays_change_no_byte():
    async with proxied(echo) as (wire, connect):
        wire.set(["a"], ["b"], Fault(slice_bytes=50, jitter_s=0.01, loss=0.05))
        stream = await connect()
        await stream.send_all(DATA)
        assert await read_exactly(stream, len(DATA)) == DATA
        await stream.aclose()


async def test_a_flip_arrives_on_the_way_it_was_ordered_for():
    async with proxied(echo) as (wire, connect):
        wire.way("b", "a").flips_due = 1
        stream = await connect()
        await stream.send_all(b"hello")
        assert bits_apart(await read_exactly(stream, 5), b"hello") == 1
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
        await stream.aclose()


async def test_through_a_blackhole_nothing_comes_one_way_until_it_heals():
    async with proxied(echo) as (wire, connect):
        stream = await connect()
        await stream.send_all(b"one")
        assert await read_exactly(stream, 3) == b"one"
        wire.set(["b"], ["a"], Fault(blackhole=True))
        await stream.send_all(b"two")
        assert await nothing_comes(stream)
        unheard = await connect()
        await unheard.send_all(b"new")
        assert await nothing_comes(unheard)
        wire.heal()
        assert await read_exactly(stream, 3) == b"two"
        assert await read_exactly(unheard, 3) == b"new"
        await stream.aclose()
        await unheard.aclose()


async def test_silence_is_for_new_connections():
    async with proxied(echo) as (wire, connect):
        stream = await connect()
        await stream.send_all(b"one")
        assert await read_exactly(stream, 3) == b"one"
        wire.set(["a"], ["b"], Fault(silent=True))
        await stream.send_all(b"two")
        assert await read_exactly(stream, 3) == b"two"
        unheard = await connect()
        await unheard.send_all(b"new")
        assert await nothing_comes(unheard)
        await stream.aclose()
        await unheard.aclose()


async def test_a_reset_is_one_at_both_ends():
    ended = trio.Event()

    async def until_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        ended.set()

    async with proxied(until_reset) as (wire, connect):
        stream = await connect()
        assert await read_exactly(stream, 5) == b"hello"
        assert wire.reset("b", "a") == 1
        with trio.fail_after(10.0):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await ended.wait()
        assert wire.reset("b", "a") == 0
        await stream.aclose()


async def test_a_cut_closes_after_so_many_bytes():
    async with proxied(echo) as (wire, connect):
        wire.way("b", "a").bytes_left = 3
        stream = await connect()
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 3) == b"hel"
        with trio.fail_after(10.0):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_whoever_is_not_there_is_a_reset_and_the_proxy_goes_on():
    wire = Wire(1)
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with trio.open_nursery() as nursery:
        own = await nursery.start(wire.proxy, "b", port)
        for _ in range(2):
            stream = await trio.open_tcp_stream(LOOPBACK, own)
            with trio.fail_after(10.0), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_what_nobody_reads_is_not_read_for_ever():
    async def deaf(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with proxied(deaf) as (_, connect):
        stream = await connect()
        sent = 0
        with trio.move_on_after(1.0):
            while sent < 500_000_000:
                await stream.send_all(bytes(1_000_000))
                sent += 1_000_000
        assert sent < 100_000_000
        await stream.aclose()
