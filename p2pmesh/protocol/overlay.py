"""Which peers to be linked to: near ones, spread out, and far ones on purpose.

Pure functions of who is known: no state, no clock, no dice. It knows ids and places and nothing of members,
messages or connections. Near links are alpha-pruned: of two peers that stand close together one is enough,
and the room goes to another direction (RobustPrune of Vamana, the graph of DiskANN). Far links are drawn
blindly, and no rule about skills may take one away: views of the nearest alone fall apart into islands
(research, links alone at 10 000 peers: 6 % found against 86 %).

The array core, `nearest`, is what real peers and `sim.reach` both run. Its vectors are int8 values held as
float32: their products and sums stay exact up to 1 024 dimensions, so equal places are equal at any machine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from p2pmesh.record import Capability, PeerId

ALPHA = 1.2
"""How many times nearer to a kept peer than to us another must be to be left out (Vamana, and research)."""
NEAR_MAX = 32
"""Links near in skill (research, 1 000 to 100 000 peers)."""
FAR_MAX = 16
"""Links drawn at random (research, as `NEAR_MAX`)."""
LOAD_MAX = 32
"""Links that hear of our load (research: at 64 queries wait hardly less, and the traffic doubles)."""
NEAR_KEPT = 128
"""Peers nearest to its own skills whose records a peer keeps before all others, though it is linked to few of
them. Measured by `sim.reach` at 100 000 peers, after 4 rounds: 99.1 % of the queries find a top-10 peer, with
64 kept 97.3 %; with none, 96.0 % after 8."""
CONSIDERED = 128
"""Nearest peers that pruning looks at, four for each link: their mutual distances cost its square. A guess;
DiskANN's lists are as long."""

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Links:
    """Whom to be linked to. No peer is in both."""

    near: tuple[PeerId, ...]
    """Near in skill: the nearest of each skill in turn."""
    far: tuple[PeerId, ...]
    """At random. The first `far` asked for depend on nothing but ids; more fill up where few are near."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where peers stand in one embedding space: a row for each skill that has a place in it."""

    peers: tuple[PeerId, ...]
    """Whose row it is; a peer has as many as it has skills there."""
    vectors: Floats
    """Shape (rows, dimensions): int8 values as float32, not of unit length."""

    def ranked(self, vector: Floats, most: int | None = None) -> tuple[Ints, Floats]:
        """Return the nearest row of each peer, and its cosine with `vector`; nearest first, equals as they
        stand here, of the `most` nearest peers or of all. `vector`: shape (dimensions,), int8 values."""
        similar = cosines(vector[None], self.vectors[None])[0]
        best: dict[PeerId, int] = {}
        for row in np.argsort(-similar, kind="stable").tolist():
            if len(best) == most:
                break
            best.setdefault(self.peers[row], row)
        rows = np.array(list(best.values()), dtype=np.intp)
        return rows, similar[rows]


def places(pool: Iterable[tuple[PeerId, Capability]], space: str, dimensions: int) -> Places:
    """Return where the peers of `pool` stand in `space`, in the order given.

    A peer of another space, a skill without a vector, with one of another length or with none but zeros
    stands nowhere: such never compare. In the space "" nobody stands.
    """
    shape = (dimensions,)
    rows = [
        (peer, skill.vector)
        for peer, capability in pool
        if space and capability.space == space
        for skill in capability.skills
        if skill.vector is not None and skill.vector.shape == shape
    ]
    flat = np.frombuffer(b"".join([vector.tobytes() for _, vector in rows]), np.int8)
    vectors = flat.reshape(-1, dimensions)
    somewhere = np.flatnonzero((vectors != 0).any(axis=1))
    return Places(tuple(rows[i][0] for i in somewhere.tolist()), vectors[somewhere].astype(np.float32))


def cosines(mine: Floats, points: Floats) -> Floats:
    """Return the cosines of each of `mine`, shape (batch, d), with its `points`, (batch, n, d): (batch, n).
    A vector of zeros has the cosine 0 with all."""
    dots: Floats = np.matmul(points, mine[:, :, None])[:, :, 0]
    dots /= np.maximum(_lengths(points) * _lengths(mine)[:, None], np.float32(1e-9))
    return np.clip(dots, -1.0, 1.0, out=dots)  # rounding goes a little beyond


def _lengths(vectors: Floats) -> Floats:
    lengths: Floats = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
    return lengths


def robust_prune(mine: Floats, apart: Floats, most: int, alpha: float = ALPHA) -> Ints:
    """Return which `most` of n points to keep, for a batch of places at once: indices, (batch, most), -1 for
    none. Those kept for their direction come first, then the nearest of the others fill up.

    `mine` (batch, n) holds squared distances to me in ascending order, inf for no point; `apart`
    (batch, n, n) those between the points. A point is left out where one that is kept is `alpha` times nearer
    to it than I am.
    """
    batch, n = mine.shape
    rows = np.arange(batch)
    free = np.isfinite(mine)
    kept = np.zeros_like(free)
    scale = np.float32(alpha * alpha)
    for _ in range(min(most, n)):
        first = np.argmax(free, axis=1)  # the nearest, for they are sorted; 0 where none is free
        found = free[rows, first]
        if not found.any():
            break
        kept[rows[found], first[found]] = True
        free[rows, first] = False
        free &= (scale * apart[rows, first] > mine) | ~found[:, None]
    turn = np.arange(n) + n * ~kept + n * np.isinf(mine)
    order = np.argsort(turn, axis=1)[:, :most]
    chosen = np.where(np.take_along_axis(mine, order, axis=1) < np.inf, order, -1)
    return np.pad(chosen, ((0, 0), (0, most - chosen.shape[1])), constant_values=-1)


