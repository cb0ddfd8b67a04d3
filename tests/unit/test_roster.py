"""Who is in, by what was said, and why who is not."""

from __future__ import annotations

import pytest

from p2pmesh.errors import Untrusted
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust import roster as rosters
from p2pmesh.trust.roster import LIFE_MAX_S, SINCE_AHEAD_MAX_S, SKEW_S, Roster
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
    assert roster.add(revocation(ONE, KEYS[0], at=NOW), NOW)
    with pytest.raises(Untrusted, match="thrown out"):
        roster.check(signed, ADA, NOW)
    assert zones(roster, certificate(ONE, KEYS[0], since=NOW + 1))
    assert zones(roster, certificate(ONE, KEYS[0], peer=BLAISE), BLAISE)
    assert not roster.add(revocation(ONE, KEYS[0], at=NOW), NOW)
    assert not roster.add(revocation(ONE, KEYS[0], at=NOW - 9), NOW)
    assert roster.revoked_at(ADA, NOW) == NOW


def test_who_equivocates_is_out_until_it_is_let_in_anew() -> None:
    roster, signed = Roster(ONE), certificate(ONE, KEYS[0])
    assert roster.ban(ADA, (signed, certificate(ONE, KEYS[0], since=NOW - 9)), NOW)
    with pytest.raises(Untrusted, match="two records of one version"):
        roster.check(signed, ADA, NOW)
    with pytest.raises(Untrusted, match="two records of one version"):  # a renewal is no pardon
        roster.check(certificate(ONE, KEYS[0], begins=NOW + 60), ADA, NOW + 60)
    assert zones(roster, certificate(ONE, KEYS[0], since=NOW + 1))
    assert zones(roster, certificate(ONE, KEYS[0], peer=BLAISE), BLAISE)
    assert not roster.ban(ADA, (signed,), NOW)
    assert roster.ban(ADA, (certificate(ONE, KEYS[0], since=NOW + 1),), NOW)


@pytest.mark.parametrize(
    "signed",
    [certificate(ONE), certificate(ONE, KEYS[1]), certificate(THREE, KEYS[0]), revocation(ONE, KEYS[0])],
)
def test_only_who_was_let_in_is_banned(signed: Signed) -> None:
    roster = Roster(ONE)
    with pytest.raises(Untrusted):
        roster.ban(ADA, (certificate(ONE, KEYS[0]), signed), NOW)
    with pytest.raises(Untrusted, match="another peer's"):
        roster.ban(BLAISE, (certificate(ONE, KEYS[0]),), NOW)
    assert not roster.banned


def test_what_has_expired_bans_too() -> None:
    """Its owner will show a renewed one."""
    roster = Roster(ONE)
    assert roster.ban(ADA, (certificate(ONE, KEYS[0], begins=NOW - 9 * DAY),), NOW)


def test_who_signs_no_more_leaves_room_for_those_that_equivocate_indeed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key that was replaced let in any number of made-up ones, each of which equivocated."""
    monkeypatch.setattr(rosters, "BANNED_MAX", 1)
    roster = Roster(ONE)
    roster.add(change(ONE, [], KEYS[0], to=(KEYS[1],)), NOW)
    assert roster.ban(ADA, (certificate(ONE, KEYS[0]),), NOW)
    assert not roster.ban(CARL, (certificate(ONE, KEYS[0], peer=CARL),), NOW)
    assert roster.ban(BLAISE, (certificate(ONE, KEYS[1], peer=BLAISE),), NOW)
    assert list(roster.banned) == [BLAISE]
    assert not roster.ban(ADA, (certificate(ONE, KEYS[1]),), NOW)


def test_a_ban_is_of_no_time_to_come() -> None:
    roster = Roster(ONE)
    roster.ban(ADA, (certificate(ONE, KEYS[0], begins=NOW + 9 * DAY, since=NOW + 9 * DAY),), NOW)
    assert roster.banned == {ADA: NOW + SKEW_S + SINCE_AHEAD_MAX_S}


def test_who_was_let_in_at_a_time_to_come_is_not_in_and_could_never_be_thrown_out() -> None:
    """A thief of a signer's key made such a one, and honest signers renewed it for ever."""
    roster = Roster(ONE)
    for ahead_s, good in ((SINCE_AHEAD_MAX_S, True), (SINCE_AHEAD_MAX_S + 1, False), (2**39, False)):
        signed = certificate(ONE, KEYS[0], since=NOW + ahead_s)
        if good:
            assert roster.check(signed, ADA, NOW)
        else:
            with pytest.raises(Untrusted, match="at a time to come"):
                roster.check(signed, ADA, NOW)
            with pytest.raises(Untrusted, match="at a time to come"):
                roster.ban(ADA, (signed,), NOW)


