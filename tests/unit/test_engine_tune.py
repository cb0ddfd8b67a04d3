"""Which copy of a model is kept, and what is left behind where none is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from p2pmesh import config
from p2pmesh.engine import catalog, tune
from p2pmesh.engine.tune import Figures, choose
from p2pmesh.errors import ConfigError, EngineError
from tests.unit.test_engine_catalog import home as home  # a fixture
from tests.unit.test_engine_catalog import put, tiny

ORIGINAL = Figures("original", 100, 100.0, 50.0, 100.0, 30.0)
SILENT = lambda line: None  # noqa: E731  # nobody listens


def copy(form: str, speed: float, perplexity: float) -> Figures:
    return replace(ORIGINAL, format=form, prefill_tps=speed, together_tps=speed, perplexity=perplexity)


@pytest.mark.parametrize(
    ("copies", "kept", "said"),
    [
        (
            [copy("a", 150.0, 30.0), copy("b", 200.0, 30.5)],
            "b",
            "2.00 times as fast, its perplexity is +1.7%",
        ),
        (
            [copy("a", 150.0, 29.9), copy("b", 900.0, 31.0)],
            "a",
            "1.50 times as fast, its perplexity is -0.3%",
        ),
        ([copy("a", 115.0, 30.0)], "", "1.15 times as fast, its perplexity is +0.0%: not worth a copy"),
        ([copy("a", 900.0, 30.7)], "", "every copy makes the text less likely by more than 2%"),
        ([], "", "every copy"),
    ],
)
def test_the_fastest_that_says_the_same_is_kept(copies: list[Figures], kept: str, said: str):
    best, why = choose([ORIGINAL, *copies])
    assert (best.format if best else "") == kept
    assert said in why


def test_reading_counts_as_much_as_writing():
    reader = replace(ORIGINAL, format="reader", prefill_tps=1_000.0, together_tps=90.0)
    writer = replace(ORIGINAL, format="writer", prefill_tps=90.0, together_tps=200.0)
    assert choose([ORIGINAL, reader, writer])[0] == reader


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figures]:
    """What the children are made to find, by format; a quantisation writes a file."""
    found = {"original": ORIGINAL, "q8_0": copy("q8_0", 200.0, 30.0), "q4_0": copy("q4_0", 400.0, 40.0)}

    def quantise(step: str, source: str, target: str, name: str) -> str:
        Path(target).write_bytes(name.encode())
        return ""

    monkeypatch.setattr(tune, "_child", quantise)
    monkeypatch.setattr(tune, "_measured", lambda path, name: found[name])
    return found


def test_a_kept_copy_takes_the_place_of_its_model_under_the_old_name(home: Path, measured):
    path = put(catalog.model_directories()[0] / "m.gguf", tiny())
    outcome = tune.tune("m", SILENT)
    assert (outcome.kept, len(outcome.tried)) == ("q8_0", 3)
    used = catalog.tuned(path)
    assert used is not None
    assert used.read_bytes() == b"q8_0"
    for asked in ("m", str(path)):
        load = catalog.model_load(config.ModelConfig(model=asked), config.Engine())
        assert (load.path, load.served_name) == (str(used), "m")
    by_digest = config.ModelConfig(model="m", digest="0f" * 32)
    assert catalog.model_load(by_digest, config.Engine()).path == str(path)
    [row] = (row for row in catalog.listing() if row["name"] == "m")
    assert (row["tuned"], row["format"], row["detail"]) == ("q8_0", "unknown", "")
    assert sorted(f.name for f in catalog.tuned_directory().iterdir()) == [used.name]


@pytest.mark.parametrize("damage", [b"", b"q8_1", b"q8"])
def test_a_damaged_copy_is_not_used(home: Path, measured, damage: bytes):
    """It was served in silence, and every answer was empty."""
    path = put(catalog.model_directories()[0] / "m.gguf", tiny())
    tune.tune("m", SILENT)
    used = catalog.tuned(path)
    assert used is not None
    used.write_bytes(damage)
    assert catalog.model_load(config.ModelConfig(model="m"), config.Engine()).path == str(path)
    tune.tune("m", SILENT)
    assert catalog.tuned(path) == used
    catalog.forget_tuned(path)
    assert list(catalog.tuned_directory().iterdir()) == []


def test_what_a_killed_run_left_is_swept(home: Path, measured):
    put(catalog.model_directories()[0] / "m.gguf", tiny())
    tune.tune("m", SILENT)
    left = put(catalog.tuned_directory() / ".m.q4_0.999999999.gguf", b"half")
    own = put(catalog.tuned_directory() / f".m.q4_0.{os.getppid()}.gguf", b"another run's")
    tune.tune("m", SILENT)
    assert (left.exists(), own.exists()) == (False, True)


def test_when_nothing_pays_any_more_the_original_is_used_again(home: Path, measured):
    path = put(catalog.model_directories()[0] / "m.gguf", tiny())
    tune.tune("m", SILENT)
    measured["q8_0"] = copy("q8_0", 100.0, 30.0)
    assert tune.tune("m", SILENT).kept == ""
    assert catalog.tuned(path) is None
    assert list(catalog.tuned_directory().iterdir()) == []


def test_a_step_that_fails_leaves_nothing_behind(home: Path, measured, monkeypatch: pytest.MonkeyPatch):
    put(catalog.model_directories()[0] / "m.gguf", tiny())

    def full(*args: str) -> str:
        Path(args[2]).write_bytes(b"half of it")
        raise EngineError("the disk is full")

    monkeypatch.setattr(tune, "_child", full)
    with pytest.raises(EngineError, match="disk is full"):
        tune.tune("m", SILENT)
    assert list(catalog.tuned_directory().iterdir()) == []


def test_without_room_on_the_disk_nothing_is_begun(home: Path, measured, monkeypatch: pytest.MonkeyPatch):
    put(catalog.model_directories()[0] / "m.gguf", tiny())
    monkeypatch.setattr(tune.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    with pytest.raises(EngineError, match="0 MiB are free"):
        tune.tune("m", SILENT)
    with pytest.raises(ConfigError, match="there is no model 'nope'"):
        tune.tune("nope", SILENT)


def test_what_a_child_says_last_is_told(home: Path):
    with pytest.raises(EngineError, match=r"cannot measure a.gguf: .*a.gguf is not a GGUF file"):
        tune._child("measure", str(put(home / "a.gguf", b"not one")))


def test_a_damaged_model_is_listed_with_what_is_wrong(home: Path):
    put(catalog.model_directories()[0] / "m.gguf", b"GGUF")
    put(catalog.model_directories()[0] / "whole.gguf", tiny())
    broken, whole = (row for row in catalog.listing() if row["name"] in ("m", "whole"))
    assert broken["detail"] == "m.gguf is damaged: it ends within its head"
    assert (whole["detail"], len(whole["digest"]), whole["template"]) == ("", 64, False)


def test_no_code_of_the_current_directory_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("json", "numpy", "p2pmesh", "llama_cpp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match=r"is no file|cannot be read|No such file|does not exist") as caught:
        tune._child("measure", str(tmp_path / "none.gguf"))
    assert "stranger" not in str(caught.value)
