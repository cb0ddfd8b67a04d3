"""What a beginning that was read before saves: the time to the first token, cold and warm.

    python -m benchmarks.prefix [--json] [--model PATH] [--samples S]

A system prompt of about 270 tokens, then a question of about 23, to our engine in its child by
`p2pmesh.peer.engines.open_engine` on trio with a peer's settings, one thread, one new token at temperature 0.
For each sample, with system prompts no earlier one had:

- at 1: the system prompt is new (`cold`); then the same with another question (`warm`), and with a third
  (`again`).
- at 4: four questions at once, each after a new system prompt of its own, so that there is nothing to share
  (`cold`); four after one new system prompt (`together`); then another system prompt is asked one question,
  and after that four at once (`warm`), and four more (`again`).

`ttft` is the mean over the requests of a wave of the time to the first token; `ttft_cpu` the CPU seconds of
the engine until then, in steps of 10 ms. `speedup_N` is the median over the samples of cold / warm within a
sample, `speedup_N_again` and `speedup_4_together` the same for the others. 1 means that nothing was saved.

It flatters in one way: one new token leaves out the rest of the answer, which is as slow as ever.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from benchmarks import arms, processes
from benchmarks.arms import Ours
from benchmarks.engine import between
from benchmarks.figures import Row, Value, median, median_ratio, rounded, table
from benchmarks.prompts import Conversation, Prompts
from p2pmesh import config
from p2pmesh.query import Message

PROMPT_TOKENS = 293
"""A system prompt of 270, and a question of 23 with the marks of the template around it."""
MANY = 4
KINDS = {1: ("cold", "warm", "again"), MANY: ("cold", "together", "warm", "again")}


def asked(prompts: Prompts, rules: str) -> Conversation:
    """Return a new question after a system prompt."""
    return (Message("system", rules), Message("user", prompts.question()))


async def fitting(ours: Ours, prompts: Prompts) -> int:
    """Return how many sentences make a system prompt with which the whole is `PROMPT_TOKENS` long."""
    few, many = 4, 20
    shorter, longer = [
        (await arms.wave(ours, [asked(prompts, prompts.rules(sentences))], 1)).prompt_tokens
        for sentences in (few, many)
    ]
    return max(1, round(few + (PROMPT_TOKENS - shorter) * (many - few) / (longer - shorter)))


async def sample(ours: Ours, prompts: Prompts, sentences: int) -> list[Row]:
    """Return the rows of one sample: each kind at 1 and at 4."""
    rows: list[Row] = []

    async def note(n: int, kind: str, all_rules: Sequence[str]) -> None:
        wave = await arms.wave(ours, [asked(prompts, rules) for rules in all_rules], 1)
        rows.append(
            {
                "n": n,
                "kind": kind,
                "prompt": rounded(wave.prompt_tokens, 1),
                "ttft_s": rounded(wave.ttft_s, 4),
                "ttft_cpu_s": rounded(wave.ttft_cpu_s, 3),
            }
        )

    alone, known = prompts.rules(sentences), prompts.rules(sentences)
    for kind in KINDS[1]:
        await note(1, kind, [alone])
    await note(MANY, "cold", [prompts.rules(sentences) for _ in range(MANY)])
    await note(MANY, "together", [prompts.rules(sentences)] * MANY)
    await arms.wave(ours, [asked(prompts, known)], 1)
    for kind in ("warm", "again"):
        await note(MANY, kind, [known] * MANY)
    return rows


def summary(rows: Sequence[Row]) -> dict[str, Value]:
    """Return the ratios, and the medians they are made of."""
    at = {(row["sample"], row["n"], row["kind"]): row for row in rows}
    samples = sorted({int(str(row["sample"])) for row in rows})
    found: dict[str, Value] = {}
    for n, kinds in KINDS.items():
        for kind in kinds[1:]:
            name = f"speedup_{n}" if kind == "warm" else f"speedup_{n}_{kind}"
            for field, suffix in (("ttft_s", ""), ("ttft_cpu_s", "_cpu")):
                pairs = ((at[i, n, "cold"][field], at[i, n, kind][field]) for i in samples)
                found[name + suffix] = median_ratio(pairs)
    for n, kinds in KINDS.items():
        for kind in kinds:
            found[f"ttft_{kind}_{n}_s"] = median((at[i, n, kind]["ttft_s"] for i in samples), 4)
    return found


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark; return its figures as `--json` prints them."""
    prompts = Prompts()
    rows: list[Row] = []
    async with (
        processes.workplace(options.model) as (model, _),
        arms.open_ours(model, config.Engine().slots) as ours,
    ):
        await arms.wave(ours, prompts.stories(MANY), arms.WARM_UP_TOKENS)
        sentences = await fitting(ours, prompts)
        for number in range(options.samples):
            print(f"sample {number + 1} of {options.samples}", file=sys.stderr)
            rows += [{"sample": number, **row} for row in await sample(ours, prompts, sentences)]
        return {
            **summary(rows),
            "prompt_tokens": median((row["prompt"] for row in rows), 1),
            "model": model.name,
            "threads": arms.THREADS,
            "cores": os.cpu_count(),
            "rows": rows,
        }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefix", description="What a beginning that was read before saves."
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--model", help="a GGUF file; without it a Q8_0 copy of the embedded model")
    parser.add_argument("--samples", type=between(1, 1_000), default=7)
    options = parser.parse_args()
    figures = processes.run(lambda: measure(options))
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"{table(figures.pop('rows'))}\n")  # type: ignore[arg-type]
    for key, value in figures.items():
        print(f"{key:24s} {'-' if value is None else value}")


if __name__ == "__main__":
    main()
