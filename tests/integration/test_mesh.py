"""A private mesh as a user makes it: two commands, real processes; strangers stay outside, and who is thrown
out too."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from p2pmesh.cli.main import main
from p2pmesh.peer import meeting
from tests.integration.processes import PeerProcess, echo_config, until
from tests.integration.test_processes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wire


def said(*args: str, code: int = 0) -> str:
    """Run a verb in this process, which has imported what takes a new one seconds; return what it said."""
    result = CliRunner(env={"P2PMESH_STATE": None, "P2PMESH_URL": None}).invoke(main, args)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


@contextmanager
def running(folder: Path, *names: str, rest: str = "") -> Iterator[list[PeerProcess]]:
    """Start echo peers of those names, each in a state directory that may be in a mesh."""
    started = []
    try:
        for name in names:
            started.append(PeerProcess(folder / name, echo_config(folder / name, name, rest=rest)))
        yield started
    finally:
        for peer in started:
            peer.stop()


def state(folder: Path, name: str) -> str:
    (folder / name).mkdir(exist_ok=True)
    return str(folder / name / "state")


def ticket(peer: PeerProcess, *more: str) -> str:
    assert peer.url  # it is up
    return said("invite", "--state", str(peer.state), "--json", *more)


def joins(folder: Path, name: str, word: str) -> Any:
    return json.loads(said("join", json.loads(word)["ticket"], "--state", state(folder, name), "--json"))


def test_two_commands_make_a_mesh_and_one_takes_a_peer_out(tmp_path: Path) -> None:
    assert "is founded" in said("mesh", "create", "lab", "--state", state(tmp_path, "ada"))
    with running(tmp_path, "ada") as (ada,):
        word = ticket(ada, "--zone", "hr")
        told = joins(tmp_path, "blaise", word)
        assert (told["name"], told["zones"]) == ("lab", ["general", "hr"])
        joins(tmp_path, "carl", ticket(ada))
        again = said("join", json.loads(word)["ticket"], "--state", state(tmp_path, "dora"), code=1)
        assert "the ticket has been used up" in again
        lost = json.loads(ticket(ada))["ticket"]
        said("withdraw", lost, "--state", str(ada.state))
        assert "taken back" in said("join", lost, "--state", state(tmp_path, "dora"), code=1)
        assert "void already" in said("withdraw", lost, "--state", str(ada.state), code=1)
        assert "takes the token" in said("withdraw", lost, "--url", ada.url, code=1)
        shown = CliRunner().invoke(main, ["invite", "--qr", "--state", str(ada.state)])
        assert shown.stdout.startswith("p2pmesh-")
        assert shown.stderr.count("█") > 100
        with running(tmp_path, "blaise", "carl") as (blaise, carl):
            for peer in (ada, blaise, carl):
                until(lambda peer=peer: peer.alive() == {"ada", "blaise", "carl"})
            mesh = blaise.status()["mesh"]
            assert (mesh["name"], mesh["zones"], mesh["signs"]) == ("lab", ["general", "hr"], False)
            told = said("status", "--url", blaise.url)
            assert "it may see, beside the general zone: hr\nsigners: 1\n" in told
            assert said("ask", "hello", "there", "--url", blaise.url) == "echo: hello there\n"
            served = json.loads(said("ask", "hello", "--zone", "hr", "--url", carl.url, "--json"))
            assert (served["served_by"], served["path"]) == ("blaise", ["carl", "blaise"])
            assert "may see the zone 'law'" in said("ask", "x", "--zone", "law", "--url", carl.url, code=1)
            assert "may see the zone ''" in said("ask", "x", "--zone", "", "--url", carl.url, code=1)
            assert "signs for nobody" in said("revoke", "carl", "--state", str(blaise.state), code=1)
            assert "no peer known here is called x" in said("revoke", "x", "--state", str(ada.state), code=2)
            assert "takes the token" in said("revoke", "blaise", "--url", ada.url, code=1)
            said("revoke", "blaise", "--state", str(ada.state))
            for peer in (ada, carl):
                until(lambda peer=peer: peer.alive() == {"ada", "carl"})
            until(lambda: blaise.alive() == {"blaise"})
            until(lambda: any("thrown out" in why for why in blaise.status()["unreachable"].values()))
        # It stays outside, also of those who have been started anew since.
        with running(tmp_path, "carl", "blaise") as (carl, blaise):
            until(lambda: carl.alive() == {"ada", "carl"})
            until(lambda: any("thrown out" in why for why in blaise.status()["unreachable"].values()))
            assert carl.alive() == {"ada", "carl"}
        joins(tmp_path, "blaise", ticket(ada))
        with running(tmp_path, "blaise") as (blaise,):
            until(lambda: blaise.alive() >= {"ada", "blaise"})


def test_another_machine_signs_from_then_on_and_nobody_is_cut_off(tmp_path: Path) -> None:
    said("mesh", "create", "lab", "--state", state(tmp_path, "ada"))
    word = said("mesh", "key", "--state", state(tmp_path, "blaise")).strip()
    told = json.loads(said("mesh", "key", "--state", state(tmp_path, "blaise"), "--json"))
    assert told["key"] == word
    key = told["id"]
    with running(tmp_path, "ada") as (ada,):
        for name in ("blaise", "carl"):
            joins(tmp_path, name, ticket(ada, "--zone", "hr"))
        with running(tmp_path, "blaise", "carl") as (blaise, carl):
            until(lambda: all(p.alive() == {"ada", "blaise", "carl"} for p in (ada, blaise, carl)))
            [before] = carl.status()["mesh"]["signers"]
            change = ("mesh", "change", "--add", word, "--remove", *before["signers"], "--after", "15s")
            assert "takes the token" in said(*change, "--url", ada.url, code=1)
            assert "signs for nobody" in said(*change, "--state", str(carl.state), code=1)
            said(*change, "--state", str(ada.state))
            told = said("status", "--url", ada.url)
            assert re.search(r"\nsigners: 1, 1 from \d{4}-\d\d-\d\d \d\d:\d\d UTC on\n", told), told
            until(lambda: [row["signers"] for row in carl.status()["mesh"]["signers"]] == [[key]])
            assert not ada.status()["mesh"]["signs"]
            assert carl.alive() == {"ada", "blaise", "carl"}
            assert carl.status()["mesh"]["zones"] == ["general", "hr"]
            assert "signs for nobody" in said("invite", "--state", str(ada.state), code=1)
            joins(tmp_path, "dora", ticket(blaise))
            said("revoke", "ada", "--state", str(blaise.state))
            with running(tmp_path, "dora") as (dora,):
                until(lambda: dora.alive() == {"blaise", "carl", "dora"})
            assert "not a change" in said("mesh", "sign", "--yes", "x", "--state", str(blaise.state), code=1)


def test_who_comes_back_while_the_one_who_let_it_in_is_gone_finds_the_others(tmp_path: Path) -> None:
    """It knew the founder's address alone, and was alone until that was back."""
    said("mesh", "create", "lab", "--state", state(tmp_path, "ada"))
    with running(tmp_path, "ada") as (ada,):
        for name in ("blaise", "carl"):
            joins(tmp_path, name, ticket(ada))
        with running(tmp_path, "blaise") as (blaise,):
            with running(tmp_path, "carl") as (carl,):
                until(lambda: all(p.alive() == {"ada", "blaise", "carl"} for p in (ada, blaise, carl)))
                until(lambda: blaise.told["id"] in meeting.before(carl.state))
            ada.stop()
            until(lambda: blaise.alive() == {"blaise"})
            with running(tmp_path, "carl") as (carl,):
                until(lambda: carl.alive() == blaise.alive() == {"blaise", "carl"})


