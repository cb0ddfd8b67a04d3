"""Who is good at what, learnt among liars: `python -m p2pmesh.sim.learn`.

Every peer judges through the real `Experience`, and hears of others only in its reports. The world here is
made up: true qualities, claims, who is busy. There are no queues, no links that fail and no machines: the
question is whom to believe, and nothing else. One seed, one story.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from random import Random
from typing import Any

import click

from p2pmesh.protocol.experience import Experience, Learning, Report, Row
from p2pmesh.record import PeerId

BUSY_SHARE = 0.3
"""Share of the peers that cannot take a query, drawn anew for each (research, section 6)."""
REPORT_ROUNDS = 4
"""Queries each peer asks between two reports: about one report in 200 queries of 50 (research)."""
LIE_CLAIMED = 0.95
"""What a liar claims in every topic."""
BLIND = Learning(eta=0.0, stranger_weight=1.0)
"""The planted fault: everybody is believed, always."""


@dataclass(frozen=True)
class Study:
    """What is to be learnt, and among whom."""

    peers: int = 60
    topics: int = 8
    liars: float = 0.2
    """Share of the peers that claim `LIE_CLAIMED`, praise one another and run everybody else down."""
    queries: int = 200
    """Queries each honest peer asks; liars only talk."""
    noise: float = 0.0
    """Share of the outcomes that are the wrong way round."""
    seed: int = 1
    cunning: bool = False
    """The liars tell the truth about all others, to be believed about one another."""
    skilled: bool = False
    """The liars are truly good at three topics each, as everybody else: then not every query they get is
    lost. In the research's world they are."""
    reborn: int = 0
    """Queries of each peer after which all liars come back as new peers, again and again; 0: never."""
    learning: Learning = field(default_factory=Learning)


@dataclass(frozen=True)
class Learned:
    """How it went. A regret is the true quality that a query lost, 0..1, on average."""

    regret: float
    """Over the whole run."""
    regret_curve: tuple[float, ...]
    """In each tenth of the run."""
    share_to_liars: float
    """Share of the queries of the last quarter that liars answered."""
    weight_honest: float
    """How far an honest peer believes the reports of another, at the end, on average."""
    weight_liars: float


class _Peers:
    """The made-up world: what everybody is worth, and says it is worth, in each topic."""

    def __init__(self, study: Study, rng: Random) -> None:
        self.ids = [PeerId(f"peer-{i}") for i in range(study.peers)]
        self.topics = [f"topic-{i}" for i in range(study.topics)]
        self.lying = [i < round(study.liars * study.peers) for i in range(study.peers)]
        # Some topics are asked about more: Zipf with exponent 1/2 (research).
        self.popularity = list(accumulate((i + 1) ** -0.5 for i in range(study.topics)))
        self.truth: list[list[float]] = []
        self.claims: list[list[float]] = []
        for lies in self.lying:
            base = rng.uniform(0.2, 0.4) if lies else rng.uniform(0.3, 0.55)
            truth = [base + rng.uniform(-0.05, 0.05) for _ in self.topics]
            for _ in range(3 if study.skilled or not lies else 0):
                truth[rng.randrange(study.topics)] = min(0.95, base + rng.uniform(0.2, 0.4))
            self.truth.append(truth)
            self.claims.append(
                [LIE_CLAIMED if lies else min(0.97, max(0.05, q + rng.gauss(0.0, 0.1))) for q in truth]
            )

    def reborn(self, turn: int) -> None:
        """Give every liar a new name, with no past."""
        for i, lies in enumerate(self.lying):
            if lies:
                self.ids[i] = PeerId(f"peer-{i}-{turn}")

    def lies(self, study: Study) -> list[Report]:
        """What every liar tells: all it can, as often as anybody is believed, in reports of legal length."""
        rows = []
        for i, peer in enumerate(self.ids):
            for t, topic in enumerate(self.topics):
                mean = 0.97 if self.lying[i] else self.truth[i][t] if study.cunning else 0.1
                rows.append(Row(peer, topic, 1, 1_000, 1_000 * mean))
        most = study.learning.report_rows_max
        return [Report(1, tuple(rows[i : i + most])) for i in range(0, len(rows), most)]


