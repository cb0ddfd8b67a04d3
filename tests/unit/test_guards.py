"""The list of guards is of this code: each line stands there once, and the tests named are there."""

from __future__ import annotations

import pytest

from tests.guards import ROOT, WEAKENINGS, Weakening, spoilt, watchers


def test_there_are_enough_of_them() -> None:
    assert len(WEAKENINGS) >= 20


@pytest.mark.parametrize("weakening", WEAKENINGS, ids=lambda w: f"{w.file}: {w.line[:40]}")
def test_a_guard_can_be_weakened(weakening: Weakening) -> None:
    source = (ROOT / "p2pmesh" / weakening.file).read_text("utf-8")
    assert source.count(weakening.line) == 1
    compile(spoilt(weakening, source), weakening.file, "exec")
    assert all((ROOT / name).exists() for name in watchers(weakening))


def test_a_guard_that_is_gone_is_told() -> None:
    with pytest.raises(ValueError, match="no line"):
        spoilt(WEAKENINGS[0], "")
