"""Frames in a stream of bytes: four bytes of length, big-endian, then the body.

Pure: bytes in, frames out. It knows neither what a frame means nor where the bytes come from, and it never
holds more than one unfinished frame.
"""

from __future__ import annotations

import struct

from p2pmesh.errors import LocalProtocolError, RemoteProtocolError

_LENGTH = struct.Struct("!I")
HEADER_BYTES = _LENGTH.size
BODY_BYTES_MAX = 2**32 - 1
"""Longest body the header can tell of."""


def frame(body: bytes) -> bytes:
    """Return `body` with its length before it. Raises LocalProtocolError where the header cannot hold
    that."""
    if len(body) > BODY_BYTES_MAX:
        raise LocalProtocolError(f"a frame of {len(body)} bytes is longer than {BODY_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts frames out of bytes as they come. Each byte is copied at most twice, however small the pieces."""

    def __init__(self, limit: int) -> None:
        """`limit`: longest body taken, in bytes."""
        self._limit = limit
        self._rest = bytearray()

    @property
    def unfinished(self) -> int:
        """Bytes held of a frame that is not whole yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies that `data` completes, in order.

        Raises RemoteProtocolError where a length exceeds the limit: the stream cannot be read further, and
        the reader must be dropped with it.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed():
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= HEADER_BYTES:
            start = at + HEADER_BYTES
            stop = start + self._checked(_LENGTH.unpack_from(data, at)[0])
            if stop > end:
                break
            frames.append(data[start:stop])
            at = stop
        if at < end:
            self._rest += data[at:] if at else data
        return frames

    def _needed(self) -> int:
        """Return the bytes the unfinished frame has when whole, as far as its beginning tells."""
        if len(self._rest) < HEADER_BYTES:
            return HEADER_BYTES
        return HEADER_BYTES + self._checked(_LENGTH.unpack_from(self._rest)[0])

    def _checked(self, length: int) -> int:
        if length > self._limit:
            raise RemoteProtocolError(f"a frame of {length} bytes, at most {self._limit}")
        return length
