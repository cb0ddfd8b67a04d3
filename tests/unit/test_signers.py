"""Others come to sign for a mesh, by the word of most who sign, and nobody is cut off who could hear."""

from __future__ import annotations

import base64

import pytest

from p2pmesh.errors import ConfigError, Untrusted
from p2pmesh.net.identity import Identity
from p2pmesh.net.link import SHOWN_BYTES_MAX
from p2pmesh.peer import signers as peer_signers
from p2pmesh.peer.signers import Signers
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust import roster as rosters
from p2pmesh.trust.papers import shown_for
from p2pmesh.trust.roster import Roster
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.statements import Change, Signed
from p2pmesh.trust.welcome import welcomed
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
from tests.unit.test_standing import Clock, clock, member

__all__ = ["clock"]
A, B, C, D = KEYS[:4]
word = peer_signers.word_of
ONE = genesis(A)
THREE = genesis(A, B, C)


# -- the chain --------------------------------------------------------------------------------------


def test_who_signs_changes_when_it_says_and_certificates_count_by_who_signs_then() -> None:
    roster = Roster(ONE)
    old, new = certificate(ONE, A), certificate(ONE, B)
    assert roster.add(change(ONE, [], A, to=(B,), at=NOW + 60), NOW)
    assert roster.quorum(NOW).signers == (A.id,)
    assert roster.upcoming(NOW) == [roster.last] == [quorum(B)]
    assert roster.check(old, ADA, NOW + 59)
    assert roster.check(new, ADA, NOW + 60)
    for signed, now in ((new, NOW + 59), (old, NOW + 60)):
        with pytest.raises(Untrusted, match="0 of 1 signers"):
            roster.check(signed, ADA, now)
    assert not roster.upcoming(NOW + 60)


@pytest.mark.parametrize(("keys", "missing"), [((), 2), ((A,), 1), ((D,), 2), ((A, D), 1), ((A, C), 0)])
def test_most_of_those_who_sign_must_say_so(keys: tuple[Identity, ...], missing: int) -> None:
    roster, said = Roster(THREE), change(THREE, [], *keys, to=(D,))
    assert roster.missing(said) == missing
    if missing:
        with pytest.raises(Untrusted, match=f"{missing} more of those who signed"):
            roster.add(said, NOW)
        assert roster.last == quorum(A, B, C)
    else:
        assert roster.add(said, NOW)
        assert not roster.add(said, NOW)
        [kept] = roster
        assert kept.digest == said.digest


def test_those_who_come_decide_on_the_next_and_those_who_went_do_not() -> None:
    roster = Roster(ONE)
    first = change(ONE, [], A, to=(B, C))
    roster.add(first, NOW)
    with pytest.raises(Untrusted, match="2 more"):
        roster.add(change(ONE, [first], A, to=(A,)), NOW)
    with pytest.raises(Untrusted, match="1 more"):
        roster.add(change(ONE, [first], B, to=(B,)), NOW)
    assert roster.add(change(ONE, [first], B, C, to=(B,)), NOW)


def test_a_second_history_is_not_believed_whoever_signed_it() -> None:
    """The key that signed the first was stolen, and signs another first."""
    roster = Roster(ONE)
    roster.add(change(ONE, [], A, to=(B,)), NOW)
    with pytest.raises(Untrusted, match="there are two meshes now"):
        roster.add(change(ONE, [], A, to=(C,)), NOW)
    assert roster.last == quorum(B)


@pytest.mark.parametrize(
    "said",
    [
        change(ONE, [change(ONE, [], A, to=(B,))], A, to=(C,)),  # the one before is not known here
        change(THREE, [], A, B, C, to=(D,)),  # of another mesh
        Signed.of(Change(ONE.digest, 1, bytes(32), quorum(B), NOW), [A]),
        Signed.of(Change(ONE.digest, 2, ONE.digest, quorum(B), NOW), [A]),
    ],
    ids=["unknown", "another mesh", "after nothing", "miscounted"],
)
def test_what_does_not_follow_is_refused(said: Signed) -> None:
    roster = Roster(ONE)
    with pytest.raises(Untrusted):
        roster.add(said, NOW)
    assert not roster.changes


