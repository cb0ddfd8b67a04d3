"""The engines side by side: ours, and those it is measured against, all asked in one way by one trio loop.

Each is a process of its own behind `Arm`. What they write is heard here, in this process, and timed by its
clock.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio

from benchmarks.processes import BenchmarkError, Child, cpu_s, open_child
from benchmarks.prompts import Conversation
from benchmarks.sse import EventStream
from p2pmesh import config
from p2pmesh.engine import base, catalog
from p2pmesh.peer.engines import EngineDown, EngineHandle, EngineUp, open_engine
from p2pmesh.query import Options

THREADS = 1
CONTEXT_TOKENS = 2_048
SERVER_SLOTS = 16
STORY_TOKENS = 96
"""More than any prompt of `Prompts.story` has under a usual vocabulary: room that is set aside for it."""
WARM_UP_TOKENS = 4
MISSING = "llama.cpp's server is left out, as xllamacpp is not installed: pip install 'p2pmesh[bench]'"


@dataclass
class Answer:
    """One answer as it was heard. Times are of this process' clock, CPU seconds of the answering process."""

    pid: int
    asked: float = 0.0
    asked_cpu_s: float = 0.0
    times: list[float] = field(default_factory=list)
    """When each piece of text came: a token, but for characters that take several."""
    first_cpu_s: float = 0.0
    ended: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    text: str = ""
    _news: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def ask(self) -> None:
        """Note that it is asked now."""
        self.asked_cpu_s, self.asked = cpu_s(self.pid), time.perf_counter()

    def hear(self, text: str) -> None:
        """Note a piece of it."""
        self.times.append(time.perf_counter())
        self.text += text
        if len(self.times) == 1:
            self.first_cpu_s = cpu_s(self.pid)
        self._news.unpark_all()

    def end(self, tokens: int, prompt_tokens: int) -> None:
        """Note its end. One without any text has its first token there."""
        if not self.times:
            self.hear("")
        self.ended, self.tokens, self.prompt_tokens = time.perf_counter(), tokens, prompt_tokens
        self._news.unpark_all()

    async def wait(self, pieces: int) -> None:
        """Return when so many pieces have come, or the answer has ended."""
        while len(self.times) < pieces and not self.ended:
            await self._news.park()

    @property
    def ttft_s(self) -> float:
        """Seconds until its first token."""
        return self.times[0] - self.asked

    @property
    def ttft_cpu_s(self) -> float:
        """CPU seconds the answering process spent until then, on this and on all other answers."""
        return self.first_cpu_s - self.asked_cpu_s


class Arm(Protocol):
    """Something that answers, in a process of its own."""

    name: str
    build: str
    pid: int

    async def prepare(self, conversation: Conversation) -> Any:
        """Do what need not be timed."""
        ...

    async def ask(self, prepared: Any, tokens: int, answer: Answer) -> None:
        """Ask for so many tokens at temperature 0; return when the answer has ended."""
        ...

    async def rest(self) -> None:
        """Forget what the last answers left in memory, where that costs the next ones time."""
        ...


@dataclass(frozen=True)
class Wave:
    """What came of asking many at once."""

    answers: list[Answer]
    cpu_s: float
    """CPU seconds of the answering process."""
    client_cpu_s: float
    """CPU seconds of this one meanwhile."""

    @property
    def ttft_s(self) -> float:
        """Mean seconds to the first token."""
        return statistics.fmean(a.ttft_s for a in self.answers)

    @property
    def ttft_cpu_s(self) -> float:
        """Mean CPU seconds of the answering process until an answer's first token."""
        return statistics.fmean(a.ttft_cpu_s for a in self.answers)

    @property
    def prompt_tokens(self) -> float:
        """Mean length of the prompts."""
        return statistics.fmean(a.prompt_tokens for a in self.answers)


async def wave(arm: Arm, conversations: Sequence[Conversation], tokens: int) -> Wave:
    """Ask all at once; return when the last answer has ended."""
    prepared = [await arm.prepare(conversation) for conversation in conversations]
    answers = [Answer(arm.pid) for _ in prepared]
    cpu, client_cpu = cpu_s(arm.pid), time.process_time()
    async with trio.open_nursery() as nursery:
        for one, answer in zip(prepared, answers, strict=True):
            nursery.start_soon(arm.ask, one, tokens, answer)
    found = Wave(answers, cpu_s(arm.pid) - cpu, time.process_time() - client_cpu)
    await arm.rest()
    return found


# -- ours ---------------------------------------------------------------------------------------------


class Ours:
    """The engine as a peer has it: `open_engine`'s child, and events on this trio loop."""

    name = "ours"

    def __init__(self, build: str) -> None:
        self.build, self.pid = build, 0
        self.handle: EngineHandle | None = None
        self._jobs: dict[str, tuple[Answer, trio.Event]] = {}
        self._count = 0
        self.broken = ""

    def on_event(self, _: EngineHandle, event: base.Event | EngineUp | EngineDown) -> None:
        """Take an event of the engine."""
        if isinstance(event, base.Generated):
            self._jobs[event.job][0].hear(event.text)
        elif isinstance(event, EngineDown):
            self.broken = event.detail  # it will be started again, but what was measured is not whole
        elif isinstance(event, (base.Finished, base.Failed)):
            answer, ended = self._jobs.pop(event.job)
            if isinstance(event, base.Finished):
                answer.end(event.usage.completion_tokens, event.usage.prompt_tokens)
            else:
                self.broken = event.detail
            ended.set()

    async def prepare(self, conversation: Conversation) -> Conversation:
        return conversation

    async def ask(self, prepared: Conversation, tokens: int, answer: Answer) -> None:
        assert self.handle is not None
        self._count += 1
        job, ended = f"job{self._count}", trio.Event()
        self._jobs[job] = answer, ended
        answer.ask()
        self.handle.generate(job, prepared, Options(max_tokens=tokens))
        await ended.wait()
        if self.broken:
            raise BenchmarkError(f"our engine failed: {self.broken}")

    async def rest(self) -> None:
        pass  # a slot is emptied when its answer ends


