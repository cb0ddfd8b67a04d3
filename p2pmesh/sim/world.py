"""Real machines, a pretended world: virtual time, a pretended wire, models with a set speed.

It hosts the same `Machine` class as the real driver. It knows nothing of what the machines decide; `judge`
watches them, and whoever is passed as `tell` hears of every event and every effect. One seed, one story:
nothing here reads a clock, and nothing unordered is iterated.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeAlias

import numpy as np

from p2pmesh.config import Config
from p2pmesh.protocol import events as e
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Message, Options, Query, QueryId, Resume, Usage
from p2pmesh.record import GENERAL, Capability, ModelInfo, PeerId, Skill, Vector, quantise
from p2pmesh.sim.engine import BatchEngine, PrefixCache
from p2pmesh.sim.judge import Asking, Judge
from p2pmesh.sim.sealer import sim_keys
from p2pmesh.sim.wire import Weather, Wire

SPACE = "sim"
_DIMENSIONS = 64
CLAIMED_S = 10.0
"""Seconds that a claim may take beside what is left of the query's budget."""
_EMBED_S = 0.0065
"""Seconds of one embedding: MiniLM's, measured."""

Tell: TypeAlias = Callable[[float, PeerId, "e.Event | e.Effect"], None]
"""Hears what happens at which peer, and what it does about it."""


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
    quality: float = 0.8
    """Of its answers in its topics, 0..1."""
    general: float = 0.0
    """Of its other answers; 0: it has no general skill, unless it has no other."""
    zones: tuple[str, ...] = (GENERAL,)
    """Labels of the data it may see."""
    digest: str = "00" * 32
    """Of its model: only the same one goes on exactly where another broke off."""
    prefixes: int = 0
    """Conversations it keeps in its cache; 0: none."""
    labels: tuple[str, ...] = ()
    """Zones whose queries alone its model answers; empty: those of all that it may see."""


def capability(spec: Spec) -> Capability:
    """Return what such a peer says of itself."""
    models: tuple[ModelInfo, ...] = ()
    if spec.model:
        rest = (spec.prefill_tps, spec.decode_tps, spec.slots, spec.prefixes, spec.labels)
        models = (ModelInfo(spec.model, spec.digest, spec.context_tokens, *rest),)
    skills = [Skill(f"topic {t}", World.topic(t), spec.quality) for t in spec.topics]
    if spec.general or not skills:
        skills.append(Skill(GENERAL, None, spec.general or 0.5))
    return Capability(SPACE, tuple(skills), models, spec.zones)


@dataclass
class Run:
    """One answer that is being written."""

    total: int
    """Tokens it will have: what nobody knows before."""
    piece: int
    """Tokens written at once."""
    written: int = 0
    work_s: float = 0.0
    """Work it needs, alone, to its next piece."""
    prompt: tuple[str, ...] = ()
    """What it reads, and then holds in its cache."""
    prompt_tokens: int = 0


@dataclass
class Node:
    """One simulated peer."""

    machine: Machine
    spec: Spec
    epoch: int
    engine: BatchEngine[tuple[QueryId, int]] = field(default_factory=BatchEngine)
    runs: dict[tuple[QueryId, int], Run] = field(default_factory=dict)
    cache: PrefixCache = field(init=False)
    wake_at: float = math.inf
    """When its engine is looked at next."""
    ticks_at: float = math.inf
    """The deadline that a tick was last set for, while it is to come."""
    paused: list[e.Event] | None = None
    """Events that wait while it is stopped; None: it runs."""

    def __post_init__(self) -> None:
        self.cache = PrefixCache(self.spec.prefixes)


