"""One router that places every query: the omniscient oracle, and what people use today.

The same queues (`protocol.local`), the same estimates (`protocol.routing`) and the same engines as the mesh
has, but no messages: a policy sees the peers as it may, and its choice takes effect at once. What the mesh is
measured against.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

from p2pmesh.config import Config
from p2pmesh.protocol import events as e
from p2pmesh.protocol.batching import Backlog
from p2pmesh.protocol.local import Local
from p2pmesh.protocol.routing import Candidate, Estimates, Scored, score
from p2pmesh.protocol.workload import work_s
from p2pmesh.query import Message, Options, Query, QueryId
from p2pmesh.record import PeerId
from p2pmesh.sim.arrivals import MAX_TOKENS, Arrival
from p2pmesh.sim.engine import BatchEngine
from p2pmesh.sim.world import SPACE, Spec, World, capability

REPORT_S = 1.0
"""Seconds between the load reports that the policies without omniscience see."""

PIECE_S = 0.5
"""Seconds of work that go into one piece of an answer: how often progress is seen."""


@dataclass(frozen=True)
class Outcome:
    """One query that was answered."""

    at: float
    topic: int
    peer: int
    whole_s: float


class Central:
    """All queues in one hand."""

    def __init__(self, specs: list[Spec], config: Config, seed: int) -> None:
        self.specs = specs
        # Where a peer of the mesh refuses, a baseline may drown: nothing is lost to a bound.
        self.config = replace(
            config,
            relay=replace(config.relay, waiting_max=10**6),
            net=replace(config.net, outbox_frames_max=10**6),
        )
        self.rng = Random(f"central {seed}")
        self.now = 0.0
        self.turn = 0
        """Counts queries, for those who take turns."""
        self.names = [World.peer(i) for i in range(len(specs))]
        self.capabilities = [capability(s) for s in specs]
        self._estimates = Estimates()
        self._lengths = self._estimates.lengths
        self._out: list[e.Effect] = []
        self._locals = [Local(self.config, self._lengths, self._out) for _ in specs]
        self._engines: list[BatchEngine[QueryId]] = [BatchEngine() for _ in specs]
        self._reports: tuple[float, list[Backlog]] = (-REPORT_S, [])
        self._sent: dict[int, list[float]] = {}
        self._index = {name: i for i, name in enumerate(self.names)}
        for local, its in zip(self._locals, self.capabilities, strict=True):
            local.describe(its.models)

    # -- what a policy may look at ----------------------------------------------------------------------

    def table(self, query: Query, backlogs: list[Backlog]) -> tuple[Scored, ...]:
        """Return the peers as routing scores them, best first."""
        candidates = [
            Candidate(name, name, its, backlog, 0.0, name, local.held, local.pace)
            for name, its, backlog, local in zip(
                self.names, self.capabilities, backlogs, self._locals, strict=True
            )
        ]
        return score(query, PeerId(""), candidates, self._estimates, self.config.routing)

    def exact(self) -> list[Backlog]:
        """Return what every peer has to do, as it is now."""
        return [local.backlog(self.now) for local in self._locals]

    def reported(self, *, tracked: bool = False) -> list[Backlog]:
        """Return it as the last reports said, at most `REPORT_S` old, drained since; `tracked`: with what has
        been sent there since."""
        at, then = self._reports
        if self.now - at >= REPORT_S:
            at, then = self._reports = (self.now, self.exact())
            self._sent.clear()
        backlogs = [backlog.after(self.now - at) for backlog in then]
        if tracked:
            for peer, works in self._sent.items():
                backlogs[peer] = backlogs[peer].plus(works)
        return backlogs

    def index(self, row: Scored) -> int:
        """Return which peer a row of a table is about."""
        return self._index[row.peer]

    # -- the run ----------------------------------------------------------------------------------------

    def run(self, arrivals: list[Arrival], policy: Policy) -> list[Outcome]:
        """Place all of `arrivals`; return how each ended, in the order in which they ended."""
        waiting = [(a.at, number) for number, a in enumerate(arrivals)]
        heapq.heapify(waiting)
        running: dict[QueryId, tuple[int, int, int]] = {}
        outcomes = []
        wakes: list[tuple[float, int]] = []
        due: dict[int, float] = {}
        """When each peer is to be woken: what was put off is left in the heap, and is not."""
        while waiting or wakes:
            if waiting and (not wakes or waiting[0][0] <= wakes[0][0]):
                self.now, number = heapq.heappop(waiting)
                peer = self._place(arrivals[number], number, policy)
                running[_query_id(number)] = (number, peer, 0)
            else:
                at, peer = heapq.heappop(wakes)
                if due.get(peer) != at:
                    continue
                del due[peer]
                self.now = at
                for query_id in self._engines[peer].reach(self.now):
                    number, _, written = running[query_id]
                    arrival = arrivals[number]
                    piece = self._piece(peer, arrival.answer - written)
                    running[query_id] = (number, peer, written + piece)
                    self._locals[peer].progressed(query_id, piece)
                    if written + piece < arrival.answer:
                        self._await_next(peer, query_id, arrival, written + piece)
                        continue
                    self._engines[peer].stop(query_id, self.now)
                    self._locals[peer].finished(query_id)
                    self._lengths.observed(arrival.answer)
                    outcomes.append(Outcome(arrival.at, arrival.topic, peer, self.now - arrival.at))
            self._locals[peer].advance(self.now)
            for effect in self._out:
                assert isinstance(effect, e.Generate)
                self._engines[peer].start(effect.query.id, self.now)
                self._await_next(peer, effect.query.id, arrivals[running[effect.query.id][0]], 0)
            self._out.clear()
            following = self._engines[peer].next()
            if following is not None and due.get(peer) != following[0]:
                due[peer] = following[0]
                heapq.heappush(wakes, (following[0], peer))
        return outcomes

    def _place(self, arrival: Arrival, number: int, policy: Policy) -> int:
        self.turn = number
        text = (Message("user", f"topic {arrival.topic}"),)
        options = Options(max_tokens=MAX_TOKENS)
        vector = World.topic(arrival.topic)
        query = Query(_query_id(number), PeerId(""), text, options, vector=vector, space=SPACE, budget_s=1e6)
        peer = policy(self, query)
        model = self.capabilities[peer].models[0]
        taken = self._locals[peer].submit(query, model.name, self.now)
        assert taken is not None, "a central queue has no bound"
        self._sent.setdefault(peer, []).append(work_s(query, model, self.config.routing, self._lengths))
        return peer

    def _piece(self, peer: int, left: int) -> int:
        return min(left, max(1, round(PIECE_S * self.specs[peer].decode_tps)))

    def _await_next(self, peer: int, query_id: QueryId, arrival: Arrival, written: int) -> None:
        spec = self.specs[peer]
        then = written + self._piece(peer, arrival.answer - written)
        self._engines[peer].await_(query_id, 3 / spec.prefill_tps + then / spec.decode_tps)


Policy: TypeAlias = Callable[[Central, Query], int]
"""Which peer gets a query."""


def oracle(central: Central, query: Query) -> int:
    """The best by J, on exact and present knowledge of every queue: what nobody can have."""
    return central.index(central.table(query, central.exact())[0])


def central_router(central: Central, query: Query) -> int:
    """The best by J, on reports at most a second old and the router's own dispatches since."""
    return central.index(central.table(query, central.reported(tracked=True))[0])


