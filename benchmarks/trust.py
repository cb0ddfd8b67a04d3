"""What a private mesh costs, and how soon a peer that was thrown out is out.

    python -m benchmarks.trust [--json] [--rounds N] [--peers N] [--revocations N]

**Handshake.** Two hosts link, over loopback, from the dial to both ends' LinkUp: in no mesh, and in one whose
certificates each shows and checks. Both pairs run in this process and take turns; `ratio` is the median over
the rounds of the ratio within a round. CPU is this process's, for both ends together.

**Revocation.** So many peers, all linked to one another, in this process: the founder throws one out, and it
is timed until the last of the others has ended its link to it. What is left then has one peer less.

**Sealing.** What a query of 2 KB, and a piece of its answer with one token, cost both ends together from the
value to the value: as they travel in the general zone (codec alone), and sealed (codec, cipher, and a query's
two signatures). Medians in microseconds of CPU; they take turns.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import trio

from p2pmesh.config import Config, Limits, ModelConfig, Net
from p2pmesh.net.host import Host, LinkDown, LinkUp, open_host
from p2pmesh.net.identity import Identity, load_or_create
from p2pmesh.peer import credentials, state
from p2pmesh.peer.peer import Peer, open_peer
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.messages import Forward, Tokens
from p2pmesh.protocol.sealing import Sealing
from p2pmesh.query import Chunk, Hop, Message, Query, QueryId
from p2pmesh.trust.papers import shown_for
from p2pmesh.trust.sealing import Envelopes
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.tickets import SECRET_BYTES
from p2pmesh.trust.welcome import welcomed

GOAL_S = 5.0
"""Seconds within which every connected peer must have let go."""
_LOOK_S = 0.002


def members(folder: Path, n: int) -> list[tuple[Path, Identity, Standing]]:
    """Found a mesh in `folder` and let `n` peers in, each with a state directory, the founder first."""
    found: list[tuple[Path, Identity, Standing]] = []
    for number in range(n):
        path = folder / f"peer{number}"
        identity = load_or_create(path / state.KEY)
        if not found:
            standing = credentials.found(path, identity, "bench", ())
        else:
            founder = found[0][2]
            ticket = founder.invite(secrets.token_bytes(SECRET_BYTES), (), (), 60.0, 1)
            granted = founder.admit(identity.id, shown_for(ticket))
            standing = welcomed(granted, ticket, identity.id, time.time)
            credentials.joined(path, standing, ())
        found.append((path, identity, standing))
    return found


async def handshake(a: Host, b: Host) -> tuple[float, float]:
    """Link them, and end the link; return the seconds until both knew of it, and the CPU seconds."""
    began, cpu = time.perf_counter(), time.process_time()
    a.dial(b.id, b.addresses)
    for host in (a, b):
        assert isinstance(await host.receive(), LinkUp)
    took = time.perf_counter() - began, time.process_time() - cpu
    a.hangup(b.id)
    for host in (a, b):
        assert isinstance(await host.receive(), LinkDown)
    return took


async def handshakes(rounds: int, folder: Path) -> dict[str, float]:
    """Measure both kinds in turn."""
    limit = Limits().frame_bytes_max
    private = members(folder, 2)
    async with AsyncExitStack() as stack:
        pairs: dict[str, list[Host]] = {"open": [], "mesh": []}
        for _, identity, standing in private:
            for kind, door in (("open", None), ("mesh", standing)):
                pairs[kind].append(await stack.enter_async_context(open_host(identity, Net(), limit, door)))
        for hosts in pairs.values():
            await handshake(hosts[0], hosts[1])  # the first loads what it needs
        took: dict[str, list[tuple[float, float]]] = {"open": [], "mesh": []}
        for number in range(rounds):
            for kind in sorted(pairs, reverse=bool(number % 2)):
                took[kind].append(await handshake(pairs[kind][0], pairs[kind][1]))
    figures = {}
    for at, unit in enumerate(("ms", "cpu_ms")):
        for kind, times in took.items():
            figures[f"{kind}_{unit}"] = round(1e3 * statistics.median(t[at] for t in times), 3)
    ratios = [mesh[1] / plain[1] for plain, mesh in zip(took["open"], took["mesh"], strict=True)]
    return {**figures, "cpu_ratio": round(statistics.median(ratios), 3)}


async def revocations(n: int, times: int, folder: Path) -> dict[str, object]:
    """Measure how long it takes until a peer that is thrown out has no link any more."""
    took = []
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for path, _, _ in members(folder, n):
            join = peers[0].addresses if peers else ()
            config = Config(
                state=str(path),
                embedder="none",
                models=(ModelConfig(model="echo", engine="echo"),),
                net=Net(join=join),
            )
            peers.append(await stack.enter_async_context(open_peer(config)))
        await until(lambda: all(_links(peer) == n - 1 for peer in peers))
        for _ in range(times):
            victim = peers.pop()
            began = time.perf_counter()
            peers[0].revoke(victim.id)
            await until(lambda victim=victim: not any(_is_linked(peer, victim) for peer in peers))
            took.append(round(time.perf_counter() - began, 4))
    return {"peers": n, "last_s": took, "max_s": max(took), "goal_s": GOAL_S}


def sealing(rounds: int) -> dict[str, float]:
    """Measure what queries and pieces cost, open and sealed."""
    limits = Limits()
    codec, here, there = Codec(limits), Identity.generate(), Identity.generate()
    ends = [Envelopes(b"m" * 32, me.sign, time.time, secrets.token_bytes) for me in (here, there)]
    keys = {there.id: ends[1].key()}
    origin = Sealing(here.id, limits, codec, ends[0], keys.__getitem__, lambda _: None, 0.0)
    executor = Sealing(there.id, limits, codec, ends[1], keys.__getitem__, lambda _: None, 0.0)
    took: dict[str, list[float]] = {"query": [], "sealed_query": [], "piece": [], "sealed_piece": []}
    for number in range(rounds):
        asked = Query(QueryId(f"{number:032x}"), here.id, (Message("user", "word " * 400),), zone="hr")
        asked = replace(asked, target=there.id, path=(Hop(here.id, "here", ""),))
        piece = Chunk(asked.id, 0, 0, (4711,), " word")
        at = [time.process_time()]
        codec.decode(codec.encode(Forward(asked)))
        at.append(time.process_time())
        outside, ours = origin.wrap(asked, "small")
        came = codec.decode(codec.encode(Forward(outside)))
        assert isinstance(came, Forward)
        _, theirs = executor.arrived(came.query)
        at.append(time.process_time())
        codec.decode(codec.encode(Tokens(piece)))
        at.append(time.process_time())
        assert theirs is not None
        closed = codec.decode(codec.encode(Tokens(theirs.close_chunk(piece, "00" * 32))))
        assert isinstance(closed, Tokens)
        assert ours.open_chunk(closed.chunk)[0] == piece
        at.append(time.process_time())
        for kind, began, ended in zip(took, at, at[1:], strict=False):
            took[kind].append(1e6 * (ended - began))
    return {f"{kind}_us": round(statistics.median(times), 1) for kind, times in took.items()}


def _links(peer: Peer) -> int:
    return sum(member.linked for member in peer.members())


def _is_linked(peer: Peer, other: Peer) -> bool:
    return any(member.linked and member.id == other.id for member in peer.members())


async def until(true: object) -> None:
    """Wait until `true()` is."""
    assert callable(true)
    with trio.fail_after(60.0):
        while not true():  # noqa: ASYNC110  # a peer has no event for it
            await trio.sleep(_LOOK_S)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run both; return the figures as `--json` prints them."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        return {
            "handshake": await handshakes(options.rounds, folder / "a"),
            "sealing": sealing(10 * options.rounds),
            "revocation": await revocations(options.peers, options.revocations, folder / "b"),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--revocations", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.peers < 2 or not 1 <= options.revocations < options.peers or options.rounds < 1:
        parser.error("at least two peers, and fewer revocations than peers")
    figures = trio.run(measure, options)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, values in figures.items():
        print(name, *(f"{key}={value}" for key, value in values.items()))  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1:])
