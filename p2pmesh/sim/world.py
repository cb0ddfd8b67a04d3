"""Real machines, a pretended world: virtual time, links with latency and loss, models with a set speed.

It hosts the same `Machine` class as the real driver, and every message goes through the real codec. It knows
nothing of what the machines decide; `judge` watches them. One seed, one story: nothing here reads a clock,
and nothing unordered is iterated.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from p2pmesh.config import Config
from p2pmesh.protocol import events as e
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Message, Options, Query, QueryId, Usage
from p2pmesh.record import GENERAL, Capability, ModelInfo, PeerId, Skill, Vector, quantise
from p2pmesh.sim.judge import Asking, Judge

SPACE = "sim"
_DIMENSIONS = 64
_EMBED_S = 0.0065
"""Seconds of one embedding: MiniLM's, measured."""
_DIAL_TIMEOUT_S = 5.0


class SimSigner:
    """A stand-in for a key: as unforgeable as the simulated peers are honest, and a hundred times as fast."""

    def __init__(self, me: PeerId) -> None:
        self._me = me

    def sign(self, body: bytes) -> bytes:
        """Return a digest only `verify` with this peer's id accepts."""
        return hashlib.blake2b(body, digest_size=32, key=self._me.encode()[:64]).digest()

    def verify(self, peer: PeerId, body: bytes, signature: bytes) -> bool:
        """Return whether `sign` made `signature` for `peer`."""
        return SimSigner(peer).sign(body) == signature


@dataclass(frozen=True)
class Spec:
    """What one simulated peer is like."""

    topics: tuple[int, ...] = ()
    """Topics it is good at; empty: a general peer."""
    prefill_tps: float = 500.0
    decode_tps: float = 50.0
    slots: int = 4
    model: str = "sim-model"
    """Empty: no model at all."""
    context_tokens: int = 2_048


@dataclass
class Node:
    """One simulated peer."""

    machine: Machine
    spec: Spec
    epoch: int
    running: dict[tuple[QueryId, int], int]
    """Runs of its models, by their number, so that one that was aborted and begun again is told apart."""
    paused: list[e.Event] | None = None
    """Events that wait while it is stopped; None: it runs."""


