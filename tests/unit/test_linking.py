"""The neighbours, in time: chosen a little after news, dialled once, kept within bounds; and parting, which
is neither death nor leaving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from p2pmesh.config import Config, Gossip, Membership
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.linking import OFFERED
from p2pmesh.protocol.messages import Status, Update
from p2pmesh.protocol.overlay import select, shuffled
from p2pmesh.record import PeerId, Skill, Version
from tests.machines import ABLE, ME, UNABLE, A, B, Bench, C, D, of, query, sent, signed

V1 = Version(1, 1)
ADDRESS = ("/ip4/10.0.0.1/tcp/1",)
POOL = tuple(PeerId(f"q{i}") for i in range(9))
WANTED = select(ME, ABLE, dict.fromkeys(POOL, ABLE), 1, 1)
CHOSEN = (*WANTED.near, *WANTED.far)
SPARE = tuple(peer for peer in POOL if peer not in CHOSEN)


def small(*peers: PeerId) -> Bench:
    """A bench that chooses two links and keeps four, linked to `peers`, which have no address."""
    on = Bench(config=Config(membership=Membership(links_max=2, links_far=1)))
    on.link(*peers)
    return on


def learn(on: Bench, *peers: PeerId) -> None:
    """Let `on` hear, from any link, of `peers` and where to dial them."""
    teacher = next(iter(on.machine.membership.links))
    for peer in peers:
        on.say(teacher, m.Records((signed(peer, addresses=ADDRESS),)))


def dialled(effects: list[e.Effect]) -> set[PeerId]:
    return {dial.peer for dial in of(effects, e.Dial)}


def parted(effects: list[e.Effect]) -> list[PeerId]:
    """Who is told that there is no room for it, and hung up on."""
    told = [s.peer for s in of(effects, e.Send) if isinstance(s.message, m.Part)]
    assert told == [f.peer for f in of(effects, e.Hangup)]
    return told


# -- choosing -----------------------------------------------------------------------------------------


def test_a_burst_of_news_is_one_choice_a_moment_later() -> None:
    on = Bench(me=PeerId("A"))  # the lower id: it dials at once
    on.link(A)
    on.wait(1.0)
    for number in range(5):
        learn(on, PeerId(f"n{number}"))
        assert not dialled(on.wait(0.03))
    assert dialled(on.wait(0.1)) == {PeerId(f"n{number}") for number in range(5)}


def test_only_the_chosen_are_dialled() -> None:
    on = small(SPARE[0])
    learn(on, *CHOSEN, *SPARE[1:])
    assert dialled(on.wait(5.0)) == set(CHOSEN)


def test_one_that_is_dialled_or_linked_or_put_off_is_not_dialled_again() -> None:
    on = Bench()
    on.link(A, addresses=ADDRESS)
    learn(on, D)
    assert dialled(on.wait(3.0)) == {D}
    learn(on, C)
    assert dialled(on.wait(3.0)) == {C}  # the dial of D is under way
    on.handle(e.DialFailed(D))
    learn(on, PeerId("e"))
    assert D not in dialled(on.wait(0.3))  # it is tried again in its own time


def test_the_dead_and_those_whose_record_is_not_held_are_not_chosen() -> None:
    on = Bench()
    on.link(A, B)
    learn(on, C, D)
    on.say(A, m.Ping(1, (Update(D, Status.DEAD, V1),)))
    del on.machine.gossip.records[C]
    assert dialled(on.wait(2.0)) == set()


def test_another_takes_the_place_of_a_chosen_one_that_died() -> None:
    on = small(SPARE[0])
    learn(on, *POOL)
    on.say(SPARE[0], m.Ping(1, (Update(CHOSEN[0], Status.DEAD, V1),)))
    assert len(dialled(on.wait(1.0)) & {*SPARE, CHOSEN[1]}) == 2


def test_with_enough_links_a_choice_is_not_made_more_often_than_the_interval() -> None:
    on = small(*SPARE[:2])
    on.wait(5.0)
    made = 0
    due = on.machine._linking.deadline
    for number in range(100):
        learn(on, PeerId(f"n{number}"))
        on.wait(0.1)
        made += on.machine._linking.deadline != due
        due = on.machine._linking.deadline
    assert made <= 2 * (10.0 / on.config.membership.relink_interval_s + 1)


def test_without_them_it_is_made_at_once() -> None:
    on = Bench()
    on.link(A)
    for number in range(5):
        learn(on, PeerId(f"n{number}"))
        on.wait(1.3)
        assert on.machine.membership.members[PeerId(f"n{number}")].dialing


def test_the_load_set_is_of_links_follows_them_and_has_a_bound() -> None:
    on = Bench(config=Config(gossip=Gossip(load_set_max=3)))
    on.link(A, B)
    assert set(on.machine._linking.load_set()) == {A, B}
    on.link(*POOL[:4])
    assert len(on.machine._linking.load_set()) == 3
    for peer in POOL[:4]:
        on.handle(e.Disconnected(peer))
    assert set(on.machine._linking.load_set()) == {A, B}


# -- room ---------------------------------------------------------------------------------------------


def test_whoever_dials_is_linked_up_to_twice_as_many_as_are_chosen() -> None:
    on = small(*SPARE[:3])
    assert parted(on.handle(e.Connected(SPARE[3]))) == []
    assert parted(on.handle(e.Connected(SPARE[4]))) == [SPARE[0]]
    assert len(on.machine.membership.links) == 4
    assert parted(on.handle(e.Connected(SPARE[4]))) == []  # a link we have


def test_the_oldest_link_that_was_not_chosen_makes_room_for_a_new_one() -> None:
    on = small(CHOSEN[0], SPARE[0], CHOSEN[1])
    on.now += 0.1
    on.link(SPARE[1])
    on.wait(3.0)
    assert parted(on.handle(e.Connected(SPARE[2]))) == [SPARE[0]]
    assert parted(on.handle(e.Connected(SPARE[3]))) == [SPARE[1]]
    assert parted(on.handle(e.Connected(SPARE[4]))) == [SPARE[2]]


def test_a_link_that_a_query_goes_through_is_not_given_up_for_room() -> None:
    on = small(*SPARE[:4])
    for number, peer in enumerate(SPARE[:3]):
        on.say(peer, m.Forward(query(number, excluded=POOL)))
    assert parted(on.handle(e.Connected(SPARE[4]))) == [SPARE[3]]


def test_nor_one_that_a_query_went_out_by() -> None:
    on = Bench(UNABLE, Config(membership=Membership(links_max=2, links_far=1)))
    on.link(*SPARE[:4])
    [forward] = [s for s in of(on.ask(query(1, origin=ME, excluded=SPARE[1:])), e.Send) if s.peer == SPARE[0]]
    assert isinstance(forward.message, m.Forward)
    assert parted(on.handle(e.Connected(SPARE[4]))) == [SPARE[1]]


def test_where_no_link_can_be_spared_the_newcomer_is_told_and_lives_on() -> None:
    on = small(*SPARE[:4])
    learn(on, D)
    for number, peer in enumerate(SPARE[:4]):
        on.say(peer, m.Forward(query(number, excluded=POOL)))
    assert parted(on.handle(e.Connected(D))) == [D]
    assert not on.say(D, m.Ping(1))
    assert on.status(D) is Status.ALIVE
    on.handle(e.Disconnected(D))
    assert on.status(D) is Status.ALIVE


def test_one_that_comes_back_and_finds_no_room_is_not_dead() -> None:
    on = small(*SPARE[:3])
    on.link(D, addresses=ADDRESS)
    on.handle(e.Disconnected(D))  # lost: its redial is under way
    on.link(SPARE[3])
    for number, peer in enumerate(SPARE[:4]):
        on.say(peer, m.Forward(query(number, excluded=POOL)))
    assert parted(on.handle(e.Connected(D))) == [D]
    assert on.status(D) is not Status.DEAD


def test_a_link_given_up_for_room_is_gone_from_every_table_and_its_end_means_nothing() -> None:
    on = small(*SPARE[:4])
    for peer in SPARE[:4]:
        on.say(peer, m.LoadReport(on.machine.load(ME)))  # type: ignore[arg-type]
    on.say(SPARE[0], m.Announce((m.Line(SPARE[1], V1, 1),)))
    on.handle(e.Connected(D))
    assert on.machine.load(SPARE[0]) is None
    assert SPARE[0] not in on.machine._linking.load_set()
    assert SPARE[0] not in on.machine.membership.members[SPARE[1]].distances
    assert not of(on.handle(e.Disconnected(SPARE[0])), e.Dial)
    assert on.status(SPARE[0]) is Status.ALIVE
    assert not [s for s in of(on.wait(5.0), e.Send) if s.peer == SPARE[0]]


def test_a_chosen_peer_waits_for_room_and_is_dialled_when_there_is_some() -> None:
    on = small(*SPARE[:4])
    learn(on, *CHOSEN)
    assert not dialled(on.wait(5.0))
    on.handle(e.Disconnected(SPARE[0]))
    assert dialled(on.wait(5.0)) & set(CHOSEN)


# -- to be parted with --------------------------------------------------------------------------------


def test_one_that_has_no_room_for_us_is_neither_suspected_nor_dialled_for_a_while() -> None:
    on = Bench()
    on.link(A, B, addresses=ADDRESS)
    on.say(A, m.Part())
    effects = on.handle(e.Disconnected(A))
    learn(on, D)  # a new choice
    for _ in range(29):
        assert on.status(A) is Status.ALIVE
        for ping in sent(effects, m.Ping, B):
            on.say(B, m.Ack(ping.seq))
        assert A not in dialled(effects)
        effects = on.wait(1.0)
    on.wait(2.0)
    learn(on, C)  # and another, when the while is over
    assert A in dialled(on.wait(3.0))


def test_what_a_stranger_has_no_room_for_changes_nothing() -> None:
    on = Bench()
    on.handle(e.Connected(A))
    assert on.say(A, m.Part()) == [e.Hangup(A)]
    assert A not in on.machine.membership.members


def test_one_that_parted_and_came_back_is_watched_as_any_link_is() -> None:
    on = Bench()
    on.link(A, B, addresses=ADDRESS)
    on.say(A, m.Part())
    on.handle(e.Disconnected(A))
    on.link(A, addresses=ADDRESS)
    assert dialled(on.handle(e.Disconnected(A))) == {A}
    assert on.status(A) is Status.SUSPECT
    on.handle(e.DialFailed(A))
    assert on.status(A) is Status.DEAD


def test_queries_that_went_through_a_parted_link_are_lost_like_any() -> None:
    on = Bench(UNABLE)
    on.link(A, B, capability=ABLE)
    asked = query(1, origin=ME)
    [forward] = [s for s in of(on.ask(asked), e.Send) if isinstance(s.message, m.Forward)]
    on.say(forward.peer, m.Accept(asked.id, 0, False))
    again = [s for s in of(on.say(forward.peer, m.Part()), e.Send) if isinstance(s.message, m.Forward)]
    assert [s.peer for s in again] == [B if forward.peer == A else A]
    assert forward.peer not in on.machine.membership.links  # though its end is yet to be heard
    assert not of(on.handle(e.Disconnected(forward.peer)), e.Dial)


# -- more peers than room -----------------------------------------------------------------------------

NORTH, EAST = (Skill(name, np.array(at, np.int8)) for name, at in (("n", [127, 0]), ("e", [0, 127])))


def crowded(*peers: PeerId, members_max: int = 16) -> Bench:
    """A bench that stands north and is linked to A, full with as many as there is room for."""
    on = Bench(
        replace(ABLE, space="s", skills=(NORTH,)), Config(membership=Membership(members_max=members_max))
    )
    on.link(A)
    learn(on, *peers)
    return on


def stands(peer: PeerId, skill: Skill) -> m.Records:
    its = replace(ABLE, space="s", skills=(skill,))
    return m.Records((signed(peer, capability=its, addresses=ADDRESS),))


def test_of_more_than_there_is_room_for_a_fair_sample_is_kept_whatever_came_first() -> None:
    names = [PeerId(f"x{i}") for i in range(60)]
    kept = [set(crowded(*order).machine.membership.members) for order in (names, names[::-1])]
    assert kept[0] == kept[1] == {A, *shuffled(ME, names)[:15]}


def test_the_nearest_are_kept_before_all_others_and_the_links_always() -> None:
    names = [PeerId(f"x{i}") for i in range(40)]
    on = crowded(*names)
    last = shuffled(ME, [*names, *(PeerId(f"y{i}") for i in range(40))])[-20:]
    near = [peer for peer in last if peer[0] == "y"][:2]
    for peer in near:
        on.say(A, stands(peer, NORTH))
    on.say(A, m.Records(tuple(signed(PeerId(f"z{i}"), addresses=ADDRESS) for i in range(30))))
    assert {A, *near} <= on.machine.membership.members.keys()


def test_one_that_cannot_be_reached_gives_up_its_place_and_is_not_heard_of_again() -> None:
    on = crowded(*(PeerId(f"x{i}") for i in range(40)))
    gone = next(peer for peer in on.machine.membership.members if peer != A)
    on.handle(e.DialFailed(gone))
    assert gone not in on.machine.membership.members
    assert gone not in on.machine.gossip.records
    learn(on, PeerId("x99"))  # full again
    assert not sent(on.say(A, m.Announce((m.Line(gone, V1, 1),))), m.Pull)
    assert sent(on.say(A, m.Announce((m.Line(gone, Version(1, 2), 1),))), m.Pull)


def test_links_are_told_who_is_near_to_them_instead_of_what_is_known() -> None:
    on = crowded(*(PeerId(f"x{i}") for i in range(40)), members_max=64)
    on.say(A, m.Records((signed(A, Version(1, 2), replace(ABLE, space="s", skills=(EAST,))),)))
    for name in ("e1", "e2"):
        on.say(A, stands(PeerId(name), EAST))
    on.machine.membership.partial = True
    on.wait(3.0)  # what is fresh has been announced
    effects = on.wait(12.0)
    assert not sent(effects, m.Digest)
    told = [announce.lines for announce in sent(effects, m.Announce, A)]
    assert told
    for lines in told:
        assert [line.id for line in lines[:1]] == [ME]
        assert {line.id for line in lines[1:3]} == {"e1", "e2"}
        assert len(lines) <= OFFERED + 9


def test_where_there_is_room_again_sums_are_compared_again() -> None:
    on = crowded(*(PeerId(f"x{i}") for i in range(40)))
    membership = on.machine.membership
    assert membership.partial
    for peer in [peer for peer in membership.members if peer != A][:9]:
        membership.forget(peer)
    assert not membership.partial
    assert sent(on.wait(12.0), m.Digest)


def test_where_sums_are_not_compared_a_new_link_hears_who_we_are() -> None:
    on = crowded(*(PeerId(f"x{i}") for i in range(40)))
    [told] = sent(on.handle(e.Connected(B)), m.Announce, B)
    assert [line.id for line in told.lines] == [ME]


def test_one_that_was_declined_and_then_linked_is_known_after_all() -> None:
    on = crowded(*(PeerId(f"x{i}") for i in range(40)))
    far = next(iter(on.machine.gossip._declined))
    line = m.Announce((m.Line(far, V1, 1),))
    assert not sent(on.say(A, line), m.Pull)
    on.handle(e.Connected(far))
    assert sent(on.say(far, line), m.Pull)
    on.say(far, m.Records((signed(far, addresses=ADDRESS),)))
    assert far in on.machine.membership.members


def test_a_silent_link_that_never_said_who_it_is_is_ended() -> None:
    on = Bench()
    on.handle(e.Connected(A))
    assert A in [hangup.peer for hangup in of(on.wait(30.0), e.Hangup)]


def test_it_is_ended_as_soon_however_many_links_there_are() -> None:
    """Four of its turns among fifteen links took most of a minute (chaos, seed 19)."""
    on, named = Bench(), tuple(PeerId(f"p{i}") for i in range(15))
    on.link(*named)
    on.handle(e.Connected(A))
    ended: list[PeerId] = []
    for _ in range(240):
        effects = on.wait(0.1)
        ended += [hangup.peer for hangup in of(effects, e.Hangup)]
        for peer in named:
            for ping in sent(effects, m.Ping, peer):
                on.say(peer, m.Ack(ping.seq))
        if ended:
            break
    assert ended == [A]


def test_a_link_whose_record_was_lost_is_asked_for_it() -> None:
    on = Bench()
    on.link(A)
    on.handle(e.Connected(B))
    assert m.Pull((B,)) in sent(on.wait(12.0), m.Pull, B)
