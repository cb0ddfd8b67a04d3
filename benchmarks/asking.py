"""Clients that ask a mesh and write down what they see: streams over HTTP, or a Python peer's answers.

Each prompt is made of words that no other has, so that a token in the wrong place or of another answer is
known as such. It knows how to ask, and nothing of who is killed, when or why; it judges nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from benchmarks.history import History
from benchmarks.sse import BadResponse, EventStream
from p2pmesh.errors import QueryError
from p2pmesh.peer.peer import Peer
from p2pmesh.query import AUTO, Options

BUDGET_S = 30.0
"""Seconds of a query: the peers are told so, and the judge holds them to it."""
HANG_S = 10.0
"""Seconds after the budget at which a client gives up; the judge has called it late long before."""
READ_BYTES = 65_536
ANSWER_MAX = 1_048_576
REFUSAL_MAX = 4_096
"""Bytes of a response that are kept, in case it is a refusal."""
_CODE = re.compile(r'"code":\s*"(\w+)"')


class Refusal(Exception):
    """The peer answered with an error; `code` is OpenAI's."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class CutOff(Exception):
    """The connection ended without an end of the answer."""


async def _request(url: str, method: str, path: str, body: bytes) -> trio.SocketStream:
    host, _, port = url.removeprefix("http://").rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    try:
        await stream.send_all(head.encode() + body)
    except BaseException:
        stream.socket.close()
        raise
    return stream


async def fetch(url: str, path: str) -> Any:
    """Return the JSON that a peer says to a GET. Raises OSError or CutOff."""
    try:
        stream = await _request(url, "GET", path, b"")
        async with stream:
            raw = b""
            async for data in stream:
                raw += data
                if len(raw) > ANSWER_MAX:
                    raise CutOff(f"{path}: too long an answer")
        return json.loads(raw.partition(b"\r\n\r\n")[2])
    except (trio.BrokenResourceError, ValueError) as error:
        raise CutOff(f"{path}: {error}") from error


