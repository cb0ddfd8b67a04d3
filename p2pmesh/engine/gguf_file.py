"""Is this file a whole GGUF? Answered from its head, in a second at most, whatever is in it.

Reads with bounds of its own and trusts no count in the file: the gguf package hangs on a file of 43 bytes,
and llama.cpp's message for a cut file is a page. It maps nothing, for who reads what somebody cuts off a
mapped file is killed, and this runs in the peer, too. A file that passes may still be refused by llama.cpp.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from p2pmesh.errors import ModelLoadError

KEYS_MAX = 4_096
"""Most metadata keys. Files in use have some 50."""
TENSORS_MAX = 65_536
ITEMS_MAX = 1_000_000
"""Most strings in all arrays: a vocabulary, and how its pieces are merged. The largest in use have 262 000
and twice as many."""
DEPTH_MAX = 4
"""Deepest array of arrays."""
TEXT_BYTES_MAX = 65_536
"""Longest text that is kept of the metadata, a chat template; longer ones are passed over."""
KEY_BYTES_MAX = 256
"""What is kept of the name of an entry. The longest in use have some 60 bytes."""
_WINDOW_BYTES = 1 << 20
"""What is read of the head at a time."""
KEPT_BYTES_MAX = 1 << 20
"""Most bytes of texts that are kept in all."""
_FORMATS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    32: "BF16",
}  # fmt: skip
_HALF_BYTES = 2
_LENGTH = struct.Struct("<Q").unpack_from
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each metadata type of fixed size."""
# fmt: off
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56),
    30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}
# fmt: on
"""Elements and bytes of one block of each tensor type. Of unknown types only the offset is checked."""


@dataclass(frozen=True)
class Header:
    """What the head of a GGUF says."""

    architecture: str
    tensors: int
    bytes_needed: int
    """Size the file must at least have."""
    weights: int = 0
    """Numbers in all its tensors."""
    numbers: dict[str, int] = field(default_factory=dict)
    """The whole numbers in its metadata; the architecture's own without its name before them."""
    texts: dict[str, str] = field(default_factory=dict)
    """The short texts in it: name, licence, chat template."""

    @property
    def format(self) -> str:
        """The quantisation most of its weights have, as llama.cpp names it; a number where it has no name
        here."""
        number = self.numbers.get("general.file_type", -1)
        return _FORMATS.get(number, str(number) if number >= 0 else "unknown")

    @property
    def cell_bytes(self) -> int:
        """Memory that one token of context takes, its keys and values being halves; 0: the file does not
        say. Where a model attends to a window only in some layers it takes less."""
        heads = self.numbers.get("attention.head_count", 0)
        groups = self.numbers.get("attention.head_count_kv", heads)
        width = self.numbers.get("embedding_length", 0) // heads if heads else 0
        key = self.numbers.get("attention.key_length", width)
        value = self.numbers.get("attention.value_length", width)
        return max(0, self.numbers.get("block_count", 0) * groups * (key + value) * _HALF_BYTES)


def check(path: Path) -> Header:
    """Return the header of a whole GGUF file.

    Raises `ModelLoadError`, with one line, when the file is missing, not a GGUF, damaged or cut.
    """
    try:
        # A pipe of that name would be waited for, until somebody writes to it.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            told = os.fstat(file)
            if not stat.S_ISREG(told.st_mode):
                raise ModelLoadError(f"{path} cannot be read: it is no regular file")
            if os.pread(file, 4, 0) != b"GGUF":
                raise ModelLoadError(f"{path.name} is not a GGUF file")
            size = told.st_size
            header = _Head(file, size).read()
        finally:
            os.close(file)
    except FileNotFoundError:
        raise ModelLoadError(f"there is no file {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror or error}") from None
    except _Damaged as error:
        raise ModelLoadError(f"{path.name} is damaged: {error}") from None
    if size < header.bytes_needed:
        raise ModelLoadError(f"{path.name} is cut: {size} bytes of at least {header.bytes_needed}")
    return header


class _Damaged(Exception):
    """The head contradicts itself."""