def test_how_long_the_history_is_does_not_depend_on_who_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three signatures there was no room for what those with two had taken: the mesh was split."""
    rosters_heard = []
    for keys in ((A, B), (A, B, C), (B, C, D)):
        roster = Roster(THREE)
        roster.add(change(THREE, [], *keys, to=(A, B, C)), NOW)
        [kept] = roster.changes
        assert len(kept.signatures) == 2
        rosters_heard.append(len(kept.to_bytes()))
    assert len(set(rosters_heard)) == 1


def test_a_change_that_holds_sooner_takes_the_place_of_the_one_that_it_follows_on() -> None:
    """A key that was stolen could not be replaced while a change was pending."""
    mesh = genesis(A, B, C)
    roster = Roster(mesh)
    first = change(mesh, [], A, B, to=(B, C, D), at=NOW + 600)
    roster.add(first, NOW)
    sooner = change(mesh, [first], to=(A, B, D), at=NOW)
    for keys, missing in (((A,), 2), ((C, D), 1), ((A, B), 1), ((A, B, D), 0), ((B, C), 0)):
        assert roster.missing(sooner.signed(keys)) == missing
    roster.add(sooner.signed([A, B, D]), NOW)
    for now in (NOW, NOW + 600, NOW + 9_000):
        assert roster.quorum(now) == quorum(A, B, D)
        assert roster.from_now_on(now) == [(NOW, quorum(A, B, D))]
    assert not roster.upcoming(NOW)
    other = Roster(mesh)
    for signed in roster:
        other.add(Signed.parse(signed.to_bytes()), NOW + 700)
    assert other.last == roster.last


def test_those_who_will_sign_do_not_before_their_time() -> None:
    roster = Roster(ONE)
    first = change(ONE, [], A, to=(B,), at=NOW + 600)
    roster.add(first, NOW)
    for at in (0, NOW):
        with pytest.raises(Untrusted, match="1 more"):
            roster.add(change(ONE, [first], B, to=(B,), at=at), NOW)


def test_nobody_who_signed_meanwhile_is_passed_over_by_a_change_of_the_past() -> None:
    """It held from before his time on: a former signer and a coming one made it, and he signed no more."""
    roster = Roster(ONE)
    first = change(ONE, [], A, to=(B,), at=NOW)
    second = change(ONE, [first], B, to=(C,), at=NOW + DAY)
    for signed in (first, second):
        roster.add(signed, NOW + 60)
    for keys, missing in (((A, C), 1), ((B, C), 1), ((A, B), 1), ((A, B, C), 0)):
        past = change(ONE, [first, second], *keys, to=(C,), at=NOW - 5)
        assert roster.missing(past) == missing, keys
    assert not roster.missing(change(ONE, [first, second], B, C, to=(C,), at=NOW + 60))
    assert not roster.missing(change(ONE, [first, second], C, to=(A,), at=NOW + DAY))


def test_how_many_it_takes_does_not_change() -> None:
    """Who was to sign one more signer did not see that one alone would suffice from then on."""
    mesh = genesis(A, B, C, admit=2)
    with pytest.raises(Untrusted, match="does not change"):
        Roster(mesh).add(change(mesh, [], A, B, to=(A, B, C, D), admit=1), NOW)


def test_a_certificate_must_hold_through_all_changes_that_are_known(clock: Clock) -> None:
    ada = member(clock, mesh=ONE, by=(A, C))
    first = change(ONE, [], A, to=(B, C), at=NOW + 60)
    ada.learn([first.to_bytes(), change(ONE, [first], B, C, to=(C,), at=NOW + 600).to_bytes()])
    assert ada.renewal() == b""
    other = member(clock, CARL, mesh=ONE, by=(A,))
    second = change(ONE, [first], B, C, to=(A,), at=NOW + 600)
    other.learn([first.to_bytes(), second.to_bytes()])
    assert other.roster.upcoming(NOW) == [quorum(B, C), quorum(A)]
    assert other.renewal()  # it would not hold between the two


def test_so_many_sign_at_most_and_so_long_is_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(Identity.from_seed(bytes([n]) * 32) for n in range(50, 66))
    with pytest.raises(Untrusted, match="more than 16"):
        Roster(ONE).add(change(ONE, [], A, to=many), NOW)
    assert Roster(ONE).add(change(ONE, [], A, to=(A, *many[:15])), NOW)
    monkeypatch.setattr(rosters, "HISTORY_BYTES_MAX", 400)
    roster, first = Roster(ONE), change(ONE, [], A, to=(A,))
    roster.add(first, NOW)
    with pytest.raises(Untrusted, match="changed too often"):
        roster.add(change(ONE, [first], A, to=(A,)), NOW)


def test_whom_those_threw_out_who_sign_no_more_is_in_again_unless_the_others_say_so_too() -> None:
    roster = Roster(genesis(A, B))
    mesh = genesis(A, B)
    roster.add(revocation(mesh, A), NOW)
    roster.add(revocation(mesh, B, peer=BLAISE), NOW)
    roster.add(change(mesh, [], A, B, to=(B,), at=NOW + 60), NOW)
    assert roster.revoked_at(ADA, NOW) == NOW
    assert roster.revoked_at(ADA, NOW + 60) == -1
    assert roster.revoked_at(BLAISE, NOW + 60) == NOW
    [orphan] = roster.orphaned()
    assert roster.add(orphan.signed([B]), NOW)
    assert roster.revoked_at(ADA, NOW + 60) == NOW
    assert not roster.orphaned()


def test_no_more_is_said_again_than_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thief threw out a thousand that nobody knows, and his successor could throw out nobody any more."""
    monkeypatch.setattr(rosters, "REVOKED_MAX", 4)
    roster = Roster(genesis(A, B))
    mesh = genesis(A, B)
    for number, peer in enumerate([ADA, BLAISE, CARL, PeerId(D.id)]):
        roster.add(revocation(mesh, A, peer=peer, at=NOW - number), NOW)
    roster.add(change(mesh, [], A, B, to=(B,)), NOW)
    assert {one.statement.peer for one in roster.orphaned()} == {ADA, BLAISE}  # type: ignore[union-attr]


