"""How many events one machine handles in a second, and how many peers' seconds the simulator lives through.

    python -m benchmarks.sim [--json] [--members 3,100,1000] [--flights 0,1000] [--peers 10,100]

A machine with so many members, linked to as many of them as it may be, and so many queries in flight is given
what it gets most: pings and load reports in turn, each in its own microsecond. For the simulator: virtual
seconds of a mesh that has met, under a light load, times its peers, for each second of this machine's CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from random import Random

from p2pmesh.config import Config
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Message, Options, Query, QueryId
from p2pmesh.record import (
    Capability,
    Load,
    ModelInfo,
    PeerId,
    PeerRecord,
    SignedRecord,
    Version,
    record_to_sign,
)
from p2pmesh.sim.sealer import sim_keys
from p2pmesh.sim.signer import SimSigner
from p2pmesh.sim.world import Spec, World

EVENTS = 4_000
SIM_S = 10.0
MODEL = ModelInfo("m", "00" * 32, 2_048, 1_000.0, 50.0, 4)


def record_of(peer: PeerId, codec: Codec) -> SignedRecord:
    """Return what `peer` says of itself, signed."""
    record = PeerRecord(peer, Version(1, 1), peer, (), Capability(models=(MODEL,)))
    body = codec.encode_record(record)
    return SignedRecord(record, body, SimSigner(peer).sign(record_to_sign(body, b"")))


def events_per_s(members: int, flights: int) -> float:
    """Return the events a second of CPU is enough for."""
    config = Config()
    machine = Machine(PeerId("me"), "me", 1, config, *sim_keys(PeerId("me")), Random(1), 0.0)
    peers = [PeerId(f"p{i}") for i in range(members)]
    links = peers[: config.membership.links_max]
    now = 0.001
    for peer in links:
        machine.handle(e.Connected(peer), now)
    for start in range(0, members, 32):
        batch = tuple(record_of(peer, machine.codec) for peer in peers[start : start + 32])
        machine.handle(e.Received(links[0], m.Records(batch)), now)
    for number in range(flights):
        query = Query(QueryId(f"{number:032x}"), machine.me, (Message("user", "x"),), Options(max_tokens=64))
        machine.handle(e.Asked(query), now)
    machine.handle(e.Tick(), now)
    began = time.process_time()
    for number in range(EVENTS):
        now += 1e-6
        message: m.PeerMessage = m.Ping(number) if number % 2 else m.LoadReport(Load(number * 1e-3, 2))
        machine.handle(e.Received(links[number % len(links)], message), now)
    return EVENTS / (time.process_time() - began)


def peer_seconds_per_s(peers: int) -> float:
    """Return the peers' virtual seconds that a second of CPU is enough for."""
    rng = Random(1)
    world = World(1, [Spec((i % 4,)) for i in range(peers)])
    world.run(20.0)
    began, until = time.process_time(), world.now + SIM_S
    while world.now < until:
        world.ask(rng.choice(world.awake()), rng.randrange(4))
        world.run(10.0 / peers)  # each peer asks once in ten seconds
    return peers * SIM_S / (time.process_time() - began)


def main() -> None:
    """Run it and print the figures."""

    def sizes(text: str) -> list[int]:
        return [int(size) for size in text.split(",")]

    parser = argparse.ArgumentParser(
        description="Events per second of a machine, and speed of the simulator."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--members", type=sizes, default=[3, 100, 1_000])
    parser.add_argument("--flights", type=sizes, default=[0, 1_000])
    parser.add_argument("--peers", type=sizes, default=[10, 100])
    args = parser.parse_args()
    machine = {
        f"{n} members, {f} flights": round(events_per_s(n, f)) for n in args.members for f in args.flights
    }
    simulator = {f"{n} peers": round(peer_seconds_per_s(n)) for n in args.peers}
    result = {"events_per_s": machine, "peer_seconds_per_s": simulator}
    if args.json:
        print(json.dumps(result))
        return
    for title, rows in result.items():
        for name, value in rows.items():
            print(f"{title:20} {name:28} {value}")


if __name__ == "__main__":
    main()
