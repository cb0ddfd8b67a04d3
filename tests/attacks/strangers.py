"""Those who are let in nowhere: they know addresses and public keys, and have no certificate that holds."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress

import trio
from libp2p.crypto.ed25519 import Ed25519PrivateKey, Ed25519PublicKey, KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from p2pmesh.config import Net
from p2pmesh.errors import NetworkError
from p2pmesh.net.host import PROOF_S
from p2pmesh.net.identity import Identity
from p2pmesh.net.knock import knock
from p2pmesh.net.secure import PROTOCOL, Security
from p2pmesh.peer import credentials
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import public_key_of
from p2pmesh.trust.papers import shown_for
from p2pmesh.trust.tickets import Ticket
from tests.attacks.ground import FRAME_MAX, HANG_S, Ground, Refused, insider
from tests.attacks.verdict import Verdict
from tests.integration.net_peers import fails, stranger, until_ended

FOREIGN = (
    "/noise",
    "/yamux/1.0.0",
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    "/ipfs/kad/1.0.0",
    "/meshsub/1.1.0",
    "/floodsub/1.0.0",
    "/libp2p/circuit/relay/0.2.0/hop",
    "/p2pmesh/0.9.0",
)
"""Protocols of libp2p that a peer might be talked into."""
_SYN = 1
_DRIBBLERS = 100
_MEMORY_MB_MAX = 64.0
"""Most MiB that a flood may leave behind. A guess: a tenth of what a peer with a model takes."""


async def _reply(port: int, said: bytes) -> bytes:
    """Say something on a peer's port; return all it answers."""
    heard = b""
    with trio.move_on_after(HANG_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(said)
                async for data in stream:
                    heard += bytes(data)
                    if b"na\n" in heard:
                        break
    return heard


def _offered(protocol: str) -> bytes:
    line = f"{protocol}\n".encode()
    return b"\x13/multistream/1.0.0\n" + bytes([len(line)]) + line


async def downgrade(ground: Ground) -> Verdict:
    """Offer plaintext, TLS and nothing else in place of Noise."""
    seen = []
    for protocol in ("/plaintext/2.0.0", "/plaintext/1.0.0", "/tls/1.0.0", "/secio/1.0.0"):
        heard = await _reply(ground.port("desk"), _offered(protocol))
        seen.append((protocol, b"na\n" in heard and protocol.encode() not in heard))
    return Verdict(all(refused for _, refused in seen), f"answered na: {[name for name, ok in seen if ok]}")


async def peer_id_theft(ground: Ground) -> Verdict:
    """Come under the public key of a member, without its private one."""
    mine = Identity.generate()
    noted: list[str] = []
    security = Security(mine, Net(), lambda kind, detail: noted.append(detail))
    theirs = Ed25519PublicKey.from_bytes(public_key_of(ground.id("hr")))
    own = Ed25519PrivateKey.from_bytes(mine.seed)
    own.get_public_key = lambda: theirs  # what a handshake says, and signs with the other key
    noise = Noise(KeyPair(own, theirs), create_new_key_pair().private_key)
    security._upgrader = TransportUpgrader({NOISE: noise}, {YAMUX: Yamux})
    before = ground.links("desk")
    why = ""
    try:
        with trio.fail_after(HANG_S):
            async with await trio.open_tcp_stream("127.0.0.1", ground.port("desk")) as tcp:
                connection = await security.connect(tcp, ground.id("desk"))
                async with trio.open_nursery() as nursery:  # who dials is told of his failure last
                    nursery.start_soon(connection.run)
                    await connection.open()
                    nursery.cancel_scope.cancel()
    except Exception as error:  # noqa: BLE001 - a group of them, where a nursery was open
        why = str(error)
    return Verdict(bool(why) and ground.links("desk") == before, why or "A CONNECTION STOOD")


async def _open(host: object, ground: Ground, protocol: str, name: str = "desk") -> object:
    ident = ID.from_base58(ground.id(name))
    with trio.fail_after(HANG_S):
        await host.get_network().dial_addr(Multiaddr(ground.address(name)), ident)
        return await host.new_stream(ident, [TProtocol(protocol)])


async def garbage(ground: Ground) -> Verdict:
    """Random bytes on the port, after Noise's name, and on every protocol that libp2p has."""
    for said in (os.urandom(1), os.urandom(50_000), _offered("/noise") + os.urandom(500)):
        await _reply(ground.port("desk"), said)
    spoken, open_ = [], []
    for protocol in (PROTOCOL, *FOREIGN):
        async with stranger() as rude:
            with suppress(Exception):
                stream = await _open(rude, ground, protocol)
                spoken.append(protocol)
                await fails(stream.write(os.urandom(1_000)))
                with trio.move_on_after(HANG_S) as scope:
                    await until_ended(stream)
                if scope.cancelled_caught:
                    open_.append(protocol)
    blocked = set(spoken) == {PROTOCOL} and not open_
    return Verdict(
        blocked, f"protocols that were spoken: {spoken}; left open after garbage: {open_ or 'none'}"
    )


async def oversized_frame(ground: Ground) -> Verdict:
    """Announce four gigabytes, before being let in. One who announces sixteen bytes is waited for."""
    ended = {}
    for name, length in (("4 GB", b"\xff\xff\xff\xff"), ("16 B", b"\0\0\0\x10")):
        async with stranger() as rude:
            stream = await _open(rude, ground, PROTOCOL)
            began = trio.current_time()
            await fails(stream.write(length))
            with trio.move_on_after(PROOF_S / 2):
                await until_ended(stream)
            ended[name] = trio.current_time() - began
    blocked = ended["4 GB"] < PROOF_S / 4 < ended["16 B"]
    return Verdict(
        blocked, f"ended after {ended['4 GB']:.2f} s; the honest one stood for {ended['16 B']:.2f} s"
    )


async def stream_flood(ground: Ground, streams: int) -> Verdict:
    """Open streams by the thousand on one connection, and say nothing on them."""
    before = ground.memory_mb("desk")
    opened = 0
    async with stranger() as flooder:
        ident = ID.from_base58(ground.id("desk"))
        network = flooder.get_network()
        connection = await network.dial_addr(Multiaddr(ground.address("desk")), ident)
        secured = connection.muxed_conn.secured_conn
        for number in range(streams):
            header = b"\0\x01" + _SYN.to_bytes(2, "big") + (2 * number + 101).to_bytes(4, "big") + bytes(4)
            with trio.move_on_after(HANG_S) as stuck:
                if await fails(secured.write(header)):
                    break
            if stuck.cancelled_caught:
                break
            opened += 1
        served = await ground.until_answered(5)
        grown = ground.memory_mb("desk") - before
    said = f"{opened} of {streams} asked for, {grown:.1f} MiB more memory"
    return Verdict(served and opened > 0 and grown < _MEMORY_MB_MAX, said)


async def slow_handshakes(ground: Ground) -> Verdict:
    """Hold connections open with a byte now and then, for longer than a handshake may last."""
    began, lives = trio.current_time(), []

    async def dribble() -> None:
        with suppress(OSError):
            stream = await trio.open_tcp_stream("127.0.0.1", ground.port("desk"))
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(_dribble, stream, b"\x13/multistream/1.0.0\n")
                with suppress(trio.BrokenResourceError):
                    async for _ in stream:
                        pass
                nursery.cancel_scope.cancel()
        lives.append(trio.current_time() - began)

    with trio.move_on_after(HANG_S):
        async with trio.open_nursery() as nursery:
            for _ in range(_DRIBBLERS):
                nursery.start_soon(dribble)
    longest = max(lives, default=0.0)
    limit_s = PROOF_S + 1.0
    said = f"{len(lives)} of {_DRIBBLERS} were closed, the last after {longest:.1f} s"
    return Verdict(len(lives) == _DRIBBLERS and longest < limit_s, said)


async def _dribble(stream: trio.SocketStream, said: bytes) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for byte in said * 10:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.5)


