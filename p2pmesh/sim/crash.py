"""`crash`: a share of the mesh dies at once, under load; who is left must be served all the same.

The workload is research's (routing, section 5). Half of the dead go in silence, as when power fails; of the
others the links close. Only queries whose own peer lives are counted, in three rows: in flight at the crash,
asked in the minute after it, and later.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from random import Random

import click

from p2pmesh.sim import arrivals as workload
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.report import ABOVE_0, percentile
from p2pmesh.sim.world import World

TOPICS = 8
LOAD = 0.65
"""Share of what the peers can do that is asked for, as in research; after a crash of 30 %, 0.93 of what the
rest can do, less what the dead would have asked."""
MEET_S = 20.0
BUDGET_S = 300.0
AFTER_S = 60.0
"""Seconds after the crash that are a row of their own."""
PIECE_S = 0.5
"""Seconds of work that go into one piece of an answer."""


@dataclass(frozen=True)
class Row:
    """How some of the queries ended."""

    asked: int
    served: float
    """Share that ended well."""
    p50_s: float | None
    """None where none was served."""
    p99_s: float | None
    resumed: int
    """Answers that more than one peer wrote."""
    lost: dict[str, int] = field(default_factory=dict)
    """How many did not, by reason, and whether they had begun."""


@dataclass(frozen=True)
class Crash:
    """How a mesh took the loss of a share of its peers."""

    peers: int
    killed: int
    silent: int
    """Of the killed, how many without closing their links."""
    served: float
    """Share of all that were in flight at the crash or asked after it, and ended well."""
    in_flight: Row
    minute_after: Row
    later: Row
    trace: str


def crash(
    peers: int, fraction: float, seed: int = 1, *, before_s: float = 60.0, after_s: float = 120.0
) -> Crash:
    """Kill `fraction` of `peers` after `before_s` seconds of load, and go on for `after_s`."""
    rng = Random(f"crash {seed}")
    specs = workload.peers(peers, TOPICS, seed)
    world = World(seed, specs, chunk_s=PIECE_S)
    world.run(MEET_S)
    began = world.now
    crash_at, until = began + before_s, began + before_s + after_s
    killed = rng.sample(range(peers), round(fraction * peers))
    silent = killed[: len(killed) // 2]
    rows: tuple[list[Asking], list[Asking], list[Asking]] = ([], [], [])
    crashed = False
    for arrival in workload.arrivals(specs, TOPICS, LOAD, 10**9, seed):
        at = began + arrival.at
        if not crashed and at >= crash_at:
            crashed = True
            world.run(crash_at - world.now)
            for number in killed:
                world.crash(world.peer(number), silent=number in silent)
            rows[0].extend(a for a in world.judge.askings.values() if a.over_at is None and not a.orphaned)
        if at >= until:
            break
        world.run(at - world.now)
        if world.answers(world.peer(arrival.peer)):
            asking = world.ask(
                world.peer(arrival.peer),
                arrival.topic,
                tokens=workload.MAX_TOKENS,
                answer=arrival.answer,
                budget_s=BUDGET_S,
            )
            if crashed:
                rows[1 if at < crash_at + AFTER_S else 2].append(asking)
    world.run(1.0)
    while any(a.over_at is None and not a.orphaned for row in rows for a in row):
        world.run(1.0)  # each has a budget: `close` finds what outlives it
        world.judge.close(world.now)
    in_flight, minute, later = map(_row, rows)
    ended = [asking.ended is not None for row in rows for asking in row]
    served = sum(ended) / max(1, len(ended))
    return Crash(peers, len(killed), len(silent), served, in_flight, minute, later, world.trace())


def _row(askings: Sequence[Asking]) -> Row:
    served = [a for a in askings if a.ended is not None]
    times = [a.over_at - a.asked_at for a in served if a.over_at is not None]
    lost = Counter(
        f"{a.failed.value}{' amid the answer' if a.chunks else ''}" for a in askings if a.failed is not None
    )
    return Row(
        asked=len(askings),
        served=len(served) / max(1, len(askings)),
        p50_s=round(percentile(times, 0.5), 3) if times else None,
        p99_s=round(percentile(times, 0.99), 3) if times else None,
        resumed=sum(len({chunk.attempt for chunk in a.chunks}) > 1 for a in served),
        lost=dict(sorted(lost.items())),
    )


@click.command("crash")
@click.option("--peers", default=300, show_default=True, type=click.IntRange(4), help="How many peers.")
@click.option(
    "--fraction", default=0.3, show_default=True, type=click.FloatRange(0, 0.9), help="Share that dies."
)
@click.option(
    "--before-s", default=60.0, show_default=True, type=ABOVE_0, help="Virtual seconds of load before it."
)
@click.option(
    "--after-s", default=120.0, show_default=True, type=ABOVE_0, help="Virtual seconds of load after it."
)
@click.option("--seed", default=1, show_default=True, help="Equal seeds, equal results.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def crash_command(
    peers: int, fraction: float, before_s: float, after_s: float, seed: int, as_json: bool
) -> None:
    """Kill a share of a loaded mesh at once, and serve on."""
    result = crash(peers, fraction, seed, before_s=before_s, after_s=after_s)
    if as_json:
        click.echo(json.dumps(asdict(result)))
        return
    click.echo(f"{result.killed} of {result.peers} die, {result.silent} of them in silence")
    rows = {"in flight": result.in_flight, "minute after": result.minute_after, "later": result.later}
    for name, row in rows.items():
        click.echo(
            f"{name:14} {row.asked:6} asked, {row.served:8.4%} served, p50 {row.p50_s} s,"
            f" p99 {row.p99_s} s, {row.resumed} resumed, lost {row.lost}"
        )
