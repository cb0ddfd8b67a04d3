"""One chat completion over HTTP, from its body to its last byte.

It knows ASGI and the peer. The client's going away is watched for all the while, and cancels the work on
every hop, streaming or not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any
from urllib.parse import quote

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from p2pmesh.errors import MeshError, QueryError, Reason
from p2pmesh.gateway import openai
from p2pmesh.peer.answer import Answer, read_bookmark
from p2pmesh.peer.peer import Peer
from p2pmesh.query import AUTO

_log = logging.getLogger("p2pmesh.gateway")
_BODY_S = 30.0
"""Seconds a request's body may take to arrive. A guess: a megabyte over a poor line takes 10."""

_CLOSE_S = 5.0
"""Seconds the server has to be done with a response. Over HTTP/2 it waits for a client to make room."""


def ask(peer: Peer, request: openai.ChatRequest, done: Callable[[], None]) -> ChatReply:
    """Return the reply to a chat request. Raises BadRequest before anything was asked."""
    limits = peer.config.limits
    stream = peer.stream(
        openai.messages(request, limits),
        model=request.model,
        options=openai.options(request, limits),
        budget_s=peer.config.http.request_timeout_s,
        resume=request.resume,
        zone=request.zone,
        guarded=bool(request.stream),  # who waits for the whole has nothing yet, and asks again
    )
    return ChatReply(peer, request, stream, done)


def claim(peer: Peer, bookmark: str, zones: tuple[str, ...] | None, done: Callable[[], None]) -> ChatReply:
    """Return the reply to one who comes for the rest of an answer, and may read it in these `zones`; None: in
    all. Raises BadRequest."""
    try:
        read_bookmark(bookmark)
    except ValueError as exc:
        raise openai.BadRequest(str(exc), "last-event-id") from None
    return ChatReply(peer, openai.ChatRequest([], stream=True), peer.claim(bookmark, zones=zones), done)


class ChatReply:
    """An ASGI application that gives one answer."""

    def __init__(
        self,
        peer: Peer,
        request: openai.ChatRequest,
        stream: AbstractAsyncContextManager[Answer],
        done: Callable[[], None],
    ) -> None:
        """`done` is called once, when it is over."""
        self._peer = peer
        self._request = request
        self._stream = stream
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        try:
            async with trio.open_nursery() as nursery:
                ending = trio.Event()
                nursery.start_soon(_watch, receive, nursery.cancel_scope, ending)
                await self._answer(scope, receive, _marking(send, ending))
                nursery.cancel_scope.cancel()
        finally:
            self._done()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stream as answer:
            try:
                if self._request.stream:
                    await answer.begun()
                else:
                    await answer.whole()
            except QueryError as failure:
                await refusal(failure)(scope, receive, send)
                return
            if self._request.stream:
                await self._send_stream(answer, send)
            else:
                await self._whole(answer)(scope, receive, send)

    def _whole(self, answer: Answer) -> Response:
        body = openai.completion(
            answer.id,
            int(time.time()),
            answer.model,
            answer.text,
            answer.finish_reason,
            answer.usage,
            answer.logprobs,
        )
        return JSONResponse({**body, "p2pmesh": _hops(answer)}, headers=_way(answer))

    async def _send_stream(self, answer: Answer, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        headers.update(_way(answer))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        created, model, seen = int(time.time()), self._model(answer), 0

        async def event(body: Any) -> None:
            data = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
            bookmark = answer.bookmark(seen)
            mark = f"id: {bookmark}\n" if bookmark else ""
            text = f"{mark}data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": text, "more_body": True})

        try:
            first = openai.chunk(answer.id, created, model, "", first=True)
            told = _hops(answer)
            await event({**first, "p2pmesh": told})
            async for piece in answer:
                seen += len(piece.text)
                await event(openai.chunk(answer.id, created, model, piece.text, told=piece.logprobs))
            model = answer.model
            last = openai.chunk(answer.id, created, model, finish_reason=answer.finish_reason)
            # Who ended it need not be who began it.
            await event(last if _hops(answer) == told else {**last, "p2pmesh": _hops(answer)})
            if self._request.wants_usage:
                await event(openai.usage_chunk(answer.id, created, model, answer.usage))
        except QueryError as failure:
            # The status is long sent: the error comes as an event, and the stream ends whole, not cut.
            await event(openai.query_error(failure)[1])
        await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _model(self, answer: Answer) -> str:
        """The model that answers, as far as it is known before the end, which tells it for sure."""
        if answer.model or self._request.model != AUTO:
            return answer.model or self._request.model
        served = (m.capability.models for m in self._peer.members() if m.id == answer.served_by)
        models = next(served, ())
        return models[0].name if len(models) == 1 else AUTO


def _marking(send: Send, ending: trio.Event) -> Send:
    """Return `send`, which sets `ending` before the last message of a response."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            ending.set()
        await send(message)

    return sent


async def _watch(receive: Receive, scope: trio.CancelScope, ending: trio.Event) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            if ending.is_set():  # the server says so of every response that has ended, and then sees to
                await trio.sleep(_CLOSE_S)  # the connection, if the client lets it
            scope.cancel()
            return


def refusal(failure: QueryError) -> Response:
    """Return the response to a query that ended before its first piece."""
    status, body = openai.query_error(failure)
    headers = {"x-p2pmesh-route": ",".join(map(quote, failure.path))}
    if failure.retry_after_s is not None or status == 503:
        headers["retry-after"] = str(max(1, round(failure.retry_after_s or 1.0)))
    return JSONResponse(body, status, headers)


def _hops(answer: Answer) -> dict[str, Any]:
    """The way an answer took, and why: an extension of OpenAI's bodies, which its clients ignore."""
    path = [{"peer": hop.peer, "name": hop.name, "why": hop.why} for hop in answer.path]
    resumed = {"resumed": [hop.name for hop in answer.resumed]} if answer.resumed else {}
    receipt = {"receipt": answer.receipt.to_json()} if answer.receipt else {}
    return {"path": path, **resumed, **receipt}


def _way(answer: Answer) -> dict[str, str]:
    """Headers that name who answered and the way there; names are quoted, for anybody chooses his own."""
    route = [quote(hop.name) for hop in answer.path]
    return {
        "x-p2pmesh-query": answer.id,
        "x-p2pmesh-served-by": route[-1] if route else "",
        "x-p2pmesh-route": ",".join(route),
    }


async def body_of(request: Request, bytes_max: int) -> bytes:
    """Return the request's body. Raises BadRequest when it is longer than `bytes_max`, or does not come."""
    parts, size = [], 0
    with trio.move_on_after(_BODY_S):
        async with aclosing(request.stream()) as stream:
            async for part in stream:
                size += len(part)
                if size > bytes_max:
                    text = f"the body is longer than {bytes_max} bytes"
                    raise openai.BadRequest(text, None, "body_too_large", status=413)
                parts.append(part)
        return b"".join(parts)
    raise openai.BadRequest(f"the body did not come within {_BODY_S:g} s", None, "body_timeout", status=408)


def bad_request(failure: openai.BadRequest) -> Response:
    """Return the response to a body that is wrong."""
    # What is left of a body that was not read to its end would be taken for the next request.
    headers = {"connection": "close"} if failure.status in (408, 413) else None
    body = openai.error(str(failure), failure.code, failure.status, failure.param)
    return JSONResponse(body, failure.status, headers)


def mesh_failure(failure: MeshError) -> Response:
    """Return the response to anything else of ours that went wrong."""
    _log.error("a request failed: %s", failure)
    return JSONResponse(openai.error(str(failure), Reason.ENGINE_FAILED.value, 502), 502)