def learn(study: Study) -> Learned:
    """Let everybody ask, judge and tell, and return how it went. Pure: one study, one result."""
    rng = Random(f"learn {study.seed}")
    world = _Peers(study, rng)
    minds = [Experience(peer, 1, study.learning) for peer in world.ids]
    asking = [i for i, lies in enumerate(world.lying) if not lies]
    told = [0] * study.peers
    lost: list[float] = []
    to_liars: list[bool] = []
    for turn in range(study.queries):
        if turn == 0 or (study.reborn and turn % study.reborn == 0):
            world.reborn(turn)
            _lie(study, world, minds, asking)
        if turn % REPORT_ROUNDS == 0:
            _tell(world, minds, asking, told)
        for i in rng.sample(asking, len(asking)):
            best, chosen, topic = _choose(study, world, minds[i], i, rng)
            truth = world.truth[chosen][topic]
            lost.append(world.truth[best][topic] - truth)
            to_liars.append(world.lying[chosen])
            right = (rng.random() < truth) != (rng.random() < study.noise)
            minds[i].observed(
                world.ids[chosen], world.topics[topic], float(right), world.claims[chosen][topic]
            )
    return _learned(world, minds, asking, lost, to_liars)


def _lie(study: Study, world: _Peers, minds: list[Experience], asking: list[int]) -> None:
    """Every liar tells every honest peer all it makes up. Once is enough: it would say the same again."""
    reports = world.lies(study)
    for i in asking:
        for liar, lies in zip(world.ids, world.lying, strict=True):
            for report in reports if lies else ():
                minds[i].heard(liar, report)


def _tell(world: _Peers, minds: list[Experience], asking: list[int], told: list[int]) -> None:
    """Every honest peer tells every other what it saw since it last told."""
    for i in asking:
        report, told[i] = minds[i].report(told[i])
        for other in asking:
            minds[other].heard(world.ids[i], report)


def _choose(study: Study, world: _Peers, mind: Experience, me: int, rng: Random) -> tuple[int, int, int]:
    """Return the best peer that is free, the one that `mind` takes for it, and the topic it is about.

    Nobody is asked just to see: who is busy explores enough (1 % of random probes changed nothing, measured).
    """
    [topic] = rng.choices(range(study.topics), cum_weights=world.popularity)
    free = [i for i in range(study.peers) if i != me and rng.random() >= BUSY_SHARE]
    free = free or [(me + 1) % study.peers]
    best = max(free, key=lambda i: world.truth[i][topic])
    name = world.topics[topic]
    return best, max(free, key=lambda i: mind.quality(world.ids[i], name, world.claims[i][topic])), topic


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _learned(
    world: _Peers,
    minds: list[Experience],
    asking: list[int],
    lost: list[float],
    to_liars: list[bool],
) -> Learned:
    tenth = max(1, len(lost) // 10)
    last = len(lost) * 3 // 4
    weights: dict[bool, list[float]] = {False: [], True: []}
    for i in asking:
        for other, lies in enumerate(world.lying):
            if other != i:
                weights[lies].append(minds[i].weight(world.ids[other]))
    return Learned(
        regret=_mean(lost),
        regret_curve=tuple(_mean(lost[at : at + tenth]) for at in range(0, 10 * tenth, tenth)),
        share_to_liars=_mean([float(lies) for lies in to_liars[last:]]),
        weight_honest=_mean(weights[False]),
        weight_liars=_mean(weights[True]),
    )


@click.command("learn")
@click.option("--peers", default=60, show_default=True, type=click.IntRange(2), help="How many peers.")
@click.option("--topics", default=8, show_default=True, type=click.IntRange(1), help="How many topics.")
@click.option(
    "--liars", default=0.2, show_default=True, type=click.FloatRange(0, 0.9), help="Share that lies."
)
@click.option(
    "--queries", default=200, show_default=True, type=click.IntRange(1), help="Queries of each peer."
)
@click.option("--noise", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Wrong outcomes.")
@click.option("--cunning", is_flag=True, help="Liars tell the truth about all but one another.")
@click.option("--skilled", is_flag=True, help="Liars are truly good at three topics each.")
@click.option("--reborn", default=0, show_default=True, help="Liars get new names every so many queries.")
@click.option("--seed", default=1, show_default=True, help="Equal seeds tell equal stories.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool, **study: Any) -> None:
    """Learn who is good at what among liars; and again, believing everybody."""
    results = {"weighted": learn(Study(**study)), "unweighted": learn(Study(**study, learning=BLIND))}
    if as_json:
        click.echo(json.dumps({name: asdict(result) for name, result in results.items()}))
        return
    for name, result in results.items():
        click.echo(f"reports {name}")
        for key, value in asdict(result).items():
            numbers = value if isinstance(value, tuple) else (value,)
            click.echo(f"  {key:16} {' '.join(f'{number:.3f}' for number in numbers)}")


if __name__ == "__main__":
    main()
