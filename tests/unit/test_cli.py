"""The verbs as far as no peer is needed: hints, exit codes, and what is printed of a peer's answer."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from p2pmesh.cli import client
from p2pmesh.cli.main import main
from p2pmesh.cli.up import _config, up
from p2pmesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def run(*args: str, **env: str) -> Any:
    clean = {"P2PMESH_STATE": None, "P2PMESH_URL": None}
    return CliRunner(env={**clean, **env}).invoke(main, args)


class Peer:
    """Answers every request with what it is told to."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, b"", b""
        self.thaw = threading.Event()
        """It says nothing more, and does not hang up, until this is set."""
        self.thaw.set()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                peer.asked = self.rfile.read(int(self.headers["content-length"]))
                self.do_GET()

            def do_GET(self) -> None:
                self.send_response(peer.status)
                self.end_headers()
                self.wfile.write(peer.body)
                peer.thaw.wait()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def says(self, *events: Any, end: str = "data: [DONE]\n\n") -> None:
        self.body = ("".join(f"data: {json.dumps(event)}\n\n" for event in events) + end).encode()

    def fails(self, status: int, code: str, message: str = "why") -> None:
        self.status, self.body = status, json.dumps({"error": {"message": message, "code": code}}).encode()


@contextmanager
def serving_peer() -> Iterator[Peer]:
    found = Peer()
    serving = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    serving.start()
    try:
        yield found
    finally:
        found.thaw.set()
        found.server.shutdown()
        found.server.server_close()
        serving.join()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving_peer() as found:
        yield found


@pytest.fixture
def other() -> Iterator[Peer]:
    with serving_peer() as found:
        yield found


def event(text: str = "", **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-7", "model": "m", "choices": [{"delta": {"content": text}}], **more}


WAY = {"p2pmesh": {"path": [{"name": "ada"}, {"name": "bücher\x1b[2J"}]}}


def test_a_wrong_verb_or_flag_is_named_with_the_nearest():
    for args, said in (
        (["statsu"], "no verb 'statsu'; did you mean 'status'?"),
        (["zzz"], "no verb 'zzz'"),
        (["up", "--jion", "x"], "no option --jion; did you mean"),
        (["up", "--no-mdsn"], "no option --no-mdsn; did you mean --no-mdns"),
        (["peers", "--jsno"], "--json"),
        (["demo", "--peers", "1"], "1 is not in the range"),
        (["ask", "what", "is", "-5"], "put -- before the prompt"),
        (["explain", "-5"], "put -- before the prompt"),
        (["ask"], "Missing argument 'PROMPT...'"),
        (["up", "--engine", "gpt"], "'gpt' is not one of 'llama', 'echo'"),
    ):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (2, ""), args
        assert said in result.stderr


def test_help_of_every_verb_is_there():
    assert run("--help").exit_code == 0
    for verb in ("up", "demo", "ask", "status", "peers", "explain", "id", "stop", "models", "tune"):
        assert run(verb, "--help").exit_code == 0
        assert verb in run("-h").stdout
    assert run("--version").stdout.strip().endswith("0.1.0")


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (404, "model_not_found", 4),
        (504, "deadline_exceeded", 5),
        (503, "no_route", 1),
        (400, "invalid_request", 1),
        (502, "engine_failed", 1),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(peer: Peer, status: int, code: str, exit_code: int):
    peer.fails(status, code)
    for args in (["ask", "x"], ["status"], ["explain", "x"]):
        result = run(*args, "--url", peer.url)
        assert (result.exit_code, result.stdout, result.stderr) == (exit_code, "", "p2pmesh: why\n")


def test_where_no_peer_is_the_exit_code_is_3(peer: Peer, tmp_path: Path):
    assert run("status", "--state", str(tmp_path)).exit_code == 3
    assert run("status", P2PMESH_STATE=str(tmp_path)).exit_code == 3
    for url in ("http://127.0.0.1:1", "127.0.0.1:x", "", "http://"):
        assert run("status", "--url", url or " ").exit_code == 3
    peer.body = b"<html>"
    result = run("status", "--url", peer.url)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)


def test_a_peer_that_was_stopped_is_not_waited_for_as_for_an_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "_CALL_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as stopped:  # takes a connection, and says nothing
        result = run("status", "--url", f"http://127.0.0.1:{stopped.getsockname()[1]}")
    assert result.exit_code == 3
    assert "timed out" in result.stderr


def test_an_answer_is_printed_as_it_comes_and_its_way_made_harmless(peer: Peer):
    end = event(p2pmesh={**WAY["p2pmesh"], "receipt": {"said": "00"}})
    peer.says(event(**WAY), event("one "), event("two"), end, event(usage={"total_tokens": 3}))
    shown = run("ask", "a", "b", "--route", "--model", "m", "--temperature", "0", "--url", peer.url)
    assert (shown.stdout, shown.stderr) == ("one two\n", "answered by ada > bücher\ufffd[2J\n")
    asked = json.loads(peer.asked)
    assert (asked["messages"], asked["temperature"]) == ([{"role": "user", "content": "a b"}], 0.0)
    told = json.loads(run("ask", "a", "--json", "--url", peer.url).stdout)
    assert told == {
        "id": "chatcmpl-7",
        "text": "one two",
        "served_by": "bücher\x1b[2J",
        "path": ["ada", "bücher\x1b[2J"],
        "model": "m",
        "usage": {"total_tokens": 3},
        "receipt": {"said": "00"},
    }


