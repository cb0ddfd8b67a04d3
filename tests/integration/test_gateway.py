"""The HTTP door, as its clients use and misuse it: OpenAI's own client, curl, and bare sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h2.connection
import h2.events
import h2.settings
import httpx
import openai
import pytest
import trio

from p2pmesh.config import Config, Engine, Http, Limits, ModelConfig, SkillConfig
from p2pmesh.engine import catalog
from p2pmesh.errors import ConfigError, ListenError
from p2pmesh.gateway import chat
from p2pmesh.gateway.server import open_gateway
from p2pmesh.testing import open_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from p2pmesh.peer.peer import Peer

pytestmark = pytest.mark.wire
HANG_S = 60
QUICK = ModelConfig(model="echo", engine="echo", tokens_per_s=1_000.0)
SLOW = replace(QUICK, tokens_per_s=20.0)


class Door:
    """A small mesh whose first peer has no model and serves HTTP; the work is done behind it."""

    def __init__(self, url: str, peers: tuple[Peer, ...]) -> None:
        self.url, self.peers = url, peers
        self.stopped = trio.Event()

    async def call(self, method: str, path: str, **how: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=HANG_S) as client:
            return await client.request(method, path, **how)

    async def chat(self, text: str = "one two", **fields: Any) -> httpx.Response:
        return await self.call("POST", "/v1/chat/completions", json=body(text, **fields))

    async def socket(self) -> trio.SocketStream:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return await trio.open_tcp_stream(host, int(port))

    async def idle(self) -> None:
        """Wait until no query is in flight and no slot taken, at any peer."""
        while any(self.busy(peer) for peer in self.peers):  # noqa: ASYNC110
            await trio.sleep(0.01)

    def busy(self, peer: Peer) -> bool:
        load = peer.members()[0].load
        assert load is not None
        slots = sum(model.slots for model in peer.members()[0].capability.models)
        return bool(peer.status()["flights"]) or load.free_slots != slots

    async def working(self) -> None:
        """Wait until every peer has the query."""
        while not all(peer.status()["flights"] for peer in self.peers):  # noqa: ASYNC110
            await trio.sleep(0.01)


def body(text: str = "one two", **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def door(model: ModelConfig = QUICK, http: Http | None = None, **settings: Any) -> AsyncIterator[Door]:
    asks = Config(name="bücher", http=http or Http(bind="127.0.0.1:0"), embedder="hash", **settings)
    serves = Config(name="worker 1", models=(model,), embedder="hash")
    with trio.fail_after(2 * HANG_S):
        async with open_cluster([asks, serves]) as peers:
            stopped = trio.Event()
            async with open_gateway(peers[0], stopped.set) as url:
                found = Door(url, peers)
                found.stopped = stopped
                yield found


def events(text: str) -> list[Any]:
    """Parse server-sent events."""
    told = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in told]


def content(told: list[Any]) -> str:
    """Return the text of an answer's events."""
    chunks = [event for event in told if event != "[DONE]" and "choices" in event]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


# -------------------------------------------------------------------- the official client


