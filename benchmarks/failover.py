"""The same kill amid the same streams: through this mesh, and through routers that people put before models.

    python -m benchmarks.failover [--rounds 5] [--rivals DIR] [--seed N] [--json]

In each round and for each arm three workers are started, and a client asks eight streams at once at the one
address that the arm gives it; one of the workers is killed (SIGKILL) while they run. Workers are peers with
an echo engine of set speed in every arm: alone, behind HAProxy, sglang-router or LiteLLM, or joined to a
fourth peer, which has no model and is asked instead. What the client saw is judged by `benchmarks.history`.
All packets stay on loopback, and all processes are ended by their ids.

DIR holds `sglang-router` and `litellm`, installed for this alone; `haproxy` is looked for on the path. An arm
whose router is not there is left out, and said to be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from benchmarks import figures
from benchmarks.asking import Asking, CutOff, Refusal, events
from benchmarks.history import History, Judge, counts, pauses, streams_of
from benchmarks.mesh import Mesh, Role, free_ports, open_mesh
from benchmarks.processes import BenchmarkError, run

WORKERS = ("worker0", "worker1", "worker2")
ASKER = "asker"
MODEL = "echo"
SPEED = 40.0
"""Tokens a second."""
WORDS = 120
"""Of a prompt, and so of an answer: three seconds."""
STREAMS = 8
MIDWAY = WORDS // 4
"""Pieces that every stream has when the worker is killed."""
READY_S = 90.0
"""Seconds a router has until it passes a query on. LiteLLM takes some twenty on busy cores."""


def haproxy(port: int, workers: Sequence[str], folder: Path) -> list[str]:
    """Return the command of HAProxy: each next connection to the next worker, and again to another one where
    nothing was answered yet, as its manual advises for safe requests."""
    servers = [f"  server w{i} {url.removeprefix('http://')} check" for i, url in enumerate(workers)]
    lines = [
        "defaults",
        "  mode http",
        "  timeout connect 1s\n  timeout client 60s\n  timeout server 60s",
        "  option redispatch 1\n  retries 3\n  retry-on all-retryable-errors",
        f"frontend door\n  bind 127.0.0.1:{port}\n  default_backend workers",
        "backend workers\n  balance roundrobin\n  option httpchk",
        "  http-check send meth GET uri /health ver HTTP/1.1 hdr Host localhost",
        *servers,
    ]
    file = folder / "haproxy.cfg"
    file.write_text("\n".join(lines) + "\n")
    return ["haproxy", "-db", "-f", str(file)]


def sglang(port: int, workers: Sequence[str], folder: Path) -> list[str]:
    """Return the command of sglang-router, with its own retries and circuit breaker."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_ports(1)[0])]
    return ["sglang-router", "launch", *where, "--policy", "round_robin", "--worker-urls", *workers]


