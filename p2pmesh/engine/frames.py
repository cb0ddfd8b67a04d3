"""How the contract travels through a pipe: length, tag, fields; checked on the way in.

Pure: bytes in, values out. A frame is 4 bytes of length (big-endian) and that many bytes of msgpack,
`[tag, fields]`. Neither side trusts the other's bytes: a child whose model file is hostile may say anything.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import msgspec
import numpy as np

from p2pmesh.engine.base import (
    LIMITS,
    TEXTS_MAX,
    Abort,
    Alive,
    Embed,
    Embedded,
    Event,
    Failed,
    Finished,
    Generate,
    Generated,
    JobId,
    Load,
    LoadFailed,
    Metrics,
    Ready,
    Request,
)
from p2pmesh.errors import EngineError
from p2pmesh.query import LOGPROB_MIN, LOGPROBS_BYTES_MAX, SPELLED_BYTES_MAX
from p2pmesh.record import CONVERSATIONS_MAX, DEVICE_BYTES_MAX, VERSION_MAX

FRAME_BYTES_MAX = 1 << 20
"""Longest frame. Room for the longest prompt with every byte escaped, and for 64 vectors of 1 024."""
_HEAD = 4
_COUNT_MAX = 2**31 - 1
_SPEED_MAX = 1e9
"""As `protocol.codec` has them: a child must not make its peer say what others take for garbage."""
_DIGEST = re.compile("(?:[0-9a-f]{64})?")
"""A SHA-256 in hex, or nothing, where there is no file."""

T = TypeVar("T", bound=Request | Event)


@dataclass(frozen=True)
class _Vectors:
    """`Embedded` as it travels: msgpack has no arrays of floats."""

    job: JobId
    dimensions: int
    data: bytes
    """Rows of little-endian float32."""


_TAGS: dict[int, type] = {
    0: Load,
    1: Generate,
    2: Embed,
    3: Abort,
    16: Ready,
    17: LoadFailed,
    18: Generated,
    19: Finished,
    20: Failed,
    21: _Vectors,
    22: Alive,
    23: Metrics,
}
_TAG_OF = {kind: tag for tag, kind in _TAGS.items()}
_REQUESTS = range(16)
_EVENTS = range(16, 32)
_decoders: dict[int, msgspec.msgpack.Decoder[Any]] = {
    tag: msgspec.msgpack.Decoder(kind) for tag, kind in _TAGS.items()
}
_envelope = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_encoder = msgspec.msgpack.Encoder()


def encode(value: Request | Event) -> bytes:
    """Return `value` as one frame.

    Raises `EngineError` when it is longer than `FRAME_BYTES_MAX` or holds text that is not Unicode.
    """
    wire: object = value
    if isinstance(value, Embedded):
        wire = _Vectors(value.job, value.vectors.shape[1], value.vectors.astype("<f4").tobytes())
    try:
        body = _encoder.encode((_TAG_OF[type(wire)], wire))
    except (UnicodeEncodeError, OverflowError) as error:
        raise EngineError(f"a {type(value).__name__} cannot be sent: {error}") from None
    if len(body) > FRAME_BYTES_MAX:
        raise EngineError(f"a {type(value).__name__} of {len(body)} bytes, at most {FRAME_BYTES_MAX}")
    return len(body).to_bytes(_HEAD, "big") + body


class _Reader(Generic[T]):
    """Cuts a stream of bytes into values."""

    _allowed: range

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Take bytes as they came and return the values they complete.

        Raises `EngineError` on anything illegal; the stream is then beyond repair, so close it.
        """
        self._buffer += data
        values: list[T] = []
        start = 0
        while len(self._buffer) - start >= _HEAD:
            length = int.from_bytes(self._buffer[start : start + _HEAD], "big")
            if length > FRAME_BYTES_MAX:
                raise EngineError(f"a frame of {length} bytes, at most {FRAME_BYTES_MAX}")
            end = start + _HEAD + length
            if len(self._buffer) < end:
                break
            values.append(self._decode(bytes(self._buffer[start + _HEAD : end])))
            start = end
        del self._buffer[:start]
        return values

    def _decode(self, body: bytes) -> T:
        try:
            tag, fields = _envelope.decode(body)
            if tag not in self._allowed or tag not in _decoders:
                raise EngineError(f"a frame with the unknown tag {tag}")
            value = _decoders[tag].decode(fields)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(f"a broken frame: {error}") from None
        if isinstance(value, _Vectors):
            value = _rows(value)
        elif isinstance(value, Ready):
            _check_ready(value)
        elif isinstance(value, Generated):
            if len(value.text.encode()) > LIMITS.chunk_bytes_max:
                raise EngineError(f"a piece of an answer longer than {LIMITS.chunk_bytes_max} bytes")
            if value.logprobs:
                _check_logprobs(value)
        elif isinstance(value, Finished):
            usage = (value.usage.prompt_tokens, value.usage.completion_tokens)
            if not 0 <= min(usage) <= max(usage) <= _COUNT_MAX:
                raise EngineError("an answer of a number of tokens that cannot be")
        elif isinstance(value, Metrics):
            _check_metrics(value)
        return cast(T, value)


