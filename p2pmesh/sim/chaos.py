"""`chaos`: worlds in which everything goes wrong at once, and the judge looking for one broken law.

Each seed is one world: queries with cancels, under bad weather and with a fault every moment; then all faults
end, views must converge, and the mesh sits an examination: it must answer everybody, free what is cancelled,
take nobody for lost who is merely busy, and get over one more sudden death. With a mutant every machine of
the world has one planted bug, and a checker that does not find it proves nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from random import Random

import click

from p2pmesh.config import Config, Membership, Quota, Relay
from p2pmesh.protocol.flight import Phase
from p2pmesh.query import Resume
from p2pmesh.record import GENERAL, NOBODY, PeerId
from p2pmesh.sim.faults import Faults
from p2pmesh.sim.judge import CONVERGE_S, Asking, Violation
from p2pmesh.sim.mutants import MUTANTS
from p2pmesh.sim.report import ABOVE_0
from p2pmesh.sim.story import Story
from p2pmesh.sim.world import Spec, World

TOPICS = 4
ZONE = "red"
_SLOW_MODEL = "slow"
"""Served by one peer alone, one query at a time: who asks for it waits."""
_MEET_S = 3.0
_GUARDED_EVERY = 3
"""One in so many queries is held by another peer too."""
_CANCELLED = 0.2
"""Share of the queries whose asker goes away."""
_BUDGETS_S = (2.0, 6.0, 15.0)
_RESUMES = (Resume.ANY, Resume.NEVER, Resume.ANY, Resume.SAME_MODEL, Resume.ANY)
_FREED_S = 0.5
"""Seconds in which a cancel has freed every slot, in peace."""
_RESCUED_S = 5.0
"""Seconds in which a query whose peer died before its first token must be answered by another: sooner than
anybody could be held for dead, as a query does not wait for that."""
_STOPPED_S = 5.0
"""Seconds for which one peer is stopped: longer than others wait, so that it is late with everything."""
_LONG_CUT_S = 30.0
"""Seconds of a cut over which both sides bury each other."""


@dataclass(frozen=True)
class Setting:
    """One kind of world."""

    peers: int = 30
    seconds: float = 20.0
    """Of faults; the whole story is a minute and a half longer."""
    rate: float = 4.0
    """Queries a second, mesh-wide."""
    fault_s: float = 1.0
    """Seconds between faults."""
    zoned: float = 0.2
    """Share of the queries that are of a zone."""
    storm_only: bool = False
    """Whether the world ends with its faults: what must never happen is looked for, and nothing that must."""
    mutant: str = ""


@dataclass
class Outcome:
    """How one seed went."""

    seed: int
    violation: str = ""
    """Empty: every law held."""
    at: float = 0.0
    """When it was broken."""
    asked: int = 0
    served: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    trace: str = ""


def chaos(setting: Setting, seed: int, story: Story | None = None) -> Outcome:
    """Run one world to its end, or to the first law that is broken."""
    rng = Random(f"chaos {seed}")
    weather = rng.choice(((0.0, 0.0), (0.02, 0.02), (0.1, 0.05)))
    world = World(
        seed,
        _specs(setting.peers, rng),
        config=_config(setting.peers, seed),
        loss=weather[0],
        duplicate=weather[1],
        reorder=weather[1],
        mutate=MUTANTS[setting.mutant].spoil if setting.mutant else None,
        tell=story,
    )
    outcome = Outcome(seed)
    try:
        faults = Faults(world, rng)
        _storm(world, faults, setting, rng, story)
        if setting.storm_only:
            return outcome
        if seed % 3 == 0:
            side = {ident for ident in sorted(world.nodes) if rng.random() < 0.5}
            world.partition(lambda a, b: (a in side) != (b in side))
            world.run(_LONG_CUT_S)
        faults.settle()
        world.run(CONVERGE_S)
        world.judge.settled(world.nodes)
        _examine(world, rng)
    except Exception as exc:  # noqa: BLE001 - whatever breaks is found
        outcome.violation = str(exc) if isinstance(exc, Violation) else f"{type(exc).__name__}: {exc}"
        outcome.at = world.now
    finally:
        _count(world, outcome)
    return outcome


def _count(world: World, outcome: Outcome) -> None:
    askings = world.judge.askings.values()
    outcome.asked = len(askings)
    outcome.served = sum(a.ended is not None for a in askings)
    outcome.failed = dict(sorted(Counter(a.failed.value for a in askings if a.failed).items()))
    outcome.trace = world.trace()


def _specs(count: int, rng: Random) -> list[Spec]:
    """Draw the peers: a third is general, a third may see the zone, and some of those answer for it
    alone; some have no model, the others one of two."""
    specs = [Spec(model=_SLOW_MODEL, slots=1, decode_tps=20.0)]
    for number in range(1, count):
        specs.append(
            Spec(
                topics=(number % TOPICS,) if number % 3 else (),
                decode_tps=rng.uniform(20.0, 100.0),
                slots=rng.randint(1, 4),
                model="" if number % 7 == 6 else "sim-model",
                zones=(GENERAL, ZONE) if number % 3 == 1 else (GENERAL,),
                labels=(ZONE,) if number % 9 == 4 else (),
                digest=f"{number % 2}" * 64,
            )
        )
    return specs


_QUOTA = 1_000
"""Tokens a minute that each asker of such a world may use: some ask for more."""


def _config(peers: int, seed: int) -> Config:
    """Tables so small that they fill; every other world is too large for everybody to be linked, every fourth
    for everybody to be known."""
    few = max(4, peers // 3)
    membership = Membership(links_max=few, links_far=few // 3) if seed % 2 else Membership()
    if seed % 4 == 3:
        known = max(6, peers // 2)  # room for all links among them, or a link would be nobody
        links = min(few // 2 + 2, known // 2)
        membership = Membership(members_max=known, links_max=links, links_far=links // 3)
    # Attempts are remembered for longer than a lost way is looked for, or one comes to the same peer again.
    relay = Relay(seen_max=64, flights_max=48, waiting_max=12)
    return Config(membership=membership, relay=relay, quota=Quota(tokens_per_minute=_QUOTA))


def _storm(world: World, faults: Faults, setting: Setting, rng: Random, story: Story | None) -> None:
    world.run(_MEET_S)
    drawn = Random(f"claims {setting.peers}")  # or each claim would make another world of this seed
    until = world.now + setting.seconds
    next_query, next_fault = world.now, world.now + setting.fault_s
    while world.now < until:
        if world.now >= next_query:
            next_query += rng.expovariate(setting.rate)
            asking = _ask(world, rng, rng.choice(world.awake()), setting.zoned)
            if rng.random() < _CANCELLED:
                world.later(rng.expovariate(2.0), lambda asking=asking: _cancel(world, asking))  # type: ignore[misc]
        if world.now >= next_fault:
            next_fault += setting.fault_s
            what = faults.strike()
            world.later(drawn.uniform(0.0, 2.0), lambda: _come_back(world, drawn))
            if story is not None:
                story.note(world.now, what)
        world.run(min(next_query, next_fault, until) - world.now)


def _ask(world: World, rng: Random, ident: PeerId, zoned: float) -> Asking:
    return world.ask(
        ident,
        rng.randrange(TOPICS + 2),
        tokens=rng.randint(1, 80),
        budget_s=rng.choice(_BUDGETS_S),
        zone=ZONE if rng.random() < zoned else GENERAL,
        resume=_RESUMES[len(world.judge.askings) % len(_RESUMES)],
        guarded=len(world.judge.askings) % _GUARDED_EVERY == 0,
    )


def _come_back(world: World, rng: Random) -> None:
    """Whoever asked at a peer that died comes to another one for the rest of his answer."""
    for asking in list(world.judge.askings.values()):
        if asking.orphaned and asking.holder:
            world.claim(asking, rng.choice(world.awake()))
            asking.holder = NOBODY


def _cancel(world: World, asking: Asking) -> None:
    gone = asking.over_at is not None or asking.orphaned
    if not gone and world.answers(asking.query.origin):
        world.cancel(asking)


# -- the examination --------------------------------------------------------------------------------------


def _examine(world: World, rng: Random) -> None:
    """Peace has come: everything must work."""
    living = world.awake()
    asked = [world.ask(ident, rng.randrange(TOPICS), tokens=rng.randint(1, 40)) for ident in living]
    slow = world.peer(0) in living
    asked += [world.ask(rng.choice(living), model=_SLOW_MODEL, tokens=60) for _ in range(4 * slow)]
    called_off = [world.ask(ident, rng.randrange(TOPICS), tokens=2_000) for ident in living[:4]]
    world.run(1.0)
    for asking in called_off:
        world.cancel(asking)
    world.run(_FREED_S)
    _freed(world, called_off)
    while any(asking.over_at is None for asking in asked):
        world.run(1.0)
    _served(asked)
    for asking in asked:
        if any(chunk.attempt for chunk in asking.chunks):
            raise Violation(f"somebody who was busy with {asking.query.id} was taken for lost")
    _stop_one(world, rng)
    _bury_one(world, rng)
    world.judge.over(world.nodes, world.now)


def _freed(world: World, called_off: list[Asking]) -> None:
    gone = {asking.query.id for asking in called_off}
    for ident in sorted(world.nodes):
        node = world.nodes[ident]
        held = {f.query.id for f in node.machine.relay.flights} | {key[0] for key in node.runs}
        if held & gone:
            raise Violation(f"{ident} still works on {min(held & gone)}, which was cancelled")


def _served(asked: list[Asking]) -> None:
    for asking in asked:
        if asking.ended is None:
            raise Violation(f"in peace {asking.query.id} was not served: {asking.failed} {asking.detail}")


def _burden(world: World, rng: Random, tokens: int) -> tuple[PeerId, list[Asking]]:
    """Ask everybody, and wait until somebody serves one whom nobody has a token of yet. Returns that peer and
    the queries of others that have none."""
    living = world.awake()
    asked = [world.ask(ident, rng.randrange(TOPICS), tokens=tokens, budget_s=40.0) for ident in living]
    busy: list[PeerId] = []
    for _ in range(200):
        world.run(0.001)
        waiting = {a.query.id for a in asked if not a.chunks}
        busy = [
            ident
            for ident in living
            if any(
                f.upstream is not None and f.query.id in waiting and f.phase is Phase.LOCAL
                for f in world.nodes[ident].machine.relay.flights
            )
        ]
        if busy:
            break
    chosen = rng.choice(busy or living)
    return chosen, [a for a in asked if a.query.origin != chosen and not a.chunks]


def _stop_one(world: World, rng: Random) -> None:
    """One of those who were just sent a query is stopped and goes on: what it has to say comes too late."""
    stopped, _ = _burden(world, rng, 300)
    world.pause(stopped)
    world.run(_STOPPED_S)
    world.resume(stopped)
    world.run(40.0 - _STOPPED_S)
    world.judge.close(world.now)


def _bury_one(world: World, rng: Random) -> None:
    """Power fails at one of those who were just sent a query; whoever has no token yet must not notice."""
    victim, waiting = _burden(world, rng, 5)
    world.crash(victim, silent=True)
    world.run(_RESCUED_S)
    _served(waiting)
    world.run(CONVERGE_S - _RESCUED_S)
    world.judge.settled(world.nodes)
    world.run(15.0)


# -- the verb ---------------------------------------------------------------------------------------------


def command_of(setting: Setting, seed: int) -> str:
    """Return the one command that replays a seed."""
    mutant = f" --mutant {setting.mutant}" if setting.mutant else ""
    mutant += " --storm-only" if setting.storm_only else ""
    mutant += f" --zoned {setting.zoned:g}" if setting.zoned != Setting.zoned else ""
    return (
        f"python -m p2pmesh.sim chaos --peers {setting.peers} --seconds {setting.seconds:g}"
        f" --rate {setting.rate:g} --fault-s {setting.fault_s:g} --seed {seed} --seeds 1{mutant} --story"
    )


def _planted(_: click.Context, __: click.Parameter, name: str) -> str:
    if name and name not in MUTANTS:
        raise click.BadParameter(f"no mutant {name!r}; --mutants lists them")
    return name


@click.command("chaos")
@click.option("--peers", default=30, show_default=True, type=click.IntRange(4), help="How many peers.")
@click.option(
    "--seconds",
    default=20.0,
    show_default=True,
    type=ABOVE_0,
    help="Virtual seconds of faults in each world.",
)
@click.option("--rate", default=4.0, show_default=True, type=ABOVE_0, help="Queries a second, mesh-wide.")
@click.option("--fault-s", default=1.0, show_default=True, type=ABOVE_0, help="Seconds between faults.")
@click.option("--zoned", default=0.2, show_default=True, type=click.FloatRange(0, 1), help="Share of a zone.")
@click.option("--storm-only", is_flag=True, help="End each world with its faults.")
@click.option("--seeds", default=100, show_default=True, type=click.IntRange(1), help="How many worlds.")
@click.option("--seed", default=1, show_default=True, help="The first of them.")
@click.option("--mutant", default="", metavar="NAME", callback=_planted, help="A planted bug, to be found.")
@click.option("--mutants", "listed", is_flag=True, help="Say what the planted bugs are, by their names.")
@click.option("--story", "told", is_flag=True, help="Tell what happens, event by event.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def chaos_command(seeds: int, seed: int, listed: bool, told: bool, as_json: bool, **setting: object) -> None:
    """Break everything at once and look for one broken law; exit 1 where there is one, or where a planted bug
    was not found."""
    if listed:
        for name, mutant in MUTANTS.items():
            click.echo(f"{name:20} {mutant.what}")
        return
    kind = Setting(**setting)  # type: ignore[arg-type]
    outcomes = []
    for number in range(seed, seed + seeds):
        story = Story() if told else None
        outcomes.append(chaos(kind, number, story))
        if sys.stderr.isatty():
            click.echo(f"\r{len(outcomes)} of {seeds} worlds", err=True, nl=len(outcomes) == seeds)
        for line in story.lines if story else ():
            click.echo(line)
        if outcomes[-1].violation and not as_json:
            click.echo(f"seed {number}, {outcomes[-1].at:.2f} s: {outcomes[-1].violation}")
            click.echo(f"  {command_of(kind, number)}")
    broken = [outcome for outcome in outcomes if outcome.violation]
    summary = {
        **asdict(kind),
        "seeds": seeds,
        "violations": len(broken),
        "asked": sum(o.asked for o in outcomes),
        "served": sum(o.served for o in outcomes),
        "failed": dict(sorted(sum((Counter(o.failed) for o in outcomes), Counter[str]()).items())),
        "broken": [
            {"seed": o.seed, "what": o.violation, "command": command_of(kind, o.seed)} for o in broken
        ],
    }
    if as_json:
        click.echo(json.dumps(summary))
    else:
        for name, value in summary.items():
            if name != "broken":
                click.echo(f"{name:12} {value}")
    if bool(broken) != bool(kind.mutant):  # a planted bug is there to be found
        raise SystemExit(1)
