"""What is asked, when and where: workloads drawn from one seed, and the peers they are put to.

Peers' speeds spread over a factor of 20, the slower ones a little better; each is good at one to three of the
topics, whose popularity follows Zipf; answers' lengths are lognormal. The figures are research's
(routing, section 5), not those of a real mesh. It knows nothing of who answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from p2pmesh.protocol.batching import gain
from p2pmesh.query import Message
from p2pmesh.record import PeerId
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.world import Spec, World

MAX_TOKENS = 2_048
_ANSWER_MEAN = 200.0
"""Tokens of an answer."""
_ANSWER_SIGMA = 0.83
_ZIPF = 0.5
_SPEED = (5.0, 100.0)
"""Slowest and fastest, in tokens a second."""
_PREFILL = 10.0
"""Prompts are read so many times as fast as answers are written."""
SLOTS = 4


@dataclass(frozen=True)
class Arrival:
    """One query of a workload."""

    at: float
    peer: int
    topic: int
    answer: int
    """Tokens it will take, which nobody knows."""


def peers(count: int, topics: int, seed: int) -> list[Spec]:
    """Draw the peers of one world."""
    rng = Random(f"peers {seed}")
    specs = []
    for _ in range(count):
        speed = math.exp(rng.uniform(*map(math.log, _SPEED)))
        general = rng.uniform(0.3, 0.55) + 0.08 * math.log(_SPEED[1] / speed) / math.log(20.0)
        good_at = tuple(sorted(rng.sample(range(topics), min(topics, rng.randint(1, 3)))))
        quality = min(0.95, general + rng.uniform(0.2, 0.38))
        specs.append(Spec(good_at, _PREFILL * speed, speed, SLOTS, quality=quality, general=general))
    return specs


def quality(spec: Spec, topic: int) -> float:
    """Return how good this peer's answers to `topic` really are."""
    return max(spec.general, spec.quality if topic in spec.topics else 0.0)


def arrivals(specs: list[Spec], topics: int, load: float, count: int, seed: int) -> Iterator[Arrival]:
    """Draw `count` queries which, together, ask for a share `load` of all that the peers can do."""
    rng = Random(f"arrivals {seed}")
    weights = [1.0 / (rank + 1) ** _ZIPF for rank in range(topics)]
    capacity = sum(s.decode_tps * gain(s.slots) for s in specs)
    rate = load * capacity / _ANSWER_MEAN
    mu = math.log(_ANSWER_MEAN) - _ANSWER_SIGMA**2 / 2
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        topic = rng.choices(range(topics), weights)[0]
        answer = max(1, min(MAX_TOKENS, round(rng.lognormvariate(mu, _ANSWER_SIGMA))))
        yield Arrival(now, rng.randrange(len(specs)), topic, answer)


_LOOKS_S = 0.01
"""Seconds between two looks at whether an answer is whole."""


@dataclass(frozen=True)
class Conversation:
    """Turns that each go on from all before them."""

    asker: PeerId
    topic: int
    turns: int
    opening: int
    """UTF-8 bytes of the first question: what a conversation is about, a file say, stands there."""
    question: int = 40
    """Of each later one."""
    answer: int = 20
    """Tokens of each answer."""
    think_s: float = 1.0
    """Seconds from an answer to the next question; an agent's are few."""
    number: int = 0
    """Tells it from others."""


def converse(world: World, talk: Conversation) -> list[Asking]:
    """Begin `talk` now; each further turn is asked when the answer before it has come, and been thought over.
    Returns the list of its turns, which grows. One that fails is the last."""
    turns: list[Asking] = []

    def ask(before: tuple[Message, ...]) -> None:
        length = talk.opening if not before else talk.question
        text = f"topic {talk.topic} of conversation {talk.number}, turn {len(turns)} "
        messages = (*before, Message("user", text.ljust(length, ".")))
        tokens = talk.answer
        turns.append(world.ask(talk.asker, tokens=tokens, messages=messages))
        world.later(_LOOKS_S, look)

    def look() -> None:
        turn = turns[-1]
        if turn.over_at is None:
            world.later(_LOOKS_S, look)
        elif turn.ended is not None and len(turns) < talk.turns:
            before = (*turn.query.messages, Message("assistant", turn.text))
            world.later(talk.think_s, lambda: ask(before))

    ask(())
    return turns