async def test_the_official_client_sees_a_whole_answer():
    async with door() as it:

        def use() -> None:
            with openai.OpenAI(base_url=f"{it.url}/v1", api_key="none", max_retries=0) as client:
                assert [m.id for m in client.models.list()] == ["auto", "echo"]
                raw = client.chat.completions.with_raw_response.create(**body("a b c"))
                answer = raw.parse()
                assert answer.choices[0].message.content == "echo: a b c"
                assert (answer.choices[0].finish_reason, answer.model) == ("stop", "echo")
                assert answer.usage.model_dump(exclude_none=True) == {
                    "prompt_tokens": 3,
                    "completion_tokens": 4,
                    "total_tokens": 7,
                }
                assert raw.headers["x-p2pmesh-served-by"] == "worker%201"
                assert raw.headers["x-p2pmesh-route"] == "b%C3%BCcher,worker%201"
                cut = client.chat.completions.create(**body("a b c", max_tokens=2, seed=7, temperature=1.0))
                assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("echo: a", "length")
                stopped = client.chat.completions.create(**body("a b c", stop=[" b"], model="echo"))
                assert stopped.choices[0].message.content == "echo: a"
                assert stopped.choices[0].finish_reason == "stop"
                # An echo has no likelihoods to bend: it takes what it is told, and says what it always says.
                bent = client.chat.completions.create(
                    **body("a b", temperature=0.5, presence_penalty=1.0, logit_bias={"5": -100}),
                    response_format={"type": "json_object"},
                    extra_body={"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1},
                )
                assert bent.choices[0].message.content == "echo: a b"
                told = client.chat.completions.create(**body("a"), logprobs=True, top_logprobs=2)
                assert told.choices[0].logprobs is None

        await trio.to_thread.run_sync(use)
        await it.idle()


async def test_the_official_client_sees_a_stream():
    async with door(SLOW) as it:

        def use() -> None:
            with openai.OpenAI(base_url=f"{it.url}/v1", api_key="none", max_retries=0) as client:
                usage = {"include_usage": True}
                pieces = list(client.chat.completions.create(**body(stream=True, stream_options=usage)))
                assert pieces[0].choices[0].delta.role == "assistant"
                assert "".join(p.choices[0].delta.content or "" for p in pieces[:-1]) == "echo: one two"
                assert len(pieces) >= 5, "it came piece by piece"
                assert [p.choices[0].finish_reason for p in pieces[-3:-1]] == [None, "stop"]
                assert pieces[-1].choices == []
                assert (pieces[-1].usage.total_tokens, pieces[-1].usage.completion_tokens) == (5, 3)
                assert len({p.id for p in pieces}) == 1
                assert {p.model for p in pieces} == {"echo"}, "it is known who answers, so say it"

        await trio.to_thread.run_sync(use)


async def test_the_official_client_raises_what_its_users_catch():
    async with door(limits=Limits(prompt_bytes_max=1_000)) as it:

        def use() -> None:
            with openai.OpenAI(base_url=f"{it.url}/v1", api_key="none", max_retries=0) as client:

                def fails(kind: type[openai.APIStatusError], **fields: Any) -> Any:
                    with pytest.raises(kind) as caught:
                        client.chat.completions.create(**{**body(), **fields})
                    return caught.value

                for stream in (False, True):
                    missing = fails(openai.NotFoundError, model="nope", stream=stream)
                    assert (missing.code, missing.param) == ("model_not_found", "model")
                    assert "no peer within reach serves the model 'nope'" in missing.message
                refused = fails(openai.BadRequestError, temperature=3)
                assert (refused.code, refused.param) == ("invalid_request", "temperature")
                tools = [{"type": "function", "function": {"name": "f"}}]
                assert fails(openai.BadRequestError, tools=tools).code == "unsupported_parameter"
                huge = [{"role": "user", "content": "x" * 1_001}]
                assert fails(openai.BadRequestError, messages=huge).code == "invalid_request"

        await trio.to_thread.run_sync(use)
        await it.idle()


@pytest.mark.model
async def test_the_real_model_answers_the_official_client():
    if catalog.DEFAULT not in catalog.names():
        pytest.fail("run `make setup`: the embedded default model is not installed")
    async with door(ModelConfig(model=catalog.DEFAULT)) as it:

        def use() -> None:
            with openai.OpenAI(base_url=f"{it.url}/v1", api_key="none", max_retries=0) as client:
                asked = body("What is the capital of France?", max_tokens=32)
                answer = client.chat.completions.create(**asked)
                assert "Paris" in (answer.choices[0].message.content or "")
                pieces = list(client.chat.completions.create(**asked, stream=True))
                text = "".join(p.choices[0].delta.content or "" for p in pieces)
                assert text == answer.choices[0].message.content
                told = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
                assert told.choices[0].logprobs is not None
                content = told.choices[0].logprobs.content or []
                assert len(content) == told.usage.completion_tokens
                assert "".join(one.token for one in content) == told.choices[0].message.content == text
                # Greedy: what was taken is the likeliest.
                assert all(
                    one.token == one.top_logprobs[0].token and len(one.top_logprobs) == 3 for one in content
                )
                streamed = client.chat.completions.create(**asked, stream=True, logprobs=True)
                parts = [p.choices[0].logprobs for p in streamed if p.choices and p.choices[0].logprobs]
                again = [one for part in parts for one in part.content or []]
                assert [one.token for one in again] == [one.token for one in content]
                assert not any(one.top_logprobs for one in again)
                schema: Any = {
                    "type": "object",
                    "properties": {"capital": {"type": "string", "maxLength": 20}},
                    "required": ["capital"],
                }
                form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
                fitted = client.chat.completions.create(**asked, response_format=form)
                assert "Paris" in json.loads(fitted.choices[0].message.content or "")["capital"]
                schema["properties"]["capital"]["pattern"] = "[A-Z].*"
                with pytest.raises(openai.BadRequestError, match="'pattern' is not supported for string"):
                    client.chat.completions.create(**asked, response_format=form)
                long = [{"role": "user", "content": "word " * 3_000}]
                with pytest.raises(openai.BadRequestError) as caught:
                    client.chat.completions.create(model="auto", messages=long)
                assert caught.value.code == "context_length_exceeded"
                assert re.search(r"the prompt is 30\d\d tokens, .*context.* 2048", caught.value.message)

        await trio.to_thread.run_sync(use)
        await it.idle()


# -------------------------------------------------------------------- curl


async def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(["curl", "-sS", "-N", "-m", str(HANG_S), *arguments], capture_stdout=True)


async def test_curl_gets_an_answer_and_a_stream():
    async with door() as it:
        url = f"{it.url}/v1/chat/completions"
        plain = json.loads((await curl(url, "-d", json.dumps(body()))).stdout)
        assert plain["choices"][0]["message"] == {"role": "assistant", "content": "echo: one two"}
        assert [hop["name"] for hop in plain["p2pmesh"]["path"]] == ["bücher", "worker 1"]
        streamed = (await curl("-i", url, "-d", json.dumps(body(stream=True)))).stdout.decode()
        head, _, text = streamed.partition("\r\n\r\n")
        assert "content-type: text/event-stream" in head
        assert "x-p2pmesh-served-by: worker%201" in head
        *pieces, done = events(text)
        assert done == "[DONE]"
        assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == "echo: one two"


# -------------------------------------------------------------------- clients that come back


async def test_who_comes_with_the_last_event_s_id_gets_the_rest_and_again_should_it_be_lost():
    words = " ".join(f"w{number}" for number in range(60))
    async with door(replace(QUICK, tokens_per_s=40.0)) as it:
        asked = body(words, stream=True, max_tokens=100)
        async with httpx.AsyncClient(base_url=it.url, timeout=HANG_S) as client:
            async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                lines = aiter(response.aiter_lines())
                seen: list[str] = []
                while len(seen) < 40 or seen[-1]:
                    seen.append(await anext(lines))
                marks = [line.removeprefix("id: ") for line in seen if line.startswith("id: ")]
                begun = content(events("\n".join(seen)))
                assert marks[-1].endswith(f".{len(begun)}.{it.peers[1].id}")
                rest = await client.get("/mesh/v1/answers", headers={"last-event-id": marks[-1]})
                assert begun + content(events(rest.text)) == f"echo: {words}"
                assert events(rest.text)[-1] == "[DONE]"
                # Who reads an answer twice has two connections, and one answer.
                assert "cancelled" in "".join([line async for line in lines])
            again = await client.get("/mesh/v1/answers", headers={"last-event-id": marks[-1]})
            assert begun + content(events(again.text)) == f"echo: {words}"
            other = f"{'0' * 32}{marks[-1][32:]}"
            gone = await client.get("/mesh/v1/answers", headers={"last-event-id": other})
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "answer_not_found")
        await it.idle()


