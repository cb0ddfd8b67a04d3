"""Peers as a user starts and ends them: real processes, signals, ports, files, and the verbs against them."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from p2pmesh.cli import client
from p2pmesh.cli.main import main
from p2pmesh.engine import catalog
from p2pmesh.errors import ConfigError, ModelLoadError
from tests.integration.processes import (
    HANG_S,
    PEER,
    VERB,
    PeerProcess,
    echo_config,
    environment,
    gone,
    peers,
    run,
    until,
    verb,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wire


def one_line(finished: subprocess.CompletedProcess[str], code: int) -> str:
    """Return what a command said on stderr, which must be one line, and its only word."""
    assert finished.returncode == code, finished.stderr
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stderr


def refused(*arguments: str, code: int) -> str:
    """Return the one line with which `p2pmesh up` refuses to start; run in this process, which has imported
    already what takes a new one seconds."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.alarm(60)  # a peer that starts after all ends, and the test fails
    try:
        result = CliRunner().invoke(main, ["up", *arguments])
    finally:
        signal.alarm(0)
        logging.getLogger("libp2p").setLevel(logging.NOTSET)
    assert isinstance(result.exception, SystemExit), result.output
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("p2pmesh: ")
    return result.stderr


# -------------------------------------------------------------------- one that runs


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerProcess]:
    with peers(tmp_path_factory.mktemp("ada"), ada=500.0) as started:
        yield started["ada"]


def test_it_says_one_object_when_it_is_ready(ada: PeerProcess):
    told = ada.told
    assert set(told) == {"id", "name", "addresses", "http", "public", "models", "pid"}
    assert (told["name"], told["models"], told["pid"]) == ("ada", ["echo"], ada.pid)
    assert told["addresses"][0].startswith("/ip4/127.0.0.1/tcp/")
    assert told["addresses"][0].endswith(f"/p2p/{told['id']}")
    assert told["http"].startswith("http://127.0.0.1:")
    assert told["public"] == ""  # nothing is served to other machines unasked
    assert (ada.state / "identity.key").stat().st_mode & 0o777 == 0o600
    assert ada.state.stat().st_mode & 0o777 == 0o700


def test_the_verbs_speak_for_people_and_for_programs(ada: PeerProcess):
    here = ("--state", str(ada.state))
    told = ada.told

    assert f"ada  {told['id']}" in verb("status", *here).stdout
    status = json.loads(verb("status", "--json", *here).stdout)
    assert (status["id"], status["alive"], status["flights"]) == (told["id"], 1, 0)
    assert {engine["state"] for engine in status["engines"]} == {"ready"}

    lines = verb("peers", *here).stdout.splitlines()
    assert lines[0].split() == ["NAME", "ID", "LINKS", "RTT", "SKILLS", "MODELS", "ZONES", "WAIT"]
    assert lines[1].startswith("ada ")
    listed = json.loads(verb("peers", "--json", *here).stdout)["peers"]
    assert [(p["name"], p["distance"], p["models"][0]["name"]) for p in listed] == [("ada", 0, "echo")]

    assert verb("explain", "what", "is", "gravity?", *here).stdout.startswith("serve: general quality 0.45")
    explained = json.loads(verb("explain", "--json", "what is gravity?", *here).stdout)
    assert (explained["decision"], explained["table"][0]["peer"]) == ("serve", "ada")

    assert verb("id", *here).stdout.split() == told["addresses"]
    assert json.loads(verb("id", "--json", *here).stdout)["id"] == told["id"]


