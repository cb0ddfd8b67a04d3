"""One user of a mesh asks without a pause, and the others are served all the same."""

from __future__ import annotations

from random import Random

import pytest

from p2pmesh.config import Config, Quota
from p2pmesh.errors import Reason
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

SERVERS, MODEST = 3, 2
PER_MINUTE = 2_000
SECONDS = 90.0
NONE = Spec(model="")


def asked(seed: int, quota: Quota) -> tuple[list[Asking], list[Asking]]:
    """Return what came of a greedy user's queries, and of those of modest ones, each at a peer of his own."""
    specs = [Spec(slots=2) for _ in range(SERVERS)] + [NONE] * (1 + MODEST)
    world, rng = World(seed, specs, config=Config(quota=quota)), Random(seed)
    world.run(5.0)
    greedy, modest = [], []
    until = world.now + SECONDS
    next_modest = world.now
    while world.now < until:
        greedy.append(world.ask(World.peer(SERVERS), tokens=100, budget_s=60.0))
        if world.now >= next_modest:
            at = World.peer(SERVERS + 1 + rng.randrange(MODEST))
            modest.append(world.ask(at, tokens=50, budget_s=20.0))
            next_modest = world.now + 5.0
        world.run(rng.expovariate(4.0))
    world.run(70.0)
    world.judge.close(world.now)
    return greedy, modest


@pytest.mark.parametrize("seed", range(2))
def test_quotas_hold_over_all_peers_together_and_the_others_are_served(seed: int) -> None:
    greedy, modest = asked(seed, Quota(tokens_per_minute=PER_MINUTE))
    served = [a for a in greedy if a.ended is not None]
    # A minute's worth at once, then so many a minute; half as much again, as no link's word counts for more.
    most = PER_MINUTE * (1.0 + SECONDS / 60.0)
    assert 0.5 * most <= 100 * len(served) <= 1.5 * most
    assert [a.failed for a in modest if a.ended is None] == []
    assert {a.failed for a in greedy if a.ended is None} <= {Reason.QUOTA, Reason.OVERLOADED}


def test_without_them_the_others_get_little() -> None:
    _, modest = asked(0, Quota())
    assert sum(a.ended is not None for a in modest) < 0.8 * len(modest)
