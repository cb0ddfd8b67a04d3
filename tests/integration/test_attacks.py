"""The attacks of `tests.attacks` on real peers; the flood is a tenth of what the program sends by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.__main__ import attacks, carry_out
from tests.attacks.ground import Ground, mesh
from tests.attacks.verdict import Verdict

pytestmark = pytest.mark.wire
STREAMS = 1_000


async def test_every_attack_is_blocked_and_honest_queries_are_answered(tmp_path: Path) -> None:
    with mesh(tmp_path) as ground:
        told = await carry_out(ground, attacks(STREAMS))
    assert [row for row in told["attacks"] if not row["blocked"]] == []
    assert len(told["attacks"]) == len(attacks(0))
    assert told["peers_alive"]
    assert told["honest_share"] >= 0.99


async def test_what_is_not_blocked_or_could_not_be_made_is_told(tmp_path: Path) -> None:
    async def succeeds(ground: Ground) -> Verdict:
        return Verdict(False, "it was let in")

    async def fails(ground: Ground) -> Verdict:
        raise OSError("no way")

    with mesh(tmp_path) as ground:
        told = await carry_out(ground, {"succeeds": succeeds, "fails": fails})
    assert [row["blocked"] for row in told["attacks"]] == [False, False]
    assert "no way" in told["attacks"][1]["seen"]
    assert told["not_blocked"] == ["succeeds", "fails"]
