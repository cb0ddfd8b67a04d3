"""Would this machine rather have a model in another quantisation? Measured; a copy is kept where it pays.

`p2pmesh tune` runs it. How fast a format is depends on the CPU and on how many answers share a step: Q4_1,
for one, reads and batches worse than the larger Q8_0. A copy is kept when eight queries at once are served
faster by `GAIN_MIN` and the text below is no less likely by more than `LOSS_MAX`. Everything that opens a
model file is done in a child: a hostile one ends the child.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2pmesh.engine import catalog, gguf_file
from p2pmesh.errors import EngineError

if TYPE_CHECKING:
    from p2pmesh.engine.batch import Context, Tokens

FORMATS = {"q8_0": 34 / 32, "q4_0": 18 / 32}
"""What is tried, and the bytes a weight takes in it."""
GAIN_MIN = 1.2
"""Least ratio of the times of a query, eight at once, for which a copy is worth its place. A guess."""
LOSS_MAX = 1.02
"""Most ratio of the perplexities of copy and original. A guess: what a better model of its size would win."""
TIMEOUT_S = 1_800.0
"""Most seconds that one step may take."""
# No code runs that lies in the directory we happen to be in, which is what the empty entry means.
_CHILD = "import sys; sys.path[:] = filter(None, sys.path); from p2pmesh.engine.tune import main; main()"
_AT_ONCE = 8
_STEPS = 16
_READ = 64
"""Tokens of the text that are read before any is written, and in one batch."""
_TEXT = """\
A lighthouse stands where a ship must not go. Its keeper climbs the stairs at dusk, lights the lamp,
and winds the clockwork that turns the lens. For centuries the fuel was wood, then oil, then gas;
today it is electricity, and most towers have no keeper at all. The light must be seen from far
away, so it is built high, because the earth is round and the horizon hides what is low. A lens made
of rings of glass gathers the light of a small flame into a beam that reaches twenty miles. Each
tower has its own rhythm of flashes, written in a list that sailors carry, so that whoever counts
the seconds between two flashes knows which coast lies before him.

Water boils at one hundred degrees Celsius at the level of the sea, and sooner on a mountain, where
the air is thin. When it boils, bubbles of steam rise from the bottom. Steam takes far more room
than the water it came from, which is why the lid of a pot rattles, and why an engine can be driven
by it. In the eighteenth century such engines pumped water out of mines; a hundred years later they
pulled trains across whole continents.

def mean(values):
    if not values:
        raise ValueError("the mean of nothing is not defined")
    return sum(values) / len(values)

The committee met on Tuesday. It had before it three proposals, and it had money for one. The first
was a bridge, the second a school, and the third a bell for the tower, which had been silent since
the fire. Everyone agreed that the school was needed most. Everyone knew that the bridge would be
used most. When the vote was counted, the bell had won, and nobody could say why, but on the first
Sunday of spring the whole town came to hear it.
"""
"""What copies are judged by: prose, facts and code, written for this."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one file."""

    format: str
    bytes: int
    prefill_tps: float
    """Prompt tokens a second of CPU time."""
    decode_tps: float
    """Tokens a second of CPU time, one answer."""
    together_tps: float
    """Tokens a second of CPU time, eight answers at once."""
    perplexity: float
    """Of the text, which is the better the lower it is."""

    @property
    def query_s(self) -> float:
        """CPU seconds for a query of 100 tokens with an answer of 100, among eight."""
        return 100 / self.prefill_tps + 100 / self.together_tps


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    model: str
    tried: tuple[Figures, ...]
    """The original first."""
    kept: str
    """The format of the copy that is used from now on; empty: the original is."""
    why: str


def tune(model: str, say: Callable[[str], None]) -> Outcome:
    """Try every format for a model, given by name or path, and keep the best copy or none.

    Raises as `catalog.find` does, and `EngineError` when nothing could be measured, or there is no room on
    the disk; no copy is left behind then.
    """
    original = catalog.find(model)
    target = catalog.tuned_directory()
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob(".*.gguf"):  # by one that was killed
        if not Path(f"/proc/{left.suffixes[-2][1:]}").exists():
            left.unlink(missing_ok=True)
    say(f"measuring {original.name}")
    tried = [_measured(original, "original")]
    copies: dict[str, Path] = {}
    try:
        for name, size in FORMATS.items():
            _check_room(original, target, size)
            copies[name] = target / f".{original.stem}.{name}.{os.getpid()}.gguf"
            say(f"making a {name} copy, and measuring it")
            _child("quantise", str(original), str(copies[name]), name)
            tried.append(_measured(copies[name], name))
        best, why = choose(tried)
        catalog.forget_tuned(original)
        if best is not None:
            catalog.keep_tuned(original, copies[best.format], best.format)
        return Outcome(model, tuple(tried), best.format if best else "", why)
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)