async def events(url: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of one chat stream. Raises Refusal, OSError or CutOff."""
    stream = await _request(url, "POST", "/v1/chat/completions", json.dumps(body).encode())
    reader, raw, refused = EventStream(), b"", False
    try:
        while True:
            data = bytes(await stream.receive_some(READ_BYTES))
            raw += data if len(raw) < REFUSAL_MAX else b""
            if not data:
                break
            try:
                found = [] if refused else reader.feed(data)
            except BadResponse:
                refused = True  # its body may still be on the way
                continue
            for event in found:
                yield event
    except trio.BrokenResourceError as error:
        raise CutOff(str(error)) from error
    finally:
        stream.socket.close()
    if refused:
        said = raw.decode("utf-8", "replace")
        code = _CODE.search(said)
        raise Refusal(code[1] if code else "", said.partition("\r\n\r\n")[2][:200])


@dataclass(eq=False)
class Open:
    """A stream that has not ended."""

    query: str
    asker: str
    path: tuple[str, ...] = ()
    """As last told."""
    pieces: int = 0
    asked_at: float = 0.0


class Asking:
    """Asks, and writes down what comes of it."""

    def __init__(self, history: History, url_of: Callable[[str], str], rng: Random, words: int) -> None:
        """`url_of` tells where a peer's HTTP door is."""
        self.open: list[Open] = []
        self._history = history
        self._url_of = url_of
        self._rng = rng
        self._words = words
        self._number = 0

    def _begin(self, asker: str, model: str, words: int) -> tuple[Open, str]:
        self._number += 1
        query = f"q{self._number}"
        prompt = " ".join(f"{query}.{i}" for i in range(words))
        self._history.add("asked", query=query, asker=asker, model=model, prompt=prompt, budget_s=BUDGET_S)
        stream = Open(query, asker, asked_at=trio.current_time())
        self.open.append(stream)
        return stream, prompt

    async def over_http(self, asker: str, model: str = AUTO, words: int = 0) -> str:
        """Ask at a peer's door, and return how it ended: `ended`, `failed` or `cut`."""
        stream, prompt = self._begin(asker, model, words or self._words)
        body = {
            "model": model,
            "stream": True,
            "max_tokens": 2 * self._words + 8,
            "messages": [{"role": "user", "content": prompt}],
        }
        what, why = "", f"no end within {BUDGET_S + HANG_S:g} s"
        try:
            with trio.move_on_after(BUDGET_S + HANG_S):
                async with aclosing(events(self._url_of(asker), body)) as said:
                    async for event in said:
                        what = self._event(stream, event) or what
                why = "the stream ended without an end"
        except Refusal as refusal:
            what = self._say("failed", stream, code=refusal.code, detail=str(refusal))
        except (OSError, CutOff) as error:
            why = str(error)
        except trio.Cancelled:
            what = what or self._say("left", stream)
            raise
        finally:
            self.open.remove(stream)
        return what or self._say("cut", stream, detail=why)

    def _say(self, what: str, stream: Open, **told: Any) -> str:
        self._history.add(what, query=stream.query, **told)
        return what

    def _event(self, stream: Open, event: dict[str, Any]) -> str:
        """Write down one event of a stream, an end at once, so that what follows is seen to follow. Returns
        how it ended, if it did."""
        if "error" in event:
            error = event["error"]
            return self._say("failed", stream, code=str(error["code"]), detail=error["message"])
        how, way = "", event.get("p2pmesh", {})
        if way:
            stream.path = tuple(hop["name"] for hop in way["path"])
        for choice in event["choices"]:
            text = choice["delta"].get("content", "")
            if choice["delta"].get("role"):
                self._say("placed", stream, path=list(stream.path))
            if text:
                stream.pieces += 1
                self._say("piece", stream, text=text)
            if end := choice.get("finish_reason"):
                resumed = way.get("resumed", [])
                how = self._say("ended", stream, path=list(stream.path), resumed=resumed, finish=end)
        return how

    async def by_peer(self, peer: Peer, model: str = AUTO, words: int = 0) -> str:
        """Ask as a Python program does, that is a peer itself."""
        stream, prompt = self._begin(peer.name, model, words or self._words)
        options = Options(max_tokens=2 * self._words + 8)
        way: tuple[str, ...] = ()
        what = ""
        try:
            async with peer.stream(prompt, model=model, options=options, budget_s=BUDGET_S) as answer:
                async for piece in answer:
                    path = tuple(hop.name for hop in answer.path)
                    if path != way:  # not the stream's: that is emptied when somebody on it is killed
                        stream.path = way = path
                        self._say("placed", stream, path=list(path))
                    stream.pieces += 1
                    numbers = {"attempt": piece.attempt, "index": piece.index}
                    self._say("piece", stream, text=piece.text, tokens=list(piece.tokens), **numbers)
            what = self._say(
                "ended",
                stream,
                path=[hop.name for hop in answer.path],
                resumed=[hop.name for hop in answer.resumed],
                finish=answer.finish_reason,
                tokens=answer.usage.completion_tokens,
            )
        except QueryError as error:
            what = self._say("failed", stream, code=error.reason.value, detail=str(error))
        finally:
            self.open.remove(stream)
            if not what:
                self._say("left", stream)
        return what

    async def keep_asking(self, ask: Callable[[], Any], until: trio.Event, pause_s: float = 0.05) -> None:
        """Ask one after the other until `until`, and let the last one end."""
        while not until.is_set():
            await ask()
            await trio.sleep(pause_s * self._rng.uniform(0.5, 1.5))

    def midway(self, least: int = 1) -> Sequence[Open]:
        """Return the streams that have had `least` pieces, and are not near their end."""
        return [s for s in self.open if least <= s.pieces <= 0.8 * self._words]
