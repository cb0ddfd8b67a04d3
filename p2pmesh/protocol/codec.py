"""Messages to msgpack bytes and back. Every bound on what comes from outside is checked here, and only here.

A frame is an array: its tag, then the message's fields in order. There are no maps, so there are no keys to
repeat. The frame's length is checked first (by tag: only queries and records may be large), msgpack's own
limits second, a budget of items and depth third, and then each field by its schema. Whatever is wrong, the
one exception is `RemoteProtocolError`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

import msgpack
import numpy as np

from p2pmesh.config import Limits
from p2pmesh.errors import LocalProtocolError, Reason, RemoteProtocolError
from p2pmesh.protocol import messages as m
from p2pmesh.query import Chunk, Ended, Hop, Message, Options, Query, Usage
from p2pmesh.record import (
    VERSION_MAX,
    Capability,
    Load,
    ModelInfo,
    PeerRecord,
    SignedRecord,
    Skill,
    Vector,
    Version,
)

T = TypeVar("T")

_CONTROL_BYTES_MAX = 131_072
"""Longest frame that carries neither a query nor records: a digest of 1024 lines has 90 kB."""
_PEER_ID_BYTES_MAX = 64
_HEX = frozenset("0123456789abcdef")
_SECONDS_MAX = 1e7
_COUNT_MAX = 2**31 - 1
_DETAIL_BYTES_MAX = 1_024
_TOKENS_MAX = 1_024
"""Most token ids in one chunk."""
_ARRAY_MAX = 1_024
"""Longest list msgpack may build, whatever `limits.digest_max` is set to: the longest of our own."""


def _bad(what: str) -> NoReturn:
    raise RemoteProtocolError(what)


class Field(NamedTuple):
    """How one kind of value looks on the wire: `pack` trusts its input, `unpack` trusts nothing."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _integer(low: int, high: int) -> Field:
    def unpack(raw: Any) -> int:
        if type(raw) is not int or not low <= raw <= high:
            _bad(f"expected an integer within {low}..{high}")
        return raw

    return Field(_same, unpack)


def _number(low: float, high: float) -> Field:
    def unpack(raw: Any) -> float:
        # not (low <= x <= high) is also true of NaN
        if type(raw) not in (int, float) or not math.isfinite(raw) or not low <= raw <= high:
            _bad(f"expected a finite number within {low}..{high}")
        return float(raw)

    return Field(float, unpack)


def _seconds() -> Field:
    """An estimate of time: what is farther than the bound is told as the bound, so that it can be read."""
    return Field(lambda value: min(float(value), _SECONDS_MAX), _number(0.0, _SECONDS_MAX).unpack)


def _text(bytes_max: int) -> Field:
    def unpack(raw: Any) -> str:
        if type(raw) is not str or len(raw) > bytes_max or len(raw.encode()) > bytes_max:
            _bad(f"expected a text of at most {bytes_max} bytes")
        return raw

    return Field(_same, unpack)


def _query_id() -> Field:
    def unpack(raw: Any) -> str:
        if type(raw) is not str or len(raw) != 32 or not _HEX.issuperset(raw):
            _bad("expected 32 hex digits")
        return raw

    return Field(_same, unpack)


def _binary(bytes_max: int) -> Field:
    def unpack(raw: Any) -> bytes:
        if type(raw) is not bytes or len(raw) > bytes_max:
            _bad(f"expected at most {bytes_max} bytes")
        return raw

    return Field(_same, unpack)


def _boolean() -> Field:
    def unpack(raw: Any) -> bool:
        if type(raw) is not bool:
            _bad("expected true or false")
        return raw

    return Field(_same, unpack)


def _one_of(kind: type[Enum]) -> Field:
    known = {member.value: member for member in kind}

    def unpack(raw: Any) -> Enum:
        if type(raw) not in (str, int) or raw not in known:
            _bad(f"unknown {kind.__name__}")
        return known[raw]

    return Field(lambda member: member.value, unpack)


def _maybe(field: Field) -> Field:
    return Field(
        lambda value: None if value is None else field.pack(value),
        lambda raw: None if raw is None else field.unpack(raw),
    )


def _many(field: Field, count_max: int) -> Field:
    def unpack(raw: Any) -> tuple[Any, ...]:
        if type(raw) is not tuple or len(raw) > count_max:
            _bad(f"expected a list of at most {count_max}")
        return tuple(map(field.unpack, raw))

    return Field(lambda values: [field.pack(value) for value in values], unpack)


def _vector(dimensions_max: int) -> Field:
    def unpack(raw: Any) -> Vector:
        if type(raw) is not bytes or not 1 <= len(raw) <= dimensions_max:
            _bad(f"expected a vector of at most {dimensions_max} dimensions")
        vector = np.frombuffer(raw, dtype=np.int8)
        # -128 has no counterpart on the unit sphere, and a zero vector has no direction
        if not vector.any() or int(vector.min()) == -128:
            _bad("not a unit vector")
        return vector

    return Field(lambda vector: np.asarray(vector, dtype=np.int8).tobytes(), unpack)