class World:
    """A mesh in a box."""

    def __init__(
        self,
        seed: int,
        specs: list[Spec],
        *,
        config: Config | None = None,
        latency_s: tuple[float, float] = (0.0005, 0.005),
        loss: float = 0.0,
        links: list[tuple[int, int]] | None = None,
    ) -> None:
        """Place peers p0, p1, …, each told of one earlier peer; or, with `links`, of these alone."""
        self.now = 0.0
        self.config = config or Config()
        self.loss = loss
        self.latency_s = latency_s
        self.judge = Judge(self.config)
        self.nodes: dict[PeerId, Node] = {}
        self.bytes_sent: dict[PeerId, int] = {}
        self._rng = Random(seed)
        self._seed = seed
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._queries = 0
        self._peers = 0
        self._links: dict[tuple[PeerId, PeerId], int] = {}
        self._heard: dict[tuple[PeerId, PeerId], int] = {}
        """The link on which the second still listens to the first; it may have ended at the first's side."""
        self._arrivals: dict[tuple[PeerId, PeerId], float] = {}
        self._cut: Callable[[PeerId, PeerId], bool] = lambda a, b: False
        self._trace = hashlib.blake2b(digest_size=16)
        for index, spec in enumerate(specs):
            self.add(spec)
            if links is None and index:
                self._introduce(index, self._rng.randrange(index))
        for a, b in links or ():
            self._introduce(a, b)

    # -- peers ----------------------------------------------------------------------------------------

    @staticmethod
    def peer(index: int) -> PeerId:
        """Return the id of the `index`-th peer."""
        return PeerId(f"p{index}")

    def awake(self) -> list[PeerId]:
        """Return the peers that live and are not stopped, in order."""
        return sorted(ident for ident, node in self.nodes.items() if node.paused is None)

    def add(self, spec: Spec) -> PeerId:
        """Start one more peer, which knows nobody yet. Returns its id."""
        ident = self.peer(self._peers)
        self._peers += 1
        self._start(ident, spec, epoch=1)
        return ident

    def _start(self, ident: PeerId, spec: Spec, epoch: int) -> None:
        rng = Random(f"{self._seed} {ident} {epoch}")
        machine = Machine(ident, ident, epoch, self.config, SimSigner(ident), rng, self.now)
        self.nodes[ident] = Node(machine, spec, epoch, {})
        self.bytes_sent.setdefault(ident, 0)
        self._event(ident, e.Described(self._capability(spec), (f"/sim/{ident}",)))

    def _capability(self, spec: Spec) -> Capability:
        models: tuple[ModelInfo, ...] = ()
        if spec.model:
            speeds = (spec.prefill_tps, spec.decode_tps, spec.slots)
            models = (ModelInfo(spec.model, "00" * 32, spec.context_tokens, *speeds),)
        skills = tuple(Skill(f"topic {t}", self.topic(t), 0.8, 0) for t in spec.topics)
        return Capability(SPACE, skills or (Skill(GENERAL, None, 0.5),), models)

    @staticmethod
    def topic(number: int) -> Vector:
        """Return the direction of a topic; any two are nearly at right angles."""
        return quantise(np.random.default_rng(number).normal(size=_DIMENSIONS))

    # -- faults ---------------------------------------------------------------------------------------

    def crash(self, ident: PeerId, silent: bool = False) -> None:
        """Stop a peer for good. Its neighbours' links close, unless it goes `silent`, as when power fails."""
        del self.nodes[ident]
        for a, b in [pair for pair in self._links if ident in pair]:
            if silent:
                continue
            other = b if a == ident else a
            self._unlink(ident, other)
        self.judge.crashed(ident)

    def restart(self, ident: PeerId, spec: Spec, contact: PeerId, epoch: int = 2) -> None:
        """Start a crashed peer again, with nothing remembered but its key. Links that its silent death left
        open are reset."""
        self._links = {pair: n for pair, n in self._links.items() if ident not in pair}
        for _, other in [pair for pair in self._heard if pair[0] == ident]:
            self._event(other, e.Disconnected(ident))
        self._heard = {pair: n for pair, n in self._heard.items() if ident not in pair}
        self._start(ident, spec, epoch)
        self._later(0.0, lambda: self._dial(ident, contact))

    def leave(self, ident: PeerId) -> None:
        """A peer goes on purpose: it says so and ends."""
        self._event(ident, e.Departed())
        del self.nodes[ident]
        self.judge.crashed(ident)

    def pause(self, ident: PeerId) -> None:
        """Stop a peer as SIGSTOP does: its links stay open and it says nothing."""
        self.nodes[ident].paused = []

    def resume(self, ident: PeerId) -> None:
        """Let a paused peer go on; it finds all that it missed at once."""
        node = self.nodes[ident]
        missed, node.paused = node.paused or [], None
        self.judge.resumed(ident, self.now)
        self._event(ident, e.Tick())
        for event in missed:
            self._event(ident, event)

    def partition(self, apart: Callable[[PeerId, PeerId], bool]) -> None:
        """Lose every frame from a to b where `apart(a, b)`; links stay open, dials time out."""
        self._cut = apart

    def heal(self) -> None:
        """End the partition."""
        self._cut = lambda a, b: False

    # -- queries --------------------------------------------------------------------------------------

    def ask(
        self,
        ident: PeerId,
        topic: int | None = None,
        *,
        tokens: int = 20,
        budget_s: float = 60.0,
        model: str = "auto",
    ) -> Asking:
        """Ask something about `topic` (None: nothing in particular) at a peer, now."""
        self._queries += 1
        query_id = QueryId(hashlib.blake2b(f"{self._queries}".encode(), digest_size=16).hexdigest())
        text = "hello" if topic is None else f"topic {topic}"
        options = Options(max_tokens=tokens)
        query = Query(query_id, ident, (Message("user", text),), options, model=model, budget_s=budget_s)
        asking = self.judge.asked(query, self.now)
        self._event(ident, e.Asked(query))
        return asking

    def cancel(self, asking: Asking) -> None:
        """The asker goes away."""
        self.judge.cancelled(asking)
        self._event(asking.query.origin, e.Cancelled(asking.query.id))

    # -- time -----------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass."""
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, step = heapq.heappop(self._heap)
            step()
        self.now = until

    def trace(self) -> str:
        """Return a digest of all that has happened: equal for equal seeds."""
        return self._trace.hexdigest()

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, step))

    def _event(self, ident: PeerId, event: e.Event) -> None:
        node = self.nodes.get(ident)
        if node is None:
            return
        if node.paused is not None:
            if not isinstance(event, e.Tick):
                node.paused.append(event)
            return
        self._trace.update(f"{self.now:.9f} {ident} {type(event).__name__}\n".encode())
        if isinstance(event, e.Tick):
            self.judge.ticked(ident, self.now)
        effects = node.machine.handle(event, self.now)
        self.judge.check(ident, node.machine)
        for effect in effects:
            self._perform(ident, node, effect)
        deadline = node.machine.deadline
        self._later(max(0.0, deadline - self.now), lambda: self._tick(ident, node, deadline))

    def _tick(self, ident: PeerId, node: Node, deadline: float) -> None:
        # Only the tick for the deadline that still stands counts; the others were overtaken by events.
        if self.nodes.get(ident) is node and node.machine.deadline == deadline:
            self._event(ident, e.Tick())

    # -- effects --------------------------------------------------------------------------------------

    def _perform(self, ident: PeerId, node: Node, effect: e.Effect) -> None:
        match effect:
            case e.Send():
                self._send(ident, effect.peer, node.machine.codec.encode(effect.message))
            case e.Dial():
                peer = effect.peer
                self._later(self._latency(), lambda: self._dial(ident, peer))
            case e.Hangup():
                self._unlink(ident, effect.peer)
            case e.Embed():
                query_id, vector = effect.query_id, self._embed(effect.text)
                self._later(_EMBED_S, lambda: self._event(ident, e.Embedded(query_id, vector)))
            case e.Generate():
                self.judge.generating(ident, effect.query)
                self._generate(ident, node, effect.query)
            case e.Abort():
                node.running.pop((effect.query_id, effect.attempt), None)
            case e.Deliver():
                self.judge.delivered(effect, self.now)
            case e.Fail():
                self.judge.failed(effect, self.now)
            case e.Notify():
                self._trace.update(f"{ident} {effect.peer} {effect.what}\n".encode())

    def _embed(self, text: str) -> Vector:
        if text.startswith("topic "):
            return self.topic(int(text.split()[1]))
        return self.topic(sum(text.encode()) + 100_000)

    def _latency(self) -> float:
        return self._rng.uniform(*self.latency_s)

    def _send(self, source: PeerId, target: PeerId, frame: bytes) -> None:
        number = self._links.get((source, target))
        if number is None:
            return
        self.bytes_sent[source] += len(frame)
        if self._rng.random() < self.loss or self._cut(source, target):
            return
        at = max(self.now + self._latency(), self._arrivals.get((source, target), 0.0))
        self._arrivals[source, target] = at
        self._later(at - self.now, lambda: self._arrive(source, target, number, frame))

    def _arrive(self, source: PeerId, target: PeerId, number: int, frame: bytes) -> None:
        node = self.nodes.get(target)
        if node is not None and self._heard.get((source, target)) == number:
            self._event(target, e.Received(source, node.machine.codec.decode(frame)))

    # -- links ----------------------------------------------------------------------------------------

    def _introduce(self, a: int, b: int) -> None:
        self._later(0.0, lambda: self._dial(self.peer(a), self.peer(b)))

    def _dial(self, source: PeerId, target: PeerId) -> None:
        if (source, target) in self._links:
            return
        if self._cut(source, target) or self._cut(target, source):
            self._later(_DIAL_TIMEOUT_S, lambda: self._event(source, e.DialFailed(target)))
        elif target not in self.nodes or self.nodes[target].paused is not None or source not in self.nodes:
            self._later(self._latency(), lambda: self._event(source, e.DialFailed(target)))
        else:
            self._count += 1
            self._links[source, target] = self._links[target, source] = self._count
            for pair in ((source, target), (target, source)):
                if self._heard.pop(pair, None) is not None:
                    self._event(pair[1], e.Disconnected(pair[0]))
                self._heard[pair] = self._links[pair]
            self._event(source, e.Connected(target))
            self._event(target, e.Connected(source))

    def _unlink(self, a: PeerId, b: PeerId) -> None:
        """End a link from a's side: b still hears all that was sent before, and then the end."""
        number = self._links.pop((a, b), None)
        if number is None:
            return
        del self._links[b, a]
        self._heard.pop((b, a), None)
        self._later(0.0, lambda: self._event(a, e.Disconnected(b)))
        at = max(self.now + self._latency(), self._arrivals.get((a, b), 0.0))

        def ended() -> None:
            if self._heard.get((a, b)) == number:
                del self._heard[a, b]
                self._event(b, e.Disconnected(a))

        self._later(at - self.now, ended)

    # -- models ---------------------------------------------------------------------------------------

    def _generate(self, ident: PeerId, node: Node, query: Query) -> None:
        self._count += 1
        key, run = (query.id, query.attempt), self._count
        node.running[key] = run
        gain = min(1.8, 1.0 + 0.115 * (len(node.running) - 1))
        step_s = len(node.running) / gain / node.spec.decode_tps
        prefill_s = max(1, query.prompt_bytes // 4) / node.spec.prefill_tps
        total = query.options.max_tokens

        def write(index: int) -> None:
            if node.running.get(key) != run or self.nodes.get(ident) is not node:
                return
            self._event(ident, e.Generated(*key, (index,), f"{index} "))
            if index + 1 < total:
                self._later(step_s, lambda: write(index + 1))
            elif node.running.get(key) == run:
                del node.running[key]
                self._event(ident, e.Finished(*key, Usage(query.prompt_bytes // 4, total), "stop"))

        self._later(prefill_s + step_s, lambda: write(0))
