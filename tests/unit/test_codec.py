"""The wire: every message there and back, and each bound refused by name."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from p2pmesh.config import Limits
from p2pmesh.errors import LocalProtocolError, Reason, RemoteProtocolError
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.experience import Report, Row
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Message, Options, TokenLogprobs, Usage
from p2pmesh.record import (
    STATEMENT_BYTES_MAX,
    Capability,
    Device,
    Load,
    PeerId,
    PeerRecord,
    Skill,
    Version,
)
from p2pmesh.sim.world import World
from tests.machines import MODEL, A, B, query, signed

CODEC = Codec(Limits())
V = Version(3, 4)
UPDATE = m.Update(A, m.Status.SUSPECT, V)
HOPS = (Hop(A, "a", "to b"), Hop(B, "b", "serve"))
ABLE = Capability("s", (Skill("code", World.topic(1), 0.8, 3, "small"), Skill("general", None)), (MODEL,))

EVERY: list[m.PeerMessage] = [
    m.Ping(1, (UPDATE,)),
    m.Ack(2, (UPDATE, UPDATE)),
    m.PingRequest(3, B, ()),
    m.Leave(V),
    m.Announce((m.Line(A, V, 2), m.Line(B, V, 2, bytes(range(16))))),
    m.Digest(bytes(range(256))),
    m.Pull((A, B)),
    m.Records((signed(A, V, ABLE, ("/ip4/10.0.0.1/tcp/1",)),)),
    m.LoadReport(Load(1.5, 2, 3, (0.5, 1.0), 4.5, (b"\xff" * 8, bytes(8)), 0.25)),
    m.Forward(
        query(
            options=Options(9, 0.5, 0.9, 7, ("END",), 40, 0.05, 1.1, -2.0, 2.0, ((7, -100.0),), "{}", 20),
            path=HOPS,
            excluded=(B,),
            space="s",
            target=B,
            accepted=Accepted((0, 2**31 - 1), "täxt", 2, "00" * 32),
            signature=b"s" * 64,
        )
    ),
    m.Accept("ab" * 16, 1, True, 2.5, HOPS, "00" * 32),  # type: ignore[arg-type]
    m.Refuse("ab" * 16, 1, Reason.OVERLOADED, "full", 3.0, 12, (A,)),  # type: ignore[arg-type]
    m.Tokens(Chunk("ab" * 16, 1, 2, (3,), "ä", (TokenLogprobs(b"\xc3", -0.5, ((b"", -9_999.0),)),))),  # type: ignore[arg-type]
    m.End("ab" * 16, 1, 3, Ended(Usage(5, 6), "stop", "small", "00" * 32, HOPS)),  # type: ignore[arg-type]
    m.Error("ab" * 16, 1, Reason.ENGINE_FAILED, "boom", (A,)),  # type: ignore[arg-type]
    m.Cancel("ab" * 16, 1),  # type: ignore[arg-type]
    m.Steal(),
    m.Lines((0, 31), (m.Line(A, V, m.DISTANCE_MAX),)),
    m.Seek((A, B)),
    m.Part(),
    m.Outcomes(Report(3, (Row(A, "code", 1, 4, 2.5), Row(B, "general", 2, 0, 0.0)))),
    m.Keep(query(accepted=Accepted((0, 1), "a b", 2, "00" * 32))),
    m.Copy(Chunk("ab" * 16, 1, 2, (3,), "ä"), "00" * 32),  # type: ignore[arg-type]
    m.Kept("ab" * 16, 3),  # type: ignore[arg-type]
    m.Settle("ab" * 16, Ended(Usage(5, 6), "stop", "small", "00" * 32, HOPS)),  # type: ignore[arg-type]
    m.Claim("ab" * 16),  # type: ignore[arg-type]
    m.Legacy(query(), None),
    m.Stated((b"a", b"")),
    m.Shown(b"me"),
    m.Granted(b"more"),
    m.Evidence(signed(A, V, ABLE), signed(A, V, Capability())),
    m.Spent((m.Spending(A, "hr", 12.5), m.Spending(B, "general", 0.0)), False),
]


def frame(*values: object) -> bytes:
    return bytes(msgpack.packb(list(values)))


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_every_message_comes_back_as_it_went(message: m.PeerMessage) -> None:
    assert CODEC.decode(CODEC.encode(message)) == message


def test_tags_are_positions_and_never_change() -> None:
    assert [CODEC.encode(message)[1] for message in EVERY] == list(range(32))
    assert CODEC.tags == {type(message): tag for tag, message in enumerate(EVERY)}


def test_a_vector_comes_back_as_it_went() -> None:
    vector = World.topic(5)
    back = CODEC.decode(CODEC.encode(m.Forward(query(vector=vector, space="s"))))
    assert isinstance(back, m.Forward)
    assert back.query.vector is not None
    assert np.array_equal(back.query.vector, vector)


def test_a_record_keeps_the_exact_bytes_that_were_signed() -> None:
    one = signed(A, V, ABLE)
    back = CODEC.decode(CODEC.encode(m.Records((one,))))
    assert isinstance(back, m.Records)
    assert back.records[0].body == one.body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91",
        b"\x00\x00",
        b"\x90\x00",
        b"\x92\xff\x00",
        frame(99),
        frame(0),
        frame(0, 1),
        frame(0, 1, (), 5),
        frame(0, -1, ()),
        frame(0, 2**31, ()),
        frame(0, True, ()),
        frame(0, 1.0, ()),
        frame(0, None, ()),
        frame(0, 1, ((str(A), 9, (1, 1)),)),
        frame(0, 1, ((str(A), True, (1, 1)),)),
        frame(0, 1, ((str(A), 1, (1, 2**62 + 1)),)),
        frame(0, 1, ((str(A), 1, (1, -1)),)),
        frame(0, 1, (("x" * 65, 1, (1, 1)),)),
        frame(0, 1, (("é" * 33, 1, (1, 1)),)),
        frame(0, 1, ((b"a", 1, (1, 1)),)),
        frame(0, 1, ((str(A), 1, (1, 1)),) * 65),
        frame(4, (("a", (1, 1), 17),)),
        frame(5, b"x" * 255),
        frame(5, b"x" * 257),
        frame(5, "x" * 256),
        frame(6, ["a"] * 1_025),
        frame(7, (("not a body", b""),)),
        frame(7, ((b"\xc0", b""),)),
        frame(7, ((b"", b""),)),
        frame(7, ((b"x" * 7_001, b""),)),
        frame(7, (b"",)),
        frame(8, (float("nan"), 0, 0, (), 0.0)),
        frame(8, (float("inf"), 0, 0, (), 0.0)),
        frame(8, (-1.0, 0, 0, (), 0.0)),
        frame(8, (1e7 + 1, 0, 0, (), 0.0)),
        frame(8, ("1", 0, 0, (), 0.0)),
        frame(8, (0.0, 0, 1_025, (), 0.0)),
        frame(8, (0.0, 0, 0, (0.0,) * 65, 0.0)),
        frame(8, (0.0, 0, 0, (-1.0,), 0.0)),
        frame(8, (0.0, 0, 0, (), float("nan"))),
        frame(8, (0.0, 0, 0)),
        frame(10, "ab" * 16, 1, 1, 0.0, (), ""),
        frame(11, "ab" * 16, 1, "no_such_reason", "", 0.0, 0, ()),
        frame(11, "ab" * 16, 1, ["list"], "", 0.0, 0, ()),
        frame(15, "x" * 33, 0),
        frame(15, "ab" * 16, 256),
        frame(15, "ab" * 16, 0) + b"\x00",
        frame(15, "ab" * 16, 0)[:-1],
        frame(16, 1),
        frame(17, (32,), ()),
        frame(17, (-1,), ()),
        frame(17, (0,) * 33, ()),
        frame(17, (0,), (("a", (1, 1), 0),) * 1_025),
        frame(18, ("a",) * 1_025),
        frame(18, ("a" * 65,)),
        frame(20, (1, (("a", "code", 1, 1, 1.5),))),
        frame(20, (1, (("a", "code", 1, 1, float("nan")),))),
        frame(20, (1, (("a", "code", 1, -1, 0.0),))),
        frame(20, (-1, ())),
        frame(20, (1, (("a", "code", 1, 1, 1.0),) * 65)),
        frame(21),
        bytes([0x92, 0x00, 0x81, 0xC0, 0xC0]),
        bytes([0x92, 0x00, 0xD4, 0x05, 0x00]),
        bytes([0x92, 0x00, 0xC7, 0x00, 0x05]),
        bytes([0x92, 0x00, 0xD6, 0xFF, 0, 0, 0, 0]),
        bytes([0x93, 0x0F, 0xA2, 0xED, 0xA0, 0x00]),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_what_breaks_a_bound_is_garbage(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        CODEC.decode(data)


@pytest.mark.parametrize(
    "vector", [b"", b"\x00" * 384, b"\x80" + b"\x01" * 383, b"\x01" * 1_025, "text", 7], ids=repr
)
def test_a_vector_that_is_no_direction_is_garbage(vector: object) -> None:
    packed = list(msgpack.unpackb(CODEC.encode(m.Forward(query(space="s")))))
    packed[1][7] = vector
    with pytest.raises(RemoteProtocolError, match="vector"):
        CODEC.decode(frame(*packed))


@pytest.mark.parametrize(
    "tokens",
    [b"\x00", b"\x00" * 5, b"\xff" * 4, b"\x00" * 4 * 8_193, [1, 2], "1234", 7],
    ids=lambda t: repr(t)[:9],
)
def test_what_are_no_token_ids_is_garbage(tokens: object) -> None:
    packed = list(msgpack.unpackb(CODEC.encode(m.Forward(query(accepted=Accepted((1,), "x", 1))))))
    packed[1][-2][0] = tokens
    with pytest.raises(RemoteProtocolError, match="token id"):
        CODEC.decode(frame(*packed))


@pytest.mark.parametrize("count", [0, 8_192])
def test_the_longest_answer_may_be_gone_on_from(count: int) -> None:
    asked = m.Forward(query(accepted=Accepted(tuple(range(count)), "x" * 2 * count, count)))
    assert CODEC.decode(CODEC.encode(asked)) == asked


@pytest.mark.parametrize(
    ("held", "pace", "field"),
    [
        ((b"x" * 7,), 1_000, "held"),
        (("x" * 8,), 1_000, "held"),
        ((b"x" * 8,) * 17, 1_000, "held"),
        ((), 19, "pace"),
        ((), 10_001, "pace"),
        ((), 1.0, "pace"),
        ((), None, "pace"),
    ],
)
def test_what_is_held_and_how_fast_one_is_have_bounds(held: object, pace: object, field: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"load: {field}: "):
        CODEC.decode(frame(8, (0.0, 0, 0, (), 0.0, held, pace)))


def test_a_model_that_keeps_too_many_conversations_is_not_described() -> None:
    for prefixes, fits in ((1_024, True), (1_025, False)):
        record = PeerRecord(A, V, "", (), replace(ABLE, models=(replace(MODEL, prefixes=prefixes),)))
        if fits:
            assert CODEC.decode_record(CODEC.encode_record(record)) == record
        else:
            with pytest.raises(LocalProtocolError, match="prefixes"):
                CODEC.encode_record(record)


def test_a_model_says_what_zones_it_is_for_and_no_more_than_a_peer_may_see() -> None:
    for count in (0, 1, 16, 17):
        labels = tuple(f"zone {i}" for i in range(count))
        record = PeerRecord(A, V, "", (), replace(ABLE, models=(replace(MODEL, zones=labels),)))
        if count <= 16:
            assert CODEC.decode_record(CODEC.encode_record(record)) == record
        else:
            with pytest.raises(LocalProtocolError, match="zones"):
                CODEC.encode_record(record)


def test_gpus_leave_the_room_that_skills_have() -> None:
    skills = tuple(Skill(f"skill {i:7}", np.ones(384, np.int8)) for i in range(16))
    able = replace(ABLE, skills=skills, devices=(Device("x" * 64, 2**62, 2**62),) * 8)
    record = PeerRecord(A, V, "a name", ("/ip4/192.168.100.100/tcp/44444",) * 3, able)
    assert CODEC.decode_record(CODEC.encode_record(record)) == record


def test_what_was_added_since_does_not_travel_where_it_says_nothing() -> None:
    """Peers of the version before can read it then."""
    [_, _, _, _, able] = msgpack.unpackb(CODEC.encode_record(PeerRecord(A, V, "", (), ABLE)))
    assert len(able) == 4
    packed = msgpack.unpackb(CODEC.encode(m.Forward(query())))
    assert len(packed[1]) == 17


def test_garbage_is_named_by_its_field() -> None:
    with pytest.raises(RemoteProtocolError, match=r"load: remaining_s: expected a finite number"):
        CODEC.decode(frame(8, (float("nan"), 0, 0, (), 0.0, (), 1_000)))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (m.Forward(query(hops_left=17)), "hops_left"),
        (m.Forward(query(budget_s=float("inf"))), "budget_s"),
        (m.Forward(query(messages=(Message("user", "x" * 131_073),))), "content"),
        (m.Forward(query(messages=(Message("user", ""),) * 257)), "messages"),
        (m.Forward(query(options=Options(top_p=1.1))), "top_p"),
        (m.Forward(query(options=Options(top_k=257))), "top_k"),
        (m.Forward(query(options=Options(min_p=-0.1))), "min_p"),
        (m.Forward(query(options=Options(repeat_penalty=0.0))), "repeat_penalty"),
        (m.Forward(query(options=Options(frequency_penalty=float("nan")))), "frequency_penalty"),
        (m.Forward(query(options=Options(presence_penalty=2.1))), "presence_penalty"),
        (m.Forward(query(options=Options(logit_bias=((1, 0.0),) * 257))), "logit_bias"),
        (m.Forward(query(options=Options(logit_bias=((-1, 0.0),)))), "logit_bias"),
        (m.Forward(query(options=Options(logit_bias=((1, 101.0),)))), "logit_bias"),
        (m.Forward(query(options=Options(logit_bias=((1, 2, 3),)))), "cannot be encoded"),  # type: ignore[arg-type]
        (m.Forward(query(options=Options(schema="x" * 16_385))), "schema"),
        (m.Forward(query(options=Options(logprobs=21))), "logprobs"),
        (m.Forward(query(options=Options(schema="\ud800"))), "cannot be encoded"),
        (m.Forward(query(options=Options(temperature=10**400))), "cannot be encoded"),  # type: ignore[arg-type]
        (m.Forward(query(options=Options(temperature="hot"))), "cannot be encoded"),  # type: ignore[arg-type]
        (m.Forward(query(text="\ud800")), "cannot be encoded"),
        (m.Forward(query(messages=(Message("user", "x" * 131_072),) * 3)), "bytes, at most"),
        (m.Ping(2**70), "cannot be encoded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_another_could_not_read_is_ours_to_notice(message: m.PeerMessage, field: str) -> None:
    with pytest.raises(LocalProtocolError, match=field):
        CODEC.check(message)


def test_what_is_not_asked_for_costs_no_bytes() -> None:
    def length(options: Options) -> int:
        return len(CODEC.encode(m.Forward(query(options=options))))

    least = length(Options())
    assert length(Options(top_k=1)) == least + 1
    assert length(Options(schema="{}")) == least + 1 + 4 * 9 + 1 + 3  # what stands before it, too


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((1, 0.0, 1.0, None), "expected the 5 to 13 fields of Options"),
        ((1, 0.0, 1.0, None, (), *[0] * 9), "expected the 5 to 13 fields of Options"),
        ((1, 0.0, 1.0, None, (), 1.0), "top_k"),
        ((1, 0.0, 1.0, None, (), 0, 0.0, 1.0, 0.0, 0.0, (1, 2.0)), "logit_bias: expected a pair"),
        ((1, 0.0, 1.0, None, (), 0, 0.0, 1.0, 0.0, 0.0, ((1,),)), "logit_bias: expected a pair"),
        ((1, 0.0, 1.0, None, (), 0, 0.0, 1.0, 0.0, 0.0, ((1, "x"),)), "logit_bias: expected a finite number"),
        ((1, 0.0, 1.0, None, (), 0, 0.0, 1.0, 0.0, 0.0, (), b"{}"), "schema: expected a text"),
    ],
)
def test_options_that_are_none_are_refused_by_name(fields: tuple[Any, ...], said: str) -> None:
    tag, asked = msgpack.unpackb(CODEC.encode(m.Forward(query())), use_list=False)
    assert CODEC.decode(frame(tag, asked)) == m.Forward(query())
    with pytest.raises(RemoteProtocolError, match=said):
        CODEC.decode(frame(tag, (*asked[:3], fields, *asked[4:])))


OWN = struct.pack("<BfB", 1, -1.0, 1) + b"a"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (b"", ""),
        (OWN, ""),
        (OWN * 2, "2 log-probabilities of 1 tokens"),
        (OWN[:-1], "within -9999..0, and its spelling"),
        (OWN[:3], "break off"),
        (struct.pack("<B", 2) + OWN[1:], "break off"),
        (struct.pack("<B", 0), "at most 20 others"),
        (struct.pack("<B", 22) + OWN[1:] * 22, "at most 20 others"),
        (struct.pack("<B", 21) + OWN[1:] * 21, ""),
        (struct.pack("<BfB", 1, 0.5, 0), "within -9999..0"),
        (struct.pack("<BfB", 1, float("nan"), 0), "within -9999..0"),
        (struct.pack("<BfB", 1, -1e30, 0), "within -9999..0"),
        (OWN * 1_025, "at most 1024 tokens"),
        (bytes(98_305), "at most 98304 bytes"),
        ("text", "at most 98304 bytes"),
    ],
)
def test_log_probabilities_that_are_none_are_refused(told: Any, said: str) -> None:
    data = frame(12, ("ab" * 16, 0, 0, (7,), "a", told))
    if not said:
        chunk = CODEC.decode(data)
        assert isinstance(chunk, m.Tokens)
        assert len(chunk.chunk.logprobs) == (1 if told else 0)
    else:
        with pytest.raises(RemoteProtocolError, match=said):
            CODEC.decode(data)


def test_only_queries_and_records_may_be_large() -> None:
    with pytest.raises(LocalProtocolError):
        CODEC.encode(m.Error("ab" * 16, 0, Reason.DEADLINE, "x" * 140_000))  # type: ignore[arg-type]
    large = m.Forward(query(messages=(Message("user", "x" * 65_000),) * 2))
    assert CODEC.decode(CODEC.encode(large)) == large
    with pytest.raises(RemoteProtocolError, match="at most"):
        CODEC.decode(b"\x92\x00" + b"\x00" * 200_000)


def test_the_messages_of_a_query_have_one_bound_together() -> None:
    for each, fits in ((65_536, True), (65_537, False)):
        asked = m.Forward(query(messages=(Message("user", "x" * each),) * 2))
        if fits:
            CODEC.check(asked)
        else:
            with pytest.raises(LocalProtocolError, match=f"{2 * each} bytes, at most 131072"):
                CODEC.check(asked)


@pytest.mark.parametrize("ident", ["", "a/b", "AB" * 16, "ab" * 15, "ab" * 17, "zz" * 16, 7])
def test_a_query_id_is_32_hex_digits(ident: object) -> None:
    with pytest.raises(RemoteProtocolError, match="hex"):
        CODEC.decode(frame(15, ident, 1))


def test_the_longest_list_of_lines_and_a_full_frame_of_records_fit() -> None:
    lines = tuple(m.Line(PeerId(f"{i:052}"), Version(2**40, 2**20), 3, bytes(16)) for i in range(1_024))
    for message in (m.Lines(tuple(range(32)), lines), m.Announce(lines), m.Seek(tuple(x.id for x in lines))):
        assert CODEC.decode(CODEC.encode(message)) == message
    skills = tuple(Skill(f"skill {i}", np.full(384, 7, np.int8), 0.5, 9) for i in range(16))
    full = replace(signed(A, V, Capability("s", skills, (MODEL,))), certificate=bytes(STATEMENT_BYTES_MAX))
    assert CODEC.decode(CODEC.encode(m.Records((full,) * 16))) == m.Records((full,) * 16)


def test_a_peer_with_small_tables_still_reads_the_longest_message() -> None:
    small = Codec(Limits(digest_max=4))
    for message in EVERY:
        assert small.decode(small.encode(message)) == message


def test_an_estimate_beyond_the_bound_is_told_as_the_bound() -> None:
    back = CODEC.decode(CODEC.encode(m.LoadReport(Load(1e300, 0, 0, (1e300, 1.0), 1e300))))
    assert back == m.LoadReport(Load(1e7, 0, 0, (1e7, 1.0), 1e7))


@pytest.mark.parametrize(
    "record",
    [
        PeerRecord(A, Version(2**62 + 1, 0)),
        PeerRecord(A, V, "n" * 65),
        PeerRecord(A, V, "", ("x",) * 9),
        PeerRecord(A, V, "", (), replace(ABLE, skills=(Skill("s", None, 1.5),))),
        PeerRecord(A, V, "", ("x" * 255,) * 8, replace(ABLE, models=(replace(MODEL, name="y" * 60),) * 99)),
    ],
    ids=["version", "name", "addresses", "quality", "too long"],
)
def test_a_record_that_nobody_would_read_is_not_signed(record: PeerRecord) -> None:
    with pytest.raises(LocalProtocolError):
        CODEC.encode_record(record)


def test_what_is_nested_too_deep_or_has_too_many_items_is_read_no_further() -> None:
    deep: Any = []
    for _ in range(Limits().decode_depth_max):
        deep = [deep]
    wide = [[0] * 1_000] * (Limits().decode_items_max // 1_000 + 1)
    for fields in (deep, wide):
        with pytest.raises(RemoteProtocolError, match="too deep"):
            CODEC.decode(msgpack.packb([CODEC.tags[m.Steal], fields]))
