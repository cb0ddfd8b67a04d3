"""Which peers to be linked to: who compares with whom, pruning by hand, fair shares, what stays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from p2pmesh.protocol.overlay import (
    FAR_MAX,
    NEAR_MAX,
    Links,
    cosines,
    key_of,
    load_set,
    nearest,
    places,
    rank,
    robust_prune,
    select,
)
from p2pmesh.record import Capability, PeerId, Skill, Vector, cosine, quantise
from tests.machines import ME, A, B, C, D

INF = float("inf")


def towards(*axes: float) -> Vector:
    """A direction in the first few of 8 dimensions."""
    return quantise(np.array([*axes, *[0.0] * (8 - len(axes))]))


def skilled(*vectors: Vector | None, space: str = "s") -> Capability:
    return Capability(space, tuple(Skill(f"skill {i}", v) for i, v in enumerate(vectors)))


def crowd(count: int, vectors: Iterable[Vector | None] | None = None) -> dict[PeerId, Capability]:
    rng = np.random.default_rng(count)
    drawn = vectors or (quantise(rng.standard_normal(8)) for _ in range(count))
    return {
        PeerId(f"n{i:04d}"): skilled(vector) for i, vector in zip(range(count), drawn, strict=vectors is None)
    }


def floats(*vectors: Vector) -> np.ndarray:
    return np.stack(vectors).astype(np.float32)


# -- where peers stand --------------------------------------------------------------------------------


def test_a_peer_stands_wherever_it_has_a_skill() -> None:
    here = places([(B, skilled(towards(1), towards(0, 1))), (A, skilled(towards(0, 0, 1)))], "s", 8)
    assert here.peers == (B, B, A)
    assert here.vectors.shape == (3, 8)
    assert here.vectors[0, 0] == 127.0


@pytest.mark.parametrize(
    "capability",
    [
        skilled(),
        skilled(None),
        skilled(towards(1), space="other"),
        skilled(towards(1), space=""),
        skilled(np.ones(7, np.int8)),
        skilled(np.ones((2, 4), np.int8)),
        skilled(np.zeros(8, np.int8)),
    ],
)
def test_what_does_not_compare_stands_nowhere(capability: Capability) -> None:
    assert places([(A, capability)], "s", 8).peers == ()


def test_in_the_space_without_a_name_nobody_stands() -> None:
    assert places([(A, skilled(towards(1), space=""))], "", 8).vectors.shape == (0, 8)


def test_a_peer_ranks_by_the_nearest_of_its_skills_and_only_once() -> None:
    pool = [(A, skilled(towards(0, 1), towards(1, 1))), (B, skilled(towards(1))), (C, skilled(towards(-1)))]
    here = places(pool, "s", 8)
    rows, similar = here.ranked(towards(1).astype(np.float32))
    assert [here.peers[row] for row in rows] == [B, A, C]
    assert similar.tolist() == pytest.approx([1.0, 0.7071, -1.0], abs=1e-4)


def test_cosines_are_those_of_one_pair_at_a_time() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.integers(-127, 128, (6, 384), np.int8)
    vectors[5] = 0
    found = cosines(floats(vectors[0]), floats(*vectors)[None])
    assert found[0].tolist() == pytest.approx([cosine(vectors[0], v) for v in vectors], abs=1e-6)


# -- pruning ------------------------------------------------------------------------------------------


def line(*at: float) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of points on a line, seen from 0 and from each other."""
    points = np.array(at, dtype=np.float32)
    return points[None] ** 2, (points[:, None] - points[None])[None] ** 2


def test_a_point_behind_a_kept_one_is_left_out() -> None:
    mine, apart = line(1.0, 2.0, -3.0)
    assert robust_prune(mine, apart, 2).tolist() == [[0, 2]]


