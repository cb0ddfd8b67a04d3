"""`python -m p2pmesh.sim`: one world, its queries and its faults, from one seed."""

from __future__ import annotations

import json
from random import Random

import click

from p2pmesh.sim import learn
from p2pmesh.sim.chaos import chaos_command
from p2pmesh.sim.crash import crash_command
from p2pmesh.sim.detect import detect_command
from p2pmesh.sim.faults import Faults
from p2pmesh.sim.oracle import oracle_command
from p2pmesh.sim.reach import reach_command
from p2pmesh.sim.report import ABOVE_0, SHARE, Report, report
from p2pmesh.sim.traffic import bytes_command
from p2pmesh.sim.world import Spec, World


def story(
    seed: int, peers: int, seconds: float, rate: float, loss: float, fault_s: float, topics: int = 8
) -> tuple[World, Report, list[str]]:
    """Run `peers` for `seconds` with `rate` queries a second, a fault every `fault_s` seconds (0: none) and
    then as long again in peace for everything to come right."""
    rng = Random(f"story {seed}")
    specs = [Spec((i % topics,) if i % 4 else (), decode_tps=rng.uniform(20, 100)) for i in range(peers)]
    world = World(seed, specs, loss=loss)
    faults = Faults(world, rng)
    told = []
    world.run(3.0)
    next_query, next_fault = world.now, world.now + fault_s
    until = world.now + seconds
    while world.now < until:
        if world.now >= next_query:
            next_query += rng.expovariate(rate)
            ident = rng.choice(world.awake())
            world.ask(ident, rng.randrange(topics + 2), tokens=rng.randint(1, 60), budget_s=20.0)
        if fault_s and world.now >= next_fault:
            next_fault += fault_s
            told.append(f"{world.now:8.2f} s  {faults.strike()}")
        world.run(min(next_query, next_fault if fault_s else until, until) - world.now)
    faults.settle()
    world.run(60.0)
    world.judge.close(world.now)
    return world, report(world, seconds + 63.0), told


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A mesh in a box: real protocol code in virtual time."""


@main.command()
@click.option("--peers", default=10, show_default=True, type=click.IntRange(2), help="How many peers.")
@click.option(
    "--seconds", default=60.0, show_default=True, type=ABOVE_0, help="Virtual seconds of queries and faults."
)
@click.option("--rate", default=2.0, show_default=True, type=ABOVE_0, help="Queries a second, mesh-wide.")
@click.option("--loss", default=0.0, show_default=True, type=SHARE, help="Share of frames that are lost.")
@click.option(
    "--fault-s",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds between faults; 0: none.",
)
@click.option("--seed", default=1, show_default=True, help="Equal seeds tell equal stories.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(
    peers: int, seconds: float, rate: float, loss: float, fault_s: float, seed: int, as_json: bool
) -> None:
    """Run one world and say how it went."""
    _, result, told = story(seed, peers, seconds, rate, loss, fault_s)
    if as_json:
        click.echo(json.dumps(result.as_dict(), allow_nan=True))
        return
    for line in told:
        click.echo(line)
    for name, value in result.as_dict().items():
        click.echo(f"{name:18} {value}")


for command in (
    oracle_command,
    chaos_command,
    detect_command,
    bytes_command,
    crash_command,
    reach_command,
    learn.main,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
