"""Messages to msgpack bytes and back. Every bound on what comes from outside is checked here, and only here.

A frame is an array: its tag, then the message's fields in order. There are no maps, so there are no keys to
repeat. The frame's length is checked first (by tag: only queries and records may be large), msgpack's own
limits second, a budget of items and depth third, and then each field by its schema. Whatever is wrong, the
one exception is `RemoteProtocolError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import msgpack

from p2pmesh.config import Limits
from p2pmesh.errors import LocalProtocolError, Reason, RemoteProtocolError
from p2pmesh.protocol import fields as f
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.admission import STATEMENTS_MAX
from p2pmesh.protocol.batching import PACE_MAX, PACE_MIN
from p2pmesh.protocol.experience import Report, Row
from p2pmesh.protocol.search import LEAD_ADDRESSES_MAX, LEADS_MAX
from p2pmesh.query import (
    LOGPROBS_BYTES_MAX,
    RANGES,
    Accepted,
    Chunk,
    Ended,
    Hop,
    Lead,
    Message,
    Options,
    Query,
    Resume,
    Search,
    Usage,
)
from p2pmesh.receipt import DIGEST_BYTES, Receipt
from p2pmesh.record import (
    CONVERSATIONS_MAX,
    DEVICE_BYTES_MAX,
    DEVICES_MAX,
    HELD_MAX,
    MARK_BYTES,
    SEAL_KEY_BYTES,
    STATEMENT_BYTES_MAX,
    VERSION_MAX,
    Capability,
    Device,
    Load,
    ModelInfo,
    PeerRecord,
    SignedRecord,
    Skill,
    Version,
)

T = TypeVar("T")

_CONTROL_BYTES_MAX = 131_072
"""Longest frame that carries neither a query nor records: a digest of 1024 lines has 110 kB."""
_PEER_ID_BYTES_MAX = 64
_COUNT_MAX = 2**31 - 1
_DETAIL_BYTES_MAX = 1_024
_RUNNING_MAX = 64
"""Most running queries that a load lists. A guess: a GPU peer's slots."""
_QUEUED_MAX = 1_024
"""Most waiting queries that a load may tell of: each is reckoned with."""
_ROWS_MAX = 64
"""Most outcomes in one report."""
_TOKENS_MAX = 1_024
"""Most token ids in one chunk."""
_SHOWN_BYTES_MAX = 32_768
"""As `net.link.SHOWN_BYTES_MAX`."""
SEALED_CHUNK_BYTES_MAX = 126_976
"""Longest sealed piece of an answer: what fits into a frame of 128 KiB, and has room for the longest open one
with its log-probabilities."""
_ENVELOPE_BYTES = 32_768
"""What is left of a frame for the outside of a sealed query: the way it went, and whom it must not go to."""
_LARGE = (m.Forward, m.Records, m.Keep, m.Copy, m.Legacy, m.Evidence)
"""What may be as long as a frame."""
_ARRAY_MAX = 1_024
"""Longest list msgpack may build, whatever `limits.digest_max` is set to: the longest of our own."""


def _reject_ext(code: int, data: bytes) -> NoReturn:
    f.bad("extension type")


class Codec:
    """Encodes and decodes within `limits`. Stateless; one serves a whole peer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        schema = _message_schema(limits, self)
        self._by_tag = dict(enumerate(schema.items()))
        self._tag_of = {kind: tag for tag, (kind, _) in self._by_tag.items()}
        self._large = {self._tag_of[kind] for kind in _LARGE}
        self._record = _record_schema(limits)

    @property
    def tags(self) -> Mapping[type, int]:
        """The number that stands for each kind of message, in its frame's second byte."""
        return self._tag_of

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
            f.bad("not a message")
        kind_schema = self._by_tag.get(data[1])
        if kind_schema is None:
            f.bad("unknown message")
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
            f.bad(f"{len(data)} bytes, at most {bytes_max} are read")
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
                f.bad("too many items, or too deep")
            level = [child for item in level if type(item) is tuple for child in item]


