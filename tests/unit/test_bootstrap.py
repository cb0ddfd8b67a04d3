"""The set-up step: what is missing is said in one line, and what is there is not done again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SETUP = Path(__file__).resolve().parents[2] / "bootstrap" / "setup.py"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


def test_a_missing_compiler_is_said_in_one_line(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit) as caught:
        setup.check_compiler()
    text = str(caught.value)
    assert "C++ compiler" in text
    assert "apt install" in text
    assert "\n" not in text


def test_a_kept_wheel_needs_no_compiler(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheels = setup.wheel_cache()
    wheels.mkdir(parents=True)
    assert setup.cached_wheel(wheels) is None
    kept = wheels / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"
    kept.write_bytes(b"")
    assert setup.cached_wheel(wheels) == kept
    build = setup.Build(wheels)
    monkeypatch.setattr(setup.subprocess, "Popen", None)  # a build would call it
    build.start()
    assert build.wheel() == kept


def test_the_wheel_is_kept_by_version_and_flags(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup.wheel_cache()
    assert setup.wheel_cache() == before
    monkeypatch.setattr(setup, "CMAKE_FLAGS", "-DOTHER=ON")
    after_flags = setup.wheel_cache()
    monkeypatch.setattr(setup, "LLAMA", "llama-cpp-python==9.9.9")
    assert len({before, after_flags, setup.wheel_cache()}) == 3


def test_a_failed_build_stops_with_its_last_words(setup: ModuleType, tmp_path: Path) -> None:
    build = setup.Build(tmp_path / "none")
    build._tail, build._code = ["CMake Error: no generator"], 1
    build.run = lambda: None
    build.start()
    with pytest.raises(SystemExit, match="CMake Error: no generator"):
        build.wheel()


def test_set_up_is_ready_only_with_these_very_files(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stamp = tmp_path / "stamp"
    monkeypatch.setattr(setup, "STAMP", stamp)
    assert not setup.is_ready()
    stamp.write_text(setup.fingerprint())
    assert not setup.is_ready(), "the embedder is missing"
    setup.embedder_file().parent.mkdir(parents=True)
    setup.embedder_file().write_bytes(b"")
    assert setup.is_ready()
    monkeypatch.setattr(setup, "MODELS", ("another==1",))
    assert not setup.is_ready()


def test_it_writes_the_embedder_where_the_catalog_looks(setup: ModuleType) -> None:
    code = "from p2pmesh.engine import embedder; print(embedder.default_path())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == str(setup.embedder_file())


def test_every_requirement_is_pinned(setup: ModuleType) -> None:
    lines = (SETUP.parent / "requirements.txt").read_text().splitlines()
    named = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", "--hash"))]
    assert named
    assert all("==" in line for line in named)