class World:
    """A mesh in a box."""

    def __init__(
        self,
        seed: int,
        specs: list[Spec],
        *,
        config: Config | None = None,
        latency_s: tuple[float, float] = Weather.latency_s,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        links: list[tuple[int, int]] | None = None,
        distance_s: float = 0.0,
        chunk_s: float = 0.0,
        mutate: Callable[[Machine], None] | None = None,
        tell: Tell | None = None,
    ) -> None:
        """Place peers p0, p1, …, each told of one earlier peer; or, with `links`, of these alone.

        `latency_s`, `loss`, `duplicate` and `reorder` are the wire's `Weather`; `distance_s` is added for a
        whole side of the square on which the peers lie. `chunk_s`: seconds of work that go into one piece of
        an answer; 0: a token. `mutate` spoils each machine before it starts, to see whether that is noticed.
        """
        self.now = 0.0
        self.config = config or Config()
        self.chunk_s = chunk_s
        self.judge = Judge(self.config)
        self.nodes: dict[PeerId, Node] = {}
        self._answers: dict[QueryId, int] = {}
        self._mutate = mutate
        self._tell = tell
        self._rng = Random(seed)
        self._seed = seed
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._queries = 0
        self._peers = 0
        weather = Weather(latency_s, loss, duplicate, reorder)
        self.wire = Wire(self, self.config.limits, weather, Random(f"wire {seed}"), distance_s)
        self._trace = hashlib.blake2b(digest_size=16)
        for index, spec in enumerate(specs):
            self.add(spec)
            if links is None and index:
                self.introduce(self.peer(index), self.peer(self._rng.randrange(index)))
        for a, b in links or ():
            self.introduce(self.peer(a), self.peer(b))

    # -- peers ----------------------------------------------------------------------------------------

    @staticmethod
    def peer(index: int) -> PeerId:
        """Return the id of the `index`-th peer."""
        return PeerId(f"p{index}")

    def lives(self, ident: PeerId) -> bool:
        """Return whether there is such a peer."""
        return ident in self.nodes

    def answers(self, ident: PeerId) -> bool:
        """Return whether it lives and is not stopped."""
        return ident in self.nodes and self.nodes[ident].paused is None

    def awake(self) -> list[PeerId]:
        """Return the peers that live and are not stopped, in order."""
        return sorted(filter(self.answers, self.nodes))

    @property
    def bytes_sent(self) -> dict[PeerId, int]:
        """Bytes of all frames, by sender."""
        return self.wire.bytes_sent

    def introduce(self, newcomer: PeerId, contact: PeerId) -> None:
        """Tell a peer of one whom it dials now."""
        self.later(0.0, lambda: self.wire.connect(newcomer, contact))

    def add(self, spec: Spec) -> PeerId:
        """Start one more peer, which knows nobody yet. Returns its id."""
        ident = self.peer(self._peers)
        self._peers += 1
        self._start(ident, spec, epoch=1)
        return ident

    def _start(self, ident: PeerId, spec: Spec, epoch: int) -> None:
        rng = Random(f"{self._seed} {ident} {epoch}")
        self.wire.place(ident)
        self.judge.started(ident, spec.zones, spec.labels)
        machine = Machine(ident, ident, epoch, self.config, *sim_keys(ident), rng, self.now)
        if self._mutate is not None:
            self._mutate(machine)
        self.nodes[ident] = Node(machine, spec, epoch)
        self.happen(ident, e.Described(capability(spec), (f"/sim/{ident}",)))

    @staticmethod
    def topic(number: int) -> Vector:
        """Return the direction of a topic; any two are nearly at right angles."""
        return quantise(np.random.default_rng(number).normal(size=_DIMENSIONS))

    # -- faults ---------------------------------------------------------------------------------------

    def crash(self, ident: PeerId, silent: bool = False) -> None:
        """Stop a peer for good. Its neighbours' links close, unless it goes `silent`, as when power fails."""
        del self.nodes[ident]
        if not silent:
            self.wire.reset(ident)
        self.judge.crashed(ident)

    def restart(self, ident: PeerId, spec: Spec, contact: PeerId, epoch: int = 2) -> None:
        """Start a crashed peer again, with nothing remembered but its key and `epoch` (and not even that,
        where it is no higher than before). Links that its silent death left open are reset."""
        self.wire.forget(ident)
        self._start(ident, spec, epoch)
        self.introduce(ident, contact)

    def leave(self, ident: PeerId) -> None:
        """A peer goes on purpose: it says so and ends."""
        self.happen(ident, e.Departed())
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
        self.happen(ident, e.Tick())
        for event in missed:
            self.happen(ident, event)

    def slow(self, ident: PeerId, speed: float) -> None:
        """From now on a peer's model is `speed` times as fast as it says: 0.2 is a machine that swaps."""
        node = self.nodes[ident]
        node.engine.set_speed(speed, self.now)
        node.wake_at = math.inf
        self._wake_engine(ident, node)

    def partition(self, apart: Callable[[PeerId, PeerId], bool]) -> None:
        """Lose every frame from a to b where `apart(a, b)`; links stay open, dials time out."""
        self.wire.partition(apart)

    def heal(self) -> None:
        """End the partition."""
        self.wire.partition(lambda a, b: False)

    # -- queries --------------------------------------------------------------------------------------

    def ask(
        self,
        ident: PeerId,
        topic: int | None = None,
        *,
        tokens: int = 20,
        budget_s: float = 60.0,
        model: str = "auto",
        zone: str = GENERAL,
        answer: int = 0,
        messages: tuple[Message, ...] = (),
        resume: Resume = Resume.ANY,
        guarded: bool = False,
    ) -> Asking:
        """Ask something about `topic` (None: nothing in particular) at a peer, now, for `tokens` at most; it
        will be answered in `answer` tokens (0: in all of them), which nobody knows. Or ask `messages`, the
        last of which is about "topic 3 …"."""
        self._queries += 1
        query_id = QueryId(hashlib.blake2b(f"{self._queries}".encode(), digest_size=16).hexdigest())
        asked = messages or (Message("user", "hello" if topic is None else f"topic {topic}"),)
        how = Options(max_tokens=tokens)
        query = Query(query_id, ident, asked, how, model=model, zone=zone, budget_s=budget_s, resume=resume)
        self._answers[query_id] = min(answer or tokens, tokens)
        asking = self.judge.asked(query, self.now)
        self.happen(ident, e.Asked(query, guarded))
        return asking

    def claim(self, asking: Asking, ident: PeerId) -> Asking:
        """Its asker comes to `ident` for the rest of an answer, as its peer has died."""
        self._queries += 1
        query_id = QueryId(hashlib.blake2b(f"{self._queries}".encode(), digest_size=16).hexdigest())
        left_s = max(0.0, asking.asked_at + asking.query.budget_s - self.now) + CLAIMED_S
        claimed = self.judge.asked(
            replace(asking.query, id=query_id, origin=ident, budget_s=left_s), self.now
        )
        claimed.before = asking.text
        self._answers[query_id] = self._answers[asking.query.id]
        self.happen(ident, e.Claimed(query_id, asking.query.id, asking.holder, len(asking.text)))
        return claimed

    def cancel(self, asking: Asking) -> None:
        """The asker goes away."""
        self.judge.cancelled(asking)
        self.happen(asking.query.origin, e.Cancelled(asking.query.id))

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

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Do `step` when `seconds` have passed."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, step))

    def happen(self, ident: PeerId, event: e.Event) -> None:
        """Let a peer handle an event, and do what it wants; a stopped one finds it when it goes on."""
        node = self.nodes.get(ident)
        if node is None:
            return
        if node.paused is not None:
            if not isinstance(event, e.Tick):
                node.paused.append(event)
            return
        self._trace.update(f"{self.now:.9f} {ident} {type(event).__name__}\n".encode())
        if self._tell is not None:
            self._tell(self.now, ident, event)
        if isinstance(event, e.Tick):
            self.judge.ticked(ident, self.now)
        effects = node.machine.handle(event, self.now)
        self.judge.handled(ident, node.machine, event, effects)
        for effect in effects:
            if self._tell is not None:
                self._tell(self.now, ident, effect)
            self._perform(ident, node, effect)
        deadline = node.machine.deadline
        if deadline != node.ticks_at:
            node.ticks_at = deadline
            self.later(max(0.0, deadline - self.now), lambda: self._tick(ident, node, deadline))

    def _tick(self, ident: PeerId, node: Node, deadline: float) -> None:
        # Only the tick for the deadline that still stands counts; the others were overtaken by events.
        if node.ticks_at == deadline:
            node.ticks_at = math.inf
        if self.nodes.get(ident) is node and node.machine.deadline == deadline:
            self.happen(ident, e.Tick())

    # -- effects --------------------------------------------------------------------------------------

    def _perform(self, ident: PeerId, node: Node, effect: e.Effect) -> None:
        match effect:
            case e.Send():
                self.wire.send(ident, effect.peer, effect.message)
            case e.Dial():
                self.wire.dial(ident, effect.peer)
            case e.Hangup():
                self.wire.unlink(ident, effect.peer)
            case e.Embed():
                query_id, vector = effect.query_id, self._embed(effect.text)
                self.later(_EMBED_S, lambda: self.happen(ident, e.Embedded(query_id, vector)))
            case e.Generate():
                self.judge.generating(ident, effect.query, self.nodes[ident].spec.digest)
                self._generate(ident, node, effect.query)
            case e.Abort():
                self._abort(ident, node, (effect.query_id, effect.attempt))
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

    # -- models ---------------------------------------------------------------------------------------

    def _generate(self, ident: PeerId, node: Node, query: Query) -> None:
        key = (query.id, query.attempt)
        spec = node.spec
        piece = max(1, round(self.chunk_s * spec.decode_tps))
        run = node.runs[key] = Run(self._answers.get(query.id, query.options.max_tokens), piece)
        run.prompt = tuple(f"{message.role}: {message.content}" for message in query.messages)
        known = query.messages[: node.cache.known(run.prompt)]
        unread = query.prompt_bytes - sum(len(message.content.encode()) for message in known)
        run.work_s = max(1, unread // 4) / spec.prefill_tps
        if query.accepted is not None:
            run.written = len(query.accepted.tokens)
        node.engine.start(key, self.now)
        self._await_next(ident, node, key)

    def _await_next(self, ident: PeerId, node: Node, key: tuple[QueryId, int]) -> None:
        run = node.runs[key]
        run.piece = min(run.piece, run.total - run.written)
        run.work_s += run.piece / node.spec.decode_tps
        node.engine.await_(key, run.work_s)
        self._wake_engine(ident, node)

    def _wake_engine(self, ident: PeerId, node: Node) -> None:
        following = node.engine.next()
        if following is not None and following[0] < node.wake_at:
            at = node.wake_at = following[0]
            self.later(at - self.now, lambda: self._run_engine(ident, node, at))

    def _run_engine(self, ident: PeerId, node: Node, at: float) -> None:
        if self.nodes.get(ident) is not node or node.wake_at != at:
            return
        node.wake_at = math.inf
        for key in node.engine.reach(self.now):
            run = node.runs.get(key)
            if run is None:
                continue  # what was written just before it ended it
            tokens = tuple(range(run.written, run.written + run.piece))
            run.written += run.piece
            if run.prompt:  # it has been read by now
                node.cache.keep(run.prompt)
                run.prompt = ()
            if tokens:  # an answer may be taken over when only its end is missing
                self.happen(ident, e.Generated(*key, tokens, "".join(f"{i} " for i in tokens)))
            if node.runs.get(key) is not run:
                continue
            if run.written < run.total:
                self._await_next(ident, node, key)
            else:
                self._abort(ident, node, key)
                self.happen(ident, e.Finished(*key, Usage(run.prompt_tokens, run.total), "stop"))
        self._wake_engine(ident, node)

    def _abort(self, ident: PeerId, node: Node, key: tuple[QueryId, int]) -> None:
        if node.runs.pop(key, None) is not None:
            node.engine.stop(key, self.now)
            self._wake_engine(ident, node)