def test_ask_prints_the_answer_alone_and_the_way_only_when_asked(ada: PeerProcess, tmp_path: Path):
    here = ("--url", ada.url)
    plain = verb("ask", "what", "is", "this?", *here)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "echo: what is this?\n", "")
    shown = verb("ask", "x", "--route", "--max-tokens", "1", *here)
    assert (shown.stdout, shown.stderr) == ("echo:\n", "answered by ada\n")
    told = json.loads(verb("ask", "--json", "one two", *here).stdout)
    (tmp_path / "answer").write_text(json.dumps(told), "utf-8")
    held = verb("verify", str(tmp_path / "answer"))
    assert (held.returncode, f"{ada.status()['id']} signed this answer" in held.stdout) == (0, True)
    assert told.pop("id").startswith("chatcmpl-")
    assert told.pop("receipt")["model"] == "echo"
    assert told == {
        "text": "echo: one two",
        "served_by": "ada",
        "path": ["ada"],
        "model": "echo",
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


def test_a_peer_that_crashes_leaves_no_core_file(ada: PeerProcess):
    told = Path(f"/proc/{ada.pid}/limits").read_text().splitlines()
    assert next(line for line in told if line.startswith("Max core file size")).split()[5] in ("0", "1")


def test_the_environment_says_which_peer_is_meant(ada: PeerProcess):
    found = verb("id", env=environment(P2PMESH_STATE=str(ada.state)))
    assert found.stdout.split() == ada.told["addresses"]
    beaten = verb("id", "--url", ada.url, env=environment(P2PMESH_URL="http://127.0.0.1:1"))
    assert beaten.stdout.split() == ada.told["addresses"]


def test_exit_codes_say_what_went_wrong(ada: PeerProcess, tmp_path: Path):
    here = ("--url", ada.url)
    assert "serves the model 'nope'" in one_line(verb("ask", "x", "--model", "nope", *here), 4)
    assert "max_tokens must lie within" in one_line(verb("ask", "x", "--max-tokens", "0", *here), 1)
    nobody = one_line(verb("status", "--state", str(tmp_path)), 3)
    assert f"no peer runs in {tmp_path}: start one with `p2pmesh up`" in nobody
    assert "no peer answers at http://127.0.0.1:1" in one_line(
        verb("status", "--url", "http://127.0.0.1:1"), 3
    )


def test_a_second_peer_in_the_same_directory_is_refused(ada: PeerProcess):
    second = run([*PEER, "--engine", "echo", "--http", "", "--state", str(ada.state)])
    assert f"another peer uses {ada.state}: stop it, or give" in one_line(second, 1)


def test_ports_that_are_taken_are_named(ada: PeerProcess, tmp_path: Path):
    arguments = [*echo_config(tmp_path, "eve"), "--state", str(tmp_path / "s")]
    door = ada.url.removeprefix("http://")
    taken = refused(*arguments, "--http", door, code=1)
    assert f"cannot serve HTTP on {door}: Address already in use; choose another with --http" in taken
    address = ada.told["addresses"][0].partition("/p2p/")[0]
    taken = refused(*arguments, "--listen", address, code=1)
    assert f"cannot listen on {address}: another program does" in taken


# -------------------------------------------------------------------- starting


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path):
    arguments = echo_config(tmp_path, "of-the-file", rest='[[skills]]\nname = "s"\nexamples = ["a b c"]\n')
    env = environment(
        P2PMESH_NAME="of-the-environment",
        P2PMESH_MODEL="one two",
        P2PMESH_ENGINE="echo",
        P2PMESH_CONFIG=arguments[1],
        P2PMESH_JSON="1",
    )
    one = PeerProcess(tmp_path / "one", ["--model", "three"], env)
    two = PeerProcess(tmp_path / "two", ["--name", "of-the-flag"], env)
    try:
        assert (one.told["name"], one.told["models"]) == ("of-the-environment", ["three"])
        assert (two.told["name"], two.told["models"]) == ("of-the-flag", ["one", "two"])
        assert [s["name"] for s in one.get("/mesh/v1/peers")["peers"][0]["skills"]] == ["s"]
    finally:
        assert (one.stop(), two.stop(signal.SIGINT)) == (0, 0)
    assert (one.stderr, two.stderr) == ("", "")