def test_a_peer_of_no_mesh_or_another_stays_outside(tmp_path: Path) -> None:
    for name in ("ada", "other"):
        said("mesh", "create", "lab", "--state", state(tmp_path, name))
    with running(tmp_path, "ada") as (ada,):
        for name, why in (("stranger", "it takes a ticket to join"), ("other", "of another mesh")):
            args = echo_config(tmp_path / name, name, join=ada.told["addresses"])
            peer = PeerProcess(tmp_path / name, args)
            try:
                until(lambda peer=peer, why=why: any(why in w for w in peer.status()["unreachable"].values()))
                assert peer.alive() == {name}
                assert (peer.status()["mesh"] is None) == (name == "stranger")
            finally:
                peer.stop()
        assert ada.alive() == {"ada"}
        assert ada.status()["counters"]["strangers"] >= 2


def test_who_is_in_no_mesh_listens_to_this_machine_only(tmp_path: Path) -> None:
    where = ["--engine", "echo", "--http", "127.0.0.1:0", "--state", str(tmp_path / "s")]
    for address in ("/ip4/0.0.0.0/tcp/0", "/dns4/localhost/tcp/0", "/ip6/::/tcp/0"):
        assert "p2pmesh mesh create" in refused(*where, "--listen", address, code=2)
    assert "p2pmesh mesh create" in refused(*where, "--join", "/ip4/192.0.2.1/tcp/1", code=2)
    assert "p2pmesh mesh create" in refused(*where, "--mdns", code=2)


def test_a_ticket_whose_giver_is_gone_says_so(tmp_path: Path) -> None:
    said("mesh", "create", "--state", state(tmp_path, "ada"))
    with running(tmp_path, "ada") as (ada,):
        word = json.loads(ticket(ada))["ticket"]
    why = said("join", word, "--state", state(tmp_path, "blaise"), code=1)
    assert "the peer that gave out the ticket" in why
    assert not (tmp_path / "blaise" / "state" / "mesh").exists()
    assert "begins with p2pmesh-" in said("join", "hello", "--state", state(tmp_path, "blaise"), code=1)
    assert "in a mesh already" in said("mesh", "create", "--state", state(tmp_path, "ada"), code=1)
    said("mesh", "create", "--state", state(tmp_path, "carl"))
    assert "in a mesh already" in said("join", word, "--state", state(tmp_path, "carl"), code=1)


def test_a_ticket_that_lets_nobody_in_is_refused(tmp_path: Path) -> None:
    said("mesh", "create", "--state", state(tmp_path, "ada"))
    with running(tmp_path, "ada") as (ada,):
        assert ada.url  # it is up
        for args, why in (
            (["--expires", "soon"], "is no time span"),
            (["--expires", "0s"], "expired already"),
            (["--uses", "0"], "lets in 1..100 peers"),
            (["--zone", "x" * 65], "a zone has a name of 1 to 64 bytes"),
        ):
            result = CliRunner().invoke(main, ["invite", "--state", str(ada.state), *args])
            assert result.exit_code in (1, 2)
            assert why in result.output
