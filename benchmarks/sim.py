"""How fast the protocol and its simulator are: one machine's events, and virtual time, per real second.

    python -m benchmarks.sim [--json] [--seconds S]

One machine is put amid 3, 100 and 1000 members, with no flights and with 1000, and handles pings, loads,
announcements and ticks in turn, as a peer in steady state does; encoding and decoding are not counted. The
simulator runs meshes of 10 and 100 peers, joined and quiet, with one query a second; everything is counted.
All on one core; each figure is the median of `ROUNDS` runs, interleaved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from random import Random

from p2pmesh.config import Config
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Message, Options, Query, QueryId
from p2pmesh.record import Load, PeerId, PeerRecord, SignedRecord, Version
from p2pmesh.sim.world import SimSigner, Spec, World, capability

MEMBERS = (3, 100, 1_000)
FLIGHTS = (0, 1_000)
PEERS = (10, 100)
ROUNDS = 3
ME = PeerId("me")


class Amid:
    """One machine that knows `members` and is linked to as many of them as it may be."""

    def __init__(self, members: int, flights: int) -> None:
        config = Config()
        self.now = 0.0
        self.machine = Machine(ME, "me", 1, config, SimSigner(ME), Random(1), self.now)
        self._handle(e.Described(capability(Spec(slots=4)), ("/sim/me",)))
        peers = [PeerId(f"p{i}") for i in range(members - 1)]
        self.links = peers[: config.membership.links_max]
        for peer in self.links:
            self._handle(e.Connected(peer))
        records = [self._signed(peer, number) for number, peer in enumerate(peers)]
        for start in range(0, len(records), config.limits.records_per_frame_max):
            batch = tuple(records[start : start + config.limits.records_per_frame_max])
            self._handle(e.Received(self.links[0], m.Records(batch)))
        for number in range(flights):
            self._forward(number)
        self._events = self._steady()

    def run(self, seconds: float) -> float:
        """Handle events for so many real seconds; return how many a second."""
        count, until = 0, time.perf_counter() + seconds
        began = time.perf_counter()
        while time.perf_counter() < until:
            for event in itertools.islice(self._events, 100):
                self._handle(event)
            count += 100
        return count / (time.perf_counter() - began)

    def _handle(self, event: e.Event) -> None:
        self.machine.handle(event, self.now)

    def _signed(self, peer: PeerId, number: int) -> SignedRecord:
        record = PeerRecord(peer, Version(1, 1), peer, (f"/sim/{peer}",), capability(Spec((number % 8,))))
        body = self.machine.codec.encode_record(record)
        return SignedRecord(record, body, SimSigner(peer).sign(body))

    def _forward(self, number: int) -> None:
        """A query that ends here and waits, or is passed on, and stays."""
        upstream = self.links[number % len(self.links)]
        text, options = (Message("user", "topic 1"),), Options(max_tokens=2_000)
        query = Query(QueryId(f"{number:032x}"), upstream, text, options, vector=World.topic(1), space="sim")
        self._handle(e.Received(upstream, m.Forward(query)))

    def _steady(self) -> Iterator[e.Event]:
        """What comes to a peer in steady state, a millisecond apart; its links answer its probes."""
        for number in itertools.count():
            self.now += 0.001
            peer = self.links[number % len(self.links)]
            match number % 4:
                case 0:
                    yield e.Received(peer, m.Ping(number))
                case 1:
                    yield e.Received(peer, m.LoadReport(Load(number % 7, 1, running=(1.0, 2.0))))
                case 2:
                    yield e.Received(peer, m.Announce((m.Line(self.links[0], Version(1, 1), 1),)))
                case _:
                    yield e.Tick()


def speed_of_world(peers: int, seconds: float) -> float:
    """Return the virtual seconds, times the peers, that the simulator gets through in a real second."""
    rng = Random(1)
    world = World(1, [Spec((i % 8,)) for i in range(peers)])
    world.run(15.0)
    began = time.perf_counter()
    virtual = 0.0
    while time.perf_counter() - began < seconds:
        world.ask(rng.choice(world.awake()), rng.randrange(8), tokens=20)
        world.run(1.0)
        virtual += 1.0
    return virtual * peers / (time.perf_counter() - began)


def measure(seconds: float) -> dict[str, object]:
    """Run the benchmark; return its figures as `--json` prints them."""
    kinds = list(itertools.product(MEMBERS, FLIGHTS))
    events: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    speeds: dict[int, list[float]] = {peers: [] for peers in PEERS}
    for _ in range(ROUNDS):
        for kind in kinds:
            events[kind].append(Amid(*kind).run(seconds))
        for peers in PEERS:
            speeds[peers].append(speed_of_world(peers, seconds))
    return {
        "events_per_s": [
            {"members": members, "flights": flights, "events": round(statistics.median(runs))}
            for (members, flights), runs in events.items()
        ],
        "peer_seconds_per_s": [
            {"peers": peers, "peer_seconds": round(statistics.median(runs))} for peers, runs in speeds.items()
        ],
        "rounds": ROUNDS,
        "seconds": seconds,
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim", description="How fast the protocol is.")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--seconds", type=float, default=1.0, help="real seconds of each run")
    options = parser.parse_args()
    figures = measure(options.seconds)
    if options.json:
        print(json.dumps(figures))
        return
    for name in ("events_per_s", "peer_seconds_per_s"):
        for row in figures[name]:  # type: ignore[attr-defined]
            print(f"{name:20s} " + "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