def test_who_signs_no_more_throws_out_nobody_and_nobody_says_it_for_him() -> None:
    """The stolen key that was replaced threw out whom it liked, and those who stayed said it again."""
    mesh = genesis(A, B, C)
    roster = Roster(mesh)
    roster.add(change(mesh, [], B, C, to=(B, C)), NOW)
    late = NOW + 30 * DAY
    assert not roster.add(revocation(mesh, A, at=late), late)  # and who passes it on is not hung up on
    assert roster.revoked_at(ADA, late) == -1
    with pytest.raises(Untrusted, match="no signer has said so"):
        roster.add(revocation(mesh, D, at=late), late)


def test_nobody_is_thrown_out_for_all_times() -> None:
    """No ticket could have made up for it."""
    roster = Roster(ONE)
    assert not roster.add(revocation(ONE, A, at=NOW + rosters.AHEAD_MAX_S + 1), NOW)
    assert roster.add(revocation(ONE, A, at=NOW + rosters.AHEAD_MAX_S), NOW)


# -- a member of it ---------------------------------------------------------------------------------


def signing(clock: Clock, key: Identity, mesh: Signed = ONE, peer: PeerId = BLAISE) -> Standing:
    return member(clock, peer, mesh=mesh, key=key, by=(A,))


def test_before_a_change_holds_certificates_are_renewed_that_would_not_hold_then(clock: Clock) -> None:
    ada, old, new = member(clock, mesh=ONE, zones=("hr",)), signing(clock, A), signing(clock, B, peer=CARL)
    said = change(ONE, [], A, to=(B,), at=NOW + 600).to_bytes()
    assert ada.renewal() == b""
    for standing in (ada, old, new):
        assert standing.learn([said]) == ([said], "")
    assert old.signs
    assert new.signs
    asked = ada.renewal()
    ada.take(old.judge(ADA, asked))
    assert ada.renewal()  # the one that signs from then on must, too
    ada.take(new.judge(ADA, asked))
    assert ada.renewal() == b""
    clock.now += 600
    assert ada.member().zones == {GENERAL, "hr"}
    assert new.admit(ADA, ada.show()) == b""
    assert not old.signs
    assert old.renewal() == b""  # it was away from the others
    with pytest.raises(Untrusted, match="0 of 1 signers"):
        new.admit(BLAISE, old.show())


