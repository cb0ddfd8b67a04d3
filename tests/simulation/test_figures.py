"""The verbs that measure: small worlds, and that each figure can be bad."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from p2pmesh.config import Config, Membership
from p2pmesh.protocol.membership import Membership as Part
from p2pmesh.sim.__main__ import main
from p2pmesh.sim.crash import crash
from p2pmesh.sim.detect import detect
from p2pmesh.sim.traffic import PAYLOAD, traffic


def test_the_dead_are_found_and_the_living_are_not_buried() -> None:
    found = detect(12, loss=0.2, kills=3)
    assert 1.0 < found.detect_p50_s <= found.detect_p99_s <= found.detect_max_s <= 15.0
    assert (found.missed, found.wrong_dead_share, found.ghosts) == (0, 0.0, 0)


def test_who_is_stopped_half_of_the_time_is_not_buried() -> None:
    found = detect(12, loss=0.1, stalled=0.2, kills=1)
    assert (found.missed, found.ghosts) == (0, 0)
    assert found.wrong_dead_share <= 0.001


def test_without_verdicts_the_dead_are_missed_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "_silent", lambda *_: None)
    found = detect(5, loss=0.0, kills=1)
    assert (found.missed, found.ghosts) == (4, 4)


def test_hasty_verdicts_bury_the_living() -> None:
    hasty = Membership(direct_tries=1, suspicion_mult=0.2, suspicion_max_mult=1.0, probe_timeout_s=0.02)
    assert detect(8, loss=0.6, kills=0, config=Config(membership=hasty)).wrong_dead_share > 0.001


def test_bytes_are_told_by_kind_and_are_few() -> None:
    quiet = traffic(12, seconds=10.0)
    assert 0.0 < quiet.control_bytes_per_s < 3_000.0
    assert quiet.queries > 0
    assert sum(quiet.by_kind.values()) == pytest.approx(
        quiet.control_bytes_per_s + quiet.payload_bytes_per_s, rel=0.02
    )
    assert set(quiet.by_kind) > PAYLOAD
    assert (quiet.links_mean, quiet.known_mean) == (11.0, 11.0)


def test_of_a_mesh_that_loses_a_third_at_once_all_who_live_are_served() -> None:
    told = crash(12, 0.33, seed=2, before_s=15.0, after_s=70.0)
    assert (told.killed, told.silent) == (4, 2)
    rows = (told.in_flight, told.minute_after, told.later)
    assert all(row.asked > 0 and row.served == 1.0 and row.lost == {} for row in rows), rows


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["detect", "--peers", "4", "--kills", "1", "--loss", "0"], "detect_p99_s"),
        (["bytes", "--peers", "3,4", "--seconds", "3"], "meshes"),
        (["crash", "--peers", "5", "--before-s", "3", "--after-s", "5"], "in_flight"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_verbs_print_one_json_object_the_same_twice_or_lines(flags: list[str], key: str) -> None:
    once, twice = (CliRunner().invoke(main, [*flags, "--json"]).output for _ in range(2))
    assert once == twice
    assert key in json.loads(once)
    told = CliRunner().invoke(main, flags)
    assert told.exit_code == 0
    assert len(told.output.splitlines()) > 2