@pytest.mark.parametrize(
    "mark", ["", "x", "0" * 32, f"{'0' * 32}.-1.x", f"{'0' * 32}.1.a/b", f"{'0' * 32}.1."]
)
async def test_what_is_no_bookmark_is_refused(mark: str):
    async with door() as it:
        answer = await it.call("GET", "/mesh/v1/answers", headers={"last-event-id": mark})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_of_a_peer_that_nobody_knows_nothing_is_to_be_had():
    async with door() as it:
        answer = await it.call("GET", "/mesh/v1/answers", headers={"last-event-id": f"{'0' * 32}.1.nobody"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "answer_not_found")


# -------------------------------------------------------------------- clients that go away


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_every_hop(stream: bool):
    async with door(SLOW) as it:
        data = json.dumps(body("word " * 200, stream=stream)).encode()
        client = await it.socket()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        await client.send_all(head.encode() + data)
        await it.working()
        if stream:
            assert (await client.receive_some(100)).startswith(b"HTTP/1.1 200")
        assert it.busy(it.peers[1])
        await client.aclose()
        await it.idle()
        assert (await it.chat()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_connection_that_is_to_be_closed_is(stream: bool):
    """It stayed open until the client went away."""
    async with door() as it, await it.socket() as client:
        data = json.dumps(body(stream=stream)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
        await client.send_all(head.encode() + b"connection: close\r\n\r\n" + data)
        said = b"".join([part async for part in client])
        assert said.startswith(b"HTTP/1.1 200")


async def test_a_client_that_breaks_its_connection_breaks_no_other(caplog: pytest.LogCaptureFixture):
    """An HTTP/2 client that sent on after its answer ended the whole peer."""
    async with door(SLOW) as it, await it.socket() as rude, await it.socket() as streaming:
        data = json.dumps(body("word " * 20, stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        await streaming.send_all(head.encode() + data)
        await it.working()
        speaks = h2.connection.H2Connection()
        speaks.initiate_connection()
        speaks.send_headers(1, [(":path", "/nowhere"), *H2_POST])
        await rude.send_all(speaks.data_to_send())
        await until_told(rude, speaks, h2.events.StreamEnded)
        speaks.send_data(1, b"and another thing")
        await rude.send_all(speaks.data_to_send())
        while "an HTTP connection failed" not in caplog.text:  # noqa: ASYNC110
            await trio.sleep(0.01)
        text = b""
        while b"data: [DONE]" not in text:
            text += await streaming.receive_some()
        assert (await it.chat()).status_code == 200


H2_POST = ((":method", "POST"), (":scheme", "http"), (":authority", "localhost"))


async def until_told(stream: trio.SocketStream, speaks: h2.connection.H2Connection, what: type) -> None:
    """Read until the server has said something of this kind."""
    told: list[h2.events.Event] = []
    while not any(isinstance(event, what) for event in told):
        told = speaks.receive_data(await stream.receive_some())


@pytest.mark.parametrize("goes_away", [False, True])
async def test_a_client_that_never_makes_room_for_the_end_holds_up_nothing(goes_away: bool):
    """Over HTTP/2 the server waits for room before the end of a response is sent."""
    async with door() as it:
        client = await it.socket()
        speaks = h2.connection.H2Connection()
        speaks.initiate_connection()
        speaks.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        speaks.send_headers(1, [(":path", "/v1/chat/completions"), *H2_POST])
        speaks.send_data(1, json.dumps(body()).encode(), end_stream=True)
        await client.send_all(speaks.data_to_send())
        await until_told(client, speaks, h2.events.ResponseReceived)
        if goes_away:
            await client.aclose()
            while it.peers[0]._streams:  # noqa: ASYNC110
                await trio.sleep(0.05)
    await client.aclose()


async def test_a_peer_that_ends_does_not_wait_for_its_answers():
    async with door(SLOW) as it:
        data = json.dumps(body("word " * 200, stream=True)).encode()
        client = await it.socket()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        await client.send_all(head.encode() + data)
        await it.working()
    await client.aclose()


async def test_an_error_in_mid_stream_is_an_event_and_the_stream_ends_whole():
    async with door(SLOW, Http(bind="127.0.0.1:0", request_timeout_s=1.5)) as it:
        reply = await it.chat("word " * 8 + "end " * 200, stream=True)
        assert reply.status_code == 200
        *pieces, error, done = events(reply.text)
        assert done == "[DONE]"
        assert pieces[1]["choices"][0]["delta"]["content"].startswith("echo:")
        assert (error["error"]["code"], error["error"]["type"]) == ("deadline_exceeded", "server_error")
        refused = await it.chat("word " * 1_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (504, "deadline_exceeded")
        await it.idle()


async def test_a_stream_that_another_peer_ends_says_so_at_its_end():
    """It named the dead one for good."""
    words = " ".join(map(str, range(60)))
    asks = Config(name="asker", http=Http(bind="127.0.0.1:0"), embedder="hash")
    slow = replace(QUICK, tokens_per_s=40.0)
    serve = [Config(name=name, models=(slow,), embedder="hash") for name in "ab"]
    with trio.fail_after(2 * HANG_S):
        async with open_cluster([asks, *serve]) as peers, open_gateway(peers[0], lambda: None) as url:
            it = Door(url, peers)
            async with trio.open_nursery() as nursery:
                replies: list[httpx.Response] = []

                async def ask() -> None:
                    replies.append(await it.chat(words, stream=True))

                nursery.start_soon(ask)
                while not any(map(it.busy, peers[1:])):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                first = next(peer for peer in peers[1:] if it.busy(peer))
                await trio.sleep(0.3)  # some words are on their way
                os.kill(first.status()["engines"][0]["pid"], signal.SIGKILL)
            told = events(replies[0].text)[:-1]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in told) == f"echo: {words}"
    ways = [event["p2pmesh"]["path"][-1]["name"] for event in told if "p2pmesh" in event]
    assert "receipt" in told[-1]["p2pmesh"] or "receipt" in told[-2]["p2pmesh"]
    assert ways == (["a", "b"] if first is peers[1] else ["b", "a"])


# -------------------------------------------------------------------- misuse


@pytest.fixture
async def quick():
    async with door(http=Http(bind="127.0.0.1:0", body_bytes_max=10_000)) as it:
        yield it


async def alive(it: Door) -> None:
    reply = await it.chat()
    assert reply.json()["choices"][0]["message"]["content"] == "echo: one two"


async def test_garbage_leaves_it_alive(quick: Door, caplog: pytest.LogCaptureFixture):
    for data in (
        b"\x00\xff" * 5_000,
        b"GET",
        b"POST / HTTP/9.9\r\n\r\n",
        b"\r\n" * 9,
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        client = await quick.socket()
        await client.send_all(data)
        await client.send_eof()
        while await client.receive_some():
            pass
        await client.aclose()
    await alive(quick)
    assert not [r for r in caplog.records if r.exc_info], "no stranger fills the log with tracebacks"


async def test_half_open_connections_leave_it_alive(
    quick: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(chat, "_BODY_S", 0.2)
    started = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"
    silent = [await quick.socket() for _ in range(20)]
    cut = await quick.socket()
    await cut.send_all(started)
    await cut.aclose()
    slow = await quick.socket()
    await slow.send_all(started)
    assert (await slow.receive_some()).startswith(b"HTTP/1.1 408")
    await alive(quick)
    for client in (*silent, slow):
        await client.aclose()
    await alive(quick)
    assert not [r for r in caplog.records if r.exc_info]


async def test_what_is_too_large_or_no_json_is_refused_by_name(quick: Door):
    large = await quick.call("POST", "/v1/chat/completions", content=b"x" * 10_001)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert large.headers["connection"] == "close"  # or the rest of the body is taken for the next request
    for content in (b"", b"{", b"\xff", rb'{"messages": [{"role": "user", "content": "\ud800"}]}', b"[1]"):
        for path in ("/v1/chat/completions", "/mesh/v1/explain"):
            wrong = await quick.call("POST", path, content=content)
            assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_request"), content


async def test_wrong_paths_and_methods_are_answered_in_json(quick: Door):
    lost = await quick.call("GET", "/v1/chat")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "not_found")
    wrong = await quick.call("GET", "/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "localhost", "origin": "http://evil.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"host": "localhost", "origin": "http://localhost:3000"}, 200),
        ({"host": "127.0.0.1:1"}, 200),
        ({"host": "[::1]:1"}, 200),
    ],
)
async def test_only_this_machine_is_answered(quick: Door, headers: dict[str, str], status: int):
    for method, path in (("GET", "/healthz"), ("GET", "/health"), ("GET", "/mesh/v1/status")):
        assert (await quick.call(method, path, headers=headers)).status_code == status


async def test_stop_needs_a_post_from_this_machine(quick: Door):
    assert (await quick.call("GET", "/mesh/v1/stop")).status_code == 405
    assert (await quick.call("POST", "/mesh/v1/stop", headers={"host": "evil.example"})).status_code == 403
    assert not quick.stopped.is_set()
    assert (await quick.call("POST", "/mesh/v1/stop")).json() == {"stopping": True}
    await quick.stopped.wait()


async def test_more_requests_than_allowed_are_told_to_come_back():
    async with door(SLOW, Http(bind="127.0.0.1:0", requests_max=2)) as it:
        slow = json.dumps(body("word " * 500, max_tokens=500)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(slow)}\r\n\r\n"
        answering, sending = await it.socket(), await it.socket()
        await answering.send_all(head.encode() + slow)
        await it.working()
        await sending.send_all(head.encode())  # one whose body is on its way counts, too
        with trio.fail_after(HANG_S):
            while (reply := await it.chat()).status_code == 200:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "mesh_overloaded")
        assert reply.headers["retry-after"] == "1"
        await answering.aclose()
        await sending.aclose()
        await it.idle()
        while (await it.chat()).status_code != 200:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_full_queues_say_when_to_come_back():
    one_slot = replace(Config().relay, waiting_max=1)
    serves = Config(
        models=(SLOW,), embedder="hash", relay=one_slot, engine=Engine(slots=1), http=Http(bind="127.0.0.1:0")
    )
    with trio.fail_after(HANG_S):
        async with open_cluster([serves]) as (peer,), open_gateway(peer, lambda: None) as url:
            it = Door(url, (peer,))
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(it.chat, "word " * 200)
                while peer.status()["flights"] < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                refused = await it.chat()
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "mesh_overloaded")
                assert int(refused.headers["retry-after"]) >= 1
                nursery.cancel_scope.cancel()
            await it.idle()


async def explained(it: Door) -> float:
    """The quality of the answer that would be given next."""
    told = (await it.call("POST", "/mesh/v1/explain", json={"prompt": "x"})).json()
    return float(told["table"][0]["quality"])


async def test_feedback_is_taken_and_teaches_who_is_good():
    async with door() as it:
        reply = (await it.chat()).json()
        before = await explained(it)
        said = await it.call("POST", "/mesh/v1/feedback", json={"id": reply["id"], "rating": 0.0})
        assert (said.status_code, said.content) == (204, b"")
        assert await explained(it) < before
        again = await it.call("POST", "/mesh/v1/feedback", json={"id": reply["id"], "rating": 1.0})
        assert (again.status_code, again.json()["error"]["param"]) == (404, "id")
        wrong = await it.call("POST", "/mesh/v1/feedback", json={"id": reply["id"], "rating": 2})
        assert wrong.status_code == 400


async def test_explain_and_peers_tell_what_the_library_tells():
    skill = SkillConfig(name="art", examples=("who painted the mona lisa",))
    async with door(skills=()) as it:
        told = (await it.call("POST", "/mesh/v1/explain", json={"prompt": "x"})).json()
        assert told["decision"] == "forward"
        assert told["why"].startswith("to worker 1: general quality 0.45")
        assert [row["peer"] for row in told["table"]] == ["worker 1"]
        nothing = (await it.call("POST", "/mesh/v1/explain", json={"prompt": "x", "model": "y"})).json()
        assert (nothing["decision"], nothing["table"][0]["why_not"]) == ("refuse", "model_not_found")
        peers = (await it.call("GET", "/mesh/v1/peers")).json()["peers"]
        assert peers[0]["devices"] == []
        assert [model["zones"] for model in peers[1]["models"]] == [[]]
        assert [(p["name"], p["distance"], p["linked"]) for p in peers] == [
            ("bücher", 0, False),
            ("worker 1", 1, True),
        ]
        models = (await it.call("GET", "/v1/models")).json()["data"]
        assert [(m["id"], m["peers"]) for m in models] == [("auto", []), ("echo", ["worker 1"])]
    assert skill.quality == 0.8


@pytest.mark.parametrize(
    "bind", ["nowhere", "127.0.0.1", "127.0.0.1:x", "0.0.0.0:0", "example.org:80", ":80"]
)
async def test_a_door_to_the_outside_is_not_opened(bind: str):
    async with open_cluster(1) as (peer,):
        peer.config = replace(peer.config, http=Http(bind=bind))
        with pytest.raises(ConfigError, match=r"http\.bind must be"):
            async with open_gateway(peer, lambda: None):
                pass


async def test_a_door_that_is_taken_is_named():
    async with door() as it:
        taken = Http(bind=it.url.removeprefix("http://"))
        it.peers[1].config = replace(it.peers[1].config, http=taken)
        with pytest.raises(ListenError, match="choose another with --http"):
            async with open_gateway(it.peers[1], lambda: None):
                pass


async def test_the_root_says_where_to_look_and_a_model_is_found_by_name(quick: Door):
    paths = (await quick.call("GET", "/")).json()["paths"]
    assert {"/v1/chat/completions", "/mesh/v1/feedback"} <= set(paths)
    listed = (await quick.call("GET", "/v1/models")).json()["data"]
    for model in listed:
        assert (await quick.call("GET", f"/v1/models/{model['id']}")).json() == model
    missing = await quick.call("GET", "/v1/models/nope")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
