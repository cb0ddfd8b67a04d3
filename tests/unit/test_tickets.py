"""A ticket lets in as many as it says, for as long as it says, and no one else."""

from __future__ import annotations

import pytest

from p2pmesh.errors import Untrusted
from p2pmesh.trust import tickets
from p2pmesh.trust.tickets import Invite, Ticket, invite, redeem, withdraw
from tests.unit.keyring import ADA, BLAISE, CARL, NOW

SECRET, OTHER = b"s" * 16, b"o" * 16
TICKET = Ticket(bytes(range(32)), ADA, ("/ip4/192.0.2.1/tcp/4001",), SECRET)


def open_(uses: int = 1, until: float = NOW + 60, zones: tuple[str, ...] = ("hr",)) -> tuple[Invite, ...]:
    return invite(SECRET, zones, until, uses, (), NOW)


def test_a_ticket_is_one_word() -> None:
    text = str(TICKET)
    assert text.startswith("p2pmesh-")
    assert text.split() == [text]
    assert Ticket.parse(f"  {text}\n") == TICKET


def test_its_secret_stands_in_no_log() -> None:
    assert SECRET.hex() not in repr(TICKET)
    assert repr(SECRET) not in repr(TICKET)
    assert str(TICKET) not in repr(TICKET)


def test_one_that_was_copied_wrongly_is_refused() -> None:
    text = str(TICKET)
    wrong = [text[:cut] for cut in range(len(text))]
    wrong += [text[:at] + ("2" if text[at] != "2" else "3") + text[at + 1 :] for at in range(len(text))]
    for damaged in [*wrong, text + "1", "0" + text, "x" * 3_000, "p2pmesh-" + "z" * 2_000, "p2pmesh-é"]:
        with pytest.raises(Untrusted):
            Ticket.parse(damaged)


def test_a_ticket_to_nobody_is_none() -> None:
    with pytest.raises(Untrusted, match="not a ticket"):
        Ticket.parse(str(Ticket(bytes(32), "nobody", (), SECRET)))


def test_what_is_kept_of_it_lets_nobody_in() -> None:
    [kept] = open_()
    with pytest.raises(Untrusted, match="no such ticket"):
        redeem(kept.digest[:16], ADA, (kept,), -1, NOW)


def test_it_lets_in_so_many_and_whom_it_let_in_again() -> None:
    invites = open_(uses=2)
    for peer in (ADA, BLAISE, ADA, BLAISE):
        found, invites = redeem(SECRET, peer, invites, -1, NOW)
        assert found.zones == ("hr",)
    with pytest.raises(Untrusted, match="used up"):
        redeem(SECRET, CARL, invites, -1, NOW)
    assert invites[0].used == (ADA, BLAISE)


def test_an_expired_and_an_unknown_one_let_nobody_in() -> None:
    invites = open_()
    with pytest.raises(Untrusted, match="expired"):
        redeem(SECRET, ADA, invites, -1, NOW + 60)
    with pytest.raises(Untrusted, match="no such ticket"):
        redeem(OTHER, ADA, invites, -1, NOW)
    _, used = redeem(SECRET, ADA, invites, -1, NOW)
    with pytest.raises(Untrusted, match="expired"):
        redeem(SECRET, ADA, used, -1, NOW + 60)


def test_one_that_was_taken_back_lets_nobody_in_and_the_others_do() -> None:
    invites = invite(OTHER, (), NOW + 60, 1, open_(), NOW)
    gone, left = withdraw(SECRET, invites)
    assert (gone.zones, gone.used) == (("hr",), ())
    with pytest.raises(Untrusted, match="taken back"):
        redeem(SECRET, ADA, left, -1, NOW)
    redeem(OTHER, ADA, left, -1, NOW)
    with pytest.raises(Untrusted, match="void already"):
        withdraw(SECRET, left)


def test_who_was_thrown_out_needs_a_ticket_that_is_newer() -> None:
    for out_since in (NOW, NOW + 9):
        with pytest.raises(Untrusted, match="given out since then"):
            redeem(SECRET, ADA, open_(), out_since, NOW + 9)
    assert redeem(SECRET, ADA, open_(), NOW - 1, NOW + 9)


def test_only_what_can_be_used_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "OPEN_MAX", 2)
    for uses in (0, 101):
        with pytest.raises(Untrusted, match=r"1\.\.100 peers"):
            open_(uses=uses)
    with pytest.raises(Untrusted, match="expired already"):
        open_(until=NOW)
    two = invite(OTHER, (), NOW + 9, 1, open_(), NOW)
    with pytest.raises(Untrusted, match="2 tickets are open"):
        invite(b"t" * 16, (), NOW + 9, 1, two, NOW)
    assert len(invite(b"t" * 16, (), NOW + 99, 1, two, NOW + 10)) == 2


def test_the_others_stay_as_they_are() -> None:
    two = invite(OTHER, (), NOW + 9, 1, open_(), NOW)
    _, after = redeem(SECRET, ADA, two, -1, NOW)
    assert after[1] == two[1]
    assert after[0].used == (ADA,)
