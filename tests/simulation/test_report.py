"""What a run amounts to, in numbers; and the verb that prints them."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from p2pmesh.sim.__main__ import main
from p2pmesh.sim.report import percentile, report
from p2pmesh.sim.world import Spec, World


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [
        ([3.0], 0.5, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 0.99, 4.0),
        ([4.0, 1.0, 3.0, 2.0], 0.0, 1.0),
        (list(map(float, range(1, 101))), 0.99, 99.0),
        (list(map(float, range(1, 101))), 1.0, 100.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], share: float, rank: float) -> None:
    assert percentile(values, share) == rank


def test_of_nothing_there_is_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))


def test_a_report_counts_the_served_the_failed_and_the_hops() -> None:
    world = World(1, [Spec(model=""), Spec()])
    world.run(8.0)
    world.ask(world.peer(0))
    world.ask(world.peer(1))
    world.ask(world.peer(1), model="unheard of")
    world.run(20.0)
    result = report(world, world.now)
    assert (result.asked, result.served) == (3, 2)
    assert result.failed == {"model_not_found": 1}
    assert result.hops_mean == 0.5
    assert 0.0 < result.first_s_p50 <= result.first_s_p99 < result.whole_s_p99
    assert result.bytes_per_peer_s > 0.0
    assert (result.view_share, result.ghosts) == (1.0, 0)


def test_a_peer_that_nobody_has_buried_yet_is_a_ghost() -> None:
    world = World(1, [Spec(), Spec(), Spec()])
    world.run(8.0)
    world.crash(world.peer(2), silent=True)
    assert report(world, world.now).ghosts == 2


def test_the_verb_prints_one_json_object_or_a_story() -> None:
    flags = ["run", "--peers", "4", "--seconds", "3", "--fault-s", "1", "--seed", "2"]
    told = CliRunner().invoke(main, flags)
    assert told.exit_code == 0
    as_json = CliRunner().invoke(main, [*flags, "--json"])
    assert json.loads(as_json.output)["trace"] in told.output
