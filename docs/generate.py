"""Writes docs/configuration.md from p2pmesh/config.py: `make docs`. `--check` says whether it is current."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "p2pmesh" / "config.py"
TARGET = ROOT / "docs" / "configuration.md"

HEAD = """# Configuration

Generated from `p2pmesh/config.py` by `make docs`; edit it there.

Flags beat the environment (`P2PMESH_NAME=…`, a variable for each flag of `p2pmesh up`), which beats the TOML
file given with `--config`, which beats the defaults below. A wrong key ends the start with exit code 2 and
names the nearest right one. In Python the same values are the fields of `p2pmesh.Config`.

```toml
name = "ada"
models = [{ model = "smollm2-135m-instruct" }]

[[skills]]
name = "geography"
examples = ["What is the capital of Italy?", "Name the longest river in Africa."]

[net]
listen = ["/ip4/127.0.0.1/tcp/4001"]
```
"""
_TITLES = {"Config": "The peer", "ModelConfig": "[[models]]", "SkillConfig": "[[skills]]"}
_ORDER = ("Config", "ModelConfig", "SkillConfig")


def page() -> str:
    """Return the page as it should be."""
    classes = [node for node in ast.parse(SOURCE.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    classes.sort(key=lambda c: _ORDER.index(c.name) if c.name in _ORDER else len(_ORDER))
    return HEAD + "".join(_section(node) for node in classes)


def _section(node: ast.ClassDef) -> str:
    title = _TITLES.get(node.name, f"[{node.name.lower()}]")
    lines = [f"\n## {title}\n", f"\n{ast.get_docstring(node)}\n", "\n| key | default | |\n|---|---|---|\n"]
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert isinstance(text.value, ast.Constant)
            default = _default(field.value)
            if default is not None:
                words = " ".join(str(text.value.value).split()).replace("|", "\\|")
                lines.append(f"| `{field.target.id}` | {default} | {words} |\n")
    return "".join(lines)


def _default(value: ast.expr | None) -> str | None:
    """The default as TOML; None for a section, which has a table of its own."""
    if value is None:
        return "required"
    if isinstance(value, ast.Call):
        return None
    plain = ast.literal_eval(value)
    if plain is None:
        return "none"
    if isinstance(plain, bool):
        return f"`{str(plain).lower()}`"
    if isinstance(plain, tuple):
        plain = list(plain)
    return f"`{plain!r}`".replace("'", '"')


def main() -> int:
    """Write the page, or check it."""
    current = page()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.is_file() and TARGET.read_text("utf-8") == current else 1
    TARGET.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
