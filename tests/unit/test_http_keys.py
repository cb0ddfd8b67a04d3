"""Keys of the public door: what is kept of them, who is told what, and when they are good."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pmesh.cli.main import main
from p2pmesh.errors import ConfigError
from p2pmesh.gateway.keys import KEYS_MAX, PREFIX, ZONES_MAX, Allowance, Key, Keys
from p2pmesh.peer import state


def test_a_key_is_found_by_what_it_is_and_by_nothing_else(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    secret = keys.make("app", ["hr", "general"])
    found = keys.find(secret)
    assert found is not None
    assert (found.name, found.zones) == ("app", ("hr",))
    assert [found.may_ask_in(zone) for zone in ("general", "hr", "legal")] == [True, True, False]
    for wrong in ("", "app", secret[:-1], secret + "x", secret.upper(), "\ud800"):
        assert keys.find(wrong) is None


def test_the_file_does_not_hold_the_key_and_is_nobody_else_s(tmp_path: Path) -> None:
    secret = Keys(tmp_path / "new").make("app", [])
    file = tmp_path / "new" / "http-keys"
    assert secret.removeprefix(PREFIX).encode() not in bytes.fromhex(file.read_text().split("\n")[2])
    assert file.stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_one_made_or_taken_back_elsewhere_is_known_at_once(tmp_path: Path) -> None:
    running, verb = Keys(tmp_path), Keys(tmp_path)
    secrets = [verb.make(f"k{number}", []) for number in range(3)]
    assert [key.name for key in running.rows()] == ["k0", "k1", "k2"]
    verb.remove("k1")
    assert [running.find(secret) is not None for secret in secrets] == [True, False, True]
    (tmp_path / "http-keys").unlink()
    assert running.find(secrets[0]) is None
    assert running.rows() == ()


@pytest.mark.parametrize(
    ("name", "zones", "said"),
    [
        ("", [], "name"),
        ("a b", [], "name"),
        ("a\n", [], "name"),
        ("x" * 65, [], "name"),
        ("app", ["h r"], "'h r'"),
        ("app", [""], "a zone has a name"),
        ("app", [f"z{n}" for n in range(ZONES_MAX + 1)], "at most 16"),
        ("old", [], "there is a key called 'old'"),
    ],
)
def test_what_can_be_no_key_is_refused_and_nothing_changes(
    tmp_path: Path, name: str, zones: list[str], said: str
) -> None:
    keys = Keys(tmp_path)
    keys.make("old", [])
    before = keys.rows()
    with pytest.raises(ConfigError, match=said):
        keys.make(name, zones)
    assert Keys(tmp_path).rows() == before


def test_commands_at_once_undo_nothing_of_one_another(tmp_path: Path) -> None:
    for number in range(8):
        Keys(tmp_path).make(f"old{number}", [])

    def change(number: int) -> None:
        Keys(tmp_path).make(f"new{number}", [])
        Keys(tmp_path).remove(f"old{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(8)))
    assert {key.name for key in Keys(tmp_path).rows()} == {f"new{number}" for number in range(8)}


def test_no_allowance_is_beyond_counting(tmp_path: Path) -> None:
    for per_minute in (-1, 10**30):
        with pytest.raises(ConfigError, match="times a minute"):
            Keys(tmp_path).make("app", [], per_minute)


def test_there_is_a_bound(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    for number in range(KEYS_MAX):
        keys.make(f"k{number}", [])
    with pytest.raises(ConfigError, match="256 keys"):
        keys.make("one-more", [])
    keys.remove("k7")
    keys.make("one-more", [])


def test_an_allowance_is_a_minute_s_worth_and_comes_back_by_and_by() -> None:
    key, allowance = Key("app", bytes(32), (), 0, per_minute=6), Allowance()
    assert [allowance.wait_s(key, 100.0) for _ in range(6)] == [0.0] * 6
    assert allowance.wait_s(key, 100.0) == pytest.approx(10.0)
    assert allowance.wait_s(key, 104.0) == pytest.approx(6.0)
    assert allowance.wait_s(key, 110.0) == 0.0
    assert allowance.wait_s(key, 110.0) == pytest.approx(10.0)
    assert [allowance.wait_s(key, 9_999.0) for _ in range(7)] == [0.0] * 6 + [pytest.approx(10.0)]
    assert allowance.wait_s(Key("free", bytes(32), (), 0), 100.0) == 0.0


@pytest.mark.parametrize("data", [b"\x91\x01", b"\xc1", b"{}"])
def test_a_file_that_is_not_ours_is_told_of(tmp_path: Path, data: bytes) -> None:
    state.keep(tmp_path, "http-keys", data)
    with pytest.raises(ConfigError, match="http-keys is not ours"):
        Keys(tmp_path)


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    secret = keys.make("app", [])
    file = tmp_path / "http-keys"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(ConfigError, match="damaged"):
        keys.find(secret)


def run(tmp_path: Path, *args: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["key", *args, "--state", str(tmp_path)])
    return done.exit_code, done.output


def test_the_verbs_make_list_and_take_back(tmp_path: Path) -> None:
    code, text = run(tmp_path, "create", "app", "--zone", "hr", "--json")
    told = json.loads(text)
    assert (code, told["name"], told["zones"]) == (0, "app", ["hr"])
    found = Keys(tmp_path).find(told["key"])
    assert found is not None
    code, text = run(tmp_path, "list", "--json")
    assert [row["name"] for row in json.loads(text)["keys"]] == ["app"]
    assert told["key"] not in text
    assert "app" in run(tmp_path, "list")[1]
    assert run(tmp_path, "create", "app")[0] == 1
    assert run(tmp_path, "remove", "app")[0] == 0
    assert run(tmp_path, "remove", "app")[0] == 1
    assert "there are no keys" in run(tmp_path, "list")[1]
    assert PREFIX in run(tmp_path, "create", "other")[1]