@asynccontextmanager
async def open_ours(model: Path, slots: int) -> AsyncIterator[Ours]:
    """Run our engine with a peer's own settings, but for the number of slots."""
    settings = config.Engine(threads=THREADS, slots=slots, context_tokens=CONTEXT_TOKENS)
    load = catalog.model_load(config.ModelConfig(model=str(model)), settings)
    ours = Ours(f"p2pmesh {importlib.metadata.version('p2pmesh')}, {slots} slots")
    async with open_engine(load, settings, ours.on_event) as ours.handle:
        await ours.handle.wait_ready()
        assert ours.handle.pid is not None
        ours.pid = ours.handle.pid
        yield ours


# -- rivals -------------------------------------------------------------------------------------------


class Serial:
    """`llama_cpp.Llama` in its child: it takes one request after the other."""

    name = "llama"

    def __init__(self, child: Child, build: str) -> None:
        self.build, self.pid = build, child.process.pid
        self._child = child
        self._asked: dict[int, tuple[Answer, trio.Event]] = {}
        self._count = 0
        self._writing = trio.Lock()

    async def listen(self) -> None:
        """Take what the child says, for ever."""
        while True:
            message = await self._child.line()
            answer, ended = self._asked[message["id"]]
            if "text" in message:
                answer.hear(message["text"])
            else:
                answer.end(message["tokens"], message["prompt_tokens"])
                ended.set()

    async def prepare(self, conversation: Conversation) -> list[dict[str, Any]]:
        return [asdict(message) for message in conversation]

    async def ask(self, prepared: list[dict[str, Any]], tokens: int, answer: Answer) -> None:
        self._count += 1
        number, ended = self._count, trio.Event()
        self._asked[number] = answer, ended
        answer.ask()
        async with self._writing:
            await self._child.say({"id": number, "messages": prepared, "tokens": tokens})
        await ended.wait()

    async def rest(self) -> None:
        pass  # it drops what the next prompt does not begin with


@asynccontextmanager
async def open_llama(model: Path, folder: Path) -> AsyncIterator[Serial]:
    """Run `llama_cpp.Llama`."""
    options = {"model": str(model), "context_tokens": CONTEXT_TOKENS, "threads": THREADS}
    async with open_child("llama", options, folder) as child, trio.open_nursery() as nursery:
        arm = Serial(child, (await child.line())["build"])
        nursery.start_soon(arm.listen)
        yield arm
        nursery.cancel_scope.cancel()


class Server:
    """llama.cpp's server, over HTTP on loopback."""

    name = "server"

    def __init__(self, child: Child, told: dict[str, Any]) -> None:
        self.build, self.pid = told["build"], child.process.pid
        address = urlsplit(told["address"])
        assert address.hostname is not None
        assert address.port is not None
        self._host, self._port = address.hostname, address.port

    async def prepare(self, conversation: Conversation) -> str:
        told = await self._post("/apply-template", {"messages": [asdict(m) for m in conversation]})
        prompt: str = told["prompt"]
        return prompt

    async def ask(self, prepared: str, tokens: int, answer: Answer) -> None:
        body = json.dumps(
            {
                "prompt": prepared,
                "n_predict": tokens,
                "stream": True,
                "cache_prompt": False,
                "temperature": 0.0,
                "samplers": ["top_k"],  # of its chains the cheapest that takes the likeliest token
                "top_k": 1,
            }
        ).encode()
        head = (
            f"POST /completion HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        answer.ask()
        events = EventStream()
        async with await trio.open_tcp_stream(self._host, self._port) as stream:
            await stream.send_all(head + body)
            async for data in stream:
                for event in events.feed(bytes(data)):
                    if event.get("content"):
                        answer.hear(event["content"])
                    if event.get("stop"):
                        answer.end(event["tokens_predicted"], event["tokens_evaluated"])
                        return
        raise BenchmarkError("the server hung up in the midst of an answer")

    async def rest(self) -> None:
        # An idle slot keeps its last answer in the unified memory, where the others attend over it.
        for slot in range(SERVER_SLOTS):
            await self._post(f"/slots/{slot}?action=erase", {})

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        def post() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()

        status, raw = await trio.to_thread.run_sync(post)
        if status != http.client.OK:
            raise BenchmarkError(
                f"the server said {status} to {path}: {raw[:300].decode('utf-8', 'replace')}"
            )
        found: dict[str, Any] = json.loads(raw)
        return found


@asynccontextmanager
async def open_server(
    model: Path, folder: Path, tokens: int, flash_attention: str = "AUTO"
) -> AsyncIterator[Server | None]:
    """Run llama.cpp's server with room for `SERVER_SLOTS` stories of `tokens`; None where there is none."""
    if importlib.util.find_spec("xllamacpp") is None:
        yield None
        return
    options = {
        "model": str(model),
        "folder": str(folder),
        "slots": SERVER_SLOTS,
        "context_tokens": max(2 * CONTEXT_TOKENS, SERVER_SLOTS * (STORY_TOKENS + tokens)),
        "threads": THREADS,
        "flash_attention": flash_attention,
    }
    async with open_child("server", options, folder) as child:
        yield Server(child, await child.line())