async def slow_requests(ground: Ground) -> Verdict:
    """The same at the HTTP door: a hundred requests whose headers never end."""
    host, port = ground.http("desk")
    async with trio.open_nursery() as nursery:
        streams = [await trio.open_tcp_stream(host, port) for _ in range(_DRIBBLERS)]
        for stream in streams:
            nursery.start_soon(_dribble, stream, b"GET / HTTP/1.1\r\nx-slow: " + b"a" * 40)
        served = await ground.until_answered(20)
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    return Verdict(served, f"20 honest queries were answered beside {_DRIBBLERS}: {served}")


class _Easy:
    """The door of one who lets in everybody, and shows what he likes."""

    def __init__(self, shown: bytes) -> None:
        self._shown = shown

    def show(self) -> bytes:
        return self._shown

    def admit(self, peer: PeerId, shown: bytes) -> bytes:
        return b""


async def no_certificate(ground: Ground) -> Verdict:
    """Knock with nothing, with junk, and with the certificate of a mesh that the stranger founded itself."""
    who = Identity.generate()
    folder = ground._folder / "other"
    folder.mkdir(exist_ok=True)
    other = credentials.found(folder, who, "lab", ())
    shows = (b"", b"junk", other.show())
    return _all_refused([await _why_not(ground, "desk", who, _Easy(shown)) for shown in shows])