def litellm(port: int, workers: Sequence[str], folder: Path) -> list[str]:
    """Return the command of LiteLLM's proxy, with retries."""
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for url in workers
    ]
    file = folder / "litellm.json"  # which is YAML, too
    file.write_text(json.dumps({"model_list": models, "router_settings": {"num_retries": 3}}))
    return ["litellm", "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]


Rival = Callable[[int, Sequence[str], Path], list[str]]
RIVALS: dict[str, Rival] = {"haproxy": haproxy, "sglang-router": sglang, "litellm": litellm}
OURS = "p2pmesh"


@asynccontextmanager
async def open_router(rival: Rival, workers: Sequence[str], folder: Path, path: str) -> AsyncIterator[str]:
    """Run a router before `workers` for as long as the block lasts, and yield its URL."""
    [port] = free_ports(1)
    command = rival(port, workers, folder)
    executable = shutil.which(command[0], path=path)
    assert executable is not None, "an arm that is not installed is left out"
    # LiteLLM would fetch prices and report its use: no packet may leave loopback.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    keyless = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    with (folder / "router.log").open("wb") as log:
        process = await trio.lowlevel.open_process(
            [executable, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log.fileno(),
            stderr=log.fileno(),
            cwd=folder,
            env={**os.environ, **quiet, **keyless},
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(5.0):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


async def until_answers(url: str, times: int) -> None:
    """Wait until somebody answers at `url`, so often in a row: a router may know but one of its workers."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "ready"}]}
    answered = 0
    with trio.move_on_after(READY_S):
        while answered < times:
            try:
                async for _ in events(url, body):
                    pass
                answered += 1
            except (OSError, CutOff, Refusal):
                answered = 0
                await trio.sleep(0.2)
    if answered < times:
        raise BenchmarkError(f"nobody answered at {url} within {READY_S:g} s")


async def strike(mesh: Mesh, url: str, history: History, rng: Random) -> None:
    """Ask the streams, kill a worker amid them, and let them end."""
    asking = Asking(history, lambda name: url, rng, WORDS)
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(partial(asking.over_http, ASKER, MODEL))
        with trio.move_on_after(READY_S) as scope:
            while len(asking.midway(MIDWAY)) < STREAMS:  # noqa: ASYNC110 - pieces come from elsewhere
                await trio.sleep(0.01)
        if scope.cancelled_caught:
            raise BenchmarkError(f"not all of {STREAMS} streams were amid their answers at once")
        mesh.kill(rng.choice(WORKERS), "worker")


async def one_round(arm: str, folder: Path, seed: int, path: str) -> History:
    """Start everything for one arm, strike, and end everything."""
    history, rng = History(trio.current_time), Random(seed)
    roles = [Role(name, ((MODEL, SPEED),)) for name in WORKERS]
    if arm == OURS:
        roles = [Role(name, ((MODEL, SPEED),), (ASKER,)) for name in WORKERS] + [Role(ASKER)]
    async with open_mesh(folder, seed, history, roles) as mesh:
        if arm == OURS:
            await mesh.until_whole()
            await until_answers(mesh.url(ASKER), len(WORKERS))
            await strike(mesh, mesh.url(ASKER), history, rng)
        else:
            urls = [mesh.url(name) for name in WORKERS]
            async with open_router(RIVALS[arm], urls, folder, path) as url:
                await until_answers(url, len(WORKERS))
                await strike(mesh, url, history, rng)
    return history


async def measure(rounds: int, arms: Sequence[str], seed: int, folder: Path, path: str) -> dict[str, Any]:
    """Run all rounds, each with every arm, and return what became of their streams."""
    seen: dict[str, list[History]] = {arm: [] for arm in arms}
    for number, arm in itertools.product(range(rounds), arms):
        place = Path(tempfile.mkdtemp(prefix=f"{arm}-", dir=folder))
        seen[arm].append(await one_round(arm, place, seed + number, path))
    found: dict[str, Any] = {}
    for arm, histories in seen.items():
        each = [counts(h.rows, Judge().read(h.rows)) for h in histories]
        ends: Counter[str] = Counter()
        for history in histories:
            for stream in streams_of(history.rows).values():
                ends["whole" if stream.over == "ended" else f"{stream.over} {stream.code}".strip()] += 1
        waits = [wait for h in histories for wait in pauses(streams_of(h.rows).values())]
        streams, whole = sum(c["streams"] for c in each), ends["whole"]
        found[arm] = {
            "streams": streams,
            "whole": whole,
            "share_whole": figures.rounded(figures.over(whole, streams), 3),
            "ends": dict(ends),
            "missing_or_doubled_tokens": sum(
                c["gaps"] + c["duplicated_tokens"] + c["wrong_text"] for c in each
            ),
            "resumed": sum(c["resumed"] for c in each),
            "gap_s_median": figures.median(waits),
        }
    return found


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.failover", description="The same kill through others' routers."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", default="", help="where sglang-router and litellm are")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path = os.pathsep.join([options.rivals, os.environ.get("PATH", ""), "/usr/sbin"])
    missing = [name for name in RIVALS if shutil.which(name, path=path) is None]
    arms = [OURS, *(name for name in RIVALS if name not in missing)]
    with tempfile.TemporaryDirectory(prefix="p2pmesh-failover-") as folder:
        found = run(partial(measure, options.rounds, arms, options.seed, Path(folder), path))
    told = {"rounds": options.rounds, "streams_a_round": STREAMS, "not_installed": missing, **found}
    if options.json:
        print(json.dumps(told))
        return
    for arm in arms:
        figure = found[arm]
        print(f"{arm:14s} {figure['whole']:3d} of {figure['streams']:3d} whole   {figure['ends']}")
    for name in missing:
        print(f"{name:14s} left out: it is not installed (see --rivals)")


if __name__ == "__main__":
    main()