def test_one_that_only_comes_to_sign_costs_nobody_a_renewal(clock: Clock) -> None:
    ada = member(clock, mesh=ONE)
    ada.learn([change(ONE, [], A, to=(A, B), at=NOW + 600).to_bytes()])
    assert ada.renewal() == b""
    clock.now += 600
    assert ada.member()


def test_a_stolen_key_is_replaced_and_the_peer_with_the_new_one_lets_itself_in(clock: Clock) -> None:
    """It stayed outside until its old certificate was half its life old."""
    new = signing(clock, B, peer=CARL)
    new.learn([change(ONE, [], A, to=(B,)).to_bytes()])
    with pytest.raises(Untrusted, match="0 of 1"):
        new.member()
    assert new.renewal() == new.show()
    assert new.member().peer == CARL
    ticket = new.invite(b"s" * 16, (), (), 60.0, 1)
    ada = welcomed(new.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    assert ada.admit(CARL, new.show()) == b""


def test_a_policy_waits_while_the_signers_change(clock: Clock) -> None:
    """Its certificate would not have held then, and the draft that would was not signed."""
    ada, old, new = member(clock, mesh=ONE), signing(clock, A), signing(clock, B, peer=CARL)
    for standing in (ada, old, new):
        standing.learn([change(ONE, [], A, to=(B,), at=NOW + 600).to_bytes()])
    old.policy.zones = {"hr": {ADA}}
    asked = ada.renewal()
    ada.take(old.judge(ADA, asked))
    ada.take(new.judge(ADA, asked))
    clock.now += 600
    assert ada.member().zones == {GENERAL}


def test_who_will_sign_lets_nobody_in_before(clock: Clock) -> None:
    """He gave tickets whose holders refused what they got, and said that there was no room."""
    new = signing(clock, B, peer=CARL)
    new.learn([change(ONE, [], A, to=(A, B), at=NOW + 600).to_bytes()])
    assert new.signs
    for ask in (lambda: new.invite(b"s" * 16, (), (), 60.0, 1), lambda: new.revoke(ADA)):
        with pytest.raises(Untrusted, match="signs for nobody"):
            ask()
    clock.now += 600
    new.revoke(ADA)


def test_a_founder_that_equivocates_lets_itself_in_again(clock: Clock) -> None:
    """Nobody else could, and its mesh would have ended with it."""
    blaise = signing(clock, A)
    blaise.ban(BLAISE, (blaise.certificate(),))
    with pytest.raises(Untrusted, match="two records"):
        blaise.member()
    clock.now += 1
    assert blaise.renewal() == blaise.show()
    assert blaise.member()
    assert blaise.renewal() == b""


def test_evidence_counts_whoever_signed_when_it_was_made(clock: Clock) -> None:
    """Who told of it across a change was hung up on."""
    ada = member(clock, mesh=ONE)
    old = certificate(ONE, A, peer=CARL).to_bytes()
    ada.learn([change(ONE, [], A, to=(B,)).to_bytes()])
    assert ada.ban(CARL, (old,))


def test_whoever_was_away_learns_at_the_door_who_signs_now(clock: Clock) -> None:
    ada, blaise = member(clock, mesh=ONE), member(clock, BLAISE, mesh=ONE, by=(A, B))
    said = change(ONE, [], A, to=(A, B)).to_bytes()
    blaise.learn([said])
    carl = member(clock, CARL, mesh=ONE, by=(B,))
    carl.learn([said])
    with pytest.raises(Untrusted, match="0 of 1"):
        ada.admit(CARL, member(clock, CARL, mesh=ONE, by=(B,)).show())
    assert ada.admit(CARL, carl.show()) == b""
    assert ada.heard() == [said]
    assert ada.heard() == []
    assert len(ada.roster.changes) == 1


def test_another_history_is_refused_at_the_door(clock: Clock) -> None:
    ada, thief = member(clock, mesh=ONE), member(clock, CARL, mesh=ONE)
    ada.learn([change(ONE, [], A, to=(A, B)).to_bytes()])
    first = change(ONE, [], A, to=(A,))
    thief.learn([first.to_bytes(), change(ONE, [first], A, to=(A,), at=NOW + 1).to_bytes()])
    with pytest.raises(Untrusted, match="two meshes"):
        ada.admit(CARL, thief.show())


def test_who_joins_is_told_how_the_signers_changed(clock: Clock) -> None:
    first = signing(clock, A)
    said = change(ONE, [], A, to=(B,))
    first.learn([said.to_bytes()])
    second = member(clock, CARL, mesh=ONE, key=B, by=(B,))
    second.learn([said.to_bytes()])
    ticket = second.invite(b"s" * 16, (), (), 60.0, 1)
    ada = welcomed(second.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    assert ada.roster.last == quorum(B)
    assert second.admit(ADA, ada.show()) == b""
    with pytest.raises(Untrusted, match="signs for nobody"):
        first.invite(b"s" * 16, (), (), 60.0, 1)


def test_who_makes_a_change_hold_says_again_whom_the_others_threw_out_and_keeps_that(today: Clock) -> None:
    mesh = genesis(A, B)
    standing = member(today, CARL, mesh=mesh, key=B, by=(A, B))
    standing.learn([revocation(mesh, A).to_bytes()])
    signers, told = room(standing)
    one, _ = room(member(today, BLAISE, mesh=mesh, key=A, by=(A, B)))
    kept: list[int] = []
    standing.on_change = lambda: kept.append(len(standing.statements()))
    signers.sign(one.change(remove=[A.id]).text)
    assert kept[-1] == 3  # the change, and both their words
    assert [type(Signed.parse(data).statement).__name__ for data in told] == ["Change", "Revocation"]
    other = member(today, ADA, mesh=mesh, by=(A, B))
    assert other.learn(told)[1] == ""
    assert other.roster.revoked_at(ADA, NOW + DAY) == NOW
    standing.learn([revocation(mesh, A, peer=BLAISE).to_bytes()])  # by one who signs until the change holds
    assert standing.heard() == []  # later it would be the word of one who may say anything


def test_what_was_judged_once_is_not_lost_when_a_clock_goes_back(today: Clock) -> None:
    standing = signing(today, A)
    standing.revoke(ADA)
    today.now -= 9 * DAY
    again = Standing(BLAISE, ONE, standing.own, today, list(standing.roster))
    assert again.statements() == standing.statements() != []


def test_an_addition_does_not_bring_a_removal_forward_untold(today: Clock) -> None:
    one, _ = room(signing(today, A, THREE))
    two, _ = room(signing(today, B, THREE, CARL))
    held = two.sign(one.change(remove=[C.id]).text)
    one._standing.learn([peer_signers.parse(held.text).to_bytes()])
    later = peer_signers.parse(one.change(add=[word(D)]).text).statement
    assert isinstance(later, Change)
    assert later.at == NOW + DAY
    today.now += 1
    sooner = one.change(add=[word(D)], after_s=0.0, anew=True)
    with pytest.raises(Untrusted, match="it holds in 0 s"):
        two.sign(sooner.text)
    before = {signer for row in two.rows() for signer in row["signers"]}
    assert f"  - {C.id}" in peer_signers.describe(peer_signers.parse(sooner.text), before)


def test_what_is_shown_fits_a_greeting_however_often_they_changed(clock: Clock) -> None:
    ada = member(clock, mesh=ONE, zones=tuple(f"zone-{i}" for i in range(15)))
    before: list[Signed] = []
    while True:
        said = change(ONE, before, A, to=tuple(sorted(KEYS, key=lambda key: key.id)), at=NOW)
        if before:
            said = change(ONE, before, *KEYS, to=tuple(KEYS), at=NOW)
        if ada.learn([said.to_bytes()])[1]:
            break
        before.append(said)
    assert len(before) > 5
    draft = certificate(ONE, *KEYS, zones=tuple("é" * 32 for _ in range(15)))
    assert len(ada._papers(draft.to_bytes())) <= SHOWN_BYTES_MAX


# -- what people ask for ----------------------------------------------------------------------------


def room(standing: Standing) -> tuple[Signers, list[bytes]]:
    told: list[bytes] = []
    return Signers(standing, told.append), told


@pytest.fixture
def today(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(peer_signers.time, "time", clock)
    return clock


def test_where_one_signs_his_word_is_enough_and_all_hear_of_it(today: Clock) -> None:
    signers, told = room(signing(today, A))
    proposal = signers.change(add=[word(B)], after_s=60.0)
    assert proposal.missing == 0
    assert [Signed.parse(data).statement for data in told] == [peer_signers.parse(proposal.text).statement]
    both = {"signers": sorted([A.id, B.id]), "admit": 1, "zoned": 1}
    assert signers.rows() == [
        {"since": 0, "signers": [A.id], "admit": 1, "zoned": 1},
        {"since": NOW + 60, **both},
    ]
    today.now += 60
    assert signers.rows() == [{"since": NOW + 60, **both}]


def test_where_three_sign_a_second_one_must_say_so_too(today: Clock) -> None:
    one, told = room(signing(today, A, THREE))
    two, told_too = room(signing(today, B, THREE, CARL))
    proposal = one.change(remove=[C.id])
    assert proposal.missing == 1
    assert one.sign(proposal.text) == proposal
    assert not told
    assert two.sign(f" {proposal.text}\n").missing == 0
    assert len(told_too) == 1
    before = [A.id, B.id, C.id]
    lines = peer_signers.describe(peer_signers.parse(proposal.text), before)[1:]
    assert sorted(lines) == sorted([f"    {A.id}", f"    {B.id}", f"  - {C.id}"])
    anew = peer_signers.parse(room(signing(today, A))[0].change(add=[word(D)]).text)
    assert f"  + {D.id}" in peer_signers.describe(anew, [A.id])


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"remove": [D.id]}, "none of the signers"),
        ({"remove": [A.id]}, "it takes 1 signers"),
        ({"add": ["nobody"]}, "'nobody' is no word of a signer's key"),
        ({"add": [B.id]}, "no word of a signer's key"),  # which may be a peer's, or anybody's
        ({"add": [word(B)[:-4] + "AAAA"]}, "no word of a signer's key"),
        ({}, "nothing would change"),
        ({"add": [word(A)]}, "nothing would change"),
        ({"add": [word(B)], "after_s": -1.0}, "holds within 7 days"),
        ({"add": [word(B)], "after_s": float("nan")}, "holds within 7 days"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    today: Clock, asked: dict[str, object], why: str
) -> None:
    standing = signing(today, A)
    signers, told = room(standing)
    with pytest.raises(Untrusted, match=why):
        signers.change(**asked)  # type: ignore[arg-type]
    assert not standing.roster.changes
    assert not told


def test_who_is_about_to_go_signs_what_takes_the_place_of_his_going(today: Clock) -> None:
    """He was asked, and his own machine would not: it said that it signs for nobody."""
    one, _ = room(signing(today, A))
    coming = signing(today, B, peer=CARL)
    two, _ = room(coming)
    going = one.change(add=[word(B)], remove=[A.id])
    coming.learn([peer_signers.parse(going.text).to_bytes()])
    sooner = two.change(add=[word(C)], after_s=600.0)
    assert sooner.missing == 1
    assert one.sign(sooner.text).missing == 0
    with pytest.raises(Untrusted, match="signs for nobody"):
        room(signing(today, D))[0].sign(two.change(add=[word(A)], anew=True).text)


def test_nobody_signs_unawares_what_holds_at_once_and_cuts_off_others(today: Clock) -> None:
    """It was proposed ten minutes ago, and everybody whom only the one had let in was out."""
    one, _ = room(signing(today, A, THREE))
    two, told = room(signing(today, B, THREE, CARL))
    proposal = one.change(remove=[C.id], after_s=600.0)
    today.now += 590
    with pytest.raises(Untrusted, match="it holds in 10 s"):
        two.sign(proposal.text)
    assert two.sign(proposal.text, at_once=True).missing == 0
    assert told


def test_where_somebody_goes_there_is_a_day_to_renew_certificates(today: Clock) -> None:
    one, _ = room(signing(today, A, THREE))
    said = peer_signers.parse(one.change(remove=[C.id]).text).statement
    assert isinstance(said, Change)
    assert said.at == NOW + DAY


def test_a_word_that_was_damaged_or_holds_already_is_told_of(today: Clock) -> None:
    one, _ = room(signing(today, A, THREE))
    two, _ = room(signing(today, B, THREE, CARL))
    text = one.change(add=[word(D)]).text
    for broken in (text + "A", text[:-4] + ("AAAA" if text[-4:] != "AAAA" else "BBBB")):
        with pytest.raises(Untrusted, match=r"not all of it|does not hold"):
            two.sign(broken)
    whole = two.sign(text)
    with pytest.raises(Untrusted, match="holds already"):
        two.sign(whole.text)


def test_nobody_signs_two_that_follow_on_the_same_one_unawares(today: Clock) -> None:
    """Two of three, each with one of the others: there were two meshes."""
    standing = signing(today, A, THREE)
    signers, _ = room(standing)
    first = signers.change(add=[word(D)])
    assert signers.sign(first.text) == first
    with pytest.raises(Untrusted, match="two would make two meshes"):
        signers.change(remove=[C.id])
    again, _ = room(Standing(BLAISE, THREE, standing.own, today, key=A, approved=standing.approved))
    with pytest.raises(Untrusted, match="two would make two meshes"):
        again.change(remove=[C.id])
    assert again.change(remove=[C.id], anew=True).missing == 1


def test_what_was_signed_is_written_down_before_it_is_given(today: Clock) -> None:
    standing = signing(today, A)

    def full() -> None:
        raise ConfigError("no space left")

    standing.on_change = full
    signers, told = room(standing)
    with pytest.raises(ConfigError, match="no space"):
        signers.change(add=[word(B)])
    assert standing.approved == (0, b"")
    assert not told


def test_nobody_signs_a_change_without_a_signer_s_key(today: Clock) -> None:
    signers, _ = room(member(today, mesh=ONE))
    with pytest.raises(Untrusted, match="signs for nobody"):
        signers.change(add=[word(B)])
    signers, _ = room(signing(today, B))
    with pytest.raises(Untrusted, match="signs for nobody"):
        signers.sign(room(signing(today, A))[0].change(add=[word(C)]).text)


@pytest.mark.parametrize(
    "text", ["", "p2pmesh-change-", "p2pmesh-change-!!", "ticket", "p2pmesh-change-AAAA"]
)
def test_what_is_no_change_is_not_signed(text: str) -> None:
    with pytest.raises(Untrusted, match="not a change of signers, or not all of it"):
        peer_signers.parse(text)


def test_another_statement_is_no_change() -> None:
    said = base64.urlsafe_b64encode(revocation(ONE, A).to_bytes()).decode().rstrip("=")
    with pytest.raises(Untrusted, match="no change"):
        peer_signers.parse("p2pmesh-change-" + said)
