"""The mesh under attack: three peers in processes of their own, and somebody who asks honestly all the while.

A signer with a model, a peer of the zone "hr" with another, and a desk without any, at which is asked. The
desk is what most attacks go for: it is linked to both, and knows neither's secrets.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from p2pmesh.cli import client
from p2pmesh.config import Limits, Net
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.net.door import Door
from p2pmesh.net.host import DialFailed, FrameReceived, Host, LinkDown, LinkUp, Priority, open_host
from p2pmesh.net.identity import Identity, load_or_create
from p2pmesh.peer import credentials, state
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.record import PeerId
from p2pmesh.trust.standing import Standing
from tests.integration.processes import PeerProcess, until
from tests.integration.test_public import self_signed

ZONE = "hr"
QUOTA = 60_000
"""Tokens a minute that one asker may use of the signer's model: several times what the honest ones do."""
NAMES = ("signer", "hr", "desk")
HANG_S = 30.0
"""Only a guard: no verdict depends on how long anything takes, but where seconds are named."""
FRAME_MAX = 262_144
_ASKERS = 2


@dataclass
class Honest:
    """What became of honest queries."""

    asked: int = 0
    answered: int = 0

    def since(self, before: Honest) -> Honest:
        """Return what has come on top of `before`."""
        return Honest(self.asked - before.asked, self.answered - before.answered)


class Ground:
    """The mesh, by name, and what an attacker knows of it: addresses, ids, and the mesh's public words."""

    def __init__(self, folder: Path, peers: dict[str, PeerProcess], founder: Standing) -> None:
        self.peers, self.founder = peers, founder
        self.honest = Honest()
        self.codec = Codec(Limits())
        self._folder = folder

    @property
    def desk(self) -> PeerProcess:
        """The peer that asks."""
        return self.peers["desk"]

    def id(self, name: str) -> PeerId:
        """Return who is called so."""
        return PeerId(self.peers[name].told["id"])

    def address(self, name: str) -> str:
        """Return where it listens, with its id."""
        return str(self.peers[name].told["addresses"][0])

    def port(self, name: str) -> int:
        """Return the port of its wire."""
        return int(self.address(name).split("/tcp/")[1].partition("/")[0])

    @property
    def public(self) -> str:
        """Where others ask the desk, by TLS."""
        return str(self.peers["desk"].told["public"])

    @property
    def tls(self) -> Path:
        """The certificate of that door."""
        return self._folder / "desk" / "cert.pem"

    def http(self, name: str) -> tuple[str, int]:
        """Return where its HTTP is."""
        where = urlsplit(self.peers[name].url)
        assert where.hostname
        assert where.port
        return where.hostname, where.port

    def known(self, name: str, ident: PeerId) -> dict[str, Any] | None:
        """Return what a peer knows of another."""
        rows = self.peers[name].get("/mesh/v1/peers")["peers"]
        return next((row for row in rows if row["id"] == ident), None)

    def links(self, name: str) -> set[PeerId]:
        """Return to whom a peer is linked."""
        return {row["id"] for row in self.peers[name].get("/mesh/v1/peers")["peers"] if row["linked"]}

    def alive(self) -> bool:
        """Return whether every peer's process lives and answers."""
        with suppress(client.NoPeer, client.Unsuccessful):
            return all(p.process.poll() is None and p.get("/healthz")["ok"] for p in self.peers.values())
        return False

    def memory_mb(self, name: str) -> float:
        """Return the MiB that a peer's own process holds."""
        pages = Path(f"/proc/{self.peers[name].pid}/statm").read_text().split()[1]
        return int(pages) * 4_096 / 2**20

    def restart(self, name: str) -> None:
        """End a peer and start it again, in its own state directory."""
        self.peers[name].stop()
        others = [self.address(other) for other in self.peers if other != name]
        self.peers[name] = _start(self._folder, name, others)
        until(lambda: self.peers[name].told and len(self.links(name)) == len(NAMES) - 1)

    def certificate(self, who: Identity, clock: Callable[[], float] = time.time) -> Standing:
        """Return the standing of somebody whom the signer let in, for no zone, at the time of `clock`."""
        founder = self.founder
        then = Standing(founder.me, founder.genesis, founder.own, clock, key=founder._key)
        return Standing(who.id, founder.genesis, then.certify(who.id, (), int(clock())), time.time)

    def revoke(self, who: PeerId) -> None:
        """Let the signer throw somebody out."""
        headers = {"x-p2pmesh-token": self._token("signer")}
        client.call(self.peers["signer"].url, "POST", "/mesh/v1/revoke", {"peer": who}, headers)

    def ticket(self) -> str:
        """Return a ticket of the signer's, for one use."""
        headers = {"x-p2pmesh-token": self._token("signer")}
        return str(client.call(self.peers["signer"].url, "POST", "/mesh/v1/invite", {}, headers)["ticket"])

    def _token(self, name: str) -> str:
        return str((state.running(self.peers[name].state) or {})["token"])

    async def ask(self, model: str = "small", **more: Any) -> tuple[str, str]:
        """Ask the desk as an honest user does; return "ok" or the error's code, and the text."""
        body = {
            "model": model,
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "one two"}],
            **more,
        }
        return await trio.to_thread.run_sync(_post, self.desk.url, body)

    async def ask_on(self) -> None:
        """Ask honestly until cancelled, one query after the other."""
        while True:
            code, text = await self.ask()
            self.honest.asked += 1
            self.honest.answered += code == "ok" and "one two" in text
            await trio.sleep(0.05)

    async def until(self, true: Callable[[], bool], seconds: float = HANG_S) -> bool:
        """Wait until `true()`, which may block; return whether it came true in time."""
        with trio.move_on_after(seconds):
            while not await trio.to_thread.run_sync(true):  # noqa: ASYNC110 - other processes tell nobody
                await trio.sleep(0.1)
            return True
        return False

    async def until_answered(self, count: int) -> bool:
        """Wait until so many more honest queries were answered; return whether they were, in time and all."""
        before = replace(self.honest)
        in_time = await self.until(lambda: self.honest.since(before).answered >= count)
        since = self.honest.since(before)
        return in_time and since.answered == since.asked


