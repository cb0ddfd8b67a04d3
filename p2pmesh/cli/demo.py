"""`p2pmesh demo`: a mesh of real peers on this machine, a few questions, and a check of the answers.

It starts peers as a user would, in processes of their own, and talks to the first one over HTTP. It fails
when an answer is wrong or empty, or when one peer alone gave them all.
"""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from p2pmesh.cli import client

_NAMES = ("ada", "blaise", "carl", "dorothy", "emmy", "fritz", "grace", "henri")
_READY_S = 120.0
"""Seconds the peers have to start, on a slow machine with a cold disk."""
_STOP_S = 10.0


@dataclass(frozen=True)
class _Topic:
    """A skill, the prompts that describe it, and a question the default model answers right (by test)."""

    name: str
    examples: tuple[str, ...]
    question: str
    right: str
    """A pattern the answer must contain."""


TOPICS = (
    _Topic(
        "geography",
        (
            "What is the capital of Italy?",
            "Which country has the largest area?",
            "Name the longest river in Africa.",
            "What is the capital city of Japan?",
            "On which continent is Egypt?",
        ),
        "What is the capital of France?",
        r"Paris",
    ),
    _Topic(
        "science",
        (
            "What is magnetism?",
            "Explain photosynthesis.",
            "Why do objects fall to the ground?",
            "What is an atom made of?",
            "What is the theory of relativity?",
        ),
        "What is gravity?",
        r"force|attract|mass",
    ),
    _Topic(
        "art",
        (
            "Which colours mix to make green?",
            "Who painted the Mona Lisa?",
            "What is watercolour painting?",
            "Name some warm colours.",
            "What are complementary colours?",
        ),
        "What are the three primary colours?",
        r"(?i)red.*(blue|yellow)|blue.*red|yellow.*red",
    ),
)


@dataclass
class _Answer:
    """One question and what became of it."""

    prompt: str
    text: str = ""
    served_by: str = ""
    path: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    ttft_s: float | None = None
    """Seconds to the first piece, as the asker measured."""
    tokens: int = 0
    tokens_per_s: float | None = None
    """Tokens a second after the first piece."""
    ok: bool = False
    error: str = ""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--peers", type=click.IntRange(2, len(_NAMES)), default=3, show_default=True, help="How many.")
