"""`detect`: peers die in silence, as when power fails; how long until nobody gives them work any more?

And the price: how much of the time the living are held for dead, with frames lost and, if wanted, some peers
stopped half of the time. No queries are asked, so that probes alone must find out: a query would know sooner,
by its own silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click

from p2pmesh.config import Config
from p2pmesh.protocol.messages import Status
from p2pmesh.record import PeerId
from p2pmesh.sim.report import SHARE, percentile
from p2pmesh.sim.wire import Weather
from p2pmesh.sim.world import Spec, World

WARM_S = 20.0
"""Virtual seconds in which the peers meet, without loss."""
LOOK_S = 0.1
"""Seconds between two looks at who knows of a death: what the times of detection are rounded up to."""
COUNT_S = 1.0
"""Seconds between two counts of the living who are held for dead."""
KILL_EVERY_S = 6.0
AFTER_S = 60.0
"""Seconds that follow the last kill, in which everybody must have noticed."""
CALM_S = 60.0
"""Seconds without loss and stalls that end a run, before ghosts are counted."""
STALL_S = 3.0
"""A stalled peer is stopped for so long and then runs for so long, all the time."""


@dataclass(frozen=True)
class Detection:
    """How the dead were found, and the living were not."""

    peers: int
    loss: float
    stalled: float
    kills: int
    detect_p50_s: float
    """Seconds from a death until a survivor gives the dead no work, over all pairs of both; of the survivors
    that are not stalled."""
    detect_p99_s: float
    detect_max_s: float
    missed: int
    """Pairs in which it was not noticed before the calm."""
    wrong_dead_share: float
    """Share of all pairs of living peers, and of the time, in which one held the other for dead."""
    wrong_dead_events: int
    """How often that began."""
    ghosts: int
    """Pairs of a peer and one that is dead, in which it is taken for alive at the end."""
    trace: str


class Watch:
    """Looks at what everybody believes, every now and then."""

    def __init__(self, world: World) -> None:
        self.found: dict[tuple[PeerId, PeerId], float] = {}
        """Of an observer and a victim, the seconds it took."""
        self.wrong: list[tuple[float, PeerId, PeerId]] = []
        """When a living peer was buried, by whom."""
        self.counted = self.counted_wrong = 0
        self._world = world
        self._killed: dict[PeerId, float] = {}
        self._unaware: dict[PeerId, list[PeerId]] = {}
        """Of each of the dead, who still takes it for alive."""
        self._buried: set[tuple[PeerId, PeerId]] = set()

    def kill(self, victim: PeerId) -> None:
        """A peer dies in silence."""
        self._world.crash(victim, silent=True)
        self._killed[victim] = self._world.now
        self._unaware[victim] = list(self._world.nodes)

    def look(self) -> None:
        """Note who has noticed which death."""
        now, nodes = self._world.now, self._world.nodes
        for victim, unaware in self._unaware.items():
            for ident in [i for i in unaware if i in nodes]:
                if not nodes[ident].machine.membership.is_alive(victim):
                    unaware.remove(ident)
                    self.found[ident, victim] = now - self._killed[victim]

    def count(self) -> None:
        """Note who buries whom of the living."""
        nodes = self._world.nodes
        for ident, node in nodes.items():
            if node.paused is not None:
                continue  # it believes nothing while it is stopped, and does nothing about it
            self.counted += len(nodes) - 1
            for member in node.machine.membership.members.values():
                if member.status < Status.DEAD:
                    self._buried.discard((ident, member.id))
                elif member.id in nodes:
                    self.counted_wrong += 1
                    if (ident, member.id) not in self._buried:
                        self._buried.add((ident, member.id))
                        self.wrong.append((self._world.now, ident, member.id))

    def ghosts(self) -> int:
        """Return how many beliefs there are that one of the dead is alive."""
        nodes = self._world.nodes
        return sum(
            nodes[ident].machine.membership.is_alive(victim) for ident in nodes for victim in self._killed
        )


def _stall(world: World, ident: PeerId, until: float) -> None:
    """Stop a peer now, let it go on in a while, and so on."""
    if ident not in world.nodes or world.now >= until:
        return
    world.pause(ident)

    def go_on() -> None:
        world.resume(ident)
        world.later(STALL_S, lambda: _stall(world, ident, until))

    world.later(STALL_S, go_on)


def detect(
    peers: int,
    loss: float = 0.2,
    stalled: float = 0.0,
    kills: int = 8,
    seed: int = 1,
    *,
    config: Config | None = None,
    wrong: Callable[[float, PeerId, PeerId], None] | None = None,
) -> Detection:
    """Kill `kills` of `peers`, one after the other. `wrong` hears of each wrong verdict."""
    world = World(seed, [Spec() for _ in range(peers)], config=config)
    world.run(WARM_S)
    world.wire.weather = Weather(loss=loss)
    stopping = [world.peer(i) for i in range(round(stalled * peers))]
    victims = [world.peer(peers - 1 - i) for i in range(kills)]
    until = world.now + kills * KILL_EVERY_S + AFTER_S
    for index, ident in enumerate(stopping):
        world.later(2 * STALL_S * index / len(stopping), lambda ident=ident: _stall(world, ident, until))  # type: ignore[misc]
    watch = Watch(world)
    count_at = world.now
    kill_at = world.now + KILL_EVERY_S / 2
    while world.now < until:
        if victims and world.now >= kill_at:
            watch.kill(victims.pop(0))
            kill_at += KILL_EVERY_S
        world.run(LOOK_S)
        watch.look()
        if world.now >= count_at:
            count_at += COUNT_S
            watch.count()
    times = [s for (ident, _), s in watch.found.items() if ident in world.nodes and ident not in stopping]
    pairs = kills * (len(world.nodes) - len(stopping))
    if wrong is not None:
        for verdict in watch.wrong:
            wrong(*verdict)
    world.wire.calm()
    world.run(CALM_S)
    return Detection(
        peers=peers,
        loss=loss,
        stalled=stalled,
        kills=kills,
        detect_p50_s=round(percentile(times, 0.5), 3),
        detect_p99_s=round(percentile(times, 0.99), 3),
        detect_max_s=round(max(times, default=0.0), 3),
        missed=pairs - len(times),
        wrong_dead_share=watch.counted_wrong / max(1, watch.counted),
        wrong_dead_events=len(watch.wrong),
        ghosts=watch.ghosts(),
        trace=world.trace(),
    )


@click.command("detect")
@click.option("--peers", default=128, show_default=True, type=click.IntRange(3), help="How many peers.")
@click.option("--loss", default=0.2, show_default=True, type=SHARE, help="Share of frames that are lost.")
@click.option(
    "--stalled", default=0.0, show_default=True, type=SHARE, help="Share of peers stopped half of the time."
)
@click.option("--kills", default=8, show_default=True, type=click.IntRange(0), help="How many die.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds tell equal stories.")
@click.option("--verdicts", is_flag=True, help="Also say who buried whom, and when.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def detect_command(
    peers: int, loss: float, stalled: float, kills: int, seed: int, verdicts: bool, as_json: bool
) -> None:
    """How soon are the dead known, and how seldom are the living taken for dead?"""

    if kills > peers - 2:
        raise click.BadParameter(f"of {peers} peers at most {peers - 2} may die", param_hint="--kills")

    def say(at: float, observer: PeerId, buried: PeerId) -> None:
        click.echo(f"{at:9.2f} s  {observer} buries {buried}", err=as_json)

    result = detect(peers, loss, stalled, kills, seed, wrong=say if verdicts else None)
    if as_json:
        click.echo(json.dumps(asdict(result)))
        return
    for name, value in asdict(result).items():
        click.echo(f"{name:18} {value}")
