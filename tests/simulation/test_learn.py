"""Among liars the mesh learns whom to ask; believing everybody it does not. And the verb that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner

from p2pmesh.protocol.experience import Learning
from p2pmesh.sim.learn import BLIND, Study, learn, main

SMALL = Study(peers=20, topics=3, queries=60)
"""Four liars among twenty, for about half a second."""
SEEDS = (1, 2, 3)


def liars_get(study: Study) -> float:
    """Return the share of the last queries that liars answered, on average over the seeds."""
    return sum(learn(replace(study, seed=seed)).share_to_liars for seed in SEEDS) / len(SEEDS)


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_liars_who_make_up_reports_about_everybody_get_next_to_nothing(noise: float) -> None:
    assert liars_get(replace(SMALL, noise=noise)) <= 0.05


def test_without_weights_the_same_liars_get_nearly_everything() -> None:
    """The planted fault: the check above must be able to fail."""
    assert liars_get(replace(SMALL, learning=BLIND)) >= 0.9


def test_liars_who_are_right_about_all_others_get_little() -> None:
    """The way to be believed where one lies; a coin as the measure of a forecast lets them have their way."""
    cunning = replace(SMALL, cunning=True)
    assert liars_get(cunning) <= 0.1
    assert learn(cunning).regret < learn(replace(cunning, learning=BLIND)).regret


def test_reports_are_worth_having_where_nobody_lies() -> None:
    """Learning together beats learning alone: deaf, a peer needs its own trials of everybody."""
    honest = replace(SMALL, liars=0.0)
    deaf = replace(honest, learning=Learning(reporter_trials_max=0.0))
    together, alone = (
        sum(learn(replace(study, seed=seed)).regret for seed in SEEDS) for study in (honest, deaf)
    )
    assert together < 0.9 * alone


def test_what_was_learnt_shows_in_the_curve_and_in_the_weights() -> None:
    result = learn(SMALL)
    assert len(result.regret_curve) == 10
    assert result.regret_curve[-1] < result.regret_curve[0] / 3
    assert result.weight_liars < 0.05 < 0.5 < result.weight_honest
    assert result.regret == pytest.approx(sum(result.regret_curve) / 10)


def test_who_comes_back_under_another_name_is_a_stranger_and_is_found_out_again() -> None:
    once, twice = learn(SMALL), learn(replace(SMALL, reborn=30))
    assert once.regret_curve[:5] == twice.regret_curve[:5]
    assert once.regret_curve[5] < twice.regret_curve[5] < twice.regret_curve[0]


def test_skilled_liars_are_asked_for_what_they_can_do() -> None:
    result = learn(replace(SMALL, skilled=True, queries=100))
    assert result.regret_curve[-1] <= 0.06


def test_two_peers_are_enough() -> None:
    assert learn(Study(peers=2, topics=1, liars=0.0, queries=3)).regret == 0.0


def test_the_same_seed_tells_the_same_story_whatever_the_hash_seed() -> None:
    script = "from p2pmesh.sim.learn import Study, learn; print(learn(Study(12, 3, 0.25, 15, seed=5)))"
    told = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1] == f"{learn(Study(12, 3, 0.25, 15, seed=5))}\n"
    assert told[0] != f"{learn(Study(12, 3, 0.25, 15, seed=6))}\n"


def test_the_verb_prints_one_json_object_or_a_table() -> None:
    flags = ["--peers", "10", "--topics", "2", "--queries", "8", "--liars", "0.3", "--cunning"]
    as_json = CliRunner().invoke(main, [*flags, "--json"])
    result = json.loads(as_json.output)
    assert list(result) == ["weighted", "unweighted"]
    assert result["weighted"]["regret_curve"] != result["unweighted"]["regret_curve"]
    told = CliRunner().invoke(main, flags)
    assert told.exit_code == 0
    assert f"share_to_liars   {result['weighted']['share_to_liars']:.3f}" in told.output
