"""Frames: what is sent arrives, in whatever pieces; and no bytes do worse than an `EngineError`."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.config import Limits
from p2pmesh.engine import base, frames
from p2pmesh.errors import EngineError, Reason
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.query import Chunk, Ended, Message, Options, QueryId, TokenLogprobs, Usage
from p2pmesh.record import Capability, Device, ModelInfo, PeerId, PeerRecord, Version

text = st.text(st.characters(codec="utf-8"), max_size=20)
jobs = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
counts = st.integers(0, 2**31 - 1)
speeds = st.floats(0.001, 1e6)
options = st.builds(
    Options,
    counts,
    st.floats(0, 2),
    st.floats(0, 1),
    st.none() | counts,
    st.lists(text, max_size=3).map(tuple),
    counts,
    *[st.floats(-2, 2)] * 4,
    st.lists(st.tuples(counts, st.floats(-100, 100)), max_size=3).map(tuple),
    text,
    st.none() | st.integers(0, 20),
)
requests = st.one_of(
    st.builds(base.Load, path=text, name=text, tokens_per_s=speeds, slots=st.integers(1, 64)),
    st.builds(base.Generate, jobs, st.lists(st.builds(Message, text, text), max_size=3).map(tuple), options),
    st.builds(base.Embed, jobs, st.lists(text, min_size=1, max_size=3).map(tuple)),
    st.builds(base.Abort, jobs),
)
entries = st.tuples(st.binary(max_size=9), st.floats(-9_999, 0))
logprobs = st.builds(
    lambda own, top: TokenLogprobs(*own, top), entries, st.lists(entries, max_size=20).map(tuple)
)
digests = st.sampled_from(["", "0f" * 32])
info = st.builds(ModelInfo, text, digests, st.integers(1, 2**31 - 1), speeds, speeds, st.integers(1, 64))
events = st.one_of(
    st.builds(base.Ready, info, st.integers(0, 1024), text, counts),
    st.builds(base.LoadFailed, text),
    st.builds(base.Generated, jobs, st.lists(counts, max_size=4).map(tuple), text),
    st.builds(
        base.Generated, jobs, st.tuples(counts, counts), text, st.tuples(logprobs, logprobs) | st.just(())
    ),
    st.builds(base.Finished, jobs, st.builds(Usage, counts, counts), st.sampled_from(["stop", "length"])),
    st.builds(base.Failed, jobs, st.sampled_from(Reason), text, st.none() | counts),
    st.just(base.Alive()),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


@given(st.lists(requests, max_size=4), st.lists(st.integers(0, 10_000), max_size=5))
def test_requests_arrive_in_whatever_pieces(sent: list[base.Request], cuts: list[int]):
    reader = frames.RequestReader()
    data = b"".join(map(frames.encode, sent))
    assert [r for p in pieces(data, cuts) for r in reader.feed(p)] == sent


@given(st.lists(events, max_size=4), st.lists(st.integers(0, 10_000), max_size=5))
def test_events_arrive_in_whatever_pieces(sent: list[base.Event], cuts: list[int]):
    reader = frames.EventReader()
    data = b"".join(map(frames.encode, sent))
    assert [e for p in pieces(data, cuts) for e in reader.feed(p)] == sent


@given(jobs, st.integers(1, 64), st.integers(1, 400))
def test_vectors_arrive_bit_by_bit(job: str, rows: int, dimensions: int):
    vectors = np.random.default_rng(rows).normal(size=(rows, dimensions)).astype(np.float32)
    (event,) = frames.EventReader().feed(frames.encode(base.Embedded(job, vectors)))
    assert isinstance(event, base.Embedded)
    assert event.job == job
    assert event.vectors.tobytes() == vectors.tobytes()


wild = st.integers(-5, 5) | st.sampled_from([1_024, 1_025, 2**31 - 1, 2**31, 2**40, 2**62 + 1])
unheard = st.one_of(
    st.builds(
        base.Generated,
        st.just("a"),
        st.lists(wild, max_size=3).map(tuple) | st.just((1,) * 1_024) | st.just((1,) * 1_025),
        text | st.sampled_from(["x" * 16_384, "x" * 16_385, "ä" * 9_000]),
    ),
    st.builds(base.Finished, st.just("a"), st.builds(Usage, wild, wild), st.just("stop")),
    st.builds(base.Failed, st.just("a"), st.just(Reason.TOO_LONG), st.just(""), wild),
    st.builds(
        base.Ready,
        st.builds(
            ModelInfo,
            st.just("m"),
            digests,
            wild,
            speeds | st.sampled_from([1e9, 1.1e9]),
            speeds,
            wild,
            wild,
        ),
        st.just(384),
        st.sampled_from(["", "x" * 64, "ä" * 64]),
        st.just(1),
        st.lists(st.builds(Device, text | st.just("ä" * 40), wild, wild), max_size=2).map(tuple),
    ),
)


@given(unheard)
def test_what_a_parent_takes_from_its_child_the_wire_carries(event: base.Event):
    try:
        (heard,) = frames.EventReader().feed(frames.encode(event))
    except EngineError:
        return
    codec, ident = Codec(Limits()), (QueryId("0" * 32), 0)
    match heard:
        case base.Generated():
            codec.encode(m.Tokens(Chunk(*ident, 0, heard.tokens, heard.text)))
        case base.Finished():
            codec.encode(m.End(*ident, 0, Ended(heard.usage, heard.finish_reason, "m", "")))
        case base.Failed():
            codec.encode(m.Refuse(*ident, heard.reason, heard.detail, prompt_tokens=heard.tokens or 0))
        case base.Ready():
            able = Capability(heard.space, (), (heard.info,), devices=heard.devices)
            codec.encode_record(PeerRecord(PeerId("a"), Version(1, 1), "", (), able))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_our_error(body: bytes):
    for reader in (frames.EventReader(), frames.RequestReader()):
        for data in (body, framed(body)):
            try:
                reader.feed(data)
            except EngineError:
                break


@given(events, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_event_raises_only_our_error(event: base.Event, edits: list[tuple[int, int]]):
    data = bytearray(frames.encode(event))
    for at, value in edits:
        data[at % len(data)] = value
    with suppress(EngineError):
        frames.EventReader().feed(bytes(data))


def packed(tag: int, *fields: object, **named: object) -> bytes:
    return framed(msgspec.msgpack.encode((tag, named or fields)))


def said(*logprobs: TokenLogprobs) -> bytes:
    tokens = (1,) * (1 if len(logprobs) == 2 else len(logprobs))
    return frames.encode(base.Generated("a", tokens, "", logprobs))


@pytest.mark.parametrize(
    "data",
    [
        (frames.FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
        frames.encode(base.Abort("a")),
        packed(99),
        packed(-1),
        packed(18, job="", tokens=[], text=""),
        packed(18, job="a", tokens=["1"], text=""),
        packed(18, job="a", tokens=[0] * 8_194, text=""),
        packed(18, job="a", tokens=[]),
        said(TokenLogprobs(b"a", -1.0), TokenLogprobs(b"a", -1.0)),
        said(TokenLogprobs(b"a", 0.1)),
        said(TokenLogprobs(b"a", float("nan"))),
        said(TokenLogprobs(b"a", -1.0, ((b"b", -1e9),))),
        said(TokenLogprobs(b"a" * 256, -1.0)),
        said(TokenLogprobs(b"a", -1.0, ((b"b", -1.0),) * 21)),
        said(*[TokenLogprobs(b"a" * 99, -1.0, ((b"b" * 99, -1.0),) * 20)] * 99),
        packed(19, job="a", usage={"prompt_tokens": 1}, finish_reason="bored"),
        packed(20, job="a", reason="because"),
        packed(20, job="a", reason="engine_failed", detail="x" * 2_001),
        packed(21, job="a", dimensions=3, data=bytes(8)),
        packed(21, job="a", dimensions=0, data=b""),
        packed(21, job="a", dimensions=1_025, data=bytes(4_100)),
        packed(21, job="a", dimensions=1, data=b""),
        packed(21, job="a", dimensions=1, data=np.array([np.nan], "<f4").tobytes()),
        frames.encode(base.Ready(ModelInfo("m", "", 1, float("nan"), 1.0, 1))),
        frames.encode(base.Ready(ModelInfo("m", "", 1, 1.0, 0.0, 1))),
        frames.encode(base.Ready(ModelInfo("m", "", 0, 1.0, 1.0, 1))),
        framed(b"\x91" * 100_000),
        framed(b"\x92\x12" + b"\x91" * 100_000),
        framed(frames.encode(base.Alive())[4:] + b"\xc0"),
    ],
)
def test_the_parent_refuses(data: bytes):
    with pytest.raises(EngineError):
        frames.EventReader().feed(data)


def test_what_cannot_be_sent_is_refused_at_home():
    with pytest.raises(EngineError, match="at most"):
        frames.encode(base.Embed("a", ("x" * frames.FRAME_BYTES_MAX,)))
    with pytest.raises(EngineError, match="cannot be sent"):
        frames.encode(base.Embed("a", ("\ud800",)))
    with pytest.raises(EngineError, match="cannot be sent"):
        frames.encode(base.Generate("a", (), Options(seed=2**70)))
