"""Does a query find the right peer when nobody knows everybody? `python -m p2pmesh.sim reach`.

It builds the links of N peers with `protocol.overlay`, routes queries over them with `protocol.search`, the
very functions of a real peer, and compares with one who sees all. There is no time, no load and no message in
it: only who knows whom. What is made up, after the research whose figures it checks:

* Places: topics in a tree of 20 x 20, as popular as Zipf 0.8 has it, one skill a peer, int8 vectors of 32
  dimensions (the research's; real embeddings have 384, but spread over far fewer). One query in ten is about
  nothing in particular.
* Records: 1 024 of a peer's, links included. The `NEAR_KEPT` nearest of all it was ever told of are among
  them, in memory (51 MB at 100 000 peers). The others are draws from all peers with replacement, so a few
  count twice: a function of the seed and the peer, computed when looked at, for kept they would be 360 MB.
  They do not grow by whom a peer meets. With fewer peers than records, everybody knows everybody.
* Links: the random ones and the first near ones come from the draws; then, round after round, each peer swaps
  with one of its links the 24 peers that are best for the other, of the links and the nearest of each. A real
  peer offers the best of all its records, which is more. Knowing is not mutual, as in the research: a real
  link has two ends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from p2pmesh.config import Limits
from p2pmesh.protocol.overlay import (
    ALPHA,
    FAR_MAX,
    NEAR_KEPT,
    NEAR_MAX,
    Floats,
    Keys,
    Places,
    cosines,
    nearest,
    rank,
)
from p2pmesh.protocol.search import PATIENCE, Search, arrive, following, forget, leads_of
from p2pmesh.record import PeerId
from p2pmesh.sim.report import percentile

Ids = NDArray[np.int32]
"""Peers by number; -1 is nobody."""

DIMENSIONS = 32
"""Length of a vector here (research)."""
CACHE_MAX = 1_024
"""Peers whose records one holds, as `membership.members_max`."""
ROUNDS = 6
"""Rounds of exchange before the queries. Measured at 100 000 peers, 2 000 queries: 87.4 % find a top-10 peer
after 2 rounds, 97.2 % after 3, 99.1 % after 4, which is too near to 99, and 99.5 % after 6; with 500 queries,
99.4 % after 8 and 12. Without the nearest kept: 96.0 % after 8, 98.2 % after 16, 97.6 % after 24."""
PAYLOAD = 24
"""Peers told in one exchange (research)."""
NEAR_SHARE = 0.9
"""Share of exchanges that go to a near link, the others to a far one. Measured at 100 000 peers, after 8
rounds, without the nearest kept: 96.0 % found, against 87.8 % at one half."""
ASKERS_MAX = 2
"""Exchanges that a peer answers with profit in one round; who comes third hears, and is not heard."""
HOPS_MAX = Limits().hops_max
"""Peers a query may be passed to, the last leg included."""
_BLOCK = 256
"""Peers computed at once: their candidates' mutual distances take 17 MB."""
_TOPICS, _SUBTOPICS, _ZIPF = 20, 20, 0.8
_OFF_TOPIC = 0.1
"""Share of queries about nothing in particular."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One mesh. The defaults are the real peers'."""

    peers: int
    seed: int = 1
    near: int = NEAR_MAX
    far: int = FAR_MAX
    cache: int = CACHE_MAX
    kept: int = NEAR_KEPT
    """At most an eighth of `cache`, as the real peer has it."""
    alpha: float = ALPHA
    rounds: int = ROUNDS
    by_links: bool = False
    """Route by links alone, as if records were good for choosing them and for nothing else: what the links
    are worth by themselves, for far links come out of the records and these hide their loss."""


@dataclass(frozen=True)
class Reach:
    """How well queries found their way."""

    peers: int
    queries: int
    dead: float
    hit_top10: float
    """Share of queries that ended at one of the 10 living peers nearest to them."""
    hops_mean: float
    """Peers a query was passed to, the last leg to the one it found included."""
    hops_p99: float
    timeouts_mean: float
    """Dead peers a query was sent to."""
    timeouts_max: int
    """Of one query: `limits.excluded_max` is how many it can carry as dead."""
    gap: float
    """Cosine lost against the nearest living peer, on average."""
    log2_n: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