def test_an_answer_that_breaks_off_ends_its_line_and_says_why(peer: Peer):
    peer.says(event("half", **WAY), {"error": {"message": "it went away", "code": "peer_lost"}})
    result = run("ask", "x", "--url", peer.url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "half\n", "p2pmesh: it went away\n")
    peer.says(event("half", **WAY), end="")
    result = run("ask", "x", "--url", peer.url)
    why = f"p2pmesh: the peer at {peer.url} went away amid the answer"
    assert (result.exit_code, result.stderr) == (
        1,
        f"{why}; given a second --url, the rest would come from there\n",
    )


def test_an_interrupted_verb_says_nothing_and_exits_as_a_shell_expects(monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "find", interrupt)
    result = run("ask", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("code", ["mesh_overloaded", "no_route", "engine_failed"])
def test_where_one_peer_cannot_the_next_that_was_named_is_asked(peer: Peer, other: Peer, code: str):
    peer.fails(503, code)
    other.says(event("whole", **WAY))
    assert run("ask", "x", "--url", peer.url, "--url", other.url).stdout == "whole\n"
    peer.fails(400, "invalid_request")
    assert run("ask", "x", "--url", peer.url, "--url", other.url).exit_code == 1


def test_one_that_falls_silent_amid_an_answer_is_left_for_the_next(
    peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
):
    """A machine that is frozen or unplugged closes nothing."""
    monkeypatch.setattr(client, "_STALL_S", 0.1)
    peer.says(event("half ", **WAY), end="")
    peer.body = b"id: mark\n" + peer.body
    peer.thaw.clear()
    other.says(event("and half", **WAY))
    result = run("ask", "x", "--url", peer.url, "--url", other.url)
    assert (result.exit_code, result.stdout) == (0, "half and half\n")


def test_where_one_peer_may_not_give_the_rest_the_next_is_asked(peer: Peer, other: Peer):
    """It may not see the zone that the answer is of, and says that nobody holds it."""
    peer.says(event("half ", **WAY), end="")
    peer.body = b"id: mark\n" + peer.body
    other.fails(404, "answer_not_found")
    with serving_peer() as third:
        third.says(event("and half", **WAY))
        urls = [flag for one in (peer, other, third) for flag in ("--url", one.url)]
        result = run("ask", "x", *urls)
        assert (result.exit_code, result.stdout) == (0, "half and half\n")
        assert run("ask", "x", *urls[:4]).exit_code == 1


def test_a_table_is_aligned_and_other_peers_cannot_steer_the_terminal(peer: Peer):
    row = {
        "id": "x" * 20,
        "alive": True,
        "distance": 1,
        "rtt_ms": 0.5,
        "skills": [],
        "models": [],
        "zones": ["hr"],
        "load": None,
    }
    far = {**row, "name": "\x1b]0;evil\x07", "distance": -1, "rtt_ms": None}
    peer.body = json.dumps({"peers": [{**row, "name": "a-long-name"}, far]}).encode()
    head, first, second = run("peers", "--url", peer.url).stdout.splitlines()
    assert head.index("ID") == first.index("x" * 8) == second.index("x" * 8)
    assert "out of reach" in second
    assert "0.5 ms" in first
    assert first.index("hr") == head.index("ZONES")
    assert "\x1b" not in second
    assert "\x07" not in second


def test_status_says_how_each_engine_does(peer: Peer):
    engine = {"name": "m", "state": "ready", "detail": "", "pid": 7}
    metrics = {"running": 2, "waiting": 1, "ttft_s": 0.256, "decode_tps": 61.4}
    told = {
        "name": "a",
        "id": "i",
        "alive": 1,
        "links": 0,
        "flights": 0,
        "addresses": [],
        "unreachable": {},
        "mesh": None,
    }
    told["draining"] = True
    peer.body = json.dumps({**told, "engines": [{**engine, "metrics": metrics}, engine]}).encode()
    assert run("status", "--url", peer.url).stdout.splitlines()[-2:] == [
        "m is ready (pid 7): 2 running, 1 waiting, first token after 0.26 s, then 61 tokens/s",
        "m is ready (pid 7)",
    ]


def test_what_is_no_number_and_no_text_is_wrong_usage(peer: Peer, monkeypatch: pytest.MonkeyPatch):
    for args, said in (
        (["ask", "x", "--temperature", "nan"], "--temperature must be a number"),
        (["ask", "caf\udce9"], "not UTF-8"),
        (["explain", ""], "the prompt is empty"),
        (["explain", "-"], "the prompt is empty"),
    ):
        result = run(*args, "--url", peer.url)
        assert (result.exit_code, said in result.stderr) == (2, True), args
    assert peer.asked == b""
    result = run("status", "--url", peer.url.replace("http:", "ftp:"))
    assert (result.exit_code, "a peer speaks http or https" in result.stderr) == (3, True)


def test_models_and_tune_need_no_peer(tmp_path: Path):
    here = {"XDG_DATA_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    shown = run("models", **here)
    assert (shown.exit_code, shown.stdout.split()[:2]) == (0, ["NAME", "SIZE"])
    assert isinstance(json.loads(run("models", "--json", **here).stdout)["models"], list)
    wrong = run("tune", "nope", **here)
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "there is no model 'nope'" in wrong.stderr


# -------------------------------------------------------------------- flags and the environment


def settings(*args: str, **env: str) -> Any:
    """What `up` would start with."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        flags = dict(up.make_context("up", list(args)).params)
    config_file = flags.pop("config_file")
    for name in ("as_json", "verbose"):
        flags.pop(name)
    return _config(config_file, flags)


def test_flags_become_settings(tmp_path: Path):
    (tmp_path / "art").write_text("who painted it?\n")
    config = settings(
        "--engine", "echo", "--model", "a", "--model", "b", "--tokens-per-s", "7", "--name", "ada",
        "--listen", "/ip4/127.0.0.1/tcp/1", "--join", "/x", "--join", "/y", "--mdns", "--http", "",
        "--state", "s", "--skill", f"art={tmp_path / 'art'}",
    )  # fmt: skip
    assert [(m.model, m.engine, m.tokens_per_s) for m in config.models] == [
        ("a", "echo", 7),
        ("b", "echo", 7),
    ]
    assert (config.name, config.state, config.http.bind, config.net.mdns) == ("ada", "s", "", True)
    assert (config.net.listen, config.net.join) == (("/ip4/127.0.0.1/tcp/1",), ("/x", "/y"))
    assert [(s.name, s.examples) for s in config.skills] == [("art", ("who painted it?",))]


def test_an_echo_needs_no_name_and_no_model_means_none():
    assert [m.model for m in settings("--engine", "echo").models] == ["echo"]
    assert settings("--no-model").models == ()


@pytest.mark.parametrize("flags", [["--model", "letters"], ["--engine", "echo"]])
def test_a_flag_takes_no_zone_off_a_model_in_silence(tmp_path: Path, flags: list[str]):
    """The same model answered everybody."""
    file = tmp_path / "f.toml"
    file.write_text('[[models]]\nmodel = "letters"\nzones = ["hr"]\n')
    with pytest.raises(ConfigError, match=r"the zones that .*letters is for: say in the file"):
        settings("--config", str(file), *flags)
    assert settings("--config", str(file), "--no-model").models == ()
    assert settings("--config", str(file), "--name", "x").models[0].zones == ("hr",)


def test_each_flag_has_the_variable_of_its_name(tmp_path: Path):
    for option in up.params:
        if option.name != "verbose":
            flag = option.opts[0].removeprefix("--")
            assert option.envvar == "P2PMESH_" + flag.replace("-", "_").upper()
    file = tmp_path / "f.toml"
    file.write_text('name = "file"\nstate = "file"\nhttp.bind = "file"\nmodels = []')
    env = {
        "P2PMESH_CONFIG": str(file),
        "P2PMESH_NAME": "env",
        "P2PMESH_STATE": "env",
        "P2PMESH_NO_MODEL": "1",
    }
    config = settings("--name", "flag", **env)
    assert (config.name, config.state, config.http.bind) == ("flag", "env", "file")
    assert settings(P2PMESH_JOIN="/a /b", **env).net.join == ("/a", "/b")
    assert settings(P2PMESH_MDNS="1", **env).net.mdns is True
    assert settings("--no-mdns", P2PMESH_MDNS="1", **env).net.mdns is False


@pytest.mark.parametrize("prompt", [("",), ("  ",), ("", " ")])
def test_an_empty_prompt_is_wrong_usage(prompt: tuple[str, ...]):
    result = run("ask", *prompt)
    assert result.exit_code == 2
    assert "the prompt is empty" in result.stderr


def test_a_prompt_may_come_from_stdin(peer: Peer):
    peer.says(event("hi", **WAY))
    asked = CliRunner().invoke(main, ["ask", "-", "--url", peer.url], input="what is it?\n")
    assert (asked.exit_code, asked.stdout) == (0, "hi\n")
    for wrong, why in ((b" \n", "is empty"), (b"a\xff", "byte 1 is 0xff"), (b"a" * 2_000_000, "longer than")):
        result = CliRunner().invoke(main, ["ask", "-", "--url", peer.url], input=wrong)
        assert (result.exit_code, why in result.stderr) == (2, True)