@click.option("--topology", type=click.Choice(["mesh", "line"]), default="mesh", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(peers: int, topology: str, as_json: bool) -> None:
    """Start a mesh on this machine, ask it a few questions, and check the answers.

    In a line each peer is linked to its neighbours only, and the last one alone has the skill.
    """
    console = Console(stderr=as_json, highlight=False)
    topics = {i: TOPICS[i] for i in range(min(peers, len(TOPICS)))}
    if topology == "line":
        topics = {peers - 1: TOPICS[0]}
    began = time.monotonic()
    try:
        with _mesh(peers, topology, topics, console) as base:
            console.print(f"{peers} peers found one another after {time.monotonic() - began:.1f} s\n")
            answers = [_ask(base, topic, console) for topic in topics.values()]
    except (client.NoPeer, client.Unsuccessful, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    served = {answer.served_by for answer in answers}
    ok = all(answer.ok for answer in answers) and (topology == "line" or len(served) >= 2)
    if topology == "line":
        ok = ok and all(len(answer.path) == peers for answer in answers)
    seconds = time.monotonic() - began
    if as_json:
        shown = {"answers": [asdict(a) for a in answers], "ok": ok, "seconds": round(seconds, 1)}
        click.echo(json.dumps(shown))
    else:
        verdict = "[green]all answers are right[/]" if ok else "[red]an answer is wrong[/]"
        console.print(
            f"{verdict}: {len(answers)} questions, {len(served)} peers answered, {seconds:.1f} s in all"
        )
    sys.exit(0 if ok else 1)


# -- the peers ----------------------------------------------------------------------------------------


@contextmanager
def _mesh(count: int, topology: str, topics: dict[int, _Topic], console: Console) -> Iterator[str]:
    """Start the peers, yield the base URL of the first when all know one another, and end them."""
    with tempfile.TemporaryDirectory(prefix="p2pmesh-demo-") as folder:
        ports = _free_ports(count)
        running: list[subprocess.Popen[str]] = []
        try:
            for index in range(count):
                file = Path(folder) / f"{_NAMES[index]}.toml"
                file.write_text(_toml(index, ports, topology, topics.get(index), folder), encoding="utf-8")
                skill = topics[index].name if index in topics else "general"
                console.print(f"starting [bold]{_NAMES[index]}[/]: {skill}")
                running.append(_start(file, Path(folder) / f"{_NAMES[index]}.log"))
            told = [_ready(process, Path(folder)) for process in running]
            base = str(told[0]["http"])
            _wait_for(base, count)
            yield base
        finally:
            _end(running)


def _start(file: Path, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "p2pmesh.peer", "--json", "--config", str(file)]
    with log.open("w", encoding="utf-8") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )


def _ready(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """What the peer says when it is ready. Raises RuntimeError, with its last words, when it is not."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(_STOP_S)
        words = " ".join(log.read_text("utf-8").strip()[-500:] for log in sorted(folder.glob("*.log")))
        raise RuntimeError(f"a peer did not start: {words or 'it said nothing'}")
    told: dict[str, Any] = json.loads(line)
    return told


def _wait_for(base: str, count: int) -> None:
    """Return when the first peer knows them all. Raises RuntimeError when it never does."""
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        peers = client.call(base, "GET", "/mesh/v1/peers")["peers"]
        if sum(peer["alive"] and peer["distance"] >= 0 for peer in peers) == count:
            return
        time.sleep(0.05)
    raise RuntimeError(f"the peers did not find one another within {_READY_S:.0f} s")


def _end(running: list[subprocess.Popen[str]]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _free_ports(count: int) -> list[int]:
    """Ports that are free now: known before the peers start, so that they can start all at once."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _toml(index: int, ports: list[int], topology: str, topic: _Topic | None, folder: str) -> str:
    """The configuration of one peer, as a user would write it."""
    address = "/ip4/127.0.0.1/tcp/{}".format
    join = [] if index == 0 else [address(ports[index - 1 if topology == "line" else 0])]
    lines = [
        f"name = {json.dumps(_NAMES[index])}",
        f"state = {json.dumps(f'{folder}/{_NAMES[index]}')}",
        'models = [{model = "smollm2-135m-instruct"}]',
        "[http]",
        'bind = "127.0.0.1:0"',
        "[net]",
        f"listen = {json.dumps([address(ports[index])])}",
        f"join = {json.dumps(join)}",
        f"dial_discovered = {json.dumps(topology == 'mesh')}",
    ]
    if topic is not None:
        skill = ("[[skills]]", f"name = {json.dumps(topic.name)}", f"examples = {json.dumps(topic.examples)}")
        lines += skill
    return "\n".join(lines) + "\n"


# -- the questions ------------------------------------------------------------------------------------


def _ask(base: str, topic: _Topic, console: Console) -> _Answer:
    answer = _Answer(topic.question)
    console.print(f"[bold]{topic.question}[/]")
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": topic.question}],
        "max_tokens": 48,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = time.monotonic()
    first = last = math.nan
    try:
        for event in client.events([base], "/v1/chat/completions", body):
            if not answer.path:
                _show_way(answer, event, console)
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece:
                    last = time.monotonic()
                    first = last if math.isnan(first) else first
                    answer.text += piece
                    console.print(piece, end="", markup=False, soft_wrap=True)
            answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
    except client.Unsuccessful as exc:
        answer.error = str(exc)
    answer.ok = not answer.error and re.search(topic.right, answer.text) is not None
    if not math.isnan(first):
        answer.ttft_s = round(first - asked, 3)
        if answer.tokens > 1 and last > first:
            answer.tokens_per_s = round((answer.tokens - 1) / (last - first), 1)
    _show_end(answer, console)
    return answer


def _show_way(answer: _Answer, event: dict[str, Any], console: Console) -> None:
    for hop in event["p2pmesh"]["path"]:
        answer.path.append(hop["name"])
        answer.served_by = hop["name"]
        answer.why.append(hop["why"])
        console.print(f"  [cyan]{hop['name']}[/] {hop['why']}", soft_wrap=True)
    console.print("  ", end="")


def _show_end(answer: _Answer, console: Console) -> None:
    mark = "[green]right[/]" if answer.ok else f"[red]wrong[/] {answer.error}"
    speed = f", {answer.tokens_per_s} tokens/s" if answer.tokens_per_s else ""
    console.print(f"\n  {mark}: first token after {answer.ttft_s} s, {answer.tokens} tokens{speed}\n")
