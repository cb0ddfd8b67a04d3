"""Who is not let in gets no link, at either end, and is told why; who asks for something else gets that."""

from __future__ import annotations

import pytest
import trio

from p2pmesh.config import Net
from p2pmesh.errors import NetworkError, Untrusted
from p2pmesh.net.host import DialFailed, Host, LinkUp, open_host
from p2pmesh.net.identity import Identity
from p2pmesh.net.knock import knock
from p2pmesh.record import PeerId
from tests.integration.net_peers import FRAME_MAX, HANG_S, hosts, link, still_works

pytestmark = pytest.mark.wire
LOW, HIGH = sorted((Identity.from_seed(bytes([n]) * 32) for n in (1, 2)), key=lambda key: key.id)


class Word:
    """Lets in whoever shows the word, and grants the answer to whoever shows the question."""

    def __init__(self, word: bytes, question: bytes = b"?", answer: bytes = b"") -> None:
        self.word, self.question, self.answer = word, question, answer
        self.shown: list[tuple[PeerId, bytes]] = []

    def show(self) -> bytes:
        return self.word

    def admit(self, peer: PeerId, shown: bytes) -> bytes:
        self.shown.append((peer, shown))
        if shown == self.question:
            return self.answer
        if shown != self.word:
            raise Untrusted("that is not the word")
        return b""


async def failed(dialler: Host, other: Host) -> str:
    dialler.dial(other.id, other.addresses)
    event = await dialler.receive()
    assert isinstance(event, DialFailed), event
    return event.detail


@pytest.mark.parametrize("dialler_is_lower", [True, False])
async def test_who_shows_the_word_is_linked(dialler_is_lower: bool) -> None:
    one, other = (LOW, HIGH) if dialler_is_lower else (HIGH, LOW)
    door = Word(b"sesame")
    with trio.fail_after(HANG_S):
        async with (
            open_host(one, Net(), FRAME_MAX, Word(b"sesame")) as a,
            open_host(other, Net(), FRAME_MAX, door) as b,
        ):
            await link(a, b)
            assert door.shown == [(a.id, b"sesame")]


@pytest.mark.parametrize("dialler_is_lower", [True, False])
@pytest.mark.parametrize("refuses", ["dialled", "dialler", "both"])
async def test_who_does_not_is_linked_at_neither_end_and_told_why(
    dialler_is_lower: bool, refuses: str
) -> None:
    one, other = (LOW, HIGH) if dialler_is_lower else (HIGH, LOW)
    words = {"dialled": (b"", b"sesame"), "dialler": (b"sesame", b""), "both": (b"open", b"sesame")}[refuses]

    class Easy(Word):
        def admit(self, peer: PeerId, shown: bytes) -> bytes:
            return b"" if not self.word else super().admit(peer, shown)

    with trio.fail_after(HANG_S):
        async with (
            open_host(one, Net(), FRAME_MAX, Easy(words[0])) as a,
            open_host(other, Net(), FRAME_MAX, Easy(words[1])) as b,
        ):
            why = await failed(a, b)
            assert "that is not the word" in why
            assert a.links() == b.links() == ()
            assert a.counters["strangers"] + b.counters["strangers"] == 1 + (refuses == "both")
            with trio.move_on_after(0.05) as nothing:
                await b.receive()
            assert nothing.cancelled_caught


async def test_a_peer_with_a_mesh_and_one_without_do_not_link() -> None:
    async with hosts(1) as (plain,), open_host(HIGH, Net(), FRAME_MAX, Word(b"sesame")) as member:
        assert "that is not the word" in await failed(member, plain)
        assert "it takes a ticket to join" in await failed(plain, member)
        assert plain.counters == member.counters == {"strangers": 2}
        await still_works(plain)


async def test_who_asks_for_something_else_gets_that_and_no_link() -> None:
    door = Word(b"sesame", b"?", b"!" * 10_000)
    with trio.fail_after(HANG_S):
        async with open_host(LOW, Net(), FRAME_MAX, door) as host:
            [address] = host.addresses
            assert await knock(HIGH, Net(), FRAME_MAX, host.id, address, b"?") == b"!" * 10_000
            assert door.shown == [(HIGH.id, b"?")]
            assert host.links() == ()
            with pytest.raises(NetworkError, match="does not let us in: that is not the word"):
                await knock(HIGH, Net(), FRAME_MAX, host.id, address, b"open")
            with pytest.raises(NetworkError, match="gave nothing"):
                await knock(HIGH, Net(), FRAME_MAX, host.id, address, b"sesame")


async def test_only_the_peer_that_was_meant_sees_what_is_shown() -> None:
    door = Word(b"sesame", b"?", b"!")
    with trio.fail_after(HANG_S):
        async with open_host(LOW, Net(), FRAME_MAX, door) as host:
            [address] = host.addresses
            meant = Identity.generate().id
            with pytest.raises(NetworkError, match="handshake failed"):
                await knock(HIGH, Net(), FRAME_MAX, meant, address, b"?")
            assert not door.shown
            with pytest.raises(NetworkError, match="not an address"):
                await knock(HIGH, Net(), FRAME_MAX, host.id, "nowhere", b"?")
        with pytest.raises(NetworkError):
            await knock(HIGH, Net(), FRAME_MAX, host.id, address, b"?")


async def test_a_link_made_by_a_door_carries_frames() -> None:
    async with (
        open_host(LOW, Net(), FRAME_MAX, Word(b"sesame")) as a,
        open_host(HIGH, Net(), FRAME_MAX, Word(b"sesame")) as b,
    ):
        with trio.fail_after(HANG_S):
            a.dial(None, [f"{b.addresses[0]}/p2p/{b.id}"])
            up = await a.receive()
            assert isinstance(up, LinkUp)
            assert up.peer == b.id
