"""The search a query carries: whom it keeps, what it believes, where it goes next, and when it ends."""

from __future__ import annotations

import numpy as np
import pytest

from p2pmesh.protocol.overlay import places
from p2pmesh.protocol.search import Lead, Search, arrive, following, forget, leads_of
from p2pmesh.record import Capability, PeerId, Skill, Vector
from tests.machines import ME, A, B, C, D


def peers(search: Search) -> list[PeerId]:
    return [lead.peer for lead in search.leads]


def at(degrees: float) -> Vector:
    angle = np.deg2rad(degrees)
    return np.rint(127 * np.array([np.cos(angle), np.sin(angle)])).astype(np.int8)


def crowd(*degrees: float) -> list[tuple[PeerId, Capability]]:
    return [(PeerId(f"{d:g}"), Capability("s", (Skill("", at(d)),))) for d in degrees]


# -- who is near --------------------------------------------------------------------------------------


def test_leads_are_the_nearest_best_first() -> None:
    leads = leads_of(at(0), places(crowd(40, 10, 80, 20), "s", 2), most=2)
    assert [lead.peer for lead in leads] == ["10", "20"]
    assert leads[0].similarity == pytest.approx(np.cos(np.deg2rad(10)), abs=0.01)
    assert not leads[0].expanded


def test_the_excluded_make_room_for_others() -> None:
    leads = leads_of(at(0), places(crowd(40, 10, 80, 20), "s", 2), {PeerId("10")}, most=2)
    assert [lead.peer for lead in leads] == ["20", "40"]
    assert leads_of(at(0), places([], "s", 2)) == []


def test_equals_share_the_queries_and_everybody_agrees_which() -> None:
    same = [(PeerId(f"n{i}"), Capability("s", (Skill("", at(5)),))) for i in range(40)]
    first = {leads_of(at(0), places(same, "s", 2), tie=f"query {i}", most=4)[0].peer for i in range(60)}
    assert len(first) > 20
    one = leads_of(at(0), places(same, "s", 2), tie="q", most=4)
    assert one == leads_of(at(0), places(same[::-1], "s", 2), tie="q", most=4)


# -- arriving -----------------------------------------------------------------------------------------


def test_it_keeps_the_best_of_what_it_carries_and_what_is_known_here() -> None:
    carried = Search((Lead(A, 0.9), Lead(B, 0.5)))
    search = arrive(carried, [Lead(C, 0.7), Lead(D, 0.1), Lead(ME, 0.3)], ME, most=4)
    assert peers(search) == [A, C, B, ME]
    assert peers(arrive(carried, [], ME, most=1)) == [A]


def test_who_has_it_is_expanded_and_so_are_the_visited() -> None:
    search = arrive(
        Search((Lead(A, 0.9, expanded=True),)),
        [Lead(A, 0.9), Lead(ME, 0.8), Lead(B, 0.7), Lead(C, 0.6)],
        ME,
        visited=[B],
    )
    assert [lead.expanded for lead in search.leads] == [True, True, True, False]


def test_the_excluded_are_no_leads_whoever_names_them() -> None:
    search = arrive(Search((Lead(A, 0.9), Lead(B, 0.5))), [Lead(C, 0.7)], ME, excluded=[A, C])
    assert peers(search) == [B]


def test_what_is_known_here_goes_before_what_was_told() -> None:
    told = Search((Lead(A, 1.0, True, ("/old",)), Lead(B, 0.9, False, ("/b",))))
    search = arrive(told, [Lead(A, 0.2, False, ("/new",)), Lead(B, 0.8)], ME)
    assert search.leads == (Lead(B, 0.8, False, ("/b",)), Lead(A, 0.2, True, ("/new",)))


@pytest.mark.parametrize(
    ("known", "stale"), [([Lead(B, 0.6)], 0), ([Lead(B, 0.5)], 3), ([Lead(B, 0.4)], 3), ([], 3)]
)
def test_it_grows_stale_where_nobody_nearer_is_known(known: list[Lead], stale: int) -> None:
    assert arrive(Search((Lead(A, 0.5),), 2), known, ME).stale == stale


def test_the_first_place_is_never_stale_unless_it_knows_nobody() -> None:
    assert arrive(Search(), [Lead(A, -0.9)], ME).stale == 0
    assert arrive(Search(), [], ME).stale == 1


def test_who_turned_out_to_be_dead_is_no_measure_of_nearness() -> None:
    carried = Search((Lead(A, 0.9), Lead(B, 0.5)), 1)
    assert arrive(carried, [Lead(C, 0.6)], ME, excluded=[A]).stale == 0
    assert arrive(forget(carried, A), [Lead(C, 0.6)], ME).stale == 0


# -- going on -----------------------------------------------------------------------------------------


def test_it_goes_to_the_best_where_it_has_not_been() -> None:
    search = Search((Lead(A, 0.9, True), Lead(B, 0.8), Lead(C, 0.7)))
    assert following(search, 8) == Lead(B, 0.8)
    assert following(forget(search, B), 8) == Lead(C, 0.7)


@pytest.mark.parametrize(
    ("search", "hops_left", "patience"),
    [
        (Search(), 8, 3),
        (Search((Lead(A, 0.9, True),)), 8, 3),
        (Search((Lead(A, 0.9),), 3), 8, 3),
        (Search((Lead(A, 0.9),), 2), 8, 2),
        (Search((Lead(A, 0.9),)), 8, 0),
        (Search((Lead(A, 0.9),)), 1, 3),
        (Search((Lead(A, 0.9),)), 0, 3),
    ],
)
def test_it_is_over_without_leads_patience_or_hops(search: Search, hops_left: int, patience: int) -> None:
    assert following(search, hops_left, patience) is None


def test_forgetting_costs_no_patience() -> None:
    assert forget(Search((Lead(A, 0.9), Lead(B, 0.8)), 2), A) == Search((Lead(B, 0.8),), 2)


def test_it_leaves_a_blind_alley_by_the_list_it_carries() -> None:
    """A knows only B, which is nearer and knows nobody; C, farther, knows D, the nearest."""
    similarity = {A: 0.5, B: 0.8, C: 0.6, D: 0.9}
    views = {A: [B, C], B: [A], C: [A, D], D: [C]}
    here, way, search = A, [A], Search()
    while True:
        known = [Lead(peer, similarity[peer]) for peer in [*views[here], here]]
        search = arrive(search, known, here, visited=way)
        lead = following(search, 8)
        if lead is None:
            break
        here = lead.peer
        way.append(here)
    assert way == [A, B, C, D]
    assert search.leads[0].peer == D
