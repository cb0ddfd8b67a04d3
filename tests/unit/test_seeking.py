"""Beyond what one peer knows: whom a query asks next, when its search is over, and who serves it then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from p2pmesh.config import Config, Membership, Net
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.search import LEAD_ADDRESSES_MAX
from p2pmesh.query import Accepted, Chunk, Hop, Lead, Query, Search
from p2pmesh.record import GENERAL, Capability, PeerId, Skill, Vector, quantise
from tests.machines import ABLE, ME, MODEL, A, B, Bench, C, D, of, query, sent, signed

ADDRESS = ("/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/1", "/ip4/10.0.0.3/tcp/1")
STRANGER = PeerId("stranger")


def toward(degrees: float) -> Vector:
    """A direction so far from the query's, in degrees."""
    angle = np.radians(degrees)
    return quantise(np.array([np.cos(angle), np.sin(angle)]))


def standing(degrees: float, **changes: object) -> Capability:
    return replace(
        Capability("s", (Skill(f"at {degrees}", toward(degrees), 0.9),), (MODEL,)),
        **changes,  # type: ignore[arg-type]
    )


def asked(**changes: object) -> Query:
    return query(**{"origin": A, "vector": toward(0), "space": "s", "path": (Hop(A, "a", ""),), **changes})  # type: ignore[arg-type]


def bench(degrees: float = 90.0, **far: float) -> Bench:
    """A peer of a mesh that is larger than it can know, linked to A, which stands nowhere, and knowing who
    stands where."""
    on = Bench(standing(degrees), Config(membership=Membership(members_max=8)))
    on.link(A)
    for peer, its in far.items():
        on.say(A, m.Records((signed(PeerId(peer), capability=standing(its), addresses=ADDRESS),)))
    on.machine.membership.partial = True
    return on


def leads(*known: tuple[str, float], **changes: object) -> Search:
    """A search whose query was told of `known`, at so many degrees."""
    told = {"addresses": ADDRESS[:1], "work_s": 1.0, "quality": 0.9, **changes}
    return Search(tuple(Lead(PeerId(p), float(np.cos(np.radians(d))), **told) for p, d in known))  # type: ignore[arg-type]


def linked(on: Bench, effects: list[e.Effect]) -> list[e.Effect]:
    """Let the dials among `effects` succeed."""
    return [x for dial in of(effects, e.Dial) for x in on.handle(e.Connected(dial.peer))]


def onward(effects: list[e.Effect]) -> tuple[PeerId, Query]:
    [(to, forward)] = [(x.peer, x.message) for x in of(effects, e.Send) if isinstance(x.message, m.Forward)]
    return to, forward.query


def test_it_goes_to_the_nearest_that_is_known_and_carries_what_is_known() -> None:
    on = bench(90, near=10, far=60)
    to, passed = onward(linked(on, on.say(A, m.Forward(asked()))))
    assert (to, passed.target) == ("near", "")
    assert passed.search is not None
    assert [(lead.peer, lead.expanded) for lead in passed.search.leads] == [
        ("near", False),
        ("far", False),
        (ME, True),
    ]
    near = passed.search.leads[0]
    assert near.addresses == ADDRESS[:LEAD_ADDRESSES_MAX]
    assert near.work_s is not None
    assert near.quality > passed.search.leads[2].quality


def test_who_cannot_serve_it_is_asked_all_the_same_and_never_chosen() -> None:
    on = bench(90, near=0)
    on.say(A, m.Records((signed(D, capability=standing(0, models=()), addresses=ADDRESS),)))
    to, passed = onward(linked(on, on.say(A, m.Forward(asked(excluded=(PeerId("near"),))))))
    assert to == D
    assert passed.search is not None
    assert [lead.work_s is None for lead in passed.search.leads] == [True, False]
    effects = on.say(D, m.Refuse(passed.id, 0, Reason.NO_ROUTE))
    assert of(effects, e.Generate)


def test_when_nobody_nearer_was_known_three_times_the_best_lead_serves_it() -> None:
    on = bench(60)
    worse = leads((B, 20), quality=0.2)
    search = Search((*leads((STRANGER, 30)).leads, *worse.leads), stale=2)
    to, passed = onward(linked(on, on.say(A, m.Forward(asked(search=search)))))
    assert (to, passed.target, passed.search) == (STRANGER, STRANGER, None)


def test_whoever_stands_nearest_serves_it_and_asks_nobody_it_was_at() -> None:
    on = bench(0)
    search = replace(leads((A, 20), quality=0.3), stale=2)
    effects = on.say(A, m.Forward(asked(search=search)))
    assert of(effects, e.Generate)