async def expired_certificate(ground: Ground) -> Verdict:
    """Show a certificate that ran out yesterday."""
    who = Identity.generate()
    old = ground.certificate(who, lambda: time.time() - 8 * 86_400)
    return _all_refused([await _why_not(ground, name, who, _Easy(old.show())) for name in ground.peers])


async def another_s_certificate(ground: Ground) -> Verdict:
    """Show the certificate of a member, which anybody can read in its record."""
    who = Identity.generate()
    async with insider(ground, "desk") as one:
        signed = await one.pulled(ground.id("hr"))
    theirs = ground.certificate(who)
    theirs.own = type(theirs.own).parse(signed.certificate)
    return _all_refused([await _why_not(ground, "desk", who, _Easy(theirs.show()))])


async def replayed_ticket(ground: Ground) -> Verdict:
    """Use a ticket for one a second time, under another key; and one that was made up."""
    ticket = Ticket.parse(ground.ticket())
    made_up = Ticket(ticket.mesh, ticket.peer, ticket.addresses, secrets.token_bytes(len(ticket.secret)))
    outcomes = []
    for used in (ticket, ticket, made_up):
        address, shown = ground.address("signer").partition("/p2p/")[0], shown_for(used)
        try:
            await knock(Identity.generate(), Net(), FRAME_MAX, ground.id("signer"), address, shown)
        except NetworkError as error:
            outcomes.append(str(error))
        else:
            outcomes.append("let in")
    blocked = outcomes[0] == "let in" and "let in" not in outcomes[1:]
    return Verdict(blocked, f"first: {outcomes[0]}; again: {outcomes[1]}; made up: {outcomes[2]}")


async def _why_not(ground: Ground, name: str, who: Identity, door: object) -> str:
    try:
        async with insider(ground, name, who, door):
            return ""
    except Refused as refused:
        return str(refused)


def _all_refused(reasons: list[str]) -> Verdict:
    theirs = all("it does not let us in" in reason for reason in reasons)  # and not we them
    return Verdict(theirs, "; ".join(reason or "LET IN" for reason in reasons))


async def dns_rebinding(ground: Ground) -> Verdict:
    """A web page of a foreign name asks the peer on its reader's machine, and posts to it across sites."""
    host, port = ground.http("desk")
    statuses = []
    for fields in (
        {"host": "evil.example"},
        {"host": f"evil.example:{port}"},
        {"host": f"{host}:{port}", "origin": "https://evil.example"},
        {"host": f"{host}:{port}", "origin": "null"},
    ):
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        for method, path in (("GET", "/mesh/v1/peers"), ("POST", "/mesh/v1/stop")):
            said = f"{method} {path} HTTP/1.1\r\n{lines}content-length: 0\r\nconnection: close\r\n\r\n"
            statuses.append((await _request(host, port, said.encode())).partition(b"\r\n")[0].decode())
    return Verdict(all(" 403" in status for status in statuses), f"{sorted(set(statuses))}")


async def monstrous_requests(ground: Ground) -> Verdict:
    """Bodies that are too long, too deep, and not what they say."""
    host, port = ground.http("desk")
    bodies = (b"a" * 2**21, b"[" * 100_000, b'{"messages":' * 20_000, b"\xff" * 1_000, b'{"temperature":NaN}')
    statuses = []
    for body in bodies:
        said = b"POST /v1/chat/completions HTTP/1.1\r\nhost: %b:%d\r\ncontent-length: %d\r\n" % (
            host.encode(),
            port,
            len(body),
        )
        heard = await _request(host, port, said + b"connection: close\r\n\r\n" + body)
        statuses.append(heard.partition(b"\r\n")[0].decode())
    return Verdict(all(" 4" in status for status in statuses), f"{statuses}")


async def _request(host: str, port: int, said: bytes) -> bytes:
    heard = b""
    with trio.move_on_after(HANG_S):
        async with await trio.open_tcp_stream(host, port) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(said)
            with suppress(trio.BrokenResourceError):
                async for data in stream:
                    heard += bytes(data)
    return heard


ATTACKS = (
    downgrade,
    peer_id_theft,
    garbage,
    oversized_frame,
    slow_handshakes,
    slow_requests,
    no_certificate,
    expired_certificate,
    another_s_certificate,
    replayed_ticket,
    dns_rebinding,
    monstrous_requests,
)
"""All but the flood, whose size is chosen."""
