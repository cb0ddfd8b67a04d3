"""Framing, whatever the bytes and however they are cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.net.framing import FrameReader, frame

LIMIT = 64


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.binary(max_size=LIMIT)), st.lists(st.integers(min_value=0), max_size=30))
def test_what_is_framed_comes_out_however_it_is_cut(bodies, cuts):
    reader = FrameReader(LIMIT)
    stream = b"".join(frame(body) for body in bodies)
    assert [body for piece in _pieces(stream, cuts) for body in reader.feed(piece)] == bodies
    assert reader.unfinished == 0


@given(st.binary(max_size=500), st.lists(st.integers(min_value=0), max_size=30))
def test_any_bytes_raise_only_our_error_and_cutting_changes_nothing(data, cuts):
    def read(pieces: list[bytes]) -> tuple[list[bytes], bool]:
        reader, got = FrameReader(LIMIT), []
        try:
            for piece in pieces:
                got += reader.feed(piece)
                assert reader.unfinished <= LIMIT + 4
        except RemoteProtocolError:
            return got, True
        return got, False

    whole, failed = read([data])
    cut, cut_failed = read(_pieces(data, cuts))
    assert cut_failed == failed
    # The frames before a bad length come out where they came in a piece of their own.
    assert cut == whole or (failed and cut[: len(whole)] == whole)
