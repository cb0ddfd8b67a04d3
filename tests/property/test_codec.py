"""Every message comes back as it went, and of any bytes decode raises only our error."""

from __future__ import annotations

import struct
from random import Random

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import Limits
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from tests.property.strategies import messages
from tests.unit.test_codec import EVERY

CODEC = Codec(Limits())
FRAMES = [CODEC.encode(message) for message in EVERY]


def survives(data: bytes) -> bool:
    """Decode `data`; whatever else than our own error comes out fails the test. Returns whether it was."""
    try:
        message = CODEC.decode(data)
    except RemoteProtocolError:
        return False
    CODEC.decode(CODEC.encode(message))  # what was read can be said again
    return True


@settings(max_examples=400, deadline=None)
@given(messages)
def test_every_message_comes_back_as_it_went(message: m.PeerMessage) -> None:
    back = CODEC.decode(CODEC.encode(message))
    if isinstance(message, m.Forward) and isinstance(back, m.Forward):
        ours, theirs = message.query.vector, back.query.vector
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs)  # type: ignore[arg-type]
    assert CODEC.encode(back) == CODEC.encode(message)
    assert type(back) is type(message)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_raise_our_error_only(data: bytes) -> None:
    survives(data)
    survives(bytes([0x92 + len(data) % 6, len(data) % 16]) + data)


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_raise_our_error_only(seed: int) -> None:
    rng = Random(seed)
    for _ in range(2_000):
        survives(bytes([0x90 | rng.randrange(16), rng.randrange(22)]) + rng.randbytes(rng.randrange(60)))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_frames_raise_our_error_only(seed: int) -> None:
    rng, read = Random(seed), 0
    for _ in range(2_500):
        data = bytearray(rng.choice(FRAMES))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at : at + rng.randint(1, 8)]
                case 3:
                    data[at:at] = rng.randbytes(rng.randint(1, 8))
                case _:
                    other = rng.choice(FRAMES)
                    data[at:] = other[rng.randrange(len(other)) :]
            if not data:
                break
        read += survives(bytes(data))
    assert read > 50  # the mutants reach beyond the first check


@pytest.mark.parametrize("kind", [i for i, frame in enumerate(FRAMES) if len(frame) > 2])
def test_any_values_in_any_field_raise_our_error_only(kind: int) -> None:
    rng = Random(kind)
    odd = [None, True, -1, 2**63, 1.5, float("nan"), float("inf"), "", "x" * 70, b"", b"\x80", [], [[]]]
    for _ in range(200):
        values = list(msgpack.unpackb(FRAMES[kind], use_list=True))
        spot = values
        while True:
            at = rng.randrange(1 if spot is values else 0, len(spot))
            inner = spot[at]
            if isinstance(inner, list) and inner and rng.random() < 0.7:
                spot = inner
                continue
            spot[at] = rng.choice(odd)
            break
        survives(bytes(msgpack.packb(values)))


def bombs() -> dict[str, bytes]:
    """Frames that would be dear to read."""
    ping, forward = b"\x93\x00\x01", b"\x92\x09"
    return {
        "deep arrays": ping + b"\x91" * 100_000 + b"\xc0",
        "deep within the large frame": forward + b"\x91" * 200_000 + b"\xc0",
        "nine deep": ping + b"\x91" * 9 + b"\xc0",
        "deep maps": ping + b"\x81\x01" * 50_000 + b"\xc0",
        "1 MB of empty maps": b"\x92\x09\xdd" + struct.pack(">I", 2**20) + b"\x80" * 2**20,
        "empty arrays that fit": b"\x92\x09\xdc\x04\x00" + (b"\xdc\x00\xc8" + b"\x90" * 200) * 1_024,
        "a huge array": ping + b"\xdd\xff\xff\xff\xff",
        "a huge map": ping + b"\xdf\xff\xff\xff\xff",
        "a huge text": ping + b"\xdb\xff\xff\xff\xff" + b"x",
        "huge bytes": ping + b"\xc6\xff\xff\xff\xff" + b"x",
        "a huge extension": ping + b"\xc9\xff\xff\xff\xff\x01",
        "a short timestamp": ping + b"\xd6\xff" + bytes(4),
        "a long timestamp": ping + b"\xc7\x0c\xff" + bytes(12),
        "an extension of nothing": ping + b"\xc7\x00\x05",
        "a surrogate": b"\x93\x0f\xa3\xed\xa0\x80\x00",
        "bytes that are no text": b"\x93\x0f\xa2\xff\xfe\x00",
        "not a number": b"\x92\x08\x95\xcb" + struct.pack(">d", float("nan")) + b"\x00\x00\x90\x00",
        "infinity": b"\x92\x08\x95\xcb" + struct.pack(">d", float("inf")) + b"\x00\x00\x90\x00",
        "the unused byte": ping + b"\xc1",
        "only tags": bytes(range(0x90, 0xA0)),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused(name: str) -> None:
    assert not survives(bombs()[name])
