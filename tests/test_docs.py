"""What the documents say is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_configuration_page_is_generated_from_the_code() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], check=False)
    assert done.returncode == 0, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    modules = re.findall(r"`((?:p2pmesh|tests|benchmarks|docs|bootstrap)/[\w./]+)`", text)
    for name in links:
        assert (page.parent / name).exists(), f"{page.name} links to {name}"
    for name in modules:
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_readme_shows_verbs_that_exist() -> None:
    from p2pmesh.cli.main import main

    shown = set(
        re.findall(r"^(?:\$ )?(?:\.venv/bin/)?p2pmesh (\w+)", (ROOT / "README.md").read_text("utf-8"), re.M)
    )
    assert shown
    assert shown <= set(main.commands)