def stale(central: Central, query: Query) -> int:
    """The best by J, on reports at most a second old: what every peer would do with a gossiped load table."""
    return central.index(central.table(query, central.reported())[0])


def least_loaded(central: Central, query: Query) -> int:
    """The shortest queue, in seconds, on the same reports; ties by lot."""
    drains = [backlog.drain_s() for backlog in central.reported(tracked=True)]
    least = min(drains)
    return central.rng.choice([i for i, drain in enumerate(drains) if drain == least])


def power_of_two(central: Central, query: Query) -> int:
    """The better by J of two drawn by lot, on exact knowledge of both."""
    pair = central.rng.sample(range(len(central.specs)), 2)
    exact = central.exact()
    rows = central.table(query, exact)
    return next(i for i in map(central.index, rows) if i in pair)


def random(central: Central, query: Query) -> int:
    """Any, the faster the likelier."""
    return central.rng.choices(range(len(central.specs)), [s.decode_tps for s in central.specs])[0]


def round_robin(central: Central, query: Query) -> int:
    """One after the other."""
    return central.turn % len(central.specs)


POLICIES: dict[str, Policy] = {
    "central_router": central_router,
    "stale_least_j": stale,
    "least_loaded": least_loaded,
    "power_of_two": power_of_two,
    "random": random,
    "round_robin": round_robin,
}
"""What the mesh is compared with beside the oracle."""


def _query_id(number: int) -> QueryId:
    return QueryId(f"{number:032x}")
