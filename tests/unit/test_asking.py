"""What clients write down of what a door says, with a door that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio

from benchmarks.asking import Asking, CutOff, fetch
from benchmarks.history import History, Judge

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
WORDS = 3
TEXTS = ["echo:", " q1.0", " q1.1", " q1.2"]
WAY = {"path": [{"peer": "A", "name": "ada", "why": ""}, {"peer": "B", "name": "bea", "why": ""}]}


def event(text: str | None = None, *, end: str | None = None, first: bool = False, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    if first:
        delta = {"role": "assistant", "content": ""}
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": end}], **more}
    return f"data: {json.dumps(body)}\n\n".encode()


BEGUN = event(first=True, p2pmesh=WAY)
ERROR = b'data: {"error": {"message": "gone", "code": "peer_lost"}}\n\n'
DONE = event(end="stop") + b"data: [DONE]\n\n"


@asynccontextmanager
async def door(parts: Sequence[bytes]) -> AsyncIterator[tuple[Asking, History]]:
    async def say(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            for part in parts:
                await stream.send_all(part)
                await trio.sleep(0.001)

    history = History(trio.current_time)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, say, listeners)
        yield Asking(history, lambda _: url, Random(1), WORDS), history
        nursery.cancel_scope.cancel()


def told(history: History) -> list[tuple[str, Any]]:
    return [(r["what"], r.get("text", r.get("code", r.get("path")))) for r in history.rows]


async def test_a_whole_answer_is_written_down_piece_by_piece():
    async with door([OK, BEGUN, *map(event, TEXTS), DONE]) as (asking, history):
        assert await asking.over_http("ada") == "ended"
    way = ["ada", "bea"]
    pieces = [("piece", text) for text in TEXTS]
    assert told(history) == [("asked", None), ("placed", way), *pieces, ("ended", way)]
    assert Judge().read(history.rows) == []
    assert asking.open == []


async def test_who_went_on_is_written_down_at_the_end():
    resumed = {"path": [*WAY["path"][:1], {"peer": "C", "name": "cyn", "why": ""}], "resumed": ["cyn"]}
    end = event(end="stop", p2pmesh=resumed)
    async with door([OK, BEGUN, *map(event, TEXTS), end]) as (asking, history):
        assert await asking.over_http("ada") == "ended"
    assert history.rows[-1]["resumed"] == ["cyn"]
    assert history.rows[-1]["path"] == ["ada", "cyn"]


async def test_an_error_amid_the_stream_is_its_end():
    async with door([OK, BEGUN, event(TEXTS[0]), ERROR, b"data: [DONE]\n\n"]) as (asking, history):
        assert await asking.over_http("ada") == "failed"
    assert told(history)[-1] == ("failed", "peer_lost")
    assert Judge().read(history.rows) == []


@pytest.mark.parametrize("cut", [1, 30, 60])
async def test_a_refusal_has_a_code_however_it_arrives(cut: int):
    said = b'HTTP/1.1 503 Unavailable\r\nx: y\r\n\r\n{"error": {"message": "no", "code": "mesh_overloaded"}}'
    async with door([said[:cut], said[cut:]]) as (asking, history):
        assert await asking.over_http("ada") == "failed"
    assert told(history)[-1] == ("failed", "mesh_overloaded")


@pytest.mark.parametrize("said", [[], [OK], [OK, BEGUN, event(TEXTS[0])], [OK, BEGUN, DONE[:20]]])
async def test_a_stream_without_an_end_is_cut_off(said: list[bytes]):
    async with door(said) as (asking, history):
        assert await asking.over_http("ada") == "cut"
    assert [v.rule for v in Judge().read(history.rows)] == ["lost"]


@pytest.mark.parametrize("end", [DONE[:-14], ERROR])
@pytest.mark.parametrize("late", [event(" q1.2"), DONE, ERROR])
async def test_what_comes_after_an_end_is_written_down_after_it(end: bytes, late: bytes):
    async with door([OK, BEGUN, *map(event, TEXTS), end, late]) as (asking, history):
        await asking.over_http("ada")
    assert [v.rule for v in Judge().read(history.rows)] == ["after its end"]


async def test_nobody_there_is_cut_off_too():
    async with door([]) as (asking, history):
        asking._url_of = lambda _: "http://127.0.0.1:1"
        assert await asking.over_http("ada") == "cut"
    assert asking.open == []
    assert Judge().read(history.rows)


async def test_a_client_that_goes_away_waits_for_nothing():
    async with door([OK, BEGUN, event(TEXTS[0]), *[b": wait\n"] * 100_000]) as (asking, history):
        with trio.move_on_after(0.1):
            await asking.over_http("ada")
    assert told(history)[-1][0] == "left"
    assert Judge().read(history.rows) == []


async def test_a_get_is_its_json_or_an_error():
    async with door([b'HTTP/1.1 200 OK\r\n\r\n{"a"', b": 1}"]) as (asking, _):
        assert await fetch(asking._url_of("ada"), "/x") == {"a": 1}
    async with door([b"HTTP/1.1 200 OK\r\n\r\n{"]) as (asking, _):
        with pytest.raises(CutOff):
            await fetch(asking._url_of("ada"), "/x")
