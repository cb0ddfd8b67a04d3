"""What a run amounts to, in numbers. It reads a world after the fact; a percentile is the nearest rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click

from p2pmesh.sim.world import World

ABOVE_0 = click.FloatRange(min=0.0, min_open=True)
"""What seconds, rates and loads must be."""
SHARE = click.FloatRange(0.0, 1.0)


@dataclass(frozen=True)
class Report:
    """One run."""

    asked: int
    served: int
    failed: dict[str, int]
    """How many ended badly, by reason."""
    hops_mean: float
    """Links a served query crossed."""
    first_s_p50: float
    """Seconds to the first piece."""
    first_s_p99: float
    whole_s_p50: float
    whole_s_p99: float
    bytes_per_peer_s: float
    view_share: float
    """Share of the living that a living peer knows, on average, at the end."""
    ghosts: int
    """Beliefs, at the end, that one who is gone is alive."""
    trace: str
    """Digest of the whole story: equal for equal seeds."""

    def as_dict(self) -> dict[str, object]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of `values`, or NaN of none."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def report(world: World, seconds: float) -> Report:
    """Return what `world` amounts to after `seconds`."""
    askings = list(world.judge.askings.values())
    served = [a for a in askings if a.ended is not None]
    first = [a.first_at - a.asked_at for a in served if a.first_at is not None]
    whole = [a.over_at - a.asked_at for a in served if a.over_at is not None]
    living = sorted(world.nodes)
    known = ghosts = 0
    for ident in living:
        membership = world.nodes[ident].machine.membership
        alive = [peer for peer in membership.members if membership.is_alive(peer)]
        known += sum(1 for peer in alive if peer in world.nodes)
        ghosts += sum(1 for peer in alive if peer not in world.nodes)
    return Report(
        asked=len(askings),
        served=len(served),
        failed=dict(sorted(Counter(a.failed.value for a in askings if a.failed is not None).items())),
        hops_mean=sum(len(a.path) - 1 for a in served) / max(1, len(served)),
        first_s_p50=percentile(first, 0.5),
        first_s_p99=percentile(first, 0.99),
        whole_s_p50=percentile(whole, 0.5),
        whole_s_p99=percentile(whole, 0.99),
        bytes_per_peer_s=sum(world.bytes_sent.values()) / max(1, len(world.bytes_sent)) / seconds,
        view_share=known / max(1, len(living) * (len(living) - 1)),
        ghosts=ghosts,
        trace=world.trace(),
    )