class Overlay:
    """N peers, where they stand, and whom each of them knows."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rng = np.random.default_rng([setting.seed, setting.peers])
        self._topics = _topics(self.rng)
        self._weights = self.rng.permutation(np.arange(1, _TOPICS * _SUBTOPICS + 1) ** -_ZIPF)
        self._weights /= self._weights.sum()
        self.places = self.draw(setting.peers)
        """Shape (peers, DIMENSIONS): int8 values as float32."""
        self._keys: Keys = self.rng.integers(0, 2**64, setting.peers, np.uint64)
        self.far = np.full((setting.peers, setting.far), -1, np.int32)
        self.near = np.full((setting.peers, setting.near), -1, np.int32)
        """Shapes (peers, far) and (peers, near): whom each is linked to, -1 for nobody."""
        self.kept = np.full((setting.peers, min(setting.kept, setting.cache // 8)), -1, np.int32)
        """Shape (peers, at most `setting.kept`): of all it was ever told of, the nearest, best first."""
        if not self.complete:
            self._begin()
            for _ in range(setting.rounds):
                self._exchange()

    @property
    def complete(self) -> bool:
        """Whether everybody knows everybody."""
        return self.setting.peers <= self.setting.cache

    def draw(self, count: int) -> Floats:
        """Return that many places about the topics: (count, DIMENSIONS), int8 values as float32."""
        topic = self.rng.choice(len(self._topics), count, p=self._weights)
        return _int8(_unit(self._topics[topic] + 0.5 * _directions(self.rng, count)))

    def cache(self, peers: Ids) -> Ids:
        """Return whom each of `peers` has heard of by chance: (len(peers), `cache` less the nearest kept)."""
        n = self.setting.peers
        if self.complete:
            return np.broadcast_to(np.arange(n, dtype=np.int32), (len(peers), n))
        draws = self.setting.cache - self.kept.shape[1]
        stream = rank(np.arange(draws, dtype=np.uint64), self._keys[:1])
        drawn: Ids = (rank(stream, self._keys[peers][:, None]) % np.uint64(n)).astype(np.int32)
        return drawn

    def known(self, peer: int) -> Ids:
        """Return all that one peer knows, itself included, each once."""
        one = np.array([peer], np.int32)
        told = np.concatenate((self.kept[peer], self.cache(one)[0]))[: 0 if self.setting.by_links else None]
        ids = np.unique(np.concatenate((one, self.near[peer], self.far[peer], told)))
        return ids[ids >= 0]

    def _blocks(self) -> Iterator[Ids]:
        for start in range(0, self.setting.peers, _BLOCK):
            yield np.arange(start, min(start + _BLOCK, self.setting.peers), dtype=np.int32)

    def _begin(self) -> None:
        """Links and the nearest out of the draws alone."""
        for block in self._blocks():
            ids = _once(self.cache(block), block[:, None])
            ranks = np.where(ids >= 0, rank(self._keys[block][:, None], self._keys[ids]), ~np.uint64(0))
            if self.setting.far:
                first = np.argsort(ranks, axis=1, kind="stable")[:, : self.setting.far]
                self.far[block] = np.take_along_axis(ids, first, axis=1)
            self.near[block] = self._choose(block, ids)
            self.kept[block] = self._best(block, ids, self.kept.shape[1])

    def _choose(self, block: Ids, ids: Ids) -> Ids:
        """Return the near links that each peer of the block chooses from its `ids`, (len(block), n)."""
        ids = _once(ids, np.concatenate((block[:, None], self.far[block]), axis=1))
        mine, points = self.places[block], self.places[ids]
        kept = nearest(mine, points, ids >= 0, self.setting.near, self.setting.alpha)
        return np.where(kept >= 0, np.take_along_axis(ids, np.maximum(kept, 0), axis=1), -1)

    def _exchange(self) -> None:
        """Each peer swaps with one of its links, all at once, what is best for the other: that feeds the
        nearest it keeps, and nothing else does."""
        held = np.concatenate((self.near, self.far, self.kept), axis=1)
        asked = _partners(self.rng, self.near, self.far)
        askers = _askers(self.rng, asked)
        near, kept = np.empty_like(self.near), np.empty_like(self.kept)
        for block in self._blocks():
            ids = [self.near[block], self.kept[block]]
            for source in (asked[block], *askers[block].T):
                offers = np.concatenate((held[source], source[:, None]), axis=1)
                offers[source < 0] = -1
                ids.append(self._best(block, _once(offers, block[:, None]), PAYLOAD))
            told = _once(np.concatenate(ids, axis=1), block[:, None])
            near[block] = self._choose(block, told)
            kept[block] = self._best(block, told, kept.shape[1])
        self.near, self.kept = near, kept

    def _best(self, block: Ids, ids: Ids, most: int) -> Ids:
        """Return the `most` of `ids` that are nearest to each peer of the block, best first."""
        similar = np.where(ids >= 0, cosines(self.places[block], self.places[ids]), -np.inf)
        best = np.argsort(-similar, axis=1, kind="stable")[:, :most]
        return np.take_along_axis(ids, best, axis=1)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    units: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return units


def _int8(vectors: NDArray[np.float64]) -> Floats:
    """As `record.quantise`, many at once."""
    return np.rint(vectors * 127.0).astype(np.float32)


def _directions(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    return _unit(rng.standard_normal((*shape, DIMENSIONS)))


def _topics(rng: np.random.Generator) -> NDArray[np.float64]:
    top = _directions(rng, _TOPICS)
    return _unit(top[:, None] + 0.7 * _directions(rng, _TOPICS, _SUBTOPICS)).reshape(-1, DIMENSIONS)


def _once(ids: Ids, barred: Ids) -> Ids:
    """Return `ids` row by row sorted, with -1 for what is there twice or `barred`."""
    ids = np.sort(ids, axis=1)
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1
    for column in barred.T:
        ids[ids == column[:, None]] = -1
    return ids


def _partners(rng: np.random.Generator, near: Ids, far: Ids) -> Ids:
    """Whom each peer asks in a round: by chance one of its near or one of its far links; -1 where the place
    it hit upon is empty."""
    rows = np.arange(len(near))
    wide = max(1, near.shape[1]) * max(1, far.shape[1])
    place = rng.integers(0, wide, len(near))
    by_near = near[rows, place % near.shape[1]] if near.shape[1] else np.full(len(near), -1, np.int32)
    if not far.shape[1]:
        return by_near
    return np.where(rng.random(len(near)) < NEAR_SHARE, by_near, far[rows, place % far.shape[1]])


def _askers(rng: np.random.Generator, asked: Ids) -> Ids:
    """Who asks each peer: (peers, ASKERS_MAX), a random few where they are more, -1 for nobody."""
    askers = np.full((len(asked), ASKERS_MAX), -1, np.int32)
    mixed = rng.permutation(len(asked)).astype(np.int32)
    mixed = mixed[asked[mixed] >= 0]
    order = mixed[np.argsort(asked[mixed], kind="stable")]
    to = asked[order]
    turn = np.arange(len(to)) - np.searchsorted(to, to)
    heard = turn < ASKERS_MAX
    askers[to[heard], turn[heard]] = order[heard]
    return askers


@dataclass(frozen=True)
class _Way:
    """How one query went."""

    found: int
    hops: int
    timeouts: int


def _route(
    overlay: Overlay, names: list[PeerId], alive: NDArray[np.bool_], vector: Floats, origin: int
) -> _Way:
    """Pass one query on from `origin` until its search is over, and then to the best who lives."""
    patience = 0 if overlay.complete else PATIENCE
    search, here, path = Search(), origin, [names[origin]]
    dead: list[PeerId] = []
    tie = vector.tobytes().hex()
    while True:
        ids = overlay.known(here)
        at = Places(tuple(names[i] for i in ids), overlay.places[ids])
        known = leads_of(vector.astype(np.int8), at, dead, tie=tie)
        search = arrive(search, known, names[here], visited=path, excluded=dead, tie=tie)
        hops_left = HOPS_MAX - len(path) + 1
        while (lead := following(search, hops_left, patience)) and not alive[int(lead.peer)]:
            dead.append(lead.peer)
            search = forget(search, lead.peer)
        if lead is None:
            break
        here = int(lead.peer)
        path.append(lead.peer)
    for lead in search.leads:
        if alive[int(lead.peer)]:
            return _Way(int(lead.peer), len(path) - 1 + (int(lead.peer) != here), len(dead))
        dead.append(lead.peer)
    return _Way(here, len(path) - 1, len(dead))  # it serves the query itself


def reach(setting: Setting, queries: int, dead: float = 0.0) -> Reach:
    """Build the mesh and ask it `queries`, the share `dead` of it gone. Equal settings, equal results."""
    return ask(Overlay(setting), queries, dead)


def ask(overlay: Overlay, queries: int, dead: float = 0.0) -> Reach:
    """Kill the share `dead` of the peers with nobody noticing, and ask `queries` at random ones that live."""
    setting = overlay.setting
    rng = np.random.default_rng([setting.seed, setting.peers, 2])
    asked = overlay.draw(queries)
    off = rng.random(queries) < _OFF_TOPIC
    asked[off] = _int8(_directions(rng, int(off.sum())))
    alive = rng.random(setting.peers) >= dead
    alive[rng.integers(setting.peers)] = True
    origins = rng.choice(np.flatnonzero(alive), queries)
    names = [PeerId(f"{i:08d}") for i in range(setting.peers)]
    hits, gaps, ways = 0, 0.0, []
    for vector, origin in zip(asked, origins.tolist(), strict=True):
        way = _route(overlay, names, alive, vector, origin)
        similar = np.where(alive, cosines(vector[None], overlay.places[None])[0], -np.inf)
        best = np.sort(similar)[::-1]
        hits += bool(similar[way.found] >= best[min(9, len(best) - 1)])
        gaps += float(best[0] - similar[way.found])
        ways.append(way)
    hops = [way.hops for way in ways]
    return Reach(
        peers=setting.peers,
        queries=queries,
        dead=dead,
        hit_top10=hits / queries,
        hops_mean=sum(hops) / queries,
        hops_p99=percentile(hops, 0.99),
        timeouts_mean=sum(way.timeouts for way in ways) / queries,
        timeouts_max=max(way.timeouts for way in ways),
        gap=round(gaps / queries, 6),
        log2_n=round(math.log2(setting.peers), 2),
    )


@click.command("reach")
@click.option("--peers", default=10_000, show_default=True, type=click.IntRange(1), help="How many peers.")
@click.option("--queries", default=500, show_default=True, type=click.IntRange(1), help="How many queries.")
@click.option(
    "--dead",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share dead, and nobody knows.",
)
@click.option(
    "--seed", default=1, show_default=True, type=click.IntRange(0), help="Equal seeds, equal results."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reach_command(peers: int, queries: int, dead: float, seed: int, as_json: bool) -> None:
    """Route queries on partial views, and say how near they came."""
    result = reach(Setting(peers=peers, seed=seed), queries, dead).as_dict()
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:18} {value}")
