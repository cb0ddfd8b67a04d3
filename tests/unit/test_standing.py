"""What a peer shows lets it in, nothing else does, and signers renew no more than there was."""

from __future__ import annotations

import msgspec
import pytest

from p2pmesh.errors import ConfigError, Untrusted
from p2pmesh.net.identity import Identity
from p2pmesh.net.link import SHOWN_BYTES_MAX
from p2pmesh.record import GENERAL, PeerId
from p2pmesh.trust import seen
from p2pmesh.trust.papers import shown_for
from p2pmesh.trust.roster import SKEW_S
from p2pmesh.trust.standing import LIFE_S, ZONED_LIFE_S, Standing
from p2pmesh.trust.statements import Certificate, Signed
from p2pmesh.trust.tickets import Ticket
from p2pmesh.trust.welcome import welcomed
from tests.unit.keyring import (
    ADA,
    BLAISE,
    CARL,
    DAY,
    KEYS,
    NOW,
    certificate,
    genesis,
    revocation,
)

SECRET = b"s" * 16
MESH = genesis(KEYS[0])
THREE = genesis(*KEYS[:3], admit=2)


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def member(
    clock: Clock,
    peer: PeerId = ADA,
    mesh: Signed = MESH,
    key: Identity | None = None,
    zones: tuple[str, ...] = (),
    by: tuple[Identity, ...] = (KEYS[0],),
    life: int = DAY,
) -> Standing:
    papers = certificate(mesh, *by, peer=peer, zones=zones, begins=int(clock.now), life=life)
    return Standing(peer, mesh, papers, clock, key=key)


def signer(clock: Clock, peer: PeerId = BLAISE) -> Standing:
    return member(clock, peer, key=KEYS[0])


def test_members_let_one_another_in_and_nobody_else(clock: Clock) -> None:
    ada, blaise = member(clock), member(clock, BLAISE)
    assert blaise.admit(ADA, ada.show()) == b""
    assert ada.admit(BLAISE, blaise.show()) == b""
    assert blaise.outsiders([ADA, CARL]) == [CARL]
    stranger = member(clock, CARL, by=(KEYS[1],))
    for peer, shown, why in (
        (CARL, ada.show(), "another peer's"),
        (CARL, stranger.show(), "0 of 1 signers"),
        (CARL, b"", "it takes a ticket to join"),
        (CARL, b"\xff" * 9, "no certificate"),
        (CARL, msgspec.msgpack.encode([0, b"", b""]), "not a statement"),
        (CARL, msgspec.msgpack.encode([0, MESH.to_bytes(), b""]), "another mesh"),
    ):
        with pytest.raises(Untrusted, match=why):
            blaise.admit(peer, shown)
    assert blaise.member().zones == {GENERAL}


def test_whoever_was_let_in_is_out_once_his_time_is_over_or_a_signer_says_so(clock: Clock) -> None:
    blaise = member(clock, BLAISE)
    for peer in (ADA, CARL):
        blaise.admit(peer, member(clock, peer).show())
    changes: list[str] = []
    blaise.on_change = lambda: changes.append("kept")
    out = revocation(MESH, KEYS[0], peer=ADA).to_bytes()
    assert blaise.learn([out, out]) == ([out], "")
    assert blaise.learn([out]) == ([], "")
    assert changes == ["kept"]
    assert blaise.outsiders([ADA, CARL]) == [ADA]
    assert blaise.statements() == [out]
    with pytest.raises(Untrusted, match="thrown out"):
        blaise.admit(ADA, member(clock).show())
    clock.now += DAY
    assert blaise.outsiders([ADA, CARL]) == [ADA, CARL]


def test_what_is_shown_fits_a_greeting(clock: Clock) -> None:
    keys = [Identity.from_seed(bytes([200 + n]) * 32) for n in range(16)]
    mesh = genesis(*keys)
    papers = certificate(mesh, *keys, zones=tuple("\U0001f512" * 15 + chr(97 + n) for n in range(15)))
    ada = Standing(ADA, mesh, papers, clock)
    assert len(ada._papers(papers.to_bytes())) <= SHOWN_BYTES_MAX
    assert Standing(BLAISE, mesh, papers, clock).admit(ADA, ada.show()) == b""


