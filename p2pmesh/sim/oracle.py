"""`oracle`: the mesh against a router that knows everything, on the same peers and the same arrivals.

Worlds of real machines, warmed up until all have met, then put under load. J is what every query really cost:
the seconds until its answer was whole, and lambda times what its answer lacked in quality.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import fmean

import click

from p2pmesh.config import Config
from p2pmesh.sim import arrivals as workload
from p2pmesh.sim import central
from p2pmesh.sim.arrivals import Arrival
from p2pmesh.sim.report import ABOVE_0, percentile
from p2pmesh.sim.world import Spec, World

TOPICS = 8
WARM_UP_SHARE = 0.1
"""Share of the arrivals that fill the queues and are not counted."""
_BUDGET_S = 3_000.0


@dataclass(frozen=True)
class Run:
    """How one way of placing queries did."""

    p50_s: float
    p99_s: float
    quality: float
    j_s: float


@dataclass(frozen=True)
class Comparison:
    """The mesh and the others, against the oracle, means over the seeds. A ratio of 1 is as good as it."""

    peers: int
    load: float
    seeds: int
    queries: int
    unserved: int
    p99_ratio: float
    j_ratio: float
    p50_ratio: float
    quality_lost: float
    hops_mean: float
    """Links a query crossed."""
    handed_over: float
    """Share of the queries that an idle peer took over."""
    bytes_per_peer_s: float
    """Everything sent, queries and answers too."""
    oracle: Run
    mesh: Run
    baselines: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Crossing:
    """How a workload went through the mesh."""

    outcomes: list[central.Outcome]
    """Of the queries that were served."""
    hops_mean: float
    handed_over: float
    bytes_sent: int
    """While queries came."""


def mesh(specs: list[Spec], asked: list[Arrival], config: Config, seed: int) -> Crossing:
    """Run the arrivals through a mesh."""
    world = World(seed, specs, config=config, chunk_s=central.PIECE_S)
    world.run(WARM_S)
    begin = world.now
    sent_before = sum(world.bytes_sent.values())
    askings = []
    for arrival in asked:
        world.run(begin + arrival.at - world.now)
        askings.append(
            world.ask(
                world.peer(arrival.peer),
                arrival.topic,
                tokens=workload.MAX_TOKENS,
                answer=arrival.answer,
                budget_s=_BUDGET_S,
            )
        )
    sent = sum(world.bytes_sent.values()) - sent_before
    while any(a.over_at is None for a in askings):
        world.run(10.0)
    world.judge.close(world.now)
    outcomes = []
    hops = 0
    for arrival, asking in zip(asked, askings, strict=True):
        if asking.ended is not None and asking.over_at is not None:
            peer = int(asking.path[-1].peer[1:])
            outcomes.append(
                central.Outcome(arrival.at, arrival.topic, peer, asking.over_at - asking.asked_at)
            )
            hops += len(asking.path) - 1
    return Crossing(outcomes, hops / max(1, len(outcomes)), _handed_over(world) / len(asked), sent)


def _handed_over(world: World) -> int:
    return sum(any("idle" in hop.why for hop in a.path) for a in world.judge.askings.values())


WARM_S = 20.0
"""Virtual seconds in which the peers meet."""


def judge(outcomes: list[central.Outcome], specs: list[Spec], since: float, lambda_s: float) -> Run:
    """Return what `outcomes` of queries that came after `since` amount to."""
    counted = [o for o in outcomes if o.at >= since]
    times = [o.whole_s for o in counted]
    qualities = [workload.quality(specs[o.peer], o.topic) for o in counted]
    costs = [t + lambda_s * (1 - q) for t, q in zip(times, qualities, strict=True)]
    return Run(percentile(times, 0.5), percentile(times, 0.99), fmean(qualities), fmean(costs))


def compare(
    peers: int, load: float, seeds: list[int], queries: int, baselines: bool, config: Config | None = None
) -> Comparison:
    """Run the mesh, the oracle and, with `baselines`, what people use, on the same worlds."""
    config = config or Config()
    ran: dict[str, list[Run]] = {}
    hops, handed, sent, unserved = [], [], [], 0
    for seed in seeds:
        specs = workload.peers(peers, TOPICS, seed)
        asked = list(workload.arrivals(specs, TOPICS, load, queries, seed))
        since = asked[int(WARM_UP_SHARE * queries)].at
        policies = {"oracle": central.oracle} | (central.POLICIES if baselines else {})
        for name, policy in policies.items():
            outcomes = central.Central(specs, config, seed).run(asked, policy)
            ran.setdefault(name, []).append(judge(outcomes, specs, since, config.routing.lambda_s))
        crossing = mesh(specs, asked, config, seed)
        ran.setdefault("mesh", []).append(judge(crossing.outcomes, specs, since, config.routing.lambda_s))
        unserved += queries - len(crossing.outcomes)
        hops.append(crossing.hops_mean)
        handed.append(crossing.handed_over)
        sent.append(crossing.bytes_sent / peers / asked[-1].at)

    def ratio(name: str, what: str) -> float:
        pairs = zip(ran[name], ran["oracle"], strict=True)
        return fmean(getattr(its, what) / getattr(best, what) for its, best in pairs)

    def mean(name: str) -> Run:
        return Run(*(fmean(getattr(r, f) for r in ran[name]) for f in ("p50_s", "p99_s", "quality", "j_s")))

    others = [name for name in ran if name not in ("oracle", "mesh")]
    return Comparison(
        peers=peers,
        load=load,
        seeds=len(seeds),
        queries=queries,
        unserved=unserved,
        p99_ratio=ratio("mesh", "p99_s"),
        j_ratio=ratio("mesh", "j_s"),
        p50_ratio=ratio("mesh", "p50_s"),
        quality_lost=mean("oracle").quality - mean("mesh").quality,
        hops_mean=fmean(hops),
        handed_over=fmean(handed),
        bytes_per_peer_s=fmean(sent),
        oracle=mean("oracle"),
        mesh=mean("mesh"),
        baselines={n: {"p99_ratio": ratio(n, "p99_s"), "j_ratio": ratio(n, "j_s")} for n in others},
    )


@click.command("oracle")
@click.option("--peers", default=30, show_default=True, type=click.IntRange(2), help="How many peers.")
@click.option(
    "--load",
    default=0.8,
    show_default=True,
    type=ABOVE_0,
    help="Share of what the peers can do that is asked for.",
)
@click.option("--seeds", default=4, show_default=True, type=click.IntRange(1), help="How many worlds.")
@click.option("--seed", default=1, show_default=True, help="The first of them.")
@click.option("--queries", default=3_000, show_default=True, type=click.IntRange(10), help="Queries in each.")
@click.option("--baselines/--no-baselines", default=True, help="Also run what people use today.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def oracle_command(
    peers: int, load: float, seeds: int, seed: int, queries: int, baselines: bool, as_json: bool
) -> None:
    """Compare the mesh with a router that knows everything."""
    result = compare(peers, load, list(range(seed, seed + seeds)), queries, baselines)
    if as_json:
        click.echo(json.dumps(asdict(result)))
        return
    for name, value in asdict(result).items():
        if name != "baselines":
            click.echo(f"{name:18} {value}")
    for name, row in result.baselines.items():
        click.echo(f"{name:18} p99 {row['p99_ratio']:.2f}  J {row['j_ratio']:.2f}")