def test_alpha_says_how_far_behind() -> None:
    mine, apart = line(1.0, -1.1, 6.0)  # from the first, 5 away: 1.2 times nearer than 6 exactly
    assert robust_prune(mine, apart, 3, alpha=1.19).tolist() == [[0, 1, 2]]
    assert robust_prune(mine, apart, 2, alpha=1e6).tolist() == [[0, 1]]
    mine, apart = line(1.0, 5.5, -6.0)
    assert robust_prune(mine, apart, 2, alpha=1.21).tolist() == [[0, 2]]
    assert robust_prune(mine, apart, 2, alpha=1.23).tolist() == [[0, 1]]


def test_where_directions_run_out_the_nearest_fill_up() -> None:
    mine, apart = line(1.0, 2.0, 3.0, -4.0)
    assert robust_prune(mine, apart, 3).tolist() == [[0, 3, 1]]
    assert robust_prune(mine, apart, 9).tolist() == [[0, 3, 1, 2, -1, -1, -1, -1, -1]]


def test_a_batch_is_pruned_row_by_row_and_infinity_is_nobody() -> None:
    (one, apart_one), (other, apart_other) = line(1.0, 2.0, -3.0), line(1.0, -2.0, 3.0)
    other[0, 2] = INF
    both = robust_prune(np.concatenate((one, other)), np.concatenate((apart_one, apart_other)), 3)
    assert both.tolist() == [[0, 2, 1], [0, 1, -1]]
    assert robust_prune(np.full((1, 2), INF, np.float32), apart_one[:, :2, :2], 2).tolist() == [[-1, -1]]
    assert robust_prune(one[:, :0], apart_one[:, :0, :0], 2).tolist() == [[-1, -1]]


def test_the_nearest_are_sorted_and_pruned_and_the_invalid_left_out() -> None:
    points = floats(towards(0, 1), towards(1, 0.3), towards(1, 0.2), towards(1, -0.4))[None]
    valid = np.array([[True, True, True, True]])
    mine = floats(towards(1))
    assert nearest(mine, points, valid, 2).tolist() == [[2, 3]]  # 1 stands behind 2
    assert nearest(mine, points, valid, 2, alpha=1e3).tolist() == [[2, 1]]
    valid[0, 2] = False
    assert nearest(mine, points, valid, 5).tolist() == [[1, 3, 0, -1, -1]]


# -- random ones --------------------------------------------------------------------------------------


def test_a_pair_has_one_rank_from_both_ends_and_ranks_look_random() -> None:
    keys = np.array([key_of(PeerId(f"n{i}")) for i in range(300)], dtype=np.uint64)
    ranks = rank(keys[:, None], keys)
    assert (ranks == ranks.T).all()
    above = ranks[np.triu_indices(300, 1)] / 2.0**64
    assert above.mean() == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(ranks[0])) == 300


def test_a_random_link_stays_whatever_skills_come_and_go() -> None:
    pool = crowd(300)
    before = select(ME, skilled(towards(1)), pool).far
    assert len(before) == FAR_MAX
    changed = {peer: skilled(towards(1)) for peer in pool}
    assert select(ME, skilled(towards(0, 1)), changed).far == before
    assert select(ME, skilled(None), pool).far[:FAR_MAX] == before
    fewer = {peer: able for peer, able in pool.items() if peer in before or peer < "n0100"}
    assert select(ME, skilled(towards(1)), fewer).far == before


def test_different_peers_draw_different_ones() -> None:
    pool = crowd(500)
    drawn = [set(select(PeerId(f"me {i}"), Capability(), pool, near=0).far) for i in range(60)]
    assert sum(len(one & other) for one in drawn for other in drawn if one is not other) / (60 * 59) < 1.5
    assert len(set().union(*drawn)) > 400  # 960 draws of 500 reach 430 on average


# -- the choice ---------------------------------------------------------------------------------------


def test_it_links_to_the_near_and_to_the_far_and_never_to_itself() -> None:
    pool = crowd(400) | {ME: skilled(towards(1))}
    links = select(ME, skilled(towards(1)), pool)
    assert (len(links.near), len(links.far)) == (NEAR_MAX, FAR_MAX)
    assert len({*links.near, *links.far, ME}) == NEAR_MAX + FAR_MAX + 1
    [mine] = floats(towards(1))
    others = places([(p, able) for p, able in pool.items() if p not in (*links.far, ME)], "s", 8)
    assert links.near[0] == others.peers[others.ranked(mine)[0][0]]


