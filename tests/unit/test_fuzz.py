"""The fuzzer itself: it lets out what must not be raised, and remembers what took long."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from tests import fuzz


def test_what_a_reader_must_not_raise_ends_it(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        raise ValueError if data == b"known" else KeyError

    watch = fuzz.Watch(fuzz.Target(read, (ValueError,), [b"x"]), tmp_path / "report")
    watch(b"known")
    assert (watch.runs, watch.taken) == (1, 0)
    with pytest.raises(KeyError):
        watch(b"other")


def test_the_slowest_input_is_told_at_its_best(tmp_path: Path) -> None:
    now, naps = 0.0, iter([50.0, 1.0, 2.0, 3.0, 1.0, *[20.0] * 4])

    def read(data: bytes) -> None:
        nonlocal now
        now += next(naps)

    watch = fuzz.Watch(fuzz.Target(read, (), [b"x"]), tmp_path / "report", lambda: now)
    for _ in range(3):
        watch(b"slow once, quick, slow each time")
    assert watch.worst_s == 20.0
    watch.tell()
    assert json.loads((tmp_path / "report").read_text())["runs"] == 3


@pytest.mark.parametrize("name", fuzz.targets())
def test_every_reader_takes_what_is_good_and_survives_what_is_not(name: str, tmp_path: Path) -> None:
    watch = fuzz.Watch(fuzz.targets()[name](), tmp_path / "report")
    for data in watch._target.good:
        watch(data)
    assert watch.taken >= watch.runs == len(watch._target.good)
    for data in fuzz.mutations(watch._target.good, 200, Random(1)):
        assert len(data) <= fuzz.INPUT_BYTES_MAX
        watch(data)
