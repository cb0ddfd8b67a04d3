"""An answer that is cut off and goes on elsewhere: is it the answer that nobody interrupted?

`python -m benchmarks.resume --json`. Each of 20 prompts is answered once at temperature 0; then, in another
process of the same model file and build, it is gone on with after its first k tokens, for five cuts spread
over the answer. An interrupted text ends as the whole one did, or leaves it at some token. There the two
likeliest tokens are compared, by logits worked out anew in this process (`gap`): a gap of a few hundredths is
a near-tie, which falls as the kernels round, and they round rows that are read together unlike one that is
written alone. A difference at a wide gap would be a fault of ours; `wide` counts those.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import trio

from p2pmesh import config
from p2pmesh.engine import base, catalog
from p2pmesh.peer.engines import EngineDown, EngineHandle, EngineUp, open_engine
from p2pmesh.query import Message, Options

CUTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the answer that exist already where another engine takes over."""
NEAR_TIE = 0.25
"""Most logits between the two likeliest tokens of a near-tie: the widest at which answers that were read in
one piece were seen to part is 0.11, and twice that is allowed."""
_SYSTEM = Message("system", "You are a helpful assistant. Answer in a few sentences.")
_TOPICS = (
    "why the sky is blue",
    "what gravity is",
    "how bread is made",
    "who Napoleon was",
    "what a violin is",
    "how rain forms",
    "what a prime number is",
    "where salt comes from",
    "how a bicycle stays upright",
    "what the moon does to the sea",
    "why leaves fall",
    "what an atom is",
    "how glass is made",
    "what Paris is known for",
    "how bees make honey",
    "what a volcano is",
    "why we sleep",
    "how paper is made",
    "what a democracy is",
    "how a telescope works",
)


@dataclass(frozen=True)
class Difference:
    """Where an answer that was gone on with left the whole one."""

    prompt: str
    cut: int
    at: int
    """The token that differs, counted from the answer's beginning."""
    gap: float
    """Logits between the two likeliest tokens there."""


class Answers:
    """One engine, and the tokens of what it is asked."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self._ended: dict[str, trio.Event] = {}
        self.handle: EngineHandle

    def on_event(self, _: EngineHandle, event: base.Event | EngineUp | EngineDown) -> None:
        """Take what the engine says."""
        if isinstance(event, base.Generated):
            self.tokens[event.job] += event.tokens
        elif isinstance(event, base.Failed):
            raise click.ClickException(f"{event.job}: {event.reason.value} {event.detail}")
        elif isinstance(event, base.Finished):
            self._ended[event.job].set()

    async def ask(self, topic: str, tokens: int, accepted: tuple[int, ...] = ()) -> list[int]:
        """Return all tokens of an answer that begins with `accepted`."""
        job = f"{topic}/{len(accepted)}"
        self.tokens[job], self._ended[job] = list(accepted), trio.Event()
        self.handle.generate(job, conversation(topic), Options(max_tokens=tokens), accepted)
        await self._ended[job].wait()
        return self.tokens[job]


def conversation(topic: str) -> tuple[Message, ...]:
    """Return what is asked about a topic."""
    return (_SYSTEM, Message("user", f"Explain {topic}."))


@asynccontextmanager
async def answering(load: base.Load) -> AsyncIterator[Answers]:
    """A process of its own."""
    answers = Answers()
    async with open_engine(load, config.Engine(), answers.on_event) as answers.handle:
        await answers.handle.wait_ready()
        yield answers


def gap_after(load: base.Load, topic: str, tokens: list[int]) -> float:
    """Return the logits between the two likeliest tokens after `tokens` of the answer."""
    from p2pmesh.engine.batch import Part
    from p2pmesh.engine.opening import open_schedule

    schedule: Any = open_schedule(load, "m", "")
    prompt = schedule.prompt_tokens(conversation(topic)) + tokens
    context = schedule._context
    pieces = [prompt[at : at + load.prefill_chunk] for at in range(0, len(prompt), load.prefill_chunk)]
    part, at = Part(0, 0, np.array([], np.int32), False), 0
    for piece in pieces:
        part = Part(0, at, np.array(piece, np.int32), at + len(piece) == len(prompt))
        at += len(piece)
        context.decode([part])
    second, first = np.sort(context.logits(part.row))[-2:]
    context.close()
    return float(first - second)


async def measure(
    load: base.Load, prompts: int, tokens: int
) -> tuple[int, list[tuple[str, int, int, list[int]]]]:
    """Return how many answers were gone on with, and of those that differ: topic, cut, where, and the tokens
    before it."""
    runs, differences = 0, []
    async with answering(load) as first, answering(load) as second:
        for topic in _TOPICS[:prompts]:
            whole = await first.ask(topic, tokens)
            for share in CUTS:
                cut = max(1, round(share * len(whole)))
                again = await second.ask(topic, tokens, tuple(whole[:cut]))
                runs += 1
                if again != whole:
                    pairs = enumerate(zip(whole, again, strict=False))
                    at = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(again)))
                    differences.append((topic, cut, at, whole[:at]))
    return runs, differences


@click.command()
@click.option("--model", default=catalog.DEFAULT, show_default=True, help="A model, by name or by path.")
@click.option("--prompts", default=20, show_default=True, type=click.IntRange(1, len(_TOPICS)))
@click.option("--tokens", default=48, show_default=True, type=click.IntRange(5), help="Longest answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(model: str, prompts: int, tokens: int, as_json: bool) -> None:
    """Go on with answers that were cut off, and compare."""
    load = base.Load(path=str(catalog.find(model)), slots=1)
    runs, found = trio.run(measure, load, prompts, tokens)
    differences = [
        Difference(topic, cut, at, round(gap_after(load, topic, before), 4))
        for topic, cut, at, before in found
    ]
    result = {
        "model": model,
        "resumed": runs,
        "identical": runs - len(differences),
        "wide": sum(difference.gap > NEAR_TIE for difference in differences),
        "differences": [asdict(difference) for difference in differences],
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{result['identical']} of {runs} resumed answers are the whole one, token for token")
    for difference in differences:
        click.echo(
            f"  {difference.prompt!r}, cut after {difference.cut}: differs at {difference.at}, "
            f"where the two likeliest tokens are {difference.gap:.4f} apart"
        )


if __name__ == "__main__":
    main()
