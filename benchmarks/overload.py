"""Ten times more than the mesh can do: does it still do what it can, and say at once what it cannot?

    python -m benchmarks.overload [--json] [--factor 10] [--seconds 30] [--seed 1]

Three peers with echo models of set speed, one process each, on loopback; queries come over HTTP to each of
them in turn, at random moments and whatever has become of those before (an open loop). First calmly, then at
what the models can do and half more, whose better goodput is the peak, then at `factor` times what they can
do, then calmly again. Goodput is whole answers a second that came within their budget.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import click
import h11
import trio

from benchmarks import figures
from benchmarks.processes import run
from tests.integration.processes import PeerProcess, peers

PEERS, SLOTS = 3, 4
WORDS, TOKENS_PER_S = 20, 20.0
ANSWER_S = WORDS / TOKENS_PER_S / 8 + (WORDS + 1) / TOKENS_PER_S
"""Seconds an answer takes alone: the echo reads eight times as fast as it writes."""
CAPACITY = PEERS * SLOTS / ANSWER_S
"""Queries a second that the models can do."""
BUDGET_S = 4.0
CALM = 0.3
CALM_S = 15.0
WARM_S = 3.0
"""Seconds at the beginning of a phase that do not count for goodput."""
REST = f"engine.slots = {SLOTS}\nhttp.request_timeout_s = {BUDGET_S}\nhttp.requests_max = 4096\n"
_GUARD_S = 60.0
"""Seconds after which a response that has not come counts as none: a guard, far above the budget."""


@dataclass(frozen=True)
class Outcome:
    """How one query ended. Times are the benchmark's clock, in seconds."""

    asked_at: float
    ended_at: float
    code: str
    """"ok", an error's code, or "none" where there was no response."""
    retry_after_s: float | None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended_at - self.asked_at