def _post(url: str, body: dict[str, Any]) -> tuple[str, str]:
    try:
        told = client.call(url, "POST", "/v1/chat/completions", body)
    except client.Unsuccessful as error:
        return error.code, str(error)
    except client.NoPeer as error:
        return "no_peer", str(error)
    return "ok", str(told["choices"][0]["message"]["content"])


def _start(folder: Path, name: str, joins: Sequence[str]) -> PeerProcess:
    named = {"signer": "small", "hr": "private"}.get(name, "")
    models = f'{{model = "echo", name = "{named}", engine = "echo", tokens_per_s = 500.0}}' if named else ""
    file = folder / name / "peer.toml"
    public = ""
    if name == "desk":
        self_signed(folder / name)
        public = 'http.public = "127.0.0.1:0"\nhttp.certificate = "cert.pem"\nhttp.private_key = "key.pem"\n'
    quota = f"quota.tokens_per_minute = {QUOTA}\n" if name == "signer" else ""
    file.write_text(
        f"{public}{quota}"
        f'name = "{name}"\nembedder = "none"\nmodels = [{models}]\nhttp.bind = "127.0.0.1:0"\n'
        f"net.join = {json.dumps(list(joins))}\nnet.dial_discovered = false\nhttp.request_timeout_s = 10.0\n"
    )
    return PeerProcess(folder / name, ["--config", str(file), *([] if named else ["--no-model"])])


