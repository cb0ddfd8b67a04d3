"""A generating model, from its file to an engine that takes jobs: loaded, measured, and ready.

Puts together what `engine.batch`, `engine.calibrate` and `engine.schedule` know; what runs when is none of
its business.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from p2pmesh.engine.base import Load, Ready
from p2pmesh.engine.batch import LIBRARY, Context, Model, Part
from p2pmesh.engine.calibrate import PREFILL_TOKENS, Speed, cpu_clock, measure, rows_alone
from p2pmesh.engine.devices import gpus
from p2pmesh.engine.prefixes import ENTRIES_MAX
from p2pmesh.engine.schedule import Schedule
from p2pmesh.errors import ModelLoadError
from p2pmesh.record import ModelInfo


def open_schedule(load: Load, name: str, digest: str) -> Schedule:
    """Load a model, measure its speed and return it ready for jobs. Raises `ModelLoadError`."""
    model = Model(load.path, load.gpu_layers, load.adapter)
    context_tokens = min(load.context_tokens, model.train_tokens or load.context_tokens)
    context = Context(
        model,
        sequences=load.slots,
        tokens=context_tokens,
        batch_tokens=load.slots + 2 * max(load.prefill_chunk, PREFILL_TOKENS),
        threads=load.threads,
        adapter_scale=load.adapter_scale,
    )
    # On a GPU the work is not the CPU's, and the wall clock is the nearest thing.
    clock = time.monotonic if load.gpu_layers else cpu_clock(load.threads)
    speed, token_bytes = _measure(context, clock)
    alone = rows_alone(lambda rows: _decode_rows(context, rows), load.slots, clock)
    context.clear()
    # Few conversations fill their context, either.
    prefixes = min(ENTRIES_MAX, 4 * load.prefix_bytes_max // (token_bytes * context_tokens))
    info = ModelInfo(
        name,
        digest,
        context_tokens,
        speed.prefill_tps,
        speed.decode_tps,
        load.slots,
        prefixes if model.sliceable else 0,
    )
    return Schedule(model, context, load, Ready(info, devices=gpus(LIBRARY)), token_bytes, alone)


def _measure(context: Context, clock: Callable[[], float]) -> tuple[Speed, int]:
    """Return how fast it is, and the bytes that one token takes in a context. Something is left in it."""
    position = 0

    def run(tokens: int) -> None:
        nonlocal position
        # Which tokens is all the same to the speed; 0 is in every vocabulary.
        part = Part(0, position, np.zeros(tokens, np.int32), True)
        if context.decode([part]):
            raise ModelLoadError("the model loads but does not run")
        position += tokens
        if position == 1 and not np.isfinite(context.logits(part.row)).all():
            raise ModelLoadError("the model loads and computes no numbers: its weights are damaged")

    run(1)  # the first decode allocates
    speed = measure(run, lambda: run(1), clock)
    state = context.save(0)
    return speed, max(1, (0 if state is None else len(state)) // position)


def _decode_rows(context: Context, rows: int) -> None:
    """Decode the first token of so many empty sequences, together."""
    for sequence in range(rows):  # `clear` writes over all of its memory, which takes as long as a token
        context.forget(sequence)
    if context.decode([Part(sequence, 0, np.zeros(1, np.int32), True) for sequence in range(rows)]):
        raise ModelLoadError("the model loads but does not run")
