"""Attack a mesh of real peers, from a process of its own.

    python -m tests.attacks [--json] [--streams 10000] [--only NAME]

Three peers on loopback, in processes of their own; somebody asks them honestly all the while. The attackers
know addresses and public keys, and the insiders among them have a certificate. Each attack says whether it
was blocked and what was seen; it is the end that counts, too: all peers alive, and honest queries answered.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.attacks import insiders, outsiders, strangers
from tests.attacks.ground import Ground, mesh
from tests.attacks.verdict import Verdict

STREAMS = 10_000
ALL_S = 900.0
"""Seconds for one attack. A guard: each has its own."""

Attack = Callable[[Ground], Awaitable[Verdict]]


def attacks(streams: int) -> dict[str, Attack]:
    """Return all of them, by name."""
    named: dict[str, Attack] = {a.__name__: a for a in strangers.ATTACKS}
    named["stream_flood"] = partial(strangers.stream_flood, streams=streams)
    named.update((a.__name__, a) for a in (*insiders.ATTACKS, *outsiders.ATTACKS))
    return named


async def carry_out(ground: Ground, chosen: dict[str, Attack]) -> dict[str, Any]:
    """Make one attack after the other, beside honest queries; return what was seen."""
    rows: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ground.ask_on)
        for name, attack in chosen.items():
            before = replace(ground.honest)
            try:
                with trio.fail_after(ALL_S):
                    verdict = await attack(ground)
            except Exception as error:  # noqa: BLE001 - an attack that could not be made shows nothing
                verdict = Verdict(False, f"it could not be made: {error!r}")
            honest = ground.honest.since(before)
            rows.append(
                {
                    "attack": name,
                    "blocked": verdict.blocked,
                    "seen": verdict.seen,
                    "honest": f"{honest.answered}/{honest.asked}",
                }
            )
        alive = ground.alive()
        nursery.cancel_scope.cancel()
    asked, answered = ground.honest.asked, ground.honest.answered
    return {
        "attacks": rows,
        "blocked": sum(row["blocked"] for row in rows),
        "not_blocked": [row["attack"] for row in rows if not row["blocked"]],
        "peers_alive": alive,
        "honest_asked": asked,
        "honest_share": round(answered / asked, 4) if asked else None,
        "goal_honest_share": 0.99,
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description="Attack real peers.")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--streams", type=int, default=STREAMS, help="of the flood")
    parser.add_argument("--only", action="append", choices=sorted(attacks(0)), help="this one alone")
    options = parser.parse_args()
    named = attacks(options.streams)
    chosen = {name: named[name] for name in options.only or named}
    with tempfile.TemporaryDirectory(prefix="p2pmesh-attacks-") as folder, mesh(Path(folder)) as ground:
        told = trio.run(carry_out, ground, chosen)
    if options.json:
        print(json.dumps(told))
    else:
        for row in told["attacks"]:
            print(f"{'blocked' if row['blocked'] else 'NOT BLOCKED':12s} {row['attack']:24s} {row['seen']}")
        print({key: value for key, value in told.items() if key != "attacks"})
    served = told["peers_alive"] and (told["honest_share"] or 0) >= told["goal_honest_share"]
    raise SystemExit(bool(told["not_blocked"]) or not served)


if __name__ == "__main__":
    main()