def choose(tried: list[Figures]) -> tuple[Figures | None, str]:
    """Return the copy to keep, or None, and why. The first of `tried` is the original."""
    original, *copies = tried
    good = [c for c in copies if c.perplexity <= LOSS_MAX * original.perplexity]
    best = min(good, key=lambda c: c.query_s, default=None)
    if best is None:
        return None, f"every copy makes the text less likely by more than {LOSS_MAX - 1:.0%}"
    gain = original.query_s / best.query_s
    loss = best.perplexity / original.perplexity - 1
    said = f"{best.format} serves eight at once {gain:.2f} times as fast, its perplexity is {loss:+.1%}"
    if gain < GAIN_MIN:
        return None, f"{said}: not worth a copy"
    return best, said


def _check_room(original: Path, target: Path, bytes_per_weight: float) -> None:
    needed = round(gguf_file.check(original).weights * bytes_per_weight)
    free = shutil.disk_usage(target).free
    if free < needed:
        raise EngineError(f"a copy may take {needed >> 20} MiB in {target}, and {free >> 20} MiB are free")


def _measured(path: Path, name: str) -> Figures:
    told = json.loads(_child("measure", str(path)))
    return Figures(name, path.stat().st_size, **told)


def _child(*args: str) -> str:
    """Run one step in a process of its own and return what it printed. Raises `EngineError`."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *args],
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"to {args[0]} {Path(args[1]).name} took more than {TIMEOUT_S:g} s") from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise EngineError(f"cannot {args[0]} {Path(args[1]).name}: {' '.join(words) or done.returncode}")
    return done.stdout.decode()


# ---------------------------------------------------------------- in the child


def _measure(path: str) -> dict[str, float]:
    import numpy as np

    from p2pmesh.engine.batch import Context, Model

    gguf_file.check(Path(path))
    model = Model(path)
    head = [model.bos] if model.add_bos else []
    tokens = np.array(head + model.tokenize(_TEXT, control=False), np.int32)
    context = Context(model, sequences=_AT_ONCE, tokens=len(tokens) + 1, batch_tokens=128, threads=1)
    figures = _speeds(context, tokens)
    context.clear()
    return {**figures, "perplexity": _perplexity(context, tokens)}


def _speeds(context: Context, tokens: Tokens) -> dict[str, float]:
    from p2pmesh.engine.batch import Part

    context.decode([Part(0, 0, tokens[:1], True)])  # the first decode allocates
    context.clear()
    began = time.process_time()
    for sequence in range(_AT_ONCE):
        context.decode([Part(sequence, 0, tokens[:_READ], True)])
    read = time.process_time()
    for at in range(_READ, _READ + _STEPS):
        context.decode([Part(sequence, at, tokens[at : at + 1], True) for sequence in range(_AT_ONCE)])
    together = time.process_time()
    for at in range(_READ + _STEPS, _READ + 2 * _STEPS):
        context.decode([Part(0, at, tokens[at : at + 1], True)])
    alone = time.process_time()
    return {
        "prefill_tps": _AT_ONCE * _READ / (read - began),
        "together_tps": _AT_ONCE * _STEPS / (together - read),
        "decode_tps": _STEPS / (alone - together),
    }


def _perplexity(context: Context, tokens: Tokens) -> float:
    import numpy as np

    from p2pmesh.engine.batch import Part

    surprise = 0.0
    for at in range(0, len(tokens) - 1, _READ):
        chunk = tokens[at : min(at + _READ, len(tokens) - 1)]
        parts = [Part(0, at + i, chunk[i : i + 1], True) for i in range(len(chunk))]
        context.decode(parts)
        for part, following in zip(parts, tokens[at + 1 :], strict=False):
            logits = context.logits(part.row).astype(np.float64)
            top = logits.max()
            surprise += top + np.log(np.exp(logits - top).sum()) - logits[following]
    return float(np.exp(surprise / (len(tokens) - 1)))


def main() -> None:
    """Do the step that the arguments name."""
    step, *paths = sys.argv[1:]
    if step == "measure":
        print(json.dumps(_measure(*paths)))  # noqa: T201  # it is what the parent reads
        return
    from p2pmesh.engine.batch import quantise

    quantise(*paths)
