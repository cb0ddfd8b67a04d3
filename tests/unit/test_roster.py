"""Who is in, by what was said, and why who is not."""

from __future__ import annotations

import pytest

from p2pmesh.errors import Untrusted
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust import roster as rosters
from p2pmesh.trust.roster import LIFE_MAX_S, SKEW_S, Roster
from p2pmesh.trust.statements import Signed
from tests.unit.keyring import (
    ADA,
    BLAISE,
    CARL,
    DAY,
    KEYS,
    NOW,
    certificate,
    change,
    genesis,
    quorum,
    revocation,
)

ONE = genesis(KEYS[0])
THREE = genesis(*KEYS[:3], admit=1, zoned=2)


def zones(roster: Roster, signed: Signed, peer: PeerId = ADA, now: float = NOW) -> set[str]:
    return set(roster.check(signed, peer, now).zones)


def test_whom_a_signer_has_let_in_is_in_until_the_certificate_ends() -> None:
    roster, signed = Roster(ONE), certificate(ONE, KEYS[0], zones=("hr",))
    member = roster.check(signed, ADA, NOW)
    assert (member.peer, member.zones, member.until) == (ADA, {GENERAL, "hr"}, NOW + DAY)
    assert zones(roster, signed, now=NOW - SKEW_S)
    assert zones(roster, signed, now=NOW + DAY - 1)


@pytest.mark.parametrize(
    ("signed", "peer", "now", "why"),
    [
        (certificate(ONE), ADA, NOW, "0 of 1 signers"),
        (certificate(ONE, KEYS[1]), ADA, NOW, "0 of 1 signers"),
        (certificate(ONE, KEYS[0]), BLAISE, NOW, "another peer's"),
        (certificate(THREE, KEYS[0]), ADA, NOW, "another mesh"),
        (revocation(ONE, KEYS[0]), ADA, NOW, "another mesh"),
        (certificate(ONE, KEYS[0]), ADA, NOW - SKEW_S - 1, "of the future"),
        (certificate(ONE, KEYS[0]), ADA, NOW + DAY, "has expired"),
        (certificate(ONE, KEYS[0], life=LIFE_MAX_S + 1), ADA, NOW, "lasts longer than 7 days"),
    ],
)
def test_who_is_not_in_is_told_why(signed: Signed, peer: PeerId, now: float, why: str) -> None:
    with pytest.raises(Untrusted, match=why):
        Roster(ONE).check(signed, peer, now)


def test_a_zone_takes_more_signers_and_without_them_is_not_granted() -> None:
    roster = Roster(THREE)
    assert zones(roster, certificate(THREE, KEYS[0], zones=("hr",))) == {GENERAL}
    assert zones(roster, certificate(THREE, KEYS[0], KEYS[5], zones=("hr",))) == {GENERAL}
    assert zones(roster, certificate(THREE, *KEYS[:2], zones=("hr",))) == {GENERAL, "hr"}


def test_who_was_thrown_out_comes_back_only_by_a_later_certificate() -> None:
    roster, signed = Roster(ONE), certificate(ONE, KEYS[0])
    assert roster.add(revocation(ONE, KEYS[0], at=NOW))
    with pytest.raises(Untrusted, match="thrown out"):
        roster.check(signed, ADA, NOW)
    assert zones(roster, certificate(ONE, KEYS[0], begins=NOW + 1))
    assert zones(roster, certificate(ONE, KEYS[0], peer=BLAISE), BLAISE)
    assert not roster.add(revocation(ONE, KEYS[0], at=NOW))
    assert not roster.add(revocation(ONE, KEYS[0], at=NOW - 9))
    assert roster.revoked_at(ADA) == NOW


def test_nobody_but_a_signer_throws_out() -> None:
    roster = Roster(ONE)
    for signed in (revocation(ONE), revocation(ONE, KEYS[1])):
        with pytest.raises(Untrusted, match="no signer has said so"):
            roster.add(signed)
    with pytest.raises(Untrusted, match="another mesh"):
        roster.add(revocation(THREE, KEYS[0]))
    for signed in (ONE, certificate(ONE, KEYS[0])):
        with pytest.raises(Untrusted, match="takes changes"):
            roster.add(signed)
    assert not list(roster)


def test_only_a_genesis_begins_a_mesh() -> None:
    with pytest.raises(Untrusted, match="not the beginning"):
        Roster(certificate(ONE, KEYS[0]))