# -- tickets ----------------------------------------------------------------------------------------


def test_a_ticket_lets_in_and_is_good_once(clock: Clock) -> None:
    blaise = signer(clock)
    kept: list[tuple[PeerId, ...]] = []
    blaise.on_change = lambda: kept.append(blaise.invites[0].used)
    ticket = blaise.invite(SECRET, ("/ip4/192.0.2.1/tcp/1",), ("hr",), 60.0, 1)
    assert ticket == Ticket(MESH.digest, BLAISE, ("/ip4/192.0.2.1/tcp/1",), SECRET)
    given = blaise.admit(ADA, shown_for(ticket))
    assert kept == [(), (ADA,)]
    ada = welcomed(given, ticket, ADA, clock)
    assert ada.member().zones == {GENERAL, "hr"}
    assert ada.member().until == NOW + ZONED_LIFE_S
    assert blaise.admit(ADA, ada.show()) == b""
    with pytest.raises(Untrusted, match="used up"):
        blaise.admit(CARL, shown_for(ticket))
    with pytest.raises(Untrusted, match="no such ticket"):
        signer(clock).admit(CARL, shown_for(ticket))


@pytest.mark.parametrize("zone", ["", "h r", "hr\n", "\x1b[0m", "x" * 65, "ü" * 33, "\ud800"])
def test_a_zone_has_a_name_that_can_be_read_and_typed(clock: Clock, zone: str) -> None:
    blaise = signer(clock)
    with pytest.raises(Untrusted, match="a zone has a name of 1 to 64 bytes"):
        blaise.invite(SECRET, (), ("hr", zone), 60.0, 1)
    assert blaise.invites == ()


def test_a_ticket_that_was_taken_back_is_void_and_stays_so(clock: Clock) -> None:
    blaise = signer(clock)
    kept: list[int] = []
    blaise.on_change = lambda: kept.append(len(blaise.invites))
    ticket = blaise.invite(SECRET, (), (), 60.0, 2)
    given = blaise.admit(ADA, shown_for(ticket))
    assert blaise.withdraw(ticket) == (ADA,)
    assert kept == [1, 1, 0]
    with pytest.raises(Untrusted, match="taken back"):
        blaise.admit(CARL, shown_for(ticket))
    assert blaise.admit(ADA, welcomed(given, ticket, ADA, clock).show()) == b""  # whom it has let in stays


def test_a_ticket_that_could_not_be_kept_is_not_given(clock: Clock) -> None:
    blaise = signer(clock)
    ticket = blaise.invite(SECRET, (), (), 60.0, 1)

    def full() -> None:
        raise ConfigError("the disk is full")

    blaise.on_change = full
    with pytest.raises(ConfigError, match="full"):
        blaise.admit(ADA, shown_for(ticket))
    assert blaise.invites[0].used == ()
    with pytest.raises(ConfigError, match="full"):
        blaise.invite(b"t" * 16, (), (), 60.0, 1)
    assert len(blaise.invites) == 1


def test_what_signers_say_holds_although_it_cannot_be_kept(clock: Clock) -> None:
    blaise = member(clock, BLAISE)

    def full() -> None:
        raise ConfigError("the disk is full")

    blaise.on_change = full
    assert blaise.learn([revocation(MESH, KEYS[0]).to_bytes()])[0]
    assert blaise.unkept == "the disk is full"
    assert blaise.roster.revoked_at(ADA, NOW) == NOW
    blaise.on_change = lambda: None
    assert blaise.renewal() == b""  # which is asked every few seconds
    assert blaise.unkept == ""