def _record_schema(limits: Limits) -> f.Field:
    name = f.text(limits.name_bytes_max)
    share, rate, count = f.number(0.0, 1.0), f.number(0.0, 1e9), f.integer(0, _COUNT_MAX)
    kept, zones = f.integer(0, CONVERSATIONS_MAX), f.many(name, 16)
    skill = f.struct(Skill, name, f.maybe(f.vector(limits.dimensions_max)), share, count, name)
    model = f.growing(ModelInfo, 7, name, f.text(64), count, rate, rate, count, kept, zones)
    size = f.integer(0, VERSION_MAX)
    capability = f.growing(
        Capability,
        4,
        name,
        f.many(skill, limits.skills_max),
        f.many(model, limits.models_max),
        zones,
        f.many(f.struct(Device, f.text(DEVICE_BYTES_MAX), size, size, f.boolean()), DEVICES_MAX),
    )
    return f.growing(
        PeerRecord,
        5,
        f.text(_PEER_ID_BYTES_MAX),
        _version(),
        name,
        f.many(f.text(256), limits.addresses_max),
        capability,
        f.exactly(SEAL_KEY_BYTES),
    )


def sealed_bytes_max(limits: Limits) -> int:
    """Return how long a sealed query may be, in bytes."""
    return limits.frame_bytes_max - _ENVELOPE_BYTES


def _version() -> f.Field:
    return f.struct(Version, f.integer(0, VERSION_MAX), f.integer(0, VERSION_MAX))


def _query_schema(limits: Limits) -> dict[str, f.Field]:
    name = f.text(limits.name_bytes_max)
    peer = f.text(_PEER_ID_BYTES_MAX)
    count = f.integer(0, _COUNT_MAX)
    hop = f.struct(Hop, peer, name, f.text(_DETAIL_BYTES_MAX))
    bias = f.pair(f.integer(0, _COUNT_MAX), f.number(*RANGES["logit_bias"]))
    options = f.growing(
        Options,
        5,
        f.integer(1, limits.max_tokens_max),
        f.number(0.0, 10.0),
        f.number(0.0, 1.0),
        f.maybe(f.integer(0, 2**32 - 1)),
        f.many(f.text(limits.stop_bytes_max), limits.stop_max),
        f.integer(0, limits.top_k_max),
        f.number(*RANGES["min_p"]),
        f.number(*RANGES["repeat_penalty"]),
        f.number(*RANGES["frequency_penalty"]),
        f.number(*RANGES["presence_penalty"]),
        f.many(bias, limits.logit_bias_max),
        f.text(limits.schema_bytes_max),
        f.maybe(f.integer(0, limits.top_logprobs_max)),
    )
    accepted = f.struct(
        Accepted,
        f.token_ids(limits.max_tokens_max),
        f.text(limits.accepted_bytes_max),
        count,
        f.text(64),
    )
    addresses = f.many(f.text(256), LEAD_ADDRESSES_MAX)
    work = f.maybe(f.seconds())
    lead = f.struct(Lead, peer, f.number(-1.0, 1.0), f.boolean(), addresses, work, f.number(0.0, 1.0))
    query = f.growing(
        Query,
        17,
        f.query_id(),
        peer,
        f.many(f.struct(Message, name, f.text(limits.prompt_bytes_max)), limits.messages_max),
        options,
        name,
        name,
        f.integer(0, 255),
        f.maybe(f.vector(limits.dimensions_max)),
        name,
        f.integer(0, _COUNT_MAX),
        f.integer(0, limits.hops_max),
        f.number(0.0, f.SECONDS_MAX),
        f.many(hop, limits.hops_max),
        f.many(peer, limits.excluded_max),
        peer,
        f.maybe(accepted),
        f.maybe(f.struct(Search, f.many(lead, LEADS_MAX), f.integer(0, 255))),
        f.one_of(Resume),
        f.binary(sealed_bytes_max(limits)),
        f.binary(64),
    )

    def unpack(raw: Any) -> Query:
        unpacked = cast(Query, query.unpack(raw))
        if unpacked.sealed and (unpacked.messages or unpacked.accepted or unpacked.vector is not None):
            f.bad("a sealed query tells something outside")
        if unpacked.prompt_bytes > limits.prompt_bytes_max:
            f.bad(f"the messages have {unpacked.prompt_bytes} bytes, at most {limits.prompt_bytes_max} fit")
        return unpacked

    query_within = f.Field(query.pack, unpack)
    return {"query": query_within, "path": f.many(hop, limits.hops_max + 1)}