class _Head:
    """A cursor over the head of a file."""

    def __init__(self, file: int, size: int) -> None:
        self._file, self._size, self._at = file, size, 4
        self._window, self._begin = b"", 0
        """What was read last, and where in the file it begins."""
        self._items = self._weights = 0

    def read(self) -> Header:
        version, tensors, keys = self._unpack("<IQQ")
        if version not in (2, 3):
            raise _Damaged(f"version {version}, known are 2 and 3")
        if keys > KEYS_MAX or tensors > TENSORS_MAX:
            raise _Damaged(f"it claims {keys} keys and {tensors} tensors")
        numbers: dict[str, int] = {}
        texts: dict[str, str] = {}
        room = KEPT_BYTES_MAX
        for _ in range(keys):
            key = self._string(KEY_BYTES_MAX).decode("utf-8", "replace")
            (kind,) = self._unpack("<I")
            if kind in _NUMBERS:
                (numbers[key],) = self._unpack(_NUMBERS[kind])
            elif kind == _STRING:
                text = self._string(TEXT_BYTES_MAX + 1)
                if len(text) <= min(TEXT_BYTES_MAX, room):
                    texts[key] = text.decode("utf-8", "replace")
                    room -= len(text)
            else:
                self._skip(kind, 0)
        architecture = texts.get("general.architecture", "")[:64]
        alignment = numbers.get("general.alignment", 32)
        if not 1 <= alignment <= 65_536 or not architecture:
            raise _Damaged("it has no architecture, or an alignment that cannot be")
        ends = [self._tensor() for _ in range(tensors)]
        start = math.ceil(self._at / alignment) * alignment
        own = {key.removeprefix(f"{architecture}."): number for key, number in numbers.items()}
        return Header(architecture, tensors, start + max(ends, default=0), self._weights, own, texts)

    def _tensor(self) -> int:
        """Return where a tensor ends, counted from the first one's beginning."""
        self._string()
        (count,) = self._unpack("<I")
        if count > 8:
            raise _Damaged(f"a tensor of {count} dimensions")
        shape = self._unpack(f"<{count}Q")
        kind, offset = self._unpack("<IQ")
        elements, size = _BLOCKS.get(kind, (1, 0))
        self._weights += math.prod(shape)
        return int(offset) + math.prod(shape) // elements * size

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._advance(_SIZES[kind])
        elif kind == _STRING:
            self._string()
        elif kind == _ARRAY and depth < DEPTH_MAX:
            inner, count = self._unpack("<IQ")
            if inner in _SIZES:
                self._advance(count * _SIZES[inner])
                return
            self._items += count
            if self._items > ITEMS_MAX:
                raise _Damaged(f"arrays of {self._items} items")
            if inner == _STRING:
                self._skip_strings(count)
                return
            for _ in range(count):
                self._skip(inner, depth + 1)
        else:
            raise _Damaged(f"a value of the unknown type {kind}")

    def _skip_strings(self, count: int) -> None:
        """Pass over a vocabulary: what takes most of the time."""
        for _ in range(count):
            start = self._at - self._begin
            if not 0 <= start <= len(self._window) - 8:
                start = self._look(8)
            self._at += 8 + _LENGTH(self._window, start)[0]
            if self._at > self._size:
                raise _Damaged("it ends within its head")

    def _string(self, keep: int = 0) -> bytes:
        """Return the first `keep` bytes of a string, and stand behind it."""
        (length,) = self._unpack("<Q")
        kept = min(length, keep)
        start = self._look(kept)
        self._advance(length)
        return self._window[start : start + kept]

    def _unpack(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        start = self._look(size)
        self._at += size
        return struct.unpack_from(layout, self._window, start)

    def _look(self, count: int) -> int:
        """Return where in the window the next `count` bytes are."""
        if not self._begin <= self._at <= self._begin + len(self._window) - count:
            self._window, self._begin = os.pread(self._file, _WINDOW_BYTES, self._at), self._at
            if len(self._window) < count:
                raise _Damaged("it ends within its head")
        return self._at - self._begin

    def _advance(self, count: int) -> None:
        if count > self._size - self._at:
            raise _Damaged("it ends within its head")
        self._at += count