def test_what_is_given_for_a_ticket_must_be_of_its_mesh_and_for_its_holder(clock: Clock) -> None:
    blaise = signer(clock)
    ticket = blaise.invite(SECRET, (), (), 60.0, 9)
    given = blaise.admit(ADA, shown_for(ticket))
    assert welcomed(given, ticket, ADA, clock).member().until == NOW + LIFE_S
    other = Ticket(bytes(32), BLAISE, (), SECRET)
    for data, for_, peer, why in (
        (given, other, ADA, "another mesh"),
        (given, ticket, CARL, "another peer's"),
        (given[:-1], ticket, ADA, "no certificate"),
        (b"", ticket, ADA, "no certificate"),
    ):
        with pytest.raises(Untrusted, match=why):
            welcomed(data, for_, peer, clock)


def test_only_who_has_a_key_that_suffices_lets_in(clock: Clock) -> None:
    with pytest.raises(Untrusted, match="no signer's key"):
        member(clock).invite(SECRET, (), (), 60.0, 1)
    with pytest.raises(Untrusted, match="signs for nobody"):
        member(clock, key=KEYS[1]).invite(SECRET, (), (), 60.0, 1)
    two = member(clock, mesh=THREE, by=tuple(KEYS[:2]), key=KEYS[0])
    with pytest.raises(Untrusted, match="takes 2 signers"):
        two.invite(SECRET, (), (), 60.0, 1)
    half = member(clock, mesh=genesis(*KEYS[:2], zoned=2), key=KEYS[0])
    half.invite(SECRET, (), (), 60.0, 1)
    with pytest.raises(Untrusted, match="takes 2 signers"):
        half.invite(SECRET, (), ("hr",), 60.0, 1)


# -- throwing out -----------------------------------------------------------------------------------


def test_who_was_thrown_out_is_in_again_by_a_new_ticket_and_not_by_an_old_certificate(clock: Clock) -> None:
    blaise = signer(clock)
    ticket = blaise.invite(SECRET, (), (), 60.0, 9)
    unused = blaise.invite(b"u" * 16, (), (), 60.0, 9)
    ada = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    out = blaise.revoke(ADA)
    with pytest.raises(Untrusted, match="thrown out"):
        blaise.admit(ADA, ada.show())
    assert ada.learn([out]) == ([out], "")
    with pytest.raises(Untrusted, match="thrown out"):
        ada.member()
    # Neither one it has used before, nor one that others may use still.
    with pytest.raises(Untrusted, match="no such ticket"):
        blaise.admit(ADA, shown_for(ticket))
    with pytest.raises(Untrusted, match="given out since then"):
        blaise.admit(ADA, shown_for(unused))
    assert blaise.admit(CARL, shown_for(unused))
    clock.now += 1
    ticket = blaise.invite(b"t" * 16, (), (), 60.0, 1)
    again = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    assert blaise.admit(ADA, again.show()) == b""


def test_a_certificate_of_a_clock_that_is_ahead_is_thrown_out_too(clock: Clock) -> None:
    ahead = Clock()
    ahead.now = clock.now + DAY / 2 + SKEW_S / 2
    ada, blaise = member(clock), signer(clock)
    clock.now += DAY / 2
    ada._clock = ahead
    ada.take(blaise.judge(ADA, ada.renewal()))
    blaise.revoke(ADA)
    with pytest.raises(Untrusted, match="thrown out"):
        blaise.admit(ADA, ada.show())


def test_who_was_let_in_anew_just_now_can_be_thrown_out_again(clock: Clock) -> None:
    """A second later than he was thrown out: that is later than a revocation of now lies ahead."""
    blaise = signer(clock)
    ada = member(clock)
    blaise.admit(ADA, ada.show())
    for _ in range(3):
        blaise.revoke(ADA)
        clock.now += 1
        ticket = blaise.invite(SECRET, (), (), 60.0, 1)
        ada = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
        blaise.admit(ADA, ada.show())
    blaise.revoke(ADA)
    assert blaise.outsiders([ADA]) == [ADA]


def test_a_ticket_given_out_in_the_second_of_a_revocation_lets_in_and_an_older_one_does_not(
    clock: Clock,
) -> None:
    clock.now += 0.3
    blaise = signer(clock)
    older = blaise.invite(b"o" * 16, (), (), 60.0, 1)
    clock.now += 0.1
    blaise.revoke(ADA)
    ticket = blaise.invite(SECRET, (), (), 60.0, 1)
    with pytest.raises(Untrusted, match="given out since then"):
        blaise.admit(ADA, shown_for(older))
    blaise.revoke(CARL)
    with pytest.raises(Untrusted, match="given out since then"):
        blaise.admit(CARL, shown_for(ticket))  # it is dated ahead, and older all the same
    ada = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    assert blaise.admit(ADA, ada.show()) == b""