def nearest(mine: Floats, points: Floats, valid: NDArray[np.bool_], most: int, alpha: float = ALPHA) -> Ints:
    """Return which `most` of its `points` each of `mine` should be linked to: indices, (batch, most), those
    kept for their direction first, -1 for none.

    `mine` has shape (batch, d), `points` (batch, n, d), `valid` (batch, n) says which points count. Equals go
    by their index: who calls decides whom that prefers.
    """
    similar = np.where(valid, cosines(mine, points), np.float32(-np.inf))
    order = np.argsort(-similar, axis=1, kind="stable")[:, :CONSIDERED]
    similar = np.take_along_axis(similar, order, axis=1)
    points = np.take_along_axis(points, order[:, :, None], axis=1)
    lengths = np.maximum(_lengths(points), np.float32(1e-9))
    apart = np.matmul(points, points.transpose(0, 2, 1))
    apart /= lengths[:, :, None]
    apart /= lengths[:, None, :]
    # Between unit vectors the squared distance is 2 - 2 cos.
    kept = robust_prune(2 - 2 * similar, 2 - 2 * apart, most, alpha)
    order = np.pad(order, ((0, 0), (0, 1)), constant_values=-1)  # so that the index -1 is nobody
    return np.take_along_axis(order, kept, axis=1)


@lru_cache(maxsize=8_192)
def key_of(peer: PeerId) -> int:
    """Return 64 bits that stand for `peer` in `rank`."""
    return int.from_bytes(blake2b(peer.encode(), digest_size=8).digest(), "big")


def rank(mine: Keys, others: Keys) -> Keys:
    """Return a number for each pair of keys that looks random and is the same from both ends: who ranks a
    link low keeps it as a random one, and so does the other end. Shapes broadcast; SplitMix64's finaliser."""
    mixed: Keys = np.atleast_1d(mine ^ others)  # of arrays overflow wraps, of scalars it warns
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def shuffled(me: PeerId, peers: Collection[PeerId]) -> list[PeerId]:
    """All but me, in the order of `rank`: random, yet the same each time, whoever else comes or goes."""
    others = sorted(peer for peer in peers if peer != me)
    ranks = rank(
        np.array([key_of(me)], dtype=np.uint64), np.array([key_of(p) for p in others], dtype=np.uint64)
    )
    return [others[i] for i in np.argsort(ranks, kind="stable")]


def select(
    me: PeerId,
    own: Capability,
    pool: Mapping[PeerId, Capability],
    near: int = NEAR_MAX,
    far: int = FAR_MAX,
    alpha: float = ALPHA,
) -> Links:
    """Choose up to `near` + `far` neighbours of `me` from all it knows; `pool` may hold `me`.

    Each skill of `own` gets an equal share of the near ones while there are enough. Peers that stand nowhere
    in its space can only be drawn at random, as all are where `own` stands nowhere itself.
    """
    peers = shuffled(me, pool)
    blind, rest = peers[:far], peers[far:]
    close = _near(own, [(peer, pool[peer]) for peer in rest], near, alpha)
    taken = set(close)
    spare = [peer for peer in rest if peer not in taken][: near - len(close)]
    return Links(tuple(close), tuple(blind + spare))


def _near(own: Capability, pool: list[tuple[PeerId, Capability]], near: int, alpha: float) -> list[PeerId]:
    """The pruned nearest of each skill, taken in turn; equals go by their order in `pool`, which is random,
    so that not everybody holds on to the same one."""
    vectors = [skill.vector.astype(np.float32) for skill in own.skills if skill.vector is not None]
    known = {length: places(pool, own.space, length) for length in sorted({len(v) for v in vectors})}
    wanted: list[list[PeerId]] = []
    for vector in vectors:
        where = known[len(vector)]
        rows, _ = where.ranked(vector, CONSIDERED)
        points = where.vectors[rows][None]
        kept = nearest(vector[None], points, np.ones(points.shape[:2], np.bool_), near, alpha)[0]
        wanted.append([where.peers[rows[i]] for i in kept if i >= 0])
    return list(dict.fromkeys(_in_turn(wanted)))[:near]


def _in_turn(lists: list[list[PeerId]]) -> list[PeerId]:
    return [peer for row in zip_longest(*lists) for peer in row if peer is not None]


def load_set(links: Links, linked: Collection[PeerId], most: int = LOAD_MAX) -> tuple[PeerId, ...]:
    """Return which of the peers we are `linked` to shall hear of our load, at most `most`: half of them near,
    half random, and more of the one where there is too little of the other. Links that others chose fill up.
    """
    near = [peer for peer in links.near if peer in linked]
    far = [peer for peer in links.far if peer in linked]
    chosen = {*near, *far}
    far += sorted(peer for peer in linked if peer not in chosen)
    few_far = max(0, most // 2 - len(far))
    close = near[: most - most // 2 + few_far]
    return tuple(close + far[: most - len(close)])
