"""What a peer keeps of its mesh comes back as it was, or says what is wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from p2pmesh.config import ModelConfig
from p2pmesh.errors import ConfigError
from p2pmesh.net.identity import Identity
from p2pmesh.peer import credentials, state
from p2pmesh.trust.papers import shown_for
from p2pmesh.trust.standing import Standing
from p2pmesh.trust.welcome import welcomed
from tests.unit.keyring import ADA, BLAISE

ME = Identity.from_seed(bytes([7]) * 32)
SECRET = b"s" * 16


def loaded(path: Path) -> Standing:
    found = credentials.load(path, ME.id)
    assert found is not None
    return found[0]


def test_a_mesh_is_founded_and_comes_back(tmp_path: Path) -> None:
    assert credentials.load(tmp_path, ME.id) is None
    standing = credentials.found(tmp_path, ME, "lab", ("hr",))
    assert standing.member().zones == {"general", "hr"}
    again = loaded(tmp_path)
    assert again.roster.mesh == standing.roster.mesh
    assert again.own == standing.own
    assert again.signs
    for name in (credentials.SIGNER_KEY, "mesh"):
        assert os.stat(tmp_path / name).st_mode & 0o077 == 0


def test_what_changes_is_kept(tmp_path: Path) -> None:
    credentials.found(tmp_path, ME, "lab", ())
    one = loaded(tmp_path)
    ticket = one.invite(SECRET, (), (), 60.0, 1)
    one.admit(ADA, shown_for(ticket))
    one.revoke(BLAISE)
    again = loaded(tmp_path)
    assert again.invites == one.invites
    assert again.invites[0].used == (ADA,)
    assert again.statements() == one.statements() != []


def test_who_equivocates_stays_out_after_a_restart_and_a_new_ticket(tmp_path: Path) -> None:
    credentials.found(tmp_path, ME, "lab", ())
    one = loaded(tmp_path)
    ticket = one.invite(SECRET, (), (), 60.0, 2)
    ada = welcomed(one.admit(ADA, shown_for(ticket)), ticket, ADA, time.time)
    given = welcomed(one.admit(ME.id, shown_for(ticket)), ticket, ME.id, time.time)
    one.ban(ADA, (ada.certificate(),))
    assert loaded(tmp_path).roster.banned == one.roster.banned != {}
    one.roster.former.add(ADA)  # by who signs no more: it gives way to another
    one.on_change()
    assert loaded(tmp_path).roster.former == {ADA}
    credentials.joined(tmp_path, given, ())
    assert loaded(tmp_path).roster.banned == one.roster.banned
    assert loaded(tmp_path).roster.former == {ADA}


def test_a_policy_is_applied_to_this_peer_too(tmp_path: Path) -> None:
    standing = credentials.found(tmp_path, ME, "lab", ())
    standing._clock = lambda: time.time() + 2
    credentials.apply({"hr": (ME.id,)}, standing)
    assert standing.zones() == ("general", "hr")
    credentials.apply({}, None)


@pytest.mark.parametrize(
    ("zones", "why"),
    [
        ({"h r": ()}, "a zone has a name"),
        ({"hr": ("blaise",)}, "'blaise' is no id"),
        ({"hr": ("",)}, "no id"),
        ({"general": ()}, "everybody sees"),
        ({f"z{i}": (ADA,) for i in range(16)}, "room for 15 zones"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(
    tmp_path: Path, zones: dict[str, tuple[str, ...]], why: str
) -> None:
    standing = credentials.found(tmp_path, ME, "lab", ())
    with pytest.raises(ConfigError, match=why):
        credentials.apply(zones, standing)
    with pytest.raises(ConfigError, match="in no mesh"):
        credentials.apply(zones, None)
    assert not standing.policy.zones


def test_a_model_for_a_zone_that_its_peer_may_not_see_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    standing = credentials.found(tmp_path, ME, "lab", ("hr",))
    models = [ModelConfig(model="plain"), ModelConfig(model="letters", zones=("law", "hr"))]
    credentials.check_labels(models, standing)
    assert not caplog.text
    credentials.check_labels(models, None)
    assert caplog.messages == ["the model letters is for law, hr alone, which this peer may not see"]


@pytest.mark.parametrize(
    ("zones", "why"), [(("h r",), "a zone has a name"), (tuple(f"z{i}" for i in range(16)), "at most 15")]
)
def test_labels_that_cannot_be_are_refused(zones: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=f"models.zones of 'm': .*{why}"):
        credentials.check_labels([ModelConfig(model="m", zones=zones)], None)


def test_who_joins_keeps_where_it_was_let_in_and_signs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ada = credentials.found(tmp_path / "a", Identity.from_seed(bytes([9]) * 32), "lab", ())
    ticket = ada.invite(SECRET, (), (), 60.0, 1)
    standing = welcomed(ada.admit(ME.id, shown_for(ticket)), ticket, ME.id, time.time)
    credentials.joined(tmp_path / "b", standing, ("/ip4/192.0.2.1/tcp/1/p2p/x",))
    found = credentials.load(tmp_path / "b", ME.id)
    assert found is not None
    assert found[1] == ("/ip4/192.0.2.1/tcp/1/p2p/x",)
    assert not found[0].signs
    assert found[0].member().peer == ME.id


def test_a_peer_is_in_one_mesh(tmp_path: Path) -> None:
    standing = credentials.found(tmp_path, ME, "lab", ())
    with pytest.raises(ConfigError, match="in a mesh already"):
        credentials.found(tmp_path, ME, "other", ())
    other = credentials.found(tmp_path / "b", ME, "lab", ())
    with pytest.raises(ConfigError, match="in a mesh already"):
        credentials.joined(tmp_path, other, ())
    assert loaded(tmp_path).own == standing.own


def test_a_new_ticket_to_the_same_mesh_takes_nothing_of_what_was_known(tmp_path: Path) -> None:
    credentials.found(tmp_path, ME, "lab", ())
    one = loaded(tmp_path)
    ticket = one.invite(SECRET, (), ("hr",), 60.0, 1)
    one.revoke(BLAISE)
    given = welcomed(one.admit(ME.id, shown_for(ticket)), ticket, ME.id, time.time)
    credentials.joined(tmp_path, given, ("/ip4/192.0.2.1/tcp/1",))
    again = loaded(tmp_path)
    assert again.member().zones == {"general", "hr"}
    assert again.statements() == one.statements()
    assert again.invites == one.invites


@pytest.mark.parametrize(("name", "zones"), [("", ()), ("x" * 65, ()), ("lab", ("",)), ("lab", ("z",) * 17)])
def test_a_mesh_that_cannot_be_is_not_founded(tmp_path: Path, name: str, zones: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="no such mesh can be"):
        credentials.found(tmp_path, ME, name, zones)
    assert credentials.load(tmp_path, ME.id) is None


def test_every_cut_and_flipped_bit_of_the_file_is_an_error(tmp_path: Path) -> None:
    credentials.found(tmp_path, ME, "lab", ())
    file = tmp_path / "mesh"
    whole = file.read_bytes()
    damaged = [whole[:cut] for cut in range(0, len(whole), 7)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(ConfigError, match="damaged or not ours"):
            credentials.load(tmp_path, ME.id)
        assert file.read_bytes() == data
    file.write_bytes(whole)
    assert loaded(tmp_path).signs


def test_what_is_whole_but_no_standing_is_an_error(tmp_path: Path) -> None:
    for data in (b"", b"\x94", b"x" * 100):
        state.keep(tmp_path, "mesh", data)
        with pytest.raises(ConfigError, match="damaged or not ours"):
            credentials.load(tmp_path, ME.id)


def test_what_cannot_be_written_or_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot read"):
        credentials.found(tmp_path / "file", ME, "lab", ())
    standing = credentials.found(tmp_path / "other", ME, "lab", ())
    with pytest.raises(ConfigError, match="cannot write"):
        credentials.joined(tmp_path / "gone", standing, ())
    (tmp_path / "mesh").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        credentials.load(tmp_path, ME.id)
