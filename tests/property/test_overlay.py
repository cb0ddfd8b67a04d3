"""Whom to be linked to, whoever is known: bounds, stability, any order; and a search that ends."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.protocol.overlay import load_set, nearest, places, select
from p2pmesh.protocol.search import PATIENCE, Lead, Search, arrive, following, forget, leads_of
from p2pmesh.record import Capability, PeerId, Skill, Vector
from tests.machines import ME

ids = st.integers(0, 80).map(lambda i: PeerId(f"n{i}")) | st.just(ME)
vectors: st.SearchStrategy[Vector] = st.builds(
    lambda seed, length: np.random.default_rng(seed).integers(-127, 128, length).astype(np.int8),
    st.integers(0, 30),  # few, so that many stand at one place
    st.sampled_from([8, 8, 8, 3]),
) | st.just(np.zeros(8, np.int8))
capabilities = st.builds(
    Capability,
    st.sampled_from(["s", "s", "s", "other", ""]),
    st.lists(st.builds(Skill, st.just("skill"), st.none() | vectors), max_size=3).map(tuple),
)
pools = st.dictionaries(ids, capabilities, max_size=80)
counts = st.integers(0, 12)


@settings(max_examples=100, deadline=None)
@given(capabilities, pools, counts, counts)
def test_never_more_than_asked_never_itself_and_nobody_twice(
    own: Capability, pool: dict[PeerId, Capability], near: int, far: int
) -> None:
    links = select(ME, own, pool, near, far)
    chosen = [*links.near, *links.far]
    others = pool.keys() - {ME}
    assert len(links.near) <= near
    assert len(chosen) == min(near + far, len(others))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= others


@settings(max_examples=60, deadline=None)
@given(capabilities, pools, counts, counts, st.randoms(use_true_random=False))
def test_the_order_in_which_peers_came_to_be_known_does_not_matter(
    own: Capability, pool: dict[PeerId, Capability], near: int, far: int, rng: Random
) -> None:
    mixed = list(pool.items())
    rng.shuffle(mixed)
    assert select(ME, own, dict(mixed), near, far) == select(ME, own, pool, near, far)


@settings(max_examples=60, deadline=None)
@given(pools, capabilities, capabilities, st.lists(capabilities, min_size=1), counts)
def test_no_skill_of_anybody_evicts_a_random_link(
    pool: dict[PeerId, Capability],
    own: Capability,
    changed: Capability,
    others: list[Capability],
    far: int,
) -> None:
    moved = {peer: others[i % len(others)] for i, peer in enumerate(pool)}
    assert select(ME, own, pool, 8, far).far[:far] == select(ME, changed, moved, 8, far).far[:far]


@settings(max_examples=60, deadline=None)
@given(pools, capabilities, st.sets(ids), counts)
def test_a_random_link_stays_while_others_leave(
    pool: dict[PeerId, Capability], own: Capability, left: set[PeerId], far: int
) -> None:
    before = [peer for peer in select(ME, own, pool, 8, far).far[:far] if peer not in left]
    after = select(ME, own, {peer: able for peer, able in pool.items() if peer not in left}, 8, far)
    assert list(after.far[: len(before)]) == before


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 200), st.integers(1, 40), st.floats(1.0, 2.0))
def test_a_batch_is_as_one_at_a_time(seed: int, batch: int, n: int, most: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    mine = rng.integers(-127, 128, (batch, 8)).astype(np.float32)
    points = rng.integers(-127, 128, (batch, n, 8)).astype(np.float32)
    valid = rng.random((batch, n)) < 0.8
    both = nearest(mine, points, valid, most, alpha)
    for i in range(batch):
        alone = nearest(mine[i : i + 1], points[i : i + 1], valid[i : i + 1], most, alpha)[0]
        assert both[i].tolist() == alone.tolist()
        kept = both[i][both[i] >= 0]
        assert len(kept) == len(set(kept.tolist())) == min(most, int(valid[i].sum()), 128)
        assert valid[i][kept].all()


@settings(max_examples=100, deadline=None)
@given(capabilities, pools, st.sets(ids), st.integers(0, 12))
def test_load_goes_to_links_and_to_no_more_than_allowed(
    own: Capability, pool: dict[PeerId, Capability], linked: set[PeerId], most: int
) -> None:
    told = load_set(select(ME, own, pool, 8, 4), linked, most)
    assert len(told) == len(set(told)) == min(most, len(linked))
    assert set(told) <= linked


# -- the search ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    pools,
    st.integers(0, 30),
    st.randoms(use_true_random=False),
    st.sets(ids),
    st.integers(0, 12),
    st.integers(1, 16),
)
def test_a_search_visits_nobody_twice_asks_no_dead_again_and_ends(
    pool: dict[PeerId, Capability], seed: int, rng: Random, dead: set[PeerId], hops: int, most: int
) -> None:
    about = np.random.default_rng(seed).integers(-127, 128, 8).astype(np.int8)
    everybody = sorted(pool)
    views = {peer: rng.sample(everybody, min(5, len(everybody))) for peer in [*everybody, ME]}
    here, visited, tried, search = ME, [ME], [], Search()
    while True:
        known = leads_of(about, places([(p, pool[p]) for p in views[here]], "s", 8), tried, most)
        search = arrive(search, known, here, visited=visited, excluded=tried, most=most)
        assert len(search.leads) <= most
        assert sorted(search.leads, key=lambda lead: -lead.similarity) == list(search.leads)
        while (lead := following(search, hops + 1 - len(visited) + 1)) and lead.peer in dead:
            assert lead.peer not in tried
            tried.append(lead.peer)
            search = forget(search, lead.peer)
        if lead is None:
            break
        assert lead.peer not in visited
        here = lead.peer
        visited.append(here)
    assert len(visited) <= max(1, hops + 1)
    assert not set(tried) & {lead.peer for lead in search.leads}


leads = st.builds(Lead, ids, st.sampled_from([-1.0, 0.0, 0.3, 0.5, 1.0]), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(leads, max_size=16, unique_by=lambda lead: lead.peer),
    st.lists(leads, max_size=30, unique_by=lambda lead: lead.peer),
    st.randoms(use_true_random=False),
)
def test_the_order_in_which_leads_are_told_does_not_matter(
    carried: list[Lead], known: list[Lead], rng: Random
) -> None:
    first = arrive(Search(tuple(carried)), known, ME, tie="query")
    rng.shuffle(carried)
    rng.shuffle(known)
    assert arrive(Search(tuple(carried)), known, ME, tie="query") == first
    assert first.stale in (0, 1)
    assert following(first, 0, PATIENCE) is None