class RequestReader(_Reader[Request]):
    """What the child reads."""

    _allowed = _REQUESTS


class EventReader(_Reader[Event]):
    """What the parent reads."""

    _allowed = _EVENTS


def _rows(wire: _Vectors) -> Embedded:
    if not 1 <= wire.dimensions <= LIMITS.dimensions_max or len(wire.data) % (4 * wire.dimensions):
        raise EngineError(f"{len(wire.data)} bytes are no vectors of {wire.dimensions} dimensions")
    vectors = np.frombuffer(wire.data, "<f4").astype(np.float32).reshape(-1, wire.dimensions)
    if not 1 <= len(vectors) <= TEXTS_MAX or not np.isfinite(vectors).all():
        raise EngineError("vectors must be finite, and some")
    return Embedded(wire.job, vectors)


def _check_logprobs(said: Generated) -> None:
    """Refuse what the wire would refuse: a link to another peer must not end for what a child says."""
    size, told = 0, [(token.spelled, token.logprob) for token in said.logprobs]
    told += [entry for token in said.logprobs for entry in token.top]
    for spelled, logprob in told:
        size += 5 + len(spelled)
        if len(spelled) > SPELLED_BYTES_MAX or not LOGPROB_MIN <= logprob <= 0.0:
            raise EngineError(f"a log-probability within {LOGPROB_MIN:g}..0, and its spelling, were expected")
    many = max(len(token.top) for token in said.logprobs) > LIMITS.top_logprobs_max
    if many or len(said.logprobs) != len(said.tokens) or size + len(said.tokens) > LOGPROBS_BYTES_MAX:
        raise EngineError("more log-probabilities than tokens, or than a chunk carries")


def _check_metrics(metrics: Metrics) -> None:
    figures = (getattr(metrics, name) for name in metrics.__dataclass_fields__)
    if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
        raise EngineError("figures are finite, and not negative")


def _check_ready(ready: Ready) -> None:
    info = ready.info
    speeds = (info.prefill_tps, info.decode_tps)
    if not all(math.isfinite(s) and s > 0 for s in speeds) or info.context_tokens < 1 or info.slots < 1:
        raise EngineError("a model needs a finite speed, a context and a slot")
    most = max(info.context_tokens, info.slots)
    if max(speeds) > _SPEED_MAX or most > _COUNT_MAX or not 0 <= info.prefixes <= CONVERSATIONS_MAX:
        raise EngineError("a model with figures that no record can carry")
    if len(ready.space.encode()) > LIMITS.name_bytes_max:
        raise EngineError(f"an embedding space with a name of more than {LIMITS.name_bytes_max} bytes")
    if not _DIGEST.fullmatch(info.digest):
        raise EngineError("a model's digest is 64 hex digits")
    for device in ready.devices:
        if len(device.name.encode()) > DEVICE_BYTES_MAX or min(device.free_bytes, device.total_bytes) < 0:
            raise EngineError(f"a GPU has a name of at most {DEVICE_BYTES_MAX} bytes, and bytes of memory")
        if max(device.free_bytes, device.total_bytes) > VERSION_MAX:
            raise EngineError("a GPU with more memory than there is")
    if ready.dimensions > LIMITS.dimensions_max:
        raise EngineError(f"vectors of {ready.dimensions} dimensions, at most {LIMITS.dimensions_max}")
