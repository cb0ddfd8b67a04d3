"""The house rules: who imports whom, what is public, how long things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import p2pmesh

ROOT = Path(p2pmesh.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70
DRAWERS = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "manager",
    "managers",
    "types",
    "misc",
    "core",
    "base_",
}
HEAVY = ("libp2p", "llama_cpp", "multiaddr", "trio", "numpy", "starlette", "hypercorn", "rich")

PUBLIC = [
    "Answer",
    "AnswerInterrupted",
    "BudgetSpent",
    "Chunk",
    "Config",
    "ConfigError",
    "Member",
    "MeshError",
    "Message",
    "ModelConfig",
    "NoRoute",
    "Options",
    "Peer",
    "QueryError",
    "Reason",
    "Refused",
    "Resume",
    "SkillConfig",
    "load_config",
    "open_peer",
]


def imported_by(program: str) -> set[str]:
    """Return the packages in memory after `program` has run in a new interpreter."""
    program = (
        f"import sys\n{program}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return set(run.stderr.split())


def test_the_import_contracts_are_kept():
    script = Path(sys.executable).with_name("lint-imports")
    command = [str(script), "--no-cache", "--config", str(ROOT.parent / "setup.cfg")]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_the_package_alone_imports_nothing_heavy():
    assert not imported_by("import p2pmesh; dir(p2pmesh)").intersection(HEAVY)


def test_a_word_of_the_package_imports_no_more_than_it_needs():
    loaded = imported_by("import p2pmesh; p2pmesh.Options; p2pmesh.QueryError; p2pmesh.Config")
    assert not loaded.intersection({"libp2p", "llama_cpp", "trio"})


@pytest.mark.parametrize(
    "verb", [["--help"], ["status"], ["peers"], ["id"], ["ask", "x"], ["explain", "x"], ["stop"]]
)
def test_a_verb_that_only_talks_imports_nothing_heavy(verb: list[str]):
    program = f"""
from p2pmesh.cli.main import main
try:
    main({verb!r} + ["--url", "http://127.0.0.1:1"] * ({verb!r} != ["--help"]))
except SystemExit as done:
    assert done.code == (0 if {verb!r} == ["--help"] else 3), done.code
sys.stderr.write("\\n")
"""
    assert not imported_by(program).intersection(HEAVY)


def test_the_public_names_are_these():
    assert sorted(p2pmesh.__all__) == p2pmesh.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(p2pmesh))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = p2pmesh.nothing


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_and_what_it_offers_is_documented(name: str):
    value = getattr(p2pmesh, name)
    assert (value.__doc__ or "").strip()
    assert value.__module__.startswith("p2pmesh.")
    for member, what in vars(value).items() if isinstance(value, type) else ():
        if not member.startswith("_") and callable(what):
            assert (what.__doc__ or "").strip(), f"{name}.{member}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_has_a_purpose_and_a_size(file: Path):
    text = file.read_text("utf-8")
    tree = ast.parse(text)
    if text:
        assert ast.get_docstring(tree), "a module opens with its law"
    assert len(text.splitlines()) <= FILE_LINES_MAX
    assert not DRAWERS.intersection({file.stem, file.parent.name})
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_goes_through_a_set_in_its_own_order(file: Path):
    """Its order differs from run to run, and with it whatever follows: loop over a list or `sorted`."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            assert not isinstance(node.iter, (ast.Set, ast.SetComp)), f"line {node.iter.lineno}"
