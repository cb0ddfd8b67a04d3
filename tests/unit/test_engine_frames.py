"""What a parent takes from a child's word, and what it does not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from p2pmesh.engine import base, frames
from p2pmesh.errors import EngineError
from p2pmesh.record import ModelInfo

GOOD: dict[str, Any] = {
    "name": "m",
    "digest": "0f" * 32,
    "context_tokens": 1,
    "prefill_tps": 1.0,
    "decode_tps": 1.0,
    "slots": 1,
}


def heard(**changes: Any) -> list[base.Event]:
    return frames.EventReader().feed(frames.encode(base.Ready(ModelInfo(**{**GOOD, **changes}))))


@pytest.mark.parametrize("changes", [{}, {"digest": ""}])
def test_a_model_in_order_is_taken(changes: dict[str, Any]):
    assert heard(**changes) == [base.Ready(ModelInfo(**{**GOOD, **changes}))]


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "0f" * 31},
        {"digest": "0F" * 32},
        {"digest": "0f" * 32 + "\n"},
        {"digest": "x" * 64},
        {"digest": "0f" * 10_000},
        {"slots": 0},
        {"context_tokens": 0},
        {"prefill_tps": math.inf},
        {"prefill_tps": math.nan},
        {"decode_tps": -1.0},
    ],
)
def test_a_model_out_of_order_is_refused(changes: dict[str, Any]):
    with pytest.raises(EngineError, match="a model"):
        heard(**changes)


def test_to_stop_is_the_end_of_the_stream_and_no_request():
    with pytest.raises(EngineError, match="unknown tag 4"):
        frames.RequestReader().feed(b"\0\0\0\3\x92\x04\x80")


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (base.Load(path="/a/b/smol.q4.gguf"), "smol.q4"),
        (base.Load(path="b/smol.gguf", name="mine"), "mine"),
        (base.Load(kind="echo"), "echo"),
        (base.Load(kind="echo", name="parrot"), "parrot"),
    ],
)
def test_the_name_it_is_served_under(load: base.Load, name: str):
    assert load.served_name == name
