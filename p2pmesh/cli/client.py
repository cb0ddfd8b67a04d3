"""A running peer, over loopback HTTP: what every verb but `up` and `demo` talks to.

Standard library only, so that a verb answers in a fraction of a second: neither libp2p nor llama.cpp is
imported on this side.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

from p2pmesh.peer import state

KEY = "P2PMESH_KEY"
"""The environment variable with the key for a peer of another machine, which is asked by https."""
TIMEOUT_S = 150.0
"""Seconds to wait for a byte of an answer: longer than any query's budget."""
_CALL_S = 15.0
"""Seconds to wait for anything else: an embedding, which `explain` takes, has 10. A peer that was stopped, or
swaps, says nothing at all."""

_STALL_S = 20.0
"""Seconds without a byte amid an answer after which another peer is asked for the rest, where one was named:
longer than the mesh takes for a new writer, 10 s for a model that crashed, some five for a frozen peer."""
_ELSEWHERE = frozenset({"peer_lost", "mesh_overloaded", "no_route", "model_not_found", "engine_failed"})
"""Errors before an answer has begun that another peer may not have."""

STOP_S = 30.0
"""Seconds a peer has to end."""
_POLL_S = 0.05


class NoPeer(Exception):
    """No peer runs there."""


class Unsuccessful(Exception):
    """The peer answered with an error; `code` is OpenAI's."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def find(url: str | None, directory: str) -> str:
    """Return the base URL: `url`, or that of the peer that runs in `directory`. Raises NoPeer."""
    if url:
        return url
    path = state.directory(directory)
    running = state.running(path)
    if running is None:
        raise NoPeer(
            f"no peer runs in {path}: start one with `p2pmesh up`, or name another with --state or --url"
        )
    if not running.get("http"):
        how = f"end it with `kill {running.get('pid')}`"
        raise NoPeer(f"the peer in {path} was started without HTTP, so no verb reaches it; {how}")
    return str(running["http"])


def token(directory: str) -> str:
    """Return the token of the peer that runs in `directory`, or "" where it cannot be read."""
    running = state.running(state.directory(directory)) or {}
    return str(running.get("token", ""))


def call(
    base: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """Return the JSON that the peer at `base` answers. Raises NoPeer or Unsuccessful."""
    with _response(base, method, path, body, headers, _CALL_S, _CALL_S) as response:
        data = response.read()
        return json.loads(data) if data else None


def wait_gone(base: str, own_directory: bool, directory: str, grace_s: float = 0.0) -> None:
    """Return when the peer at `base` has ended, which may take it `grace_s` longer than usual; told by its
    directory where that is known, for it is let go last. Raises Unsuccessful when it does not end."""
    path = state.directory(directory)
    for _ in range(round((STOP_S + grace_s) / _POLL_S)):
        if own_directory:
            if not state.is_held(path):
                return
        else:
            try:
                call(base, "GET", "/healthz")
            except NoPeer:
                return
        time.sleep(_POLL_S)
    raise Unsuccessful(f"the peer has not ended within {STOP_S + grace_s:g} s", "not_stopped")


def events(bases: Sequence[str], path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each server-sent event of the answer, as the first of `bases` gives it; should that one be gone
    or unable, or die or fall silent amid the answer, what follows as the next gives it.

    Raises as `call` does, and Unsuccessful for an error event or a stream that is cut."""
    mark = ""
    for number, base in enumerate(bases):
        begun, place, last = False, mark, number + 1 == len(bases)
        stall_s = TIMEOUT_S if last else _STALL_S
        try:
            with (
                _response(base, "GET", "/mesh/v1/answers", None, {"last-event-id": mark}, stall_s)
                if mark
                else _response(base, "POST", path, body, stall_s=stall_s)
            ) as response:
                for line in response:
                    text = line.decode("utf-8").strip()
                    if text == "data: [DONE]":
                        return
                    if text.startswith("id: "):
                        place = text[len("id: ") :]
                    if text.startswith("data: "):
                        event = json.loads(text[len("data: ") :])
                        _check(event)
                        begun, mark = True, place  # an id counts once its event has come
                        yield event
                raise Unsuccessful(f"the peer at {base} went away amid the answer{_hint(bases)}", "peer_lost")
        except (NoPeer, Unsuccessful) as exc:
            code = "peer_lost" if isinstance(exc, NoPeer) else exc.code
            # Of a zone, an answer is given only at peers that may see it: another may.
            elsewhere = "answer_not_found" if mark else _ELSEWHERE
            lost = code == "peer_lost" or (not begun and code in elsewhere)
            if last or not lost or (begun and not mark):
                raise


def _hint(bases: Sequence[str]) -> str:
    return "" if len(bases) > 1 else "; given a second --url, the rest would come from there"


@contextmanager
def _response(
    base: str,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    headers: dict[str, str] | None = None,
    stall_s: float = TIMEOUT_S,
    begin_s: float = TIMEOUT_S,
) -> Iterator[http.client.HTTPResponse]:
    try:
        where = urlsplit(base if "//" in base else f"//{base}")
        if where.scheme not in ("", "http", "https"):
            raise ValueError(f"a peer speaks http or https, not {where.scheme}")
        fields = {"content-type": "application/json", **(headers or {})}
        kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
        if where.scheme == "https":  # another machine's: a key goes nowhere in the clear
            kind = http.client.HTTPSConnection
            fields["authorization"] = f"Bearer {os.environ.get(KEY, '')}"
        connection = kind(where.hostname or "", where.port, timeout=begin_s)
        with closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, fields)
            wire = connection.sock
            with connection.getresponse() as response:
                wire.settimeout(stall_s)  # from the first byte of an answer on
                if response.status >= 400:
                    _check(json.loads(response.read()))
                yield response
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise NoPeer(f"no peer answers at {base}: {exc}") from None


def _check(body: Any) -> None:
    error = body.get("error") if isinstance(body, dict) else None
    if error:
        raise Unsuccessful(str(error.get("message")), str(error.get("code")))


def printable(text: str) -> str:
    """Return what others call themselves, or say, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