def test_a_stranger_is_dialled_where_the_query_says_and_another_is_asked_where_that_fails() -> None:
    on = bench(90)
    effects = on.say(A, m.Forward(asked(search=leads((STRANGER, 0), (B, 30)))))
    assert of(effects, e.Dial) == [e.Dial(STRANGER, ADDRESS[:1])]
    effects = on.handle(e.DialFailed(STRANGER))
    assert [dial.peer for dial in of(effects, e.Dial)] == [B]
    to, passed = onward(linked(on, effects))
    assert (to, passed.excluded) == (B, (STRANGER,))


def test_a_dead_lead_is_excluded_for_all_who_come_after() -> None:
    on = bench(90, near=10, far=60)
    to, _ = onward(linked(on, on.say(A, m.Forward(asked()))))
    to, passed = onward(linked(on, on.handle(e.Disconnected(to))))
    assert to == "far"
    assert passed.excluded == ("near",)
    assert passed.search is not None
    assert "near" not in [lead.peer for lead in passed.search.leads]


@pytest.mark.parametrize(
    "changes",
    [
        {"zone": "red"},
        {"target": ME},
        {"vector": None, "messages": ()},
        {"accepted": Accepted((1,), "x", 1, MODEL.digest)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_not_to_be_searched_for_is_decided_here(changes: dict[str, object]) -> None:
    on = Bench(standing(90, zones=(GENERAL, "red")), Config(membership=Membership(members_max=8)))
    on.link(A)
    on.say(A, m.Records((signed(B, capability=standing(0), addresses=ADDRESS),)))
    on.machine.membership.partial = True
    effects = on.say(A, m.Forward(asked(**changes)))
    assert all(f.query.search is None for f in sent(effects + linked(on, effects), m.Forward))
    assert on.machine.explain(asked(**changes)).search is None


def test_where_everybody_is_known_there_is_no_search() -> None:
    on = bench(90, near=0)
    on.machine.membership.partial = False
    to, passed = onward(linked(on, on.say(A, m.Forward(asked()))))
    assert (to, passed.target, passed.search) == ("near", "near", None)


def test_a_model_that_nobody_here_has_is_looked_for_to_the_last_hop() -> None:
    on = bench(90, near=10)
    search = replace(leads((B, 20), work_s=None), stale=9)
    to, passed = onward(linked(on, on.say(A, m.Forward(asked(model="rare", search=search)))))
    assert (to, passed.target) == ("near", "")
    effects = bench(90, near=10).say(A, m.Forward(asked(model="rare", search=search, hops_left=1)))
    assert [r.reason for r in sent(effects, m.Refuse)] == [Reason.MODEL_NOT_FOUND]


def found_behind() -> Search:
    """A search that is over here: the best lead is A, to which the query has been."""
    return Search((replace(leads((A, 0)).leads[0], expanded=True),), stale=2)


def test_where_the_best_is_one_the_query_has_been_to_it_is_given_back() -> None:
    on = bench(60)
    on.link(B)
    effects = on.say(B, m.Forward(asked(search=found_behind(), path=(Hop(A, "a", ""), Hop(B, "b", "")))))
    [refusal] = sent(effects, m.Refuse, B)
    assert (refusal.best, refusal.reason) == (A, Reason.NO_ROUTE)
    assert "back to" in refusal.detail
    assert not on.machine.relay.flights


def test_who_passed_it_on_gives_it_back_further_and_whoever_is_named_serves_it() -> None:
    on = bench(60, near=10)
    effects = linked(on, on.say(A, m.Forward(asked())))
    to, passed = onward(effects)
    effects = on.say(to, m.Refuse(passed.id, 0, Reason.NO_ROUTE, "back", best=A))
    assert [r.best for r in sent(effects, m.Refuse, A)] == [A]
    on = bench(60, near=10)
    to, passed = onward(linked(on, on.say(A, m.Forward(asked()))))
    effects = on.say(to, m.Refuse(passed.id, 0, Reason.NO_ROUTE, "back", best=ME))
    assert of(effects, e.Generate)


def test_a_name_that_is_not_on_the_path_is_a_refusal_like_any() -> None:
    on = bench(60, near=10)
    to, passed = onward(linked(on, on.say(A, m.Forward(asked()))))
    effects = on.say(to, m.Refuse(passed.id, 0, Reason.NO_ROUTE, "back", best=STRANGER))
    assert of(effects, e.Generate)


def test_the_decision_says_that_it_goes_on_looking() -> None:
    decision = bench(90, near=10).machine.explain(asked())
    assert decision.explain() == "to near, who may know a nearer one"


def test_where_no_link_can_be_made_it_goes_to_one_that_is_linked() -> None:
    on = Bench(standing(90), Config(membership=Membership(members_max=8, links_max=2, links_far=1)))
    on.link(A, B, C, D, capability=standing(40))
    on.wait(1.0)
    on.machine.membership.partial = True
    on.machine._linking.make_room = lambda: False  # type: ignore[method-assign]
    to, passed = onward(on.say(A, m.Forward(asked(search=leads((STRANGER, 0))))))
    assert to in (B, C, D)
    assert passed.excluded == (STRANGER,)


def test_one_that_does_not_stand_in_the_query_s_space_searches_on_for_it() -> None:
    on = Bench(ABLE, Config(membership=Membership(members_max=8)))
    on.link(A)
    on.machine.membership.partial = True
    to, passed = onward(linked(on, on.say(A, m.Forward(asked(search=leads((B, 20)))))))
    assert to == B
    assert passed.search is not None
    assert passed.search.stale == 1


# -- what a hostile query must not do -----------------------------------------------------------------


def test_however_stale_it_says_to_be_what_goes_on_can_be_read() -> None:
    on = bench(90, near=10)
    search = replace(leads((B, 5), work_s=None), stale=255)
    _, passed = onward(linked(on, on.say(A, m.Forward(asked(model="rare", search=search)))))
    assert passed.search is not None
    assert passed.search.stale == 255


def test_whoever_may_not_see_it_is_not_asked_and_neither_is_a_lead_told_by_others() -> None:
    on = bench(90, far=60)
    red = standing(0, zones=("red",))
    on.say(A, m.Records((signed(B, capability=red, addresses=ADDRESS),)))
    to, passed = onward(linked(on, on.say(A, m.Forward(asked(search=leads((B, 0)))))))
    assert to == "far"
    assert passed.search is not None
    assert B not in [lead.peer for lead in passed.search.leads]


def test_strangers_are_not_dialled_by_one_that_keeps_to_whom_it_was_told() -> None:
    config = Config(membership=Membership(members_max=8), net=Net(dial_discovered=False))
    on = Bench(standing(90), config)
    on.link(A)
    on.machine.membership.partial = True
    effects = on.say(A, m.Forward(asked(search=leads((STRANGER, 0)))))
    assert not of(effects, e.Dial)
    assert of(effects, e.Generate)


def test_where_everybody_is_known_a_query_brings_no_search_in() -> None:
    on = bench(90)
    on.machine.membership.partial = False
    effects = on.say(A, m.Forward(asked(search=leads((STRANGER, 0)))))
    assert not of(effects, e.Dial)
    assert of(effects, e.Generate)


def test_without_room_for_a_link_hundreds_of_leads_are_one_decision() -> None:
    config = Config(membership=Membership(members_max=600, links_max=2, links_far=1))
    on = Bench(standing(90), config)
    on.link(A, B, C, D)
    for number in range(500):
        its = signed(PeerId(f"n{number}"), capability=standing(number % 80), addresses=ADDRESS)
        on.say(A, m.Records((its,)))
    on.machine.membership.partial = True
    for number, peer in enumerate((A, B, C, D)):  # a query through each link, so that none can be spared
        on.say(peer, m.Forward(query(10 + number, origin=peer, path=(Hop(peer, peer, ""),))))
    for number in (1, 2):
        effects = on.say(A, m.Forward(asked(id=query(number).id)))
        assert of(effects, e.Generate) or sent(effects, m.Accept) or sent(effects, m.Refuse)


def test_a_link_that_comes_up_is_seen_at_once() -> None:
    on = bench(90, far=60)
    on.say(A, m.Records((signed(B, capability=standing(0)),)))  # no address: it cannot be dialled
    assert "far" in on.machine.explain(asked()).explain()
    on.handle(e.Connected(B))
    assert (
        "peer b" in on.machine.explain(asked()).explain() or "to b" in on.machine.explain(asked()).explain()
    )


def test_once_a_token_has_come_nobody_gives_it_back() -> None:
    on = bench(60, near=10)
    to, passed = onward(linked(on, on.say(A, m.Forward(asked()))))
    on.say(to, m.Accept(passed.id, 0, True))
    on.say(to, m.Tokens(Chunk(passed.id, 0, 0, (1,), "x")))
    effects = on.say(to, m.Refuse(passed.id, 0, Reason.NO_ROUTE, "back", best=ME))
    assert not of(effects, e.Generate)
    assert sent(effects, m.Error, A)