def test_what_is_misspelt_is_named_with_the_nearest_right_one(tmp_path: Path):
    wrong = run([*PEER, "--jion", "x"])
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no option --jion; did you mean" in wrong.stderr
    assert "--join" in wrong.stderr
    file = tmp_path / "peer.toml"
    for text, said in {
        "naem = 'x'": "unknown key naem; did you mean name?",
        "[net]\njion = []": "unknown key net.jion; did you mean net.join?",
        "[[models]]\nmodle = 'x'": "unknown key models.modle; did you mean models.model?",
        "[net": "is not TOML",
        "[net]\nlisten = 3": "net.listen must be a list, not a whole number",
    }.items():
        file.write_text(text)
        complaint = refused("--config", str(file), code=2)
        assert str(file) in complaint
        assert said in complaint
    assert "No such file" in refused("--config", str(tmp_path / "none.toml"), code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--http", "8080"], "http.bind must be HOST:PORT, not '8080'"),
        (["--http", "127.0.0.1:¹"], "http.bind must be HOST:PORT"),
        (["--http", "0.0.0.0:7411"], "must be a loopback address"),
        (["--listen", "127.0.0.1:4001"], "is not an address like /ip4/"),
        (["--join", "127.0.0.1:4001"], "net.join: '127.0.0.1:4001' is not an address like /ip4/"),
        (["--skill", "art"], "--skill must be NAME=FILE"),
        (["--skill", "art=/nowhere"], "cannot read the examples in /nowhere"),
        (["--name", "x" * 65], "name is 65 bytes long, at most 64"),
        (["--state", "/dev/null/x"], "cannot use the state directory /dev/null/x"),
        (["--skill", "x" * 65 + "=/etc/hostname"], "is 65 bytes long, at most 64"),
        (["--model", "echo", "--model", "echo"], "two models are called 'echo'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(tmp_path: Path, arguments: list[str], said: str):
    state = ["--state", str(tmp_path / "s"), "--http", "127.0.0.1:0"]
    assert said in refused("--engine", "echo", *state, *arguments, code=2)


def workers(pid: int) -> list[int]:
    """The engines of a peer, as soon as both run; one that is still being made by the peer is none."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(FileNotFoundError):  # one that has ended since it was listed
                if b"p2pmesh.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found if len(found) == 2 else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_starts_ends_it_quietly(tmp_path: Path, number: int):
    peer = PeerProcess(tmp_path, echo_config(tmp_path, "ada"))
    started = until(lambda: workers(peer.pid))
    for child in started:
        os.kill(child, signal.SIGSTOP)  # so that it never becomes ready
    assert peer.stop(number) == 0
    assert peer.stderr == ""
    assert all(map(gone, started))


def asked(peer: PeerProcess, words: str) -> Iterator[dict[str, Any]]:
    """Ask for the echo of `words`, and give its events as they come."""
    body = {"messages": [{"role": "user", "content": words}], "stream": True, "max_tokens": 300}
    return client.events([peer.url], "/v1/chat/completions", body)


def refuses(peer: PeerProcess) -> bool:
    try:
        list(asked(peer, "x"))
    except client.Unsuccessful as error:
        return "about to go" in str(error)
    return False


@pytest.mark.parametrize("by_verb", [False, True])
def test_a_peer_that_is_told_to_go_finishes_what_it_has_begun(tmp_path: Path, by_verb: bool):
    words = " ".join(map(str, range(60)))
    with peers(tmp_path, ada=20.0) as started:
        peer = started["ada"]
        events = asked(peer, words)
        pieces = [next(events), next(events)]
        if by_verb:
            assert json.loads(verb("drain", "--state", str(peer.state), "--json").stdout)["draining"]
        else:
            peer.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(peer))
        pieces += events
        assert (
            "".join(c["delta"].get("content", "") for p in pieces for c in p["choices"]) == f"echo: {words}"
        )
        assert peer.process.wait(HANG_S) == 0
        assert peer.stderr == ""


def test_a_second_signal_ends_it_at_once_and_the_first_does_not(tmp_path: Path):
    with peers(tmp_path, rest="relay.drain_s = 1000", ada=10.0) as started:
        peer = started["ada"]
        events = asked(peer, "x " * 150)  # held, or it would be called off
        next(events)
        peer.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(peer))
        with pytest.raises(subprocess.TimeoutExpired):
            peer.process.wait(2.0)
        assert peer.stop() == 0
        with pytest.raises(client.Unsuccessful, match="this peer has left the mesh"):
            list(events)


def test_who_asked_is_told_when_the_time_is_up(tmp_path: Path):
    """The stream was cut off, without an error and without an end."""
    with peers(tmp_path, rest="relay.drain_s = 0.5", ada=10.0) as started:
        events = asked(started["ada"], "x " * 150)
        next(events)
        assert started["ada"].stop() == 0
        with pytest.raises(client.Unsuccessful, match="this peer has left the mesh"):
            list(events)


# -------------------------------------------------------------------- model files


@pytest.fixture(scope="module")
def model() -> Path:
    pytest.importorskip("llama_cpp")
    try:
        return catalog.find(catalog.DEFAULT)
    except (ConfigError, ModelLoadError):
        pytest.fail("run `make setup`: the embedded default model is not installed")


def refusal_of(model: str, folder: Path, code: int) -> str:
    return refused("--model", model, "--http", "", "--state", str(folder / "s"), code=code)


def test_a_model_that_is_none_keeps_the_peer_from_starting(tmp_path: Path):
    missing, text = tmp_path / "missing.gguf", tmp_path / "text.gguf"
    text.write_text("not a model")
    arguments = ["--model", str(missing), "--http", "", "--state", str(tmp_path / "s")]
    assert str(missing) in one_line(run([*PEER, *arguments]), 1)
    assert "text.gguf is not a GGUF file" in refusal_of(str(text), tmp_path, 1)
    assert "there is no model 'smolm2'" in refusal_of("smolm2", tmp_path, 2)


@pytest.mark.model
def test_a_cut_model_keeps_the_peer_from_starting(model: Path, tmp_path: Path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:50_000_000])
    assert "cut.gguf is cut" in refusal_of(str(cut), tmp_path, 1)


@pytest.mark.model
def test_a_model_that_aborts_its_process_keeps_the_peer_from_starting(model: Path, tmp_path: Path):
    hostile = tmp_path / "hostile.gguf"
    hostile.write_bytes(model.read_bytes())
    key = b"llama.block_count"
    with hostile.open("r+b") as file:
        file.seek(file.read(1_000_000).index(key) + len(key) + 4)
        file.write(struct.pack("<I", 0))
    said = refusal_of(str(hostile), tmp_path, 1)
    assert "the model hostile does not start" in said
    assert "quarantined after 2 crashes while loading" in said


# -------------------------------------------------------------------- ending


def test_sigterm_ends_it_well_and_leaves_no_child(tmp_path: Path):
    with peers(tmp_path, ada=500.0) as started:
        ada = started["ada"]
        children = ada.engine_pids()
        assert len(children) == 2
        assert not any(map(gone, children))
        assert ada.stop() == 0
        assert all(map(gone, children))
        assert ada.stderr == ""
        assert not (ada.state / "running.json").exists()


def test_stop_returns_when_the_directory_is_free_again(tmp_path: Path):
    with peers(tmp_path, ada=500.0) as started:
        ada = started["ada"]
        told = json.loads(verb("stop", "--json", "--state", str(ada.state)).stdout)
        assert told == {"stopping": True}
        assert ada.process.wait(60) == 0
        again = verb("stop", "--state", str(ada.state))
        assert "no peer runs in" in one_line(again, 3)


def test_a_client_that_reads_nothing_does_not_keep_it_from_ending(tmp_path: Path):
    with peers(tmp_path, "engine.context_tokens = 20000", ada=50_000.0) as started:
        ada = started["ada"]
        host, _, port = ada.url.removeprefix("http://").rpartition(":")
        asked = {
            "messages": [{"role": "user", "content": "abcdefghijklm " * 8_000}],
            "stream": True,
            "max_tokens": 8_192,
        }
        body = json.dumps(asked).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.connect((host, int(port)))
            deaf.sendall((head.encode() + body) * 4)
            until(lambda: unsent_bytes(int(port), deaf.getsockname()[1]))
            assert ada.status()["alive"] == 1
            assert ada.stop() == 0


def unsent_bytes(port: int, to: int) -> int:
    """What a connection of this machine has written that its other end has not taken."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[2].endswith(f":{to:04X}"):
            return int(fields[4].partition(":")[0], 16)
    return 0


def test_a_peer_that_is_killed_is_dropped_and_the_others_answer(tmp_path: Path):
    with peers(tmp_path, ada=200.0, bea=200.0, cyn=5_000.0) as started:
        ada, bea, cyn = started.values()
        first = json.loads(verb("ask", "--json", "one two", "--url", ada.url).stdout)
        assert first["path"] == ["ada", "cyn"], "the fast one is worth the way"
        children = cyn.engine_pids()
        os.kill(cyn.pid, signal.SIGKILL)
        for asked in (ada, bea):
            answer = verb("ask", "--json", "one two", "--url", asked.url)
            assert json.loads(answer.stdout)["text"] == "echo: one two", answer.stderr
        for peer in (ada, bea):
            until(lambda peer=peer: peer.alive() == {"ada", "bea"})
        until(lambda: all(map(gone, children)))
        assert "no peer runs in" in one_line(verb("status", "--state", str(cyn.state)), 3)
        again = PeerProcess(
            tmp_path / "cyn", echo_config(tmp_path / "cyn", "cyn", join=ada.told["addresses"])
        )
        try:
            assert again.told["id"] == cyn.told["id"]
            until(lambda: ada.alive() == {"ada", "bea", "cyn"})
        finally:
            again.stop()
        until(lambda: ada.alive() == {"ada", "bea"})


def test_an_answer_outlives_the_peer_it_was_asked_at(tmp_path: Path):
    words = [f"w{number}" for number in range(120)]
    with peers(tmp_path, ada=40.0, bea=40.0, cyn=41.0) as started:
        ada, bea, _ = started.values()
        asked = subprocess.Popen(
            [*VERB, "ask", " ".join(words), "--max-tokens", "200", "--url", ada.url, "--url", bea.url],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # or what was read ahead would be missing from the rest
        )
        assert asked.stdout is not None
        begun = b"".join(asked.stdout.read(1) for _ in range(40))
        ada.process.kill()
        rest, said = asked.communicate(timeout=HANG_S)
        assert (begun + rest).decode().strip() == "echo: " + " ".join(words), said
        assert asked.returncode == 0
        assert all(held.status()["flights"] == 0 for held in (bea, started["cyn"]))