@contextmanager
def mesh(folder: Path) -> Iterator[Ground]:
    """Start the three peers, and stop them at the end."""
    signer = folder / "signer" / "state"
    signer.mkdir(parents=True)
    founder = credentials.found(signer, load_or_create(signer / state.KEY), "lab", ())
    for name, zones in (("hr", (ZONE,)), ("desk", ())):
        path = folder / name / "state"
        path.mkdir(parents=True)
        me = load_or_create(path / state.KEY).id
        certificate = founder.certify(me, zones, int(time.time()))
        credentials.joined(path, Standing(me, founder.genesis, certificate, time.time), ())
    started: dict[str, PeerProcess] = {}
    ground = Ground(folder, started, founder)
    try:
        for name in NAMES:
            joins = [peer.told["addresses"][0] for peer in started.values()]
            started[name] = _start(folder, name, joins)
        until(lambda: all(len(ground.links(name)) == len(NAMES) - 1 for name in NAMES))
        yield ground
    finally:
        for peer in started.values():
            peer.stop()


class Insider:
    """Somebody with a link to one of the peers, who says what he likes. It answers probes, or it would be
    held for dead, and keeps all else that it is told."""

    def __init__(self, host: Host, ground: Ground, to: PeerId) -> None:
        self.host, self.to = host, to
        self.heard: list[m.PeerMessage] = []
        self.ended = ""
        """Why the link ended; empty: it stands."""
        self.on_forward: Callable[[m.Forward], Sequence[m.PeerMessage]] = lambda _: ()
        self._codec = ground.codec
        self._news = trio.Event()

    def say(self, *messages: m.PeerMessage) -> None:
        """Send messages, well formed."""
        for message in messages:
            self.say_raw(self._codec.encode(message))

    def say_raw(self, data: bytes) -> bool:
        """Send any bytes as a frame; return whether there was room for them."""
        return self.host.send(self.to, data, Priority.CONTROL)

    def waiting(self) -> int:
        """Return how many frames wait to be written."""
        link = self.host._links.get(self.to)
        return 0 if link is None else sum(map(len, link._outbox))

    async def listen(self) -> None:
        """Hear what comes, until cancelled or the link has ended."""
        while not self.ended:
            event = await self.host.receive()
            if isinstance(event, FrameReceived):
                with suppress(RemoteProtocolError):
                    self._take(self._codec.decode(event.data))
            elif isinstance(event, LinkDown):
                self.ended = event.detail or "it ended"
            self._news.set()
            self._news = trio.Event()

    def _take(self, message: m.PeerMessage) -> None:
        if isinstance(message, m.Ping):
            self.say(m.Ack(message.seq))
        elif isinstance(message, m.Forward):
            self.say(*self.on_forward(message))
        self.heard.append(message)

    async def until(self, true: Callable[[], object], seconds: float = HANG_S) -> bool:
        """Wait until `true()`; return whether it came true in time."""
        with trio.move_on_after(seconds):
            while not true():
                with trio.move_on_after(0.1):
                    await self._news.wait()
            return True
        return False

    async def pulled(self, ident: PeerId) -> Any:
        """Return the signed record of somebody as the other side has it; None: it has none."""
        before = len(self.heard)
        self.say(m.Pull((ident,)))

        def found() -> list[Any]:
            said = [h for h in self.heard[before:] if isinstance(h, m.Records)]
            return [signed for records in said for signed in records.records if signed.record.id == ident]

        return found()[-1] if await self.until(found, 3.0) else None


@asynccontextmanager
async def insider(
    ground: Ground, to: str, who: Identity | None = None, door: Door | None = None
) -> AsyncIterator[Insider]:
    """Link somebody with a certificate to the peer called `to`. Raises Refused, saying why, if it is not
    linked."""
    who = who or Identity.generate()
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            open_host(who, Net(), FRAME_MAX, door or ground.certificate(who))
        )
        host.dial(ground.id(to), [ground.address(to).partition("/p2p/")[0]])
        with trio.fail_after(HANG_S):
            event = await host.receive()
        if not isinstance(event, LinkUp):
            assert isinstance(event, DialFailed)
            raise Refused(event.detail)
        nursery = await stack.enter_async_context(trio.open_nursery())
        one = Insider(host, ground, ground.id(to))
        nursery.start_soon(one.listen)
        yield one
        nursery.cancel_scope.cancel()


class Refused(Exception):
    """There was no link."""


def query_id() -> str:
    """Return an id that no query has."""
    return secrets.token_hex(16)