async def ask(url: str, prompt: str) -> tuple[str, float | None]:
    """Ask one query; return its code and its retry-after."""
    where = urlsplit(url)
    assert where.hostname
    assert where.port
    body = json.dumps(
        {"model": "auto", "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}
    ).encode()
    connection = h11.Connection(h11.CLIENT)
    fields = [("host", where.netloc), ("content-length", str(len(body))), ("connection", "close")]
    request = h11.Request(method="POST", target="/v1/chat/completions", headers=fields)
    status, wait, data = 0, None, b""
    with trio.move_on_after(_GUARD_S):
        async with await trio.open_tcp_stream(where.hostname, where.port) as stream:
            raw = (connection.send(request), connection.send(h11.Data(body)))
            await stream.send_all(b"".join(part or b"" for part in raw))
            connection.send(h11.EndOfMessage())
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65_536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    wait = next(
                        (float(value) for name, value in event.headers if name == b"retry-after"), None
                    )
                elif isinstance(event, h11.Data):
                    data += bytes(event.data)
                else:
                    break
    if status == 200:
        return "ok", None
    return (json.loads(data)["error"]["code"] if data else "none"), wait


class Clients:
    """Those who ask."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = urls
        self._random = Random(seed)
        self._asked = 0

    async def load(self, per_s: float, seconds: float) -> tuple[float, list[Outcome]]:
        """Ask so many a second for so long; return when that began and all outcomes, when all have ended."""
        outcomes: list[Outcome] = []

        async def one(number: int) -> None:
            prompt = " ".join(f"w{self._random.randrange(10**6)}" for _ in range(WORDS))
            asked_at = trio.current_time()
            try:
                code, wait = await ask(self._urls[number % len(self._urls)], prompt)
            except (OSError, h11.ProtocolError, trio.BrokenResourceError):
                code, wait = "none", None
            outcomes.append(Outcome(asked_at, trio.current_time(), code, wait))

        began = due = trio.current_time()
        async with trio.open_nursery() as nursery:
            while due < began + seconds:
                await trio.sleep_until(due)
                nursery.start_soon(one, self._asked)
                self._asked += 1
                due += self._random.expovariate(per_s)
        return began, outcomes


def goodput(began: float, seconds: float, outcomes: Sequence[Outcome]) -> float:
    """Return the whole answers a second that came in time, while the load lasted."""
    good = sum(o.code == "ok" and began + WARM_S <= o.ended_at < began + seconds for o in outcomes)
    return good / (seconds - WARM_S)


def recovery_s(since: float, outcomes: Sequence[Outcome], normal_s: float) -> float:
    """Return the seconds after `since` from which on every query was answered, and within `normal_s`."""
    bad = [o.asked_at - since for o in outcomes if o.code != "ok" or o.seconds > normal_s]
    later = [o.asked_at - since for o in outcomes if not bad or o.asked_at - since > max(bad)]
    return (min(later) if later else float("inf")) if bad else 0.0


def retries(started: dict[str, PeerProcess]) -> int:
    """Return how often queries were sent anew so far."""
    return sum(peer.status()["counters"]["retries"] for peer in started.values())


async def measure(
    started: dict[str, PeerProcess], factor: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Run all phases; return the figures as `--json` prints them."""
    clients = Clients([peer.url for peer in started.values()], seed)
    await clients.load(CAPACITY, 5.0)  # so that each has learnt how long answers are
    _, calm = await clients.load(CALM * CAPACITY, CALM_S)
    peaks = [
        goodput(began, 20.0, o) for began, o in [await clients.load(f * CAPACITY, 20.0) for f in (1.0, 1.5)]
    ]
    before = await trio.to_thread.run_sync(retries, started)
    began, flood = await clients.load(factor * CAPACITY, seconds)
    since = began + seconds
    after_began, after = await clients.load(CALM * CAPACITY, CALM_S)
    again = await trio.to_thread.run_sync(retries, started) - before
    refused = [o.seconds for o in flood if o.code == "mesh_overloaded"]
    served = [o.seconds for o in flood if o.code == "ok"]
    calm_p99 = figures.percentile([o.seconds for o in calm], 0.99) or float("inf")
    through = goodput(began, seconds, flood)
    return {
        "capacity_per_s": round(CAPACITY, 2),
        "factor": factor,
        "peak_per_s": round(max(peaks), 2),
        "goodput_per_s": round(through, 2),
        "goodput_share": round(through / max(peaks), 3),
        "asked": len(flood),
        "outcomes": dict(Counter(o.code for o in flood)),
        "refused_p99_s": figures.rounded(figures.percentile(refused, 0.99), 3),
        "refused_max_s": figures.rounded(max(refused, default=None), 3),
        "refused_without_retry_after": sum(
            o.retry_after_s is None for o in flood if o.code == "mesh_overloaded"
        ),
        "served_p99_s": figures.rounded(figures.percentile(served, 0.99), 3),
        "calm_p99_s": figures.rounded(calm_p99, 3),
        "calm_outcomes": dict(Counter(o.code for o in calm)),
        "recovery_s": round((after_began - since) + recovery_s(after_began, after, 2.0 * calm_p99), 3),
        "attempts_per_query": round(1.0 + again / (len(flood) + len(after)), 3),
    }


@click.command()
@click.option("--factor", default=10.0, show_default=True, help="Times what the models can do.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(min=2 * WARM_S))
@click.option("--seed", default=1, show_default=True, help="Draws the moments and the prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(factor: float, seconds: float, seed: int, as_json: bool) -> None:
    """Ask a mesh far more than it can do."""
    names = {f"peer{number}": TOKENS_PER_S for number in range(PEERS)}
    with (
        tempfile.TemporaryDirectory(prefix="p2pmesh-overload-") as folder,
        peers(Path(folder), REST, **names) as up,
    ):
        result = run(lambda: measure(up, factor, seconds, seed))
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:28} {value}")


if __name__ == "__main__":
    main()
