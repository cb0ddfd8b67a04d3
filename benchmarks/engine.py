"""Our engine beside `llama_cpp.Llama` and llama.cpp's own server: the same file, one thread each, in turn.

    python -m benchmarks.engine [--json] [--model PATH] [--tuned] [--tokens N] [--rounds R]
                                [--concurrency 1,2,4,8,16]

**Throughput.** N requests at once, each with a prompt of its own of about 55 tokens that asks for a story
without an end, at temperature 0. Three arms answer the same prompts in each round, in an order that turns:

- `ours`: the engine in its child, by `p2pmesh.peer.engines.open_engine` on trio, with a peer's settings.
- `llama`: `llama_cpp.Llama` in a child, with its defaults, one request after the other, as it cannot do
  more.
- `server`: llama.cpp's server out of the wheel xllamacpp (`pip install 'p2pmesh[bench]'`; without it its
  figures are null), over HTTP on loopback, streaming, 16 slots, continuous batching.

Tokens are those really written, by each engine's own count; `full` says how many answers had as many as
asked. A wall second runs from the first submission to the last end. CPU is that of the answering process
alone (/proc/PID/stat, in steps of 10 ms); `client_cpu_s` is what this process spent meanwhile. `ttft` is
the time to the first token, `ttft_cpu` the CPU seconds the answering process spent until then on all it had
to do, `gap` the time between two pieces of one answer. Each ratio is the median over the rounds of the
ratio within a round. Above 1 is good for us; only of `ttft_…`, `itl_…` and `lag_…` less is better.

**Stall.** The 99th percentile of the gaps of 4 of our running answers while a 1000-token prompt of words no
two alike is read beside them, over what it is without (`itl_p99_ratio`). The long prompt is read in some
hundred small pieces, one in each step.

**Lag.** How late the loop that hears our engine hears another process, which says every 2 ms what time it
is: the 99th percentile with 8 answers streaming over what it is at rest (`lag_p99_ratio`), and over what it
is beside a process that spins and has nothing to do with us (`lag_p99_vs_spun`): that much is the machine's.
(A task that sleeps 2 ms would measure something else: epoll waits for whole milliseconds, rounded up, and so
whatever wakes the loop in between makes a sleeper up to 1 ms late, were it done in no time.)

What the server was given: one thread for all there is to compute, and 20 that do HTTP, since a stream holds
its own; unified memory, whose idle slots are emptied between waves, or the others would attend over what
they left. Tried side by side over its CPU seconds, at 1, 4 and 16 at once: flash attention off (up to 1.5
times as slow; on is its own choice), batches of 128, 256, 512 and 2048 tokens (the same speed, but with 512
the first tokens of 16 prompts come sooner than with its 2048), its usual samplers, only one, and sampling
in the graph (the same), /completion and /v1/chat/completions (the same), idle slots left full (a tenth
slower). Its prompt cache is off.

What is unfair, and to whom. To us: the server gets its prompts rendered beforehand, samples with the
cheapest chain there is, and has 16 slots where a peer has 8 (`--slots` gives ours more). To the server:
HTTP and JSON are in its CPU, where ours has a pipe and this process does the rest (`client_cpu_s`); and its
wheel is built for any CPU with AVX2, where our llama.cpp is built for this one (`builds` tells what each
uses). To `llama`: it was never meant to answer many at once; its own ground is concurrency 1. Nobody keeps
prompts: no two begin alike.

With `--tuned` all are given one file, the embedded model as it comes, and ours answers with the copy that
`p2pmesh tune` makes of it first. That is what a user gets who has that file, and it is another measurement:
the others were not told of the copy, and their figures say nothing of how they would serve it.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import trio

from benchmarks import arms, processes
from benchmarks.arms import Answer, Arm, Ours
from benchmarks.figures import Row, Value, gaps, mean, median, median_ratio, over, percentile, rounded, table
from benchmarks.prompts import Conversation, Prompts
from p2pmesh import config
from p2pmesh.engine import catalog

TOKENS_MAX = 1_024
CONCURRENCY_MAX = 64
STALL_STREAMS = 4
STALL_TOKENS = 64
"""Enough that the streams outlast the long prompt."""
STALL_BEGUN = 4
"""Tokens each stream has written when the long prompt comes."""
LONG_TOKENS = 1_000
LAG_STREAMS = 8
LAG_TICK_S = 0.002
LAG_IDLE_S = 3.0

Tell = Callable[[str], None]


async def throughput(arm: Arm, conversations: Sequence[Conversation], tokens: int) -> Row:
    """Ask an arm all at once; return what came of it."""
    wave = await arms.wave(arm, conversations, tokens)
    answers = wave.answers
    wall = max(a.ended for a in answers) - min(a.asked for a in answers)
    written = sum(a.tokens for a in answers)
    between = [gap for a in answers for gap in gaps(a.times)]
    return {
        "arm": arm.name,
        "n": len(answers),
        "tokens": written,
        "full": sum(a.tokens >= tokens for a in answers),
        "prompt": rounded(wave.prompt_tokens, 1),
        "wall_s": rounded(wall, 3),
        "tokens_per_s": rounded(over(written, wall), 2),
        "cpu_s": rounded(wave.cpu_s, 2),
        "tokens_per_cpu_s": rounded(over(written, wave.cpu_s), 2),
        "client_cpu_s": rounded(wave.client_cpu_s, 3),
        "ttft_mean_s": rounded(wave.ttft_s, 3),
        "ttft_p99_s": rounded(percentile((a.ttft_s for a in answers), 0.99), 3),
        "ttft_cpu_mean_s": rounded(wave.ttft_cpu_s, 3),
        "gap_mean_ms": rounded(mean(between), 2, 1e3),
        "gap_p99_ms": rounded(percentile(between, 0.99), 2, 1e3),
    }


async def stall(ours: Ours, prompts: Prompts, words: int) -> Row:
    """Measure the gaps of running answers, and again while a long prompt is read beside them."""
    row: Row = {"streams": STALL_STREAMS}
    for long in (None, prompts.long(words)):
        answers = [Answer(ours.pid) for _ in range(STALL_STREAMS)]
        beside = Answer(ours.pid)
        async with trio.open_nursery() as nursery:
            for answer in answers:
                nursery.start_soon(ours.ask, prompts.story(), STALL_TOKENS, answer)
            if long is not None:
                for answer in answers:
                    await answer.wait(STALL_BEGUN)
                await ours.ask(long, 1, beside)
        if long is None:
            # Before the last of them has begun, they wait for one another's prompts.
            since = max(a.times[0] for a in answers)
            found = [gap for a in answers for gap in gaps(a.times, since)]
        else:
            since, until = beside.asked, beside.times[0]
            found = [gap for a in answers for gap in gaps(a.times, since, until)]
            row |= {"long_tokens": beside.prompt_tokens, "long_ttft_s": rounded(beside.ttft_s, 3)}
        kind = "alone" if long is None else "beside"
        row |= {
            f"gaps_{kind}": len(found),
            f"itl_mean_{kind}_ms": rounded(mean(found), 2, 1e3),
            f"itl_p99_{kind}_ms": rounded(percentile(found, 0.99), 2, 1e3),
        }
    return row


async def long_words(ours: Ours, prompts: Prompts) -> int:
    """Return how many words make a prompt of `LONG_TOKENS` under this model's vocabulary."""
    few, many = 20, 120
    shorter, longer = [
        (await arms.wave(ours, [prompts.long(words)], 1)).prompt_tokens for words in (few, many)
    ]
    return round(few + (LONG_TOKENS - shorter) * (many - few) / (longer - shorter))


