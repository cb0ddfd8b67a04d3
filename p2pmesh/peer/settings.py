"""From TOML and flags to a `Config`. Flags beat the environment (click reads it), which beats the file, which
beats the defaults of `config`.

It knows the shape of `Config` and nothing of what the values mean; a wrong key or value is named, with the
nearest right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from p2pmesh import config
from p2pmesh.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_BYTES_MAX = 1_048_576
"""Longest configuration file, in bytes."""
_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a decimal number",
    "int": "a whole number",
    "object": "a table",
    "str": "a text",
}
"""What msgspec calls a kind of value, as people do who write TOML."""
EXAMPLES_MAX = 64
"""Most example prompts of one skill."""


def load(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> config.Config:
    """Return the configuration in `path` (None: none) with `overrides`, a nested mapping, laid over it.

    Raises ConfigError, naming the file, the key and what is wrong; nothing was started.
    """
    merged: dict[str, Any] = {}
    if path is not None:
        merged = _read(Path(path))
        _check_keys(merged, config.Config, str(path), "")
        _beside(merged, Path(path).parent)
    _lay_over(merged, overrides or {})
    return from_mapping(merged, str(path or "the settings"))


def from_mapping(values: Mapping[str, Any], source: str) -> config.Config:
    """Return the Config of nested plain values. Raises ConfigError."""
    _check_keys(values, config.Config, source, "")
    try:
        return msgspec.convert(values, config.Config)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{source}: {_plain(str(exc))}") from None


def with_default_model(given: config.Config) -> config.Config:
    """Return `given` with the embedded default model, if it is installed; else as it is."""
    from p2pmesh.engine import catalog

    if catalog.DEFAULT not in catalog.names():
        return given
    return dataclasses.replace(given, models=(config.ModelConfig(model=catalog.DEFAULT),))


def examples(path: Path) -> tuple[str, ...]:
    """Return the example prompts of a file, one a line; empty lines and lines that begin with # are left out.

    Raises ConfigError when it cannot be read or holds none.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8")[:FILE_BYTES_MAX].splitlines()
    except OSError as exc:
        raise ConfigError(f"cannot read the examples in {path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the examples in {path} are not text") from None
    found = tuple(s for s in (line.strip() for line in lines) if s and not s.startswith("#"))
    if not found:
        raise ConfigError(f"{path} holds no example prompt: write a few, one a line")
    return found[:EXAMPLES_MAX]


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is longer than {FILE_BYTES_MAX} bytes")
    try:
        parsed: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from None
    return parsed


def _beside(values: dict[str, Any], folder: Path) -> None:
    """Let relative paths of models and certificates count from the folder of the file that names them."""
    http = values.get("http")
    for key in ("certificate", "private_key"):
        path = http.get(key) if isinstance(http, dict) else None
        if isinstance(http, dict) and isinstance(path, str) and path and not path.startswith("~"):
            http[key] = str(folder / path)
    models = values.get("models")
    for model in models if isinstance(models, list) else ():
        for key in ("model", "adapter"):
            path = model.get(key) if isinstance(model, dict) else None
            if isinstance(path, str) and ("/" in path or path.endswith(".gguf")) and not path.startswith("~"):
                model[key] = str(folder / path)


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


def _check_keys(values: Mapping[str, Any], kind: type, source: str, prefix: str) -> None:
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}{hint}")
        section = hints[key]
        if dataclasses.is_dataclass(section) and isinstance(value, Mapping):
            _check_keys(value, typing.cast("type[Any]", section), source, f"{prefix}{key}.")
        inner = typing.get_args(section)
        if (
            inner
            and isinstance(inner[0], type)
            and dataclasses.is_dataclass(inner[0])
            and isinstance(value, list)
        ):
            for item in value:
                if isinstance(item, Mapping):
                    _check_keys(item, inner[0], source, f"{prefix}{key}.")


def _plain(complaint: str) -> str:
    """msgspec's complaint in TOML's words: "net.listen[0] must be a text, not a whole number"."""
    found = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)` - at `\$\.?([^`]+)`", complaint)
    if found is None:
        return complaint.replace("`$.", "`").replace("`", "")
    wanted, got = (" or ".join(_WORDS.get(w, w) for w in kinds.split(" | ")) for kinds in found.groups()[:2])
    return f"{found[3]} must be {wanted}, not {got}"