def test_a_majority_changes_who_signs_and_what_he_said_alone_goes_with_him() -> None:
    roster = Roster(THREE)
    old, both = certificate(THREE, KEYS[0]), certificate(THREE, KEYS[0], KEYS[1])
    roster.add(revocation(THREE, KEYS[0], peer=CARL))
    to = quorum(KEYS[1], KEYS[3])
    with pytest.raises(Untrusted, match="without their majority"):
        roster.add(change(THREE, THREE, to, KEYS[0]))
    with pytest.raises(Untrusted, match="without their majority"):
        roster.add(change(THREE, THREE, to, KEYS[0], KEYS[3]))
    assert roster.add(change(THREE, THREE, to, KEYS[1], KEYS[2]))
    assert not roster.add(change(THREE, THREE, to, KEYS[1], KEYS[2]))
    assert roster.quorum == to
    with pytest.raises(Untrusted, match="0 of 1"):
        roster.check(old, ADA, NOW)
    assert zones(roster, both)
    assert zones(roster, certificate(THREE, KEYS[3]))
    assert roster.revoked_at(CARL) == -1
    roster.add(revocation(THREE, KEYS[1], peer=CARL))
    assert roster.revoked_at(CARL) == NOW


def test_a_change_whose_forerunner_is_not_known_may_come_again() -> None:
    roster = Roster(ONE)
    first = change(ONE, ONE, quorum(KEYS[1]), KEYS[0])
    second = change(ONE, first, quorum(KEYS[2]), KEYS[1])
    with pytest.raises(Untrusted, match="not known"):
        roster.add(second)
    assert roster.add(first)
    assert roster.add(second)
    assert roster.quorum == quorum(KEYS[2])
    assert list(roster) == [first, second]


def test_the_signers_before_the_last_cannot_change_who_signs() -> None:
    roster = Roster(ONE)
    first = change(ONE, ONE, quorum(KEYS[1]), KEYS[0])
    roster.add(first)
    with pytest.raises(Untrusted):
        roster.add(change(ONE, first, quorum(KEYS[0]), KEYS[0]))


def test_of_two_changes_after_the_same_all_take_the_same() -> None:
    one, other = (change(ONE, ONE, quorum(key), KEYS[0]) for key in KEYS[1:3])
    later = change(ONE, max(one, other, key=lambda s: s.digest), quorum(KEYS[5]), *KEYS[1:3])
    there, back = Roster(ONE), Roster(ONE)
    for signed in (one, other, later):
        there.add(signed)
    for signed in (other, one, later):
        back.add(signed)
    assert there.quorum == back.quorum == min(one, other, key=lambda s: s.digest).statement.quorum  # type: ignore[union-attr]


def test_a_signer_has_only_so_much_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "REVOKED_MAX", 2)
    monkeypatch.setattr(rosters, "CHANGES_MAX", 1)
    roster = Roster(THREE)
    for peer in (ADA, BLAISE):
        roster.add(revocation(THREE, KEYS[0], peer=peer))
    with pytest.raises(Untrusted, match="more than 2 revocations"):
        roster.add(revocation(THREE, KEYS[0], KEYS[1], peer=CARL))
    assert roster.revoked_at(CARL) == -1  # nothing of it was taken
    assert roster.add(revocation(THREE, KEYS[0], peer=ADA, at=NOW + 1))  # in place of the old one
    assert roster.add(revocation(THREE, KEYS[1], peer=CARL))
    first = change(THREE, THREE, quorum(*KEYS[:2]), *KEYS[:3])
    roster.add(first)
    with pytest.raises(Untrusted, match="more than 1 changes"):
        roster.add(change(THREE, first, quorum(KEYS[0]), *KEYS[:2]))


def test_a_revocation_is_dropped_once_no_certificate_can_contradict_it() -> None:
    roster = Roster(ONE)
    roster.add(revocation(ONE, KEYS[0]))
    last = certificate(ONE, KEYS[0], life=LIFE_MAX_S)
    roster.forget(NOW + LIFE_MAX_S)
    assert roster.revoked_at(ADA) == NOW
    roster.forget(NOW + LIFE_MAX_S + SKEW_S)
    assert roster.revoked_at(ADA) == -1
    with pytest.raises(Untrusted, match="expired"):
        roster.check(last, ADA, NOW + LIFE_MAX_S + SKEW_S)
