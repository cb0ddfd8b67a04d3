"""How one kind of value looks on the wire: what packs it, and what takes nothing on trust when it unpacks.

Combinators, from which `codec` puts every message together. Each bound is an argument. They know values and
msgpack's types, and no message. Whatever is wrong raises `RemoteProtocolError`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import numpy as np

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.query import LOGPROB_MIN, TokenLogprobs
from p2pmesh.record import Vector

T = TypeVar("T")

_HEX = frozenset("0123456789abcdef")
_ENTRY = Struct("<fB")
SECONDS_MAX = 1e7
"""Longest time that is told: four months."""


def bad(what: str) -> NoReturn:
    """Raise RemoteProtocolError: `what` is wrong with what came."""
    raise RemoteProtocolError(what)


class Field(NamedTuple):
    """How one kind of value looks on the wire: `pack` trusts its input, `unpack` trusts nothing."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def same(value: Any) -> Any:
    """Return `value`: msgpack has a type for it."""
    return value


def integer(low: int, high: int) -> Field:
    """A whole number within `low`..`high`."""

    def unpack(raw: Any) -> int:
        if type(raw) is not int or not low <= raw <= high:
            bad(f"expected an integer within {low}..{high}")
        return raw

    return Field(same, unpack)


def number(low: float, high: float) -> Field:
    """A finite number within `low`..`high`."""

    def unpack(raw: Any) -> float:
        # not (low <= x <= high) is also true of NaN
        if type(raw) not in (int, float) or not math.isfinite(raw) or not low <= raw <= high:
            bad(f"expected a finite number within {low}..{high}")
        return float(raw)

    return Field(float, unpack)


def seconds() -> Field:
    """An estimate of time: what is farther than the bound is told as the bound, so that it can be read."""
    return Field(lambda value: min(float(value), SECONDS_MAX), number(0.0, SECONDS_MAX).unpack)


def text(bytes_max: int) -> Field:
    """UTF-8 of at most `bytes_max` bytes."""

    def unpack(raw: Any) -> str:
        if type(raw) is not str or len(raw) > bytes_max or len(raw.encode()) > bytes_max:
            bad(f"expected a text of at most {bytes_max} bytes")
        return raw

    return Field(same, unpack)


def query_id() -> Field:
    """128 bits as 32 hex digits."""

    def unpack(raw: Any) -> str:
        if type(raw) is not str or len(raw) != 32 or not _HEX.issuperset(raw):
            bad("expected 32 hex digits")
        return raw

    return Field(same, unpack)


def binary(bytes_max: int) -> Field:
    """At most `bytes_max` bytes."""

    def unpack(raw: Any) -> bytes:
        if type(raw) is not bytes or len(raw) > bytes_max:
            bad(f"expected at most {bytes_max} bytes")
        return raw

    return Field(same, unpack)


def exactly(count: int) -> Field:
    """Just `count` bytes."""

    def unpack(raw: Any) -> bytes:
        if type(raw) is not bytes or len(raw) != count:
            bad(f"expected {count} bytes")
        return raw

    return Field(same, unpack)


def token_ids(count_max: int) -> Field:
    """Thousands of them, as one run of bytes: a list would spend the budget of items."""

    def unpack(raw: Any) -> tuple[int, ...]:
        if type(raw) is not bytes or len(raw) % 4 or len(raw) > 4 * count_max:
            bad(f"expected at most {count_max} token ids of 4 bytes")
        ids = np.frombuffer(raw, dtype="<i4")
        if ids.size and int(ids.min()) < 0:
            bad("a token id is below 0")
        return tuple(ids.tolist())

    return Field(lambda ids: np.asarray(ids, dtype="<i4").tobytes(), unpack)


def logprobs(bytes_max: int, count_max: int, top_max: int) -> Field:
    """Those of at most `count_max` tokens as one run of bytes: for each, how many entries follow, its own the
    first; of an entry its value (little-endian float32), and its spelling behind its length."""

    def unpack(raw: Any) -> tuple[TokenLogprobs, ...]:
        data = binary(bytes_max).unpack(raw)
        found: list[TokenLogprobs] = []
        at = 0
        while at < len(data):
            count, at = data[at], at + 1
            if not 1 <= count <= top_max + 1 or len(found) == count_max:
                bad(f"expected at most {count_max} tokens, each with at most {top_max} others")
            entries = []
            for _ in range(count):
                if len(data) < at + _ENTRY.size:
                    bad("log-probabilities break off")
                value, length = _ENTRY.unpack_from(data, at)
                at += _ENTRY.size + length
                if at > len(data) or not LOGPROB_MIN <= value <= 0.0:
                    bad(f"expected a log-probability within {LOGPROB_MIN:g}..0, and its spelling")
                entries.append((data[at - length : at], value))
            found.append(TokenLogprobs(*entries[0], tuple(entries[1:])))
        return tuple(found)

    return Field(pack_logprobs, unpack)