def _struct(kind: type[T], *fields: Field) -> Field:
    names = [f.name for f in dataclasses.fields(cast(Any, kind))]
    assert len(names) == len(fields), kind

    def pack(value: T) -> list[Any]:
        return [f.pack(getattr(value, name)) for name, f in zip(names, fields, strict=True)]

    def unpack(raw: Any) -> T:
        if type(raw) is not tuple or len(raw) != len(fields):
            _bad(f"expected the {len(fields)} fields of {kind.__name__}")
        values = []
        for name, field, item in zip(names, fields, raw, strict=True):
            try:
                values.append(field.unpack(item))
            except RemoteProtocolError as exc:
                raise RemoteProtocolError(f"{name}: {exc}") from None
        return kind(*values)

    return Field(pack, unpack)


def _reject_ext(code: int, data: bytes) -> NoReturn:
    _bad("extension type")


class Codec:
    """Encodes and decodes within `limits`. Stateless; one serves a whole peer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        schema = _message_schema(limits, self)
        self._by_tag = dict(enumerate(schema.items()))
        self._tag_of = {kind: tag for tag, (kind, _) in self._by_tag.items()}
        self._large = {self._tag_of[m.Forward], self._tag_of[m.Records]}
        self._record = _record_schema(limits)

    def encode(self, message: m.PeerMessage) -> bytes:
        """Return `message` as a frame's bytes.

        Raises LocalProtocolError if it is longer than a frame may be or holds what is not text; nothing is
        lost, the caller decides.
        """
        tag = self._tag_of[type(message)]
        schema = self._by_tag[tag][1]
        return self._dump(lambda: [tag, *schema.pack(message)], self._bytes_max(tag))

    def decode(self, data: bytes) -> m.PeerMessage:
        """Return the message in `data`. Raises RemoteProtocolError, and nothing else, for any bytes."""
        # The tag stands in the second byte of every frame we write, so that a length can be judged by it
        # before anything is built.
        if len(data) < 2 or not 0x91 <= data[0] <= 0x9F:
            _bad("not a message")
        kind_schema = self._by_tag.get(data[1])
        if kind_schema is None:
            _bad("unknown message")
        raw = self._load(data, self._bytes_max(data[1]))
        return cast(m.PeerMessage, kind_schema[1].unpack(raw[1:]))

    def check(self, message: m.PeerMessage) -> None:
        """Raise LocalProtocolError, naming the field, if another peer would not read `message`."""
        try:
            self.decode(self.encode(message))
        except RemoteProtocolError as exc:
            raise LocalProtocolError(str(exc)) from None

    def encode_record(self, record: PeerRecord) -> bytes:
        """Return the bytes of `record` that its owner signs.

        Raises LocalProtocolError, naming the field, if it is too long or another peer would not read it.
        """
        body = self._dump(lambda: self._record.pack(record), self._limits.record_bytes_max)
        try:
            self.decode_record(body)
        except RemoteProtocolError as exc:
            raise LocalProtocolError(str(exc)) from None
        return body

    def decode_record(self, body: bytes) -> PeerRecord:
        """Return the record in `body`. Raises RemoteProtocolError. The signature is not checked here."""
        return cast(PeerRecord, self._record.unpack(self._load(body, self._limits.record_bytes_max)))

    def _bytes_max(self, tag: int) -> int:
        most = self._limits.frame_bytes_max
        return most if tag in self._large else min(most, _CONTROL_BYTES_MAX)

    @staticmethod
    def _dump(pack: Callable[[], Any], bytes_max: int) -> bytes:
        try:
            data = cast(bytes, msgpack.packb(pack()))
        except (ValueError, TypeError, OverflowError) as exc:  # lone surrogates, integers beyond 64 bits
            raise LocalProtocolError(f"cannot be encoded: {exc}") from None
        if len(data) > bytes_max:
            raise LocalProtocolError(f"{len(data)} bytes, at most {bytes_max} fit")
        return data

    def _load(self, data: bytes, bytes_max: int) -> Any:
        if len(data) > bytes_max:
            _bad(f"{len(data)} bytes, at most {bytes_max} are read")
        try:
            raw = msgpack.unpackb(
                data,
                use_list=False,
                raw=False,
                strict_map_key=True,
                ext_hook=_reject_ext,
                max_str_len=bytes_max,
                max_bin_len=bytes_max,
                max_array_len=max(_ARRAY_MAX, self._limits.digest_max),
                max_map_len=0,
                max_ext_len=0,
            )
        except RemoteProtocolError:
            raise
        except Exception as exc:  # noqa: BLE001 - msgpack raises half a dozen unrelated kinds on bad bytes
            raise RemoteProtocolError(f"not msgpack within bounds: {type(exc).__name__}") from None
        self._spend_budget(raw)
        return raw

    def _spend_budget(self, raw: Any) -> None:
        items, level, depth = 0, [raw], 0
        while level:
            depth += 1
            items += len(level)
            if depth > self._limits.decode_depth_max or items > self._limits.decode_items_max:
                _bad("too many items, or too deep")
            level = [child for item in level if type(item) is tuple for child in item]


def _record_schema(limits: Limits) -> Field:
    name = _text(limits.name_bytes_max)
    share = _number(0.0, 1.0)
    rate = _number(0.0, 1e9)
    count = _integer(0, _COUNT_MAX)
    skill = _struct(Skill, name, _maybe(_vector(limits.dimensions_max)), share, count, name)
    model = _struct(ModelInfo, name, _text(64), count, rate, rate, count)
    capability = _struct(
        Capability, name, _many(skill, limits.skills_max), _many(model, limits.models_max), _many(name, 16)
    )
    return _struct(
        PeerRecord,
        _text(_PEER_ID_BYTES_MAX),
        _version(),
        name,
        _many(_text(256), limits.addresses_max),
        capability,
    )


def _version() -> Field:
    return _struct(Version, _integer(0, VERSION_MAX), _integer(0, VERSION_MAX))


def _query_schema(limits: Limits) -> dict[str, Field]:
    name = _text(limits.name_bytes_max)
    peer = _text(_PEER_ID_BYTES_MAX)
    hop = _struct(Hop, peer, name, _text(_DETAIL_BYTES_MAX))
    options = _struct(
        Options,
        _integer(1, limits.max_tokens_max),
        _number(0.0, 10.0),
        _number(0.0, 1.0),
        _maybe(_integer(0, 2**32 - 1)),
        _many(_text(limits.stop_bytes_max), limits.stop_max),
    )
    query = _struct(
        Query,
        _query_id(),
        peer,
        _many(_struct(Message, name, _text(limits.prompt_bytes_max)), limits.messages_max),
        options,
        name,
        name,
        _integer(0, 255),
        _maybe(_vector(limits.dimensions_max)),
        name,
        _integer(0, _COUNT_MAX),
        _integer(0, limits.hops_max),
        _number(0.0, _SECONDS_MAX),
        _many(hop, limits.hops_max),
        _many(peer, limits.excluded_max),
    )

    def unpack(raw: Any) -> Query:
        unpacked = cast(Query, query.unpack(raw))
        if unpacked.prompt_bytes > limits.prompt_bytes_max:
            _bad(f"the messages have {unpacked.prompt_bytes} bytes, at most {limits.prompt_bytes_max} fit")
        return unpacked

    query_within = Field(query.pack, unpack)
    return {"query": query_within, "path": _many(hop, limits.hops_max + 1)}


def _message_schema(limits: Limits, codec: Codec) -> dict[type[Any], Field]:
    """The wire, one line a message. Tags are positions: append, never reorder, within a protocol version."""
    peer = _text(_PEER_ID_BYTES_MAX)
    seconds = _seconds()
    count = _integer(0, _COUNT_MAX)
    detail = _text(_DETAIL_BYTES_MAX)
    reason = _one_of(Reason)
    ident = (_query_id(), _integer(0, 255))
    update = _struct(m.Update, peer, _one_of(m.Status), _version())
    updates = _many(update, 64)
    lines = _many(_struct(m.Line, peer, _version(), _integer(0, m.DISTANCE_MAX)), limits.digest_max)
    parts = _query_schema(limits)
    chunk = _struct(
        Chunk, *ident, count, _many(_integer(0, _COUNT_MAX), _TOKENS_MAX), _text(limits.chunk_bytes_max)
    )
    ended = _struct(
        Ended,
        _struct(Usage, count, count),
        _text(32),
        _text(limits.name_bytes_max),
        _text(64),
        parts["path"],
    )
    load = _struct(Load, seconds, count, count)
    dead = _many(peer, limits.excluded_max)

    def unpack_signed(raw: Any) -> SignedRecord:
        if type(raw) is not tuple or len(raw) != 2:
            _bad("expected a record and its signature")
        body = _binary(limits.record_bytes_max).unpack(raw[0])
        return SignedRecord(codec.decode_record(body), body, _binary(64).unpack(raw[1]))

    signed = Field(lambda record: [record.body, record.signature], unpack_signed)
    return {
        m.Ping: _struct(m.Ping, count, updates),
        m.Ack: _struct(m.Ack, count, updates),
        m.PingRequest: _struct(m.PingRequest, count, peer, updates),
        m.Leave: _struct(m.Leave, _version()),
        m.Announce: _struct(m.Announce, lines),
        m.Digest: _struct(m.Digest, lines),
        m.Pull: _struct(m.Pull, _many(peer, limits.digest_max)),
        m.Records: _struct(m.Records, _many(signed, limits.records_per_frame_max)),
        m.LoadReport: _struct(m.LoadReport, load),
        m.Forward: _struct(m.Forward, parts["query"]),
        m.Accept: _struct(m.Accept, *ident, _boolean(), seconds, parts["path"]),
        m.Refuse: _struct(m.Refuse, *ident, reason, detail, seconds, count, dead),
        m.Tokens: _struct(m.Tokens, chunk),
        m.End: _struct(m.End, *ident, count, ended),
        m.Error: _struct(m.Error, *ident, reason, detail),
        m.Cancel: _struct(m.Cancel, *ident),
    }