def test_who_is_known_by_his_record_alone_is_thrown_out_as_surely(clock: Clock) -> None:
    blaise = signer(clock)
    ahead = certificate(MESH, KEYS[0], since=NOW + 2 * SKEW_S)
    assert blaise.vouches(ADA, ahead.to_bytes(), (GENERAL,))
    blaise.revoke(ADA)
    assert not blaise.vouches(ADA, ahead.to_bytes(), (GENERAL,))


def test_who_equivocates_just_let_in_anew_is_out_where_the_clock_is_slow_too(clock: Clock) -> None:
    blaise, slow = signer(clock), Clock()
    blaise.revoke(ADA)
    clock.now += 1
    ticket = blaise.invite(SECRET, (), (), 60.0, 1)
    ada = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    slow.now = clock.now - SKEW_S + 1
    carl = member(slow, CARL)
    carl.learn(blaise.statements())
    carl.admit(ADA, ada.show())
    assert carl.ban(ADA, (ada.certificate(),))
    assert carl.outsiders([ADA]) == [ADA]


def test_a_policy_that_leaves_no_room_takes_what_it_does_not_name(clock: Clock) -> None:
    """Sixteen zones fit into no certificate: the peer kept what was taken from it, and was not renewed."""
    blaise = signer(clock)
    ada = member(clock, zones=(*(f"z{i:02}" for i in range(14)), "hr"))
    blaise.policy.zones = {"hr": frozenset(), "law": frozenset({ADA}), "tax": frozenset({ADA})}
    blaise.admit(ADA, ada.show())
    clock.now += 1
    ada.take(blaise.granted(ADA))
    assert set(ada.zones()) == {GENERAL, "law", *(f"z{i:02}" for i in range(14))}


def test_two_policies_that_want_more_than_there_is_room_for_come_to_rest(clock: Clock) -> None:
    """Each put back what the other had taken out, and every look was a new certificate."""
    mesh = genesis(*KEYS[:2])
    ada = member(clock, mesh=mesh)
    both = [member(clock, peer, mesh, key) for peer, key in zip((BLAISE, CARL), KEYS[:2], strict=True)]
    for number, one in enumerate(both):
        one.policy.zones = {f"z{number}{i}": frozenset({ADA}) for i in range(8)}
    taken = 0
    for _ in range(6):
        for one in both:
            clock.now += 1
            one.admit(ADA, ada.show())
            if granted := one.granted(ADA):
                ada.take(granted)
                taken += 1
    assert taken == 2
    assert len(ada.zones()) == 16


def test_a_founder_whose_clock_was_ahead_lets_itself_in_again_once_it_is_right(clock: Clock) -> None:
    papers = certificate(MESH, KEYS[0], peer=BLAISE, since=NOW + 7_200, begins=NOW + 7_200, life=LIFE_S)
    changes: list[int] = []
    blaise = Standing(BLAISE, MESH, papers, clock, key=KEYS[0])
    blaise.on_change = lambda: changes.append(1)
    assert blaise.renewal()
    assert blaise.member()
    for _ in range(5):
        assert not blaise.renewal()
    assert len(changes) == 1
    healed = certificate(MESH, KEYS[0], peer=BLAISE, since=NOW + 7_200, begins=NOW)  # by earlier code
    again = Standing(BLAISE, MESH, healed, clock, key=KEYS[0])
    assert again.renewal()
    assert again.member()


def test_who_cannot_let_itself_in_again_keeps_what_it_has(clock: Clock) -> None:
    """It took a certificate that nobody believed, and wrote it down, at every look."""
    blaise = signer(clock)
    clock.now += 2 * DAY
    blaise.roster.ban_since(BLAISE, int(clock.now) + 60)
    blaise.on_change = lambda: pytest.fail("there is nothing new to keep")
    assert blaise.renewal() == b""