def _chunk(limits: Limits) -> f.Field:
    count = f.integer(0, _COUNT_MAX)
    chunk = f.growing(
        Chunk,
        5,
        f.query_id(),
        f.integer(0, 255),
        count,
        f.many(count, _TOKENS_MAX),
        f.text(limits.chunk_bytes_max),
        f.logprobs(LOGPROBS_BYTES_MAX, _TOKENS_MAX, limits.top_logprobs_max),
        f.binary(SEALED_CHUNK_BYTES_MAX),
    )

    def unpack(raw: Any) -> Chunk:
        unpacked = cast(Chunk, chunk.unpack(raw))
        if unpacked.sealed and (unpacked.tokens or unpacked.text or unpacked.logprobs):
            f.bad("a sealed piece tells something outside")
        if len(unpacked.logprobs) not in (0, len(unpacked.tokens)):
            f.bad(f"{len(unpacked.logprobs)} log-probabilities of {len(unpacked.tokens)} tokens")
        return unpacked

    return f.Field(chunk.pack, unpack)


def _receipt(limits: Limits) -> f.Field:
    count, digest = f.integer(0, _COUNT_MAX), f.exactly(DIGEST_BYTES)
    return f.struct(
        Receipt,
        f.query_id(),
        f.integer(0, 255),
        f.text(_PEER_ID_BYTES_MAX),
        f.text(limits.name_bytes_max),
        f.text(64),
        f.text(32),
        count,
        count,
        digest,
        digest,
        f.binary(64),
    )


def _report(limits: Limits) -> f.Field:
    row = f.struct(
        Row,
        f.text(_PEER_ID_BYTES_MAX),
        f.text(limits.name_bytes_max),
        f.integer(0, VERSION_MAX),
        f.integer(0, _COUNT_MAX),
        f.number(0.0, _COUNT_MAX),
    )

    def unpack(raw: Any) -> Row:
        unpacked = cast(Row, row.unpack(raw))
        if unpacked.successes > unpacked.trials:
            f.bad("more successes than trials")
        return unpacked

    return f.struct(Report, f.integer(0, VERSION_MAX), f.many(f.Field(row.pack, unpack), _ROWS_MAX))


def _load() -> f.Field:
    seconds = f.seconds()
    queued, running = f.integer(0, _QUEUED_MAX), f.many(seconds, _RUNNING_MAX)
    held = f.many(f.exactly(8), HELD_MAX)
    return f.struct(Load, seconds, f.integer(0, _COUNT_MAX), queued, running, seconds, held, _pace())


def _pace() -> f.Field:
    """In thousandths, since loads are most of what is said: three bytes for nine."""
    thousandths = f.integer(round(1_000 * PACE_MIN), round(1_000 * PACE_MAX))
    return f.Field(lambda pace: round(1_000 * pace), lambda raw: thousandths.unpack(raw) / 1_000)