def test_in_a_small_mesh_everybody_is_linked() -> None:
    pool = crowd(20)
    links = select(ME, skilled(towards(1)), pool)
    assert {*links.near, *links.far} == set(pool)
    assert select(ME, skilled(towards(1)), {}) == Links((), ())


def test_skills_share_the_near_links() -> None:
    around_one = [towards(1, 0.001 * i) for i in range(60)]
    around_other = [towards(0, 0.01 * i, 1) for i in range(60)]
    pool = crowd(120, [*around_one, *around_other])
    links = select(ME, skilled(towards(1), towards(0, 0, 1)), pool, near=10, far=0)
    assert sum(peer < "n0060" for peer in links.near) == 5


def test_who_is_near_to_two_skills_takes_one_place() -> None:
    pool = {
        A: skilled(towards(1, 1)),
        B: skilled(towards(1)),
        C: skilled(towards(0, 1)),
        D: skilled(towards(-1)),
    }
    links = select(ME, skilled(towards(1, 1), towards(1, 1)), pool, near=2, far=0)
    assert len(set(links.near)) == 2


def test_vectors_of_one_space_and_several_lengths_keep_to_their_own() -> None:
    pool = {A: skilled(towards(1)), B: skilled(np.array([9, 9], np.int8)), C: skilled(None)}
    links = select(ME, skilled(towards(1), np.array([9, 1], np.int8)), pool, near=2, far=0)
    assert links == Links((A, B), ())


def test_who_stands_nowhere_is_drawn_at_random_where_there_is_room() -> None:
    pool = crowd(10) | {PeerId(f"x{i}"): skilled(None) for i in range(100)}
    links = select(ME, skilled(towards(1)), pool, near=32, far=0)
    assert set(links.near) == set(crowd(10))
    assert len(links.far) == 22
    nowhere = select(ME, skilled(None), pool)
    assert (len(nowhere.near), len(nowhere.far)) == (0, NEAR_MAX + FAR_MAX)


def test_equals_are_not_the_same_few_for_everybody() -> None:
    pool = crowd(200, [towards(1)] * 200)
    chosen = [
        set(select(PeerId(f"me {i}"), skilled(towards(1)), pool, near=8, far=0).near) for i in range(40)
    ]
    assert len(set().union(*chosen)) > 130


# -- who hears of our load ----------------------------------------------------------------------------


def named(kind: str, count: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"{kind}{i:02d}") for i in range(count))


@pytest.mark.parametrize(
    ("near", "far", "others", "expected"),
    [
        (32, 16, 0, (16, 16, 0)),
        (32, 4, 0, (28, 4, 0)),
        (32, 4, 6, (22, 4, 6)),
        (3, 16, 0, (3, 16, 0)),
        (3, 40, 0, (3, 29, 0)),
        (0, 0, 40, (0, 0, 32)),
        (1, 1, 1, (1, 1, 1)),
    ],
)
def test_load_goes_half_to_the_near_and_half_to_the_random(
    near: int, far: int, others: int, expected: tuple[int, int, int]
) -> None:
    links = Links(named("near", near), named("far", far))
    told = load_set(links, {*links.near, *links.far, *named("other", others)})
    assert tuple(sum(p.startswith(kind) for p in told) for kind in ("near", "far", "other")) == expected
    assert len(set(told)) == len(told)


def test_load_goes_to_links_only_and_to_the_first_of_them() -> None:
    links = Links(named("near", 32), named("far", 16))
    gone = PeerId("near00")
    told = load_set(links, [p for p in (*links.near, *links.far) if p != gone], most=4)
    assert told == (PeerId("near01"), PeerId("near02"), PeerId("far00"), PeerId("far01"))
    assert load_set(links, ()) == ()