def pack_logprobs(values: tuple[TokenLogprobs, ...]) -> bytes:
    """Return `values` as they travel."""
    parts = []
    for value in values:
        parts.append(bytes([1 + len(value.top)]))
        for spelled, logprob in ((value.spelled, value.logprob), *value.top):
            parts += [_ENTRY.pack(logprob, len(spelled)), spelled]
    return b"".join(parts)


def boolean() -> Field:
    """True or false, and nothing that only looks like it."""

    def unpack(raw: Any) -> bool:
        if type(raw) is not bool:
            bad("expected true or false")
        return raw

    return Field(same, unpack)


def one_of(kind: type[Enum]) -> Field:
    """A member of an enumeration, by its value."""
    known = {member.value: member for member in kind}

    def unpack(raw: Any) -> Enum:
        if type(raw) not in (str, int) or raw not in known:
            bad(f"unknown {kind.__name__}")
        return known[raw]

    return Field(lambda member: member.value, unpack)


def maybe(field: Field) -> Field:
    """A `field`, or nothing."""
    return Field(
        lambda value: None if value is None else field.pack(value),
        lambda raw: None if raw is None else field.unpack(raw),
    )


def many(field: Field, count_max: int) -> Field:
    """A list of at most `count_max`."""

    def unpack(raw: Any) -> tuple[Any, ...]:
        if type(raw) is not tuple or len(raw) > count_max:
            bad(f"expected a list of at most {count_max}")
        return tuple(map(field.unpack, raw))

    return Field(lambda values: [field.pack(value) for value in values], unpack)


def pair(first: Field, second: Field) -> Field:
    """Two values that belong together."""

    def unpack(raw: Any) -> tuple[Any, Any]:
        if type(raw) is not tuple or len(raw) != 2:
            bad("expected a pair")
        return first.unpack(raw[0]), second.unpack(raw[1])

    def pack(values: tuple[Any, Any]) -> list[Any]:
        one, two = values
        return [first.pack(one), second.pack(two)]

    return Field(pack, unpack)


def vector(dimensions_max: int) -> Field:
    """A direction as int8, of at most `dimensions_max`."""

    def unpack(raw: Any) -> Vector:
        if type(raw) is not bytes or not 1 <= len(raw) <= dimensions_max:
            bad(f"expected a vector of at most {dimensions_max} dimensions")
        vector = np.frombuffer(raw, dtype=np.int8)
        # -128 has no counterpart on the unit sphere, and a zero vector has no direction
        if not vector.any() or int(vector.min()) == -128:
            bad("not a unit vector")
        return vector

    return Field(lambda vector: np.asarray(vector, dtype=np.int8).tobytes(), unpack)


def struct(kind: type[T], *fields: Field) -> Field:
    """A dataclass, its fields in their order."""
    return growing(kind, len(fields), *fields)


def growing(kind: type[T], always: int, *fields: Field) -> Field:
    """A dataclass of which `always` fields travel; the rest as far as the last that is not its default."""
    names = [f.name for f in dataclasses.fields(cast(Any, kind))]
    defaults = [f.default for f in dataclasses.fields(cast(Any, kind))]
    assert len(names) == len(fields), kind

    def pack(value: T) -> list[Any]:
        count = len(fields)
        while count > always and getattr(value, names[count - 1]) == defaults[count - 1]:
            count -= 1
        return [field.pack(getattr(value, name)) for name, field in zip(names[:count], fields, strict=False)]

    def unpack(raw: Any) -> T:
        if type(raw) is not tuple or not always <= len(raw) <= len(fields):
            least = f"{always} to " if always < len(fields) else ""
            bad(f"expected the {least}{len(fields)} fields of {kind.__name__}")
        values = []
        for name, field, item in zip(names, fields, raw, strict=False):
            try:
                values.append(field.unpack(item))
            except RemoteProtocolError as exc:
                raise RemoteProtocolError(f"{name}: {exc}") from None
        return kind(*values)

    return Field(pack, unpack)