async def lag(ours: Ours, prompts: Prompts, tokens: int) -> Row:
    """Measure how late this loop hears what another process says, at rest and while answers stream."""
    late: list[float] = []

    async def hear(ticks: trio.abc.ReceiveStream) -> None:
        while said := await ticks.receive_some(4_096):
            now = time.perf_counter()
            late.extend(now - tick for (tick,) in struct.iter_unpack("d", said))

    row: Row = {"streams": LAG_STREAMS}
    for kind in ("idle", "spun", "busy"):
        async with processes.open_ticker(LAG_TICK_S) as ticks, trio.open_nursery() as nursery:
            await ticks.receive_some(1)  # it has begun
            await ticks.receive_some(7)
            late.clear()
            nursery.start_soon(hear, ticks)
            if kind == "idle":
                await trio.sleep(LAG_IDLE_S)
            elif kind == "spun":
                async with processes.open_spinner():
                    await trio.sleep(LAG_IDLE_S)
            else:
                await arms.wave(ours, prompts.stories(LAG_STREAMS), tokens)
            nursery.cancel_scope.cancel()
        row |= {
            f"samples_{kind}": len(late),
            f"lag_p50_{kind}_ms": rounded(percentile(late, 0.5), 3, 1e3),
            f"lag_p99_{kind}_ms": rounded(percentile(late, 0.99), 3, 1e3),
        }
    return row