def test_a_ticket_of_a_clock_that_was_ahead_is_good_when_it_is_right(clock: Clock) -> None:
    blaise = signer(clock)
    clock.now += 7_200
    ticket = blaise.invite(SECRET, (), (), 7 * DAY, 2)
    clock.now -= 7_200
    ada = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    assert ada.member()
    blaise.revoke(CARL)  # not as far ahead as that ticket, or no new one would bring him back
    with pytest.raises(Untrusted, match="given out since then"):
        blaise.admit(CARL, shown_for(ticket))
    clock.now += 1
    newer = blaise.invite(b"n" * 16, (), (), 60.0, 1)
    assert welcomed(blaise.admit(CARL, shown_for(newer)), newer, CARL, clock).member()


def test_who_equivocates_is_out_everywhere_until_a_newer_ticket(clock: Clock) -> None:
    clock.now += 0.7  # since when he is in is told in whole seconds, and his ticket was good for him still
    blaise = signer(clock)
    ticket = blaise.invite(SECRET, (), (), 60.0, 9)
    ada = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    changes: list[int] = []
    blaise.on_change = lambda: changes.append(1)
    blaise.admit(ADA, ada.show())
    assert blaise.ban(ADA, (ada.certificate(), ada.certificate()))
    assert changes
    assert not blaise.ban(ADA, (ada.certificate(),))
    assert blaise.outsiders([ADA]) == [ADA]
    assert not blaise.vouches(ADA, ada.certificate(), ())
    with pytest.raises(Untrusted, match="two records of one version"):
        blaise.admit(ADA, ada.show())
    with pytest.raises(Untrusted, match="no such ticket"):  # he would come again under a new key
        blaise.admit(CARL, shown_for(ticket))
    clock.now += 1
    ticket = blaise.invite(b"t" * 16, (), (), 60.0, 1)
    again = welcomed(blaise.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    assert blaise.admit(ADA, again.show()) == b""


def test_a_ticket_as_old_as_the_ban_is_refused_and_not_used_up(clock: Clock) -> None:
    blaise = signer(clock)
    spare = blaise.invite(b"u" * 16, (), (), 60.0, 1)
    blaise.ban(ADA, (member(clock).certificate(),))
    with pytest.raises(Untrusted, match="newer ticket"):
        blaise.admit(ADA, shown_for(spare))
    assert blaise.admit(CARL, shown_for(spare))


def test_one_that_is_outside_lets_nobody_in(clock: Clock) -> None:
    """It gave tickets to where nobody else was."""
    blaise = signer(clock)
    blaise.learn([revocation(MESH, KEYS[0], peer=BLAISE).to_bytes()])
    with pytest.raises(Untrusted, match="thrown out"):
        blaise.invite(SECRET, (), (), 60.0, 1)


def test_what_bans_nobody_changes_nothing(clock: Clock) -> None:
    blaise = signer(clock)
    stranger = member(clock, by=(KEYS[1],))
    for junk in (b"", b"junk", stranger.certificate()):
        with pytest.raises(Untrusted):
            blaise.ban(ADA, (junk,))
    assert not blaise.roster.banned


def test_nobody_throws_out_himself_or_without_a_key(clock: Clock) -> None:
    with pytest.raises(Untrusted, match="this peer itself"):
        signer(clock).revoke(BLAISE)
    with pytest.raises(Untrusted, match="no signer's key"):
        member(clock).revoke(BLAISE)


# -- renewal ----------------------------------------------------------------------------------------


def test_past_half_its_life_a_certificate_is_renewed_with_what_it_grants(clock: Clock) -> None:
    ada, blaise = member(clock, zones=("hr",)), signer(clock)
    clock.now += DAY / 2 - 1
    assert ada.renewal() == b""
    clock.now += 1
    asked = ada.renewal()
    granted = blaise.judge(ADA, asked)
    changes: list[str] = []
    ada.on_change = lambda: changes.append("kept")
    ada.on_renewal = lambda: changes.append("told")
    ada.take(granted)
    assert changes == ["kept", "told"]
    assert ada.member().until == int(clock.now) + DAY
    assert ada.member().zones == {GENERAL, "hr"}
    assert ada.renewal() == b""
    ada.take(granted)
    assert changes == ["kept", "told"]
    blaise.admit(ADA, ada.show())
    clock.now += DAY - 1
    assert blaise.outsiders([ADA]) == []


def test_a_signer_renews_its_own(clock: Clock) -> None:
    blaise = signer(clock)
    clock.now += DAY / 2
    shown = blaise.renewal()
    assert blaise.member().until == int(clock.now) + DAY
    assert member(clock).admit(BLAISE, shown) == b""
    assert blaise.renewal() == b""


def test_where_it_takes_two_their_signatures_are_put_together(clock: Clock) -> None:
    both = tuple(KEYS[:2])
    ada = member(clock, mesh=THREE, by=both)
    one, other = (member(clock, BLAISE, mesh=THREE, by=both, key=key) for key in both)
    clock.now += DAY / 2
    asked = ada.renewal()
    clock.now += 30
    assert ada.renewal() == asked
    ada.take(one.judge(ADA, asked))
    ada.take(one.judge(ADA, asked))
    assert ada.member().until == NOW + DAY
    ada.take(other.judge(ADA, asked))
    assert ada.member().until == NOW + DAY // 2 + DAY
    clock.now += DAY / 2
    old = ada.renewal()
    clock.now += 61
    assert ada.renewal() != old
    ada.take(other.judge(ADA, old))  # of a draft that is given up
    ada.take(one.judge(ADA, old))
    assert ada.member().until == NOW + DAY // 2 + DAY


def test_zones_are_granted_and_taken_as_a_signer_s_policy_says(clock: Clock) -> None:
    ada, carl, blaise = member(clock, zones=("lab",)), member(clock, CARL, zones=("hr", "law")), signer(clock)
    for standing in (ada, carl):
        blaise.admit(standing.me, standing.show())
    assert blaise.granted(ADA) == b""
    blaise.policy.zones = {"hr": {ADA, BLAISE}}
    clock.now += 1
    kept: list[str] = []
    ada.on_renewal = lambda: kept.append("told")
    for standing in (ada, carl):
        standing.take(blaise.granted(standing.me))
        blaise.judge(standing.me, standing.show())
        assert blaise.granted(standing.me) == b""
    assert ada.member().zones == {GENERAL, "hr", "lab"}
    assert carl.member().zones == {GENERAL, "law"}
    assert kept == ["told"]
    blaise.renewal()
    assert blaise.member().zones == {GENERAL, "hr"}
    clock.now += DAY / 2
    ada.take(blaise.judge(ADA, ada.renewal()))  # a renewal keeps to it
    assert ada.member().zones == {GENERAL, "hr", "lab"}
    blaise.policy.zones = {"hr": set(), "lab": {ADA}}
    clock.now += 1
    ada.take(blaise.judge(ADA, ada._papers(ada.certificate())))
    assert ada.member().zones == {GENERAL, "lab"}


def test_nothing_is_granted_to_who_is_not_in_nor_without_a_key_that_suffices(clock: Clock) -> None:
    ada, blaise = member(clock), signer(clock)
    blaise.policy.zones = {"hr": {ADA, CARL}}
    assert blaise.granted(CARL) == b""
    blaise.admit(ADA, ada.show())
    assert blaise.granted(ADA)
    blaise.revoke(ADA)
    assert blaise.granted(ADA) == b""
    half = member(clock, mesh=genesis(*KEYS[:2], zoned=2), key=KEYS[0])
    half.policy.zones = {"hr": {ADA}}
    assert half.granted(ADA) == b""


def test_what_is_given_unasked_is_taken_if_it_is_newer_and_a_signer_s(clock: Clock) -> None:
    ada = member(clock)
    for said in (
        certificate(MESH, KEYS[0], zones=("hr",)),  # no newer
        certificate(MESH, KEYS[0], zones=("hr",), begins=NOW - 1),
        certificate(MESH, KEYS[1], zones=("hr",), begins=NOW + 1),  # by nobody who signs
        certificate(MESH, KEYS[0], peer=CARL, zones=("hr",), begins=NOW + 1),
        certificate(MESH, KEYS[0], zones=("hr",), begins=NOW + 1, since=NOW + 1),
        revocation(MESH, KEYS[0], peer=CARL),
    ):
        ada.take(said.to_bytes())
        assert ada.member().zones == {GENERAL}
    ada.take(certificate(MESH, KEYS[0], zones=("hr",), begins=NOW + 1).to_bytes())
    assert ada.member().zones == {GENERAL, "hr"}


def test_a_peer_that_signs_nothing_renews_nothing(clock: Clock) -> None:
    ada, blaise = member(clock), member(clock, BLAISE)
    clock.now += DAY / 2
    assert blaise.judge(ADA, ada.renewal()) == b""


@pytest.mark.parametrize(
    "asked",
    [
        certificate(MESH, peer=CARL),
        certificate(MESH, peer=ADA, zones=("hr",)),
        certificate(MESH, peer=ADA, life=DAY + 1),
        certificate(MESH, peer=ADA, since=NOW + 1),
        certificate(MESH, peer=ADA, begins=NOW + SKEW_S),
        certificate(MESH, peer=ADA, begins=NOW - SKEW_S),
        certificate(THREE, peer=ADA),
        revocation(MESH, peer=CARL),
    ],
    ids=[
        "another peer",
        "a zone more",
        "longer",
        "let in later",
        "ahead",
        "behind",
        "another mesh",
        "no certificate",
    ],
)
def test_a_signer_signs_no_more_than_there_was(clock: Clock, asked: Signed) -> None:
    ada, blaise = member(clock), signer(clock)
    fair = certificate(MESH, peer=ADA, begins=NOW + 1)
    assert blaise.judge(ADA, ada._papers(fair.to_bytes()))
    assert blaise.judge(ADA, ada._papers(asked.to_bytes())) == b""


def test_a_zone_that_was_not_granted_is_not_renewed(clock: Clock) -> None:
    """One of two signers had asked for it, which is not enough: renewal must not make up for the other."""
    mesh = genesis(*KEYS[:2], admit=1, zoned=2)
    ada = member(clock, mesh=mesh, zones=("hr",))
    blaise = member(clock, BLAISE, mesh=mesh, key=KEYS[1])
    clock.now += DAY / 2
    assert ada.member().zones == {GENERAL}
    wished = certificate(mesh, peer=ADA, zones=("hr",), begins=int(clock.now))
    assert blaise.judge(ADA, ada._papers(wished.to_bytes())) == b""
    ada.take(blaise.judge(ADA, ada.renewal()))
    assert ada.member().zones == {GENERAL}
    assert ada.member().until == NOW + DAY // 2 + DAY


def test_what_comes_before_one_that_does_not_hold_is_taken_and_nothing_after_it(clock: Clock) -> None:
    blaise = member(clock, BLAISE)
    said = [revocation(MESH, KEYS[0], peer=peer).to_bytes() for peer in (ADA, CARL)]
    for wrong, why in ((revocation(MESH, KEYS[1]).to_bytes(), "no signer"), (b"x", "not a statement")):
        new, told = blaise.learn([said[0], wrong, said[1]])
        assert why in told
    assert blaise.statements() == said[:1]
    assert new == []


def test_who_is_not_let_in_any_more_asks_for_nothing(clock: Clock) -> None:
    ada = member(clock, zones=("hr",))
    assert ada.zones() == (GENERAL, "hr")
    clock.now += DAY
    assert ada.zones() == (GENERAL,)
    assert ada.renewal() == b""


def test_nobody_but_signers_signs_a_draft(clock: Clock) -> None:
    """Sixteen signatures of keys that anybody makes, and it was too long to be read by anybody."""
    ada, blaise = member(clock), signer(clock)
    clock.now += DAY / 2
    asked = ada.renewal()
    draft = Signed.parse(msgspec.msgpack.decode(asked)[2])
    junk = [Identity.from_seed(bytes([220 + n]) * 32) for n in range(16)]
    ada.take(draft.signed(junk).to_bytes())
    padded = ada._papers(draft.signed(junk).to_bytes())
    for shown in (ada.renewal(), padded):
        granted = blaise.judge(ADA, shown)
        assert Signed.parse(granted) == draft.signed([KEYS[0]])
    ada.take(granted)
    assert blaise.admit(ADA, ada.show()) == b""
    assert ada.own == Signed.parse(ada.certificate())


def test_a_signer_that_was_away_for_too_long_lets_itself_in_again(clock: Clock) -> None:
    blaise, ada = signer(clock), member(clock, by=(KEYS[0],))
    clock.now += 3 * DAY
    with pytest.raises(Untrusted, match="expired"):
        blaise.member()
    assert blaise.renewal() == blaise.show()
    assert ada.admit(BLAISE, blaise.show()) == b""
    ada.learn([revocation(MESH, KEYS[0], peer=BLAISE, at=NOW).to_bytes()])
    blaise.learn([revocation(MESH, KEYS[0], peer=BLAISE, at=NOW).to_bytes()])
    assert blaise.renewal() == b""


def test_a_renewal_by_who_has_not_heard_is_no_pardon(clock: Clock) -> None:
    ada, aware, unaware = member(clock), signer(clock), signer(clock, CARL)
    clock.now += DAY / 2
    aware.revoke(ADA)
    ada.take(unaware.judge(ADA, ada.renewal()))
    assert unaware.admit(ADA, ada.show()) == b""
    with pytest.raises(Untrusted, match="thrown out"):
        aware.admit(ADA, ada.show())
    ticket = unaware.invite(SECRET, (), (), 60.0, 1)
    clock.now += 1
    again = welcomed(unaware.admit(ADA, shown_for(ticket)), ticket, ADA, clock)
    with pytest.raises(Untrusted, match="thrown out"):
        aware.admit(ADA, again.show())


def test_a_ticket_is_shown_at_the_door_alone(clock: Clock) -> None:
    blaise = signer(clock)
    ticket = blaise.invite(SECRET, (), (), 60.0, 1)
    with pytest.raises(Untrusted, match="at the door"):
        blaise.judge(ADA, shown_for(ticket))
    assert blaise.invites[0].used == ()


def test_what_is_granted_without_a_draft_changes_nothing(clock: Clock) -> None:
    ada = member(clock)
    ada.take(certificate(MESH, KEYS[0], peer=ADA, zones=("hr",)).to_bytes())
    assert ada.member().zones == {GENERAL}
    with pytest.raises(Untrusted):
        ada.take(b"x")
    clock.now += DAY / 2
    draft = Signed.parse(msgspec.msgpack.decode(ada.renewal())[2])
    assert isinstance(draft.statement, Certificate)
    forged = Signed(draft.statement, draft.body, ((KEYS[0].id, bytes(64)),))
    ada.take(forged.to_bytes())
    assert ada.member().until == NOW + DAY


def test_a_certificate_vouches_for_its_peer_and_its_zones_alone(clock: Clock) -> None:
    blaise, its = member(clock, BLAISE), member(clock, zones=("hr",)).certificate()
    assert blaise.vouches(ADA, its, (GENERAL, "hr"))
    assert blaise.vouches(ADA, its, (GENERAL,))
    assert not blaise.vouches(ADA, its, (GENERAL, "hr", "law"))
    assert not blaise.vouches(CARL, its, (GENERAL,))
    assert not blaise.vouches(ADA, b"", (GENERAL,))
    blaise.learn([revocation(MESH, KEYS[0]).to_bytes()])
    assert not blaise.vouches(ADA, its, (GENERAL,))


def test_only_so_many_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "SEEN_MAX", 2)
    blaise = member(clock, BLAISE)
    keys = [Identity.from_seed(bytes([n]) * 32).id for n in range(110, 113)]
    for peer in keys:
        blaise.admit(peer, member(clock, peer).show())
    assert blaise.outsiders(keys) == keys[:1]