@pytest.mark.parametrize("later_first", [False, True])
def test_a_ban_by_those_who_sign_is_for_good_whatever_others_bring(
    monkeypatch: pytest.MonkeyPatch, later_first: bool
) -> None:
    """A former signer and the liar brought newer evidence, and it was the next to be forgotten."""
    monkeypatch.setattr(rosters, "BANNED_MAX", 1)
    mesh = genesis(KEYS[0], KEYS[1])
    roster = Roster(mesh)
    roster.add(change(mesh, [], *KEYS[:2], to=(KEYS[1],)), NOW)
    evidence = [certificate(mesh, KEYS[1]), certificate(mesh, KEYS[0], since=NOW + 1)]
    for signed in reversed(evidence) if later_first else evidence:
        assert roster.ban(ADA, (signed,), NOW)
    assert not roster.ban(BLAISE, (certificate(mesh, KEYS[1], peer=BLAISE),), NOW)
    with pytest.raises(Untrusted, match="two records"):
        roster.check(certificate(mesh, KEYS[1]), ADA, NOW)


def test_there_is_room_for_so_many_bans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "BANNED_MAX", 1)
    roster = Roster(ONE)
    assert roster.ban_since(ADA, NOW)
    assert not roster.ban_since(BLAISE, NOW)
    assert roster.ban_since(ADA, NOW + 1)


def test_nobody_but_a_signer_throws_out() -> None:
    roster = Roster(ONE)
    for signed in (revocation(ONE), revocation(ONE, KEYS[1])):
        with pytest.raises(Untrusted, match="no signer has said so"):
            roster.add(signed, NOW)
    with pytest.raises(Untrusted, match="another mesh"):
        roster.add(revocation(THREE, KEYS[0]), NOW)
    for signed in (ONE, certificate(ONE, KEYS[0])):
        with pytest.raises(Untrusted, match="takes revocations"):
            roster.add(signed, NOW)
    assert not list(roster)


def test_only_a_genesis_begins_a_mesh() -> None:
    with pytest.raises(Untrusted, match="not the beginning"):
        Roster(certificate(ONE, KEYS[0]))


def test_a_renewal_is_no_pardon() -> None:
    """A signer who had not heard of the revocation renewed it, and it was in again, with all."""
    roster = Roster(ONE)
    roster.add(revocation(ONE, KEYS[0], at=NOW), NOW)
    with pytest.raises(Untrusted, match="thrown out"):
        roster.check(certificate(ONE, KEYS[0], since=NOW, begins=NOW + 9), ADA, NOW + 9)


def test_junk_signatures_are_neither_kept_nor_told() -> None:
    roster = Roster(ONE)
    clean = revocation(ONE, KEYS[0])
    assert roster.add(revocation(ONE, *KEYS), NOW)
    assert list(roster) == [clean]


def test_a_signer_has_only_so_much_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "REVOKED_MAX", 2)
    roster = Roster(THREE)
    for peer in (ADA, BLAISE):
        roster.add(revocation(THREE, KEYS[0], peer=peer), NOW)
    assert not roster.add(revocation(THREE, KEYS[0], peer=CARL), NOW)
    assert roster.revoked_at(CARL, NOW) == -1
    assert roster.add(revocation(THREE, KEYS[0], peer=ADA, at=NOW + 1), NOW)  # in place of the old one
    assert roster.add(revocation(THREE, KEYS[0], KEYS[1], peer=CARL), NOW)  # there is room for the other's
