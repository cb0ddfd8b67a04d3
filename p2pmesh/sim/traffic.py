"""`bytes`: what a peer sends when nothing goes wrong, by kind of message, in meshes of several sizes.

Control is everything but the queries and answers themselves (`Forward`, `Tokens`, `End`): probes, loads,
announcements, digests, records, and what is said about queries. Bytes are those of the frames, without what
Noise, yamux and TCP add; the frames are counted too, so that that can be reckoned. The load is light: each
peer asks once every `ASK_EVERY_S`, for 20 tokens. The start is honest and not counted: peers join one after
the other, each told of one earlier peer.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from random import Random

import click

from p2pmesh.sim.report import ABOVE_0
from p2pmesh.sim.world import Spec, World

ASK_EVERY_S = 10.0
"""Mean seconds between two queries of one peer."""
TOKENS = 20
TOPICS = 8
JOINS_PER_S = 50.0
SETTLE_S = 20.0
"""Seconds from the last join to the first byte that is counted."""
PAYLOAD = frozenset({"Forward", "Tokens", "End"})
"""Kinds of messages that are the users', not the mesh's."""


@dataclass(frozen=True)
class Traffic:
    """One mesh in steady state. All rates are means over all peers."""

    peers: int
    seconds: float
    """That were counted."""
    queries: int
    control_bytes_per_s: float
    control_frames_per_s: float
    payload_bytes_per_s: float
    by_kind: dict[str, float]
    """Bytes per peer and second, the most first."""
    links_mean: float
    known_mean: float
    """Peers that a peer knows."""
    trace: str


def traffic(peers: int, seconds: float = 20.0, seed: int = 1) -> Traffic:
    """Count what `peers` send in `seconds` of a quiet day."""
    rng = Random(f"traffic {seed}")
    world = World(seed, [_spec(0, rng)])
    for number in range(1, peers):
        ident = world.add(_spec(number, rng))
        world.introduce(ident, world.peer(rng.randrange(number)))
        world.run(1.0 / JOINS_PER_S)
    world.run(SETTLE_S)
    bytes_before, frames_before = Counter(world.wire.kind_bytes), Counter(world.wire.kind_frames)
    asked_before = len(world.judge.askings)
    until = world.now + seconds
    while (at := world.now + rng.expovariate(peers / ASK_EVERY_S)) < until:
        world.run(at - world.now)
        world.ask(rng.choice(world.awake()), rng.randrange(TOPICS), tokens=TOKENS)
    world.run(until - world.now)
    sent = world.wire.kind_bytes - bytes_before
    frames = world.wire.kind_frames - frames_before
    scale = 1.0 / (peers * seconds)
    machines = [node.machine for node in world.nodes.values()]
    return Traffic(
        peers=peers,
        seconds=seconds,
        queries=len(world.judge.askings) - asked_before,
        control_bytes_per_s=round(sum(n for kind, n in sent.items() if kind not in PAYLOAD) * scale, 1),
        control_frames_per_s=round(sum(n for kind, n in frames.items() if kind not in PAYLOAD) * scale, 2),
        payload_bytes_per_s=round(sum(n for kind, n in sent.items() if kind in PAYLOAD) * scale, 1),
        by_kind={kind: round(n * scale, 1) for kind, n in sorted(sent.items(), key=lambda i: (-i[1], i[0]))},
        links_mean=sum(len(machine.membership.links) for machine in machines) / peers,
        known_mean=sum(len(machine.membership.members) for machine in machines) / peers,
        trace=world.trace(),
    )


def _spec(number: int, rng: Random) -> Spec:
    return Spec((number % TOPICS,) if number % 4 else (), decode_tps=rng.uniform(20.0, 100.0))


@click.command("bytes")
@click.option("--peers", default="30,300,1000", show_default=True, help="Sizes of the meshes, with commas.")
@click.option(
    "--seconds", default=20.0, show_default=True, type=ABOVE_0, help="Virtual seconds that are counted."
)
@click.option("--seed", default=1, show_default=True, help="Equal seeds, equal results.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bytes_command(peers: str, seconds: float, seed: int, as_json: bool) -> None:
    """Count what the mesh itself costs, by kind of message."""
    sizes = [int(size) if size.strip().isdecimal() else 0 for size in peers.split(",")]
    if min(sizes) < 2:
        raise click.BadParameter("sizes of 2 and more, with commas: 30,300", param_hint="--peers")
    results = [traffic(size, seconds, seed) for size in sizes]
    if as_json:
        click.echo(json.dumps({"ask_every_s": ASK_EVERY_S, "meshes": [asdict(r) for r in results]}))
        return
    for result in results:
        click.echo(
            f"{result.peers:6} peers: {result.control_bytes_per_s:8.1f} B/s of control in"
            f" {result.control_frames_per_s:.1f} frames, {result.payload_bytes_per_s:.1f} B/s of queries"
        )
        for kind, rate in result.by_kind.items():
            click.echo(f"       {kind:12} {rate:8.1f}")