async def measure(options: argparse.Namespace, tell: Tell) -> dict[str, object]:
    """Run the benchmark; return its figures as `--json` prints them."""
    rows: list[Row] = []
    stalls: list[Row] = []
    lags: list[Row] = []
    prompts = Prompts()
    given = options.model or (catalog.DEFAULT if options.tuned else None)
    async with processes.workplace(given) as (model, folder), AsyncExitStack() as stack:
        kept = await processes.tuned(model, tell) if options.tuned else None
        ours = await stack.enter_async_context(arms.open_ours(model, options.slots))
        llama = await stack.enter_async_context(arms.open_llama(model, folder))
        server = await stack.enter_async_context(arms.open_server(model, folder, options.tokens))
        running: list[Arm] = [ours, llama, *([server] if server else [])]
        if not server:
            tell(arms.MISSING)
        for arm in running:
            await arms.wave(arm, prompts.stories(2), arms.WARM_UP_TOKENS)
        words = await long_words(ours, prompts)
        for round_ in range(options.rounds):
            for at, n in enumerate(options.concurrency):
                conversations = prompts.stories(n)
                first = (round_ + at) % len(running)
                for arm in running[first:] + running[:first]:
                    tell(f"round {round_ + 1} of {options.rounds}: {n} at once, {arm.name}")
                    rows.append({"round": round_, **await throughput(arm, conversations, options.tokens)})
            tell(f"round {round_ + 1} of {options.rounds}: a long prompt beside others, and the loop's lag")
            stalls.append({"round": round_, **await stall(ours, prompts, words)})
            lags.append({"round": round_, **await lag(ours, prompts, options.tokens)})
        return {
            **summary(rows, options.concurrency),
            **_side(stalls, "itl_p99_ratio", "itl_p99_beside_ms", "itl_p99_alone_ms"),
            **_side(lags, "lag_p99_ratio", "lag_p99_busy_ms", "lag_p99_idle_ms"),
            **_side(lags, "lag_p99_vs_spun", "lag_p99_busy_ms", "lag_p99_spun_ms"),
            "model": model.name,
            "tuned": kept,
            "asked_tokens": options.tokens,
            "threads": arms.THREADS,
            "cores": os.cpu_count(),
            "skipped": {} if server else {"server": arms.MISSING},
            "builds": {arm.name: arm.build for arm in running},
            "rows": rows,
            "stall": stalls,
            "lag": lags,
        }


def summary(rows: Sequence[Row], concurrency: Sequence[int]) -> dict[str, Value]:
    """Return the ratios, and the medians they may be compared with."""
    at = {(row["round"], row["arm"], row["n"]): row for row in rows}
    rounds = sorted({int(str(row["round"])) for row in rows})

    def ratio(rival: str, n: int, field: str) -> float | None:
        none: Row = {}
        return median_ratio(
            (at.get((i, "ours", n), none).get(field), at.get((i, rival, n), none).get(field)) for i in rounds
        )

    found: dict[str, Value] = {}
    for rival, n in (("llama", 8), *(("server", n) for n in (1, 2, 4, 8, 16))):
        found[f"vs_{rival}_{n}"] = ratio(rival, n, "tokens_per_s")
        found[f"vs_{rival}_{n}_cpu"] = ratio(rival, n, "tokens_per_cpu_s")
    found["ttft_vs_server_4"] = ratio("server", 4, "ttft_mean_s")
    found["ttft_vs_server_4_cpu"] = ratio("server", 4, "ttft_cpu_mean_s")
    for name in dict.fromkeys(str(row["arm"]) for row in rows):
        for n in concurrency:
            mine = [row for row in rows if row["arm"] == name and row["n"] == n]
            found[f"{name}_{n}_tokens_per_s"] = median(row["tokens_per_s"] for row in mine)
            found[f"{name}_{n}_tokens_per_cpu_s"] = median(row["tokens_per_cpu_s"] for row in mine)
    return found


def _side(rows: Sequence[Row], ratio: str, loaded: str, free: str) -> dict[str, Value]:
    return {
        ratio: median_ratio((row[loaded], row[free]) for row in rows),
        loaded: median(row[loaded] for row in rows),
        free: median(row[free] for row in rows),
    }


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description="Our engine beside llama_cpp.Llama and llama.cpp's server.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--model", help="a GGUF file; without it a Q8_0 copy of the embedded model")
    parser.add_argument("--tuned", action="store_true", help="ours answers with the copy that tune makes")
    parser.add_argument("--tokens", type=between(1, TOKENS_MAX), default=64, help="new tokens of each answer")
    parser.add_argument("--rounds", type=between(1, 1_000), default=3)
    parser.add_argument(
        "--concurrency",
        type=_counts,
        default=[1, 2, 4, 8, 16],
        metavar="N,N,…",
        help="requests at once (default 1,2,4,8,16)",
    )
    parser.add_argument(
        "--slots",
        type=between(1, CONCURRENCY_MAX),
        default=config.Engine().slots,
        help="answers our engine runs at once (default: a peer's)",
    )
    return parser.parse_args(arguments)


def _counts(text: str) -> list[int]:
    found = [between(1, CONCURRENCY_MAX)(part) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("the same number twice")
    return found


def between(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a number within `low`..`high` from the command line."""

    def read(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} lies outside {low}..{high}")
        return number

    return read


def main() -> None:
    """Run it from the command line."""
    options = _parse()
    figures = processes.run(lambda: measure(options, lambda line: print(line, file=sys.stderr)))
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name in ("rows", "stall", "lag"):
        print(f"{name}\n{table(figures.pop(name))}\n")  # type: ignore[arg-type]
    for key, value in figures.items():
        print(f"{key:28s} {'-' if value is None else value}")


if __name__ == "__main__":
    main()
