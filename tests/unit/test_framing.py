"""Frames: length, body, and a bound."""

from __future__ import annotations

import pytest

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.net.framing import FrameReader, frame


def test_a_frame_is_its_length_and_its_body():
    assert frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert frame(b"") == b"\x00\x00\x00\x00"


def test_several_frames_in_one_piece_come_out_in_order():
    assert FrameReader(10).feed(frame(b"a") + frame(b"") + frame(b"bc")) == [b"a", b"", b"bc"]


def test_a_frame_in_many_pieces_comes_out_once_whole():
    reader = FrameReader(10)
    pieces = [reader.feed(bytes([byte])) for byte in frame(b"hello")]
    assert pieces == [[]] * 8 + [[b"hello"]]
    assert reader.unfinished == 0


def test_the_longest_frame_is_taken_and_one_byte_more_is_not():
    assert FrameReader(5).feed(frame(b"12345")) == [b"12345"]
    with pytest.raises(RemoteProtocolError, match="6 bytes, at most 5"):
        FrameReader(5).feed(frame(b"123456"))


def test_a_length_too_great_is_refused_before_its_body_comes():
    reader = FrameReader(5)
    reader.feed(b"\xff\xff\xff")
    with pytest.raises(RemoteProtocolError):
        reader.feed(b"\xff")


def test_no_more_is_held_than_one_unfinished_frame():
    reader = FrameReader(100)
    for _ in range(1_000):
        reader.feed(frame(b"x" * 100) * 3 + frame(b"x" * 100)[:60])
        assert reader.unfinished <= 104
        reader.feed(frame(b"x" * 100)[60:])
        assert reader.unfinished == 0
