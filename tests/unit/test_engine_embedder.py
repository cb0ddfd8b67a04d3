"""The hashing embedder, and the making of the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from p2pmesh.engine import embedder, gguf_file
from p2pmesh.engine.embedder import HashEmbedder
from p2pmesh.errors import ModelLoadError


def test_vectors_have_unit_length_whatever_the_text():
    vectors = HashEmbedder().embed(("one two", "", "日本", "\ud800", "!?"))
    assert vectors.shape == (5, HashEmbedder.dimensions)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_shared_words_are_near_and_case_is_nothing():
    a, b, c, d = HashEmbedder().embed(
        ("How do I bake bread?", "bread is what I bake", "invade Poland", "HOW do i bake BREAD")
    )
    assert a @ b > a @ c + 0.2
    assert a @ d > 0.99


def test_it_is_the_same_in_every_process():
    code = (
        "from p2pmesh.engine.embedder import *; print(HashEmbedder().embed(('some words',)).tobytes().hex())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {HashEmbedder().embed(("some words",)).tobytes().hex().encode() + b"\n"}


def test_without_the_package_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(embedder, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelLoadError, match="no_such_package is not installed"):
        embedder.make(tmp_path / "e.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_it_is_made_once_and_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedder.main() == 0
    path = embedder.default_path()
    assert gguf_file.check(path).architecture == "bert"
    made = path.stat().st_mtime_ns
    assert embedder.main() == 0
    assert path.stat().st_mtime_ns == made
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    first, second = capsys.readouterr().out.splitlines()
    assert " made (" in first
    assert " is there (" in second
