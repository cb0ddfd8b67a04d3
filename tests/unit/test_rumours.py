"""What is told of others: a few times each, the least told first, within what a frame holds."""

from __future__ import annotations

from p2pmesh.protocol.messages import Status, Update
from p2pmesh.protocol.rumours import Rumours
from p2pmesh.record import PeerId, Version
from tests.machines import A, B, C, D


def dead(peer: PeerId) -> Update:
    return Update(peer, Status.DEAD, Version(1, 1))


def test_each_is_told_so_often_and_then_no_more() -> None:
    rumours = Rumours(4)
    rumours.tell(dead(A), 2)
    assert [rumours.news(D) for _ in range(3)] == [(dead(A),), (dead(A),), ()]
    assert not len(rumours)


def test_it_is_told_once_at_least() -> None:
    rumours = Rumours(4)
    rumours.tell(dead(A), 0)
    assert rumours.news(D) == (dead(A),)


def test_the_least_told_go_first_and_a_frame_holds_few() -> None:
    rumours = Rumours(2)
    for peer, times in ((A, 1), (B, 3), (C, 3)):
        rumours.tell(dead(peer), times)
    assert [[u.id for u in rumours.news(D)] for _ in range(4)] == [[B, C], [B, C], [A, B], [C]]


def test_nobody_is_told_of_itself_but_what_goes_first() -> None:
    rumours = Rumours(3)
    rumours.tell(dead(A), 1)
    accused = Update(A, Status.SUSPECT, Version(1, 1))
    assert rumours.news(A) == ()
    assert rumours.news(A, (accused,)) == (accused,)
    assert list(rumours) == [A]


def test_a_newer_belief_takes_the_older_one_s_place_and_one_can_be_dropped() -> None:
    rumours = Rumours(3)
    rumours.tell(dead(A), 1)
    newer = Update(A, Status.LEFT, Version(1, 2))
    rumours.tell(newer, 1)
    assert len(rumours) == 1
    assert rumours.news(D) == (newer,)
    rumours.tell(dead(A), 1)
    rumours.drop(A)
    rumours.drop(B)
    assert rumours.news(D) == ()
