"""One real machine on a bench, among peers that say only what a test makes them say."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import TypeVar

from p2pmesh.config import Config
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.admission import Trust
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.machine import Machine
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.query import Ended, Message, Options, Query, QueryId
from p2pmesh.record import Capability, ModelInfo, PeerId, PeerRecord, SignedRecord, Version, record_to_sign
from p2pmesh.sim.sealer import SimSealer, sim_keys
from p2pmesh.sim.signer import SimSigner

T = TypeVar("T")

ME = PeerId("me")
A, B, C, D = (PeerId(name) for name in "abcd")
MODEL = ModelInfo("small", "00" * 32, 2_048, 1_000.0, 100.0, 2)
ABLE = Capability(models=(MODEL,))
UNABLE = Capability()


def signed(
    peer: PeerId,
    version: Version = Version(1, 1),  # noqa: B008 - a frozen value
    capability: Capability = ABLE,
    addresses: tuple[str, ...] = (),
    signer: PeerId | None = None,
) -> SignedRecord:
    """Return a record of `peer`, signed by itself or, falsely, by `signer`."""
    record = PeerRecord(peer, version, f"peer {peer}", addresses, capability, SimSealer(peer).key())
    body = Codec(Config().limits).encode_record(record)
    return SignedRecord(record, body, SimSigner(signer or peer).sign(record_to_sign(body, b"")))


def query(number: int = 1, *, origin: PeerId = A, text: str = "hello", **changes: object) -> Query:
    """Return a query of `origin`; `changes` are fields of `Query`."""
    plain = Query(QueryId(f"{number:032x}"), origin, (Message("user", text),), Options(max_tokens=8))
    return replace(plain, **changes)  # type: ignore[arg-type]


def receipted(asked: Query, ended: Ended, text: str) -> Ended:
    """Return the end of an answer of `text` to `asked`, signed by the last peer of its path."""
    executor = ended.path[-1].peer
    receipts = Receipts(executor, Codec(Config().limits), SimSigner(executor))
    return receipts.signed(asked, ended, sha256(text.encode()).digest())


class Bench:
    """A machine called "me" with one model, unless told otherwise, that knows nobody."""

    def __init__(
        self,
        capability: Capability = ABLE,
        config: Config | None = None,
        me: PeerId = ME,
        epoch: int = 1,
        trust: Trust | None = None,
    ) -> None:
        self.now = 100.0
        self.config = config or Config()
        name = f"peer {me}"
        self.machine = Machine(me, name, epoch, self.config, *sim_keys(me), Random(1), self.now, trust)
        self.handle(e.Described(capability, ()))

    def handle(self, event: e.Event) -> list[e.Effect]:
        """Let `event` happen now."""
        effects = self.machine.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, e.Send):  # what we say, others must be able to read
                self.machine.codec.check(effect.message)
        return effects

    def say(self, peer: PeerId, message: m.PeerMessage) -> list[e.Effect]:
        """Let `message` come from `peer`."""
        return self.handle(e.Received(peer, message))

    def wait(self, seconds: float, ticks_max: int = 10_000) -> list[e.Effect]:
        """Let time pass, with a tick at every deadline; fails when they come too thick."""
        until, effects, ticks = self.now + seconds, [], 0
        while self.machine.deadline <= until:
            self.now, ticks = self.machine.deadline, ticks + 1
            assert ticks <= ticks_max, "the machine spins"
            effects += self.handle(e.Tick())
        self.now = until
        return effects

    def link(
        self, *peers: PeerId, capability: Capability = ABLE, addresses: tuple[str, ...] = ()
    ) -> list[e.Effect]:
        """Link `peers`, let each give its record and answer the first probe."""
        effects = []
        for peer in peers:
            for effect in self.handle(e.Connected(peer)):
                effects.append(effect)
                if isinstance(effect, e.Send) and isinstance(effect.message, m.Ping):
                    effects += self.say(peer, m.Ack(effect.message.seq))
            record = signed(peer, capability=capability, addresses=addresses)
            effects += self.say(peer, m.Records((record,)))
        return effects

    def ask(self, asked: Query | None = None) -> list[e.Effect]:
        """Ask at this peer."""
        return self.handle(e.Asked(asked or query(origin=self.machine.me)))

    def status(self, peer: PeerId) -> m.Status:
        """Return what the machine believes of `peer`."""
        return self.machine.membership.members[peer].status


def sent(effects: list[e.Effect], kind: type[T], to: PeerId | None = None) -> list[T]:
    """Return the messages of `kind` among `effects`, all or those to one peer."""
    sends = [f for f in effects if isinstance(f, e.Send) and to in (None, f.peer)]
    return [s.message for s in sends if isinstance(s.message, kind)]


def of(effects: list[e.Effect], kind: type[T]) -> list[T]:
    """Return the effects of `kind`."""
    return [effect for effect in effects if isinstance(effect, kind)]
