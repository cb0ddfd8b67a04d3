"""The least of HTTP that reads a stream of server-sent events: one response on one connection. Pure.

A library would do it too; this is small enough to be sure that the client costs the measured server nothing.
"""

from __future__ import annotations

import json
from typing import Any


class BadResponse(Exception):
    """The server said something else than a stream of events."""


class EventStream:
    """Takes the bytes of a response as they come and gives the events whose data is JSON."""

    def __init__(self) -> None:
        self._raw = b""
        self._body = b""
        self._head_read = False
        self._chunked = False
        self._chunk_left = 0

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the events that `data` completes. Raises `BadResponse` for any status but 200."""
        self._raw += data
        if not self._head_read:
            head, mark, rest = self._raw.partition(b"\r\n\r\n")
            if not mark:
                return []
            self._read_head(head.decode("latin-1"), rest)
        self._unchunk()
        *lines, self._body = self._body.split(b"\n")
        found = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return [json.loads(text) for text in found if text != b"[DONE]"]

    def _read_head(self, head: str, rest: bytes) -> None:
        status, *fields = head.split("\r\n")
        if status.split(" ")[1:2] != ["200"]:
            raise BadResponse(f"{status}: {rest[:500].decode('utf-8', 'replace')}")
        names = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (f.partition(":") for f in fields)
        }
        self._chunked = names.get("transfer-encoding") == "chunked"
        self._head_read, self._raw = True, rest

    def _unchunk(self) -> None:
        """Move what is whole of the body from the wire's bytes to its own."""
        if not self._chunked:
            self._body, self._raw = self._body + self._raw, b""
            return
        while self._raw:
            if not self._chunk_left:
                size, mark, rest = self._raw.lstrip(b"\r\n").partition(b"\r\n")
                if not mark:
                    return
                self._chunk_left, self._raw = int(size.split(b";")[0], 16), rest
                if not self._chunk_left:
                    return
            taken = self._raw[: self._chunk_left]
            self._body += taken
            self._raw = self._raw[len(taken) :]
            self._chunk_left -= len(taken)