def _message_schema(limits: Limits, codec: Codec) -> dict[type[Any], f.Field]:
    """The wire, one line a message. Tags are positions: append, never reorder, within a protocol version."""
    peer = f.text(_PEER_ID_BYTES_MAX)
    seconds = f.seconds()
    count = f.integer(0, _COUNT_MAX)
    detail = f.text(_DETAIL_BYTES_MAX)
    reason = f.one_of(Reason)
    ident = (f.query_id(), f.integer(0, 255))
    update = f.struct(m.Update, peer, f.one_of(m.Status), _version())
    updates = f.many(update, 64)
    line = (peer, _version(), f.integer(0, m.DISTANCE_MAX), f.exactly(MARK_BYTES))
    lines = f.many(f.growing(m.Line, 3, *line), limits.digest_max)
    spending = f.struct(m.Spending, peer, f.text(limits.name_bytes_max), f.number(0.0, _COUNT_MAX))
    parts, chunk = _query_schema(limits), _chunk(limits)
    ended = f.growing(
        Ended,
        5,
        f.struct(Usage, count, count),
        f.text(32),
        f.text(limits.name_bytes_max),
        f.text(64),
        parts["path"],
        f.binary(SEALED_CHUNK_BYTES_MAX),
        f.maybe(_receipt(limits)),
    )
    dead = f.many(peer, limits.excluded_max)

    def unpack_signed(raw: Any) -> SignedRecord:
        if type(raw) is not tuple or len(raw) != 3:
            f.bad("expected a record, its signature and a certificate")
        body = f.binary(limits.record_bytes_max).unpack(raw[0])
        signature, certificate = f.binary(64).unpack(raw[1]), f.binary(STATEMENT_BYTES_MAX).unpack(raw[2])
        return SignedRecord(codec.decode_record(body), body, signature, certificate)

    signed = f.Field(lambda record: [record.body, record.signature, record.certificate], unpack_signed)
    return {
        m.Ping: f.struct(m.Ping, count, updates),
        m.Ack: f.struct(m.Ack, count, updates),
        m.PingRequest: f.struct(m.PingRequest, count, peer, updates),
        m.Leave: f.struct(m.Leave, _version()),
        m.Announce: f.struct(m.Announce, lines),
        m.Digest: f.struct(m.Digest, f.exactly(8 * m.DIGEST_BUCKETS)),
        m.Pull: f.struct(m.Pull, f.many(peer, limits.digest_max)),
        m.Records: f.struct(m.Records, f.many(signed, limits.records_per_frame_max)),
        m.LoadReport: f.struct(m.LoadReport, _load()),
        m.Forward: f.struct(m.Forward, parts["query"]),
        m.Accept: f.struct(m.Accept, *ident, f.boolean(), seconds, parts["path"], f.text(64)),
        m.Refuse: f.struct(m.Refuse, *ident, reason, detail, seconds, count, dead, peer),
        m.Tokens: f.struct(m.Tokens, chunk),
        m.End: f.struct(m.End, *ident, count, ended),
        m.Error: f.struct(m.Error, *ident, reason, detail, dead),
        m.Cancel: f.struct(m.Cancel, *ident),
        m.Steal: f.struct(m.Steal),
        m.Lines: f.struct(m.Lines, f.many(f.integer(0, m.DIGEST_BUCKETS - 1), m.DIGEST_BUCKETS), lines),
        m.Seek: f.struct(m.Seek, f.many(peer, limits.digest_max)),
        m.Part: f.struct(m.Part),
        m.Outcomes: f.struct(m.Outcomes, _report(limits)),
        m.Keep: f.struct(m.Keep, parts["query"]),
        m.Copy: f.struct(m.Copy, chunk, f.text(64)),
        m.Kept: f.struct(m.Kept, f.query_id(), count),
        m.Settle: f.struct(m.Settle, f.query_id(), f.maybe(ended), count),
        m.Claim: f.struct(m.Claim, f.query_id()),
        m.Legacy: f.struct(m.Legacy, parts["query"], f.maybe(ended)),
        m.Stated: f.struct(m.Stated, f.many(f.binary(STATEMENT_BYTES_MAX), STATEMENTS_MAX)),
        m.Shown: f.struct(m.Shown, f.binary(_SHOWN_BYTES_MAX)),
        m.Granted: f.struct(m.Granted, f.binary(_SHOWN_BYTES_MAX)),
        m.Evidence: f.struct(m.Evidence, signed, signed),
        m.Spent: f.struct(m.Spent, f.many(spending, m.SPENT_MAX), f.boolean()),
    }
