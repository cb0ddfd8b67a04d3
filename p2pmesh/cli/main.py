"""`p2pmesh`: the verbs. Each imports what it needs when it runs, so that the quick ones stay quick.

stdout is data, stderr is talk. Exit codes: 0 well, 1 an error, 2 wrong usage, 3 no peer runs, 4 no peer
serves the model, 5 out of time, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from p2pmesh.cli import client
from p2pmesh.cli.key import key
from p2pmesh.cli.mesh import invite, join, mesh, revoke, withdraw
from p2pmesh.cli.up import up
from p2pmesh.cli.verify import verify

_STDIN_BYTES_MAX = 2**20
"""As `http.body_bytes_max`: what is longer no peer takes."""
_CODES = {"model_not_found": 4, "deadline_exceeded": 5}


class _Verbs(click.Group):
    """Names the nearest verb to a wrong one, and turns our errors into one line and an exit code."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb meant. Raises UsageError, naming the nearest."""
        import difflib

        if args and not args[0].startswith("-") and args[0] not in self.commands:
            near = difflib.get_close_matches(args[0], list(self.commands), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no verb {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except client.NoPeer as exc:
            _stop(str(exc), 3)
        except client.Unsuccessful as exc:
            _stop(str(exc), _CODES.get(exc.code, 1))
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)  # as a shell tells it; click's own is 1, which is an error
        except BrokenPipeError:
            raise
        except OSError as exc:
            _stop(f"cannot write the output: {exc.strerror}", 1)


def _stop(text: str, code: int) -> None:
    click.echo(f"p2pmesh: {text}", err=True)
    sys.exit(code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="p2pmesh")
def main() -> None:
    """A mesh of language models that nobody leads."""


main.add_command(up)
main.add_command(mesh)
main.add_command(invite)
main.add_command(join)
main.add_command(revoke)
main.add_command(withdraw)
main.add_command(verify)
main.add_command(key)


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def demo(args: tuple[str, ...]) -> None:
    """Start a mesh on this machine, ask it a few questions, and check the answers."""
    from p2pmesh.cli.demo import demo as run

    run.main(list(args), prog_name="p2pmesh demo")


_URL = click.option("--url", default=None, envvar="P2PMESH_URL", help="URL of the peer.")
_URLS = click.option(
    "--url",
    "urls",
    multiple=True,
    envvar="P2PMESH_URL",
    help="URL of the peer. Given several times, the next one is turned to when one dies, amid an answer too.",
)


def _verb(function: Callable[..., None], url: Callable[..., Any] = _URL) -> Callable[..., None]:
    """The options of every verb that talks to a running peer."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--state", default="", envvar="P2PMESH_STATE", help="State directory of the peer."),
        url,
    ):
        function = option(function)
    return function


def _asking(function: Callable[..., None]) -> Callable[..., None]:
    """The same, of a verb that can turn to another peer."""
    return _verb(function, _URLS)


class _Prompted(click.Command):
    """Says how to write a prompt that begins with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse. Raises UsageError."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            raise click.UsageError(
                f"no option {exc.option_name}; if it belongs to the prompt, put -- before the prompt", ctx
            ) from None


@main.command(cls=_Prompted)
@_asking
@click.argument("prompt", nargs=-1, required=True)
@click.option("--model", default="auto", show_default=True, help="A model's name, or auto.")
@click.option(
    "--zone", default="general", show_default=True, help="Only peers that may see it get to see it."
)
@click.option("--max-tokens", type=int, default=None, help="Longest answer.")
@click.option("--temperature", type=float, default=None, help="0 takes the likeliest token each time.")
@click.option("--route", is_flag=True, help="Say on stderr who answered, and the way there.")
def ask(
    prompt: tuple[str, ...],
    model: str,
    zone: str,
    max_tokens: int | None,
    temperature: float | None,
    route: bool,
    urls: tuple[str, ...],
    state: str,
    as_json: bool,
) -> None:
    """Ask the mesh. The answer goes to stdout as it comes. PROMPT may be -, to read it from stdin."""
    if temperature is not None and not math.isfinite(temperature):
        raise click.UsageError(f"--temperature must be a number, not {temperature}")
    text = _text(prompt)
    body: dict[str, Any] = {
        "model": model,
        "zone": zone,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name, value in (("max_tokens", max_tokens), ("temperature", temperature)):
        if value is not None:
            body[name] = value
    answer: dict[str, Any] = {
        "id": "",
        "text": "",
        "served_by": "",
        "path": [],
        "model": model,
        "usage": None,
        "receipt": None,
    }
    bases = urls or (client.find(None, state),)
    try:
        for event in client.events(bases, "/v1/chat/completions", body):
            _take(answer, event)
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                answer["text"] += piece
                if not as_json:
                    click.echo(piece, nl=False)
    finally:
        if not as_json and answer["path"]:
            click.echo()  # an answer that breaks off ends its line, too
    if as_json:
        click.echo(json.dumps(answer))
    elif route:
        click.echo(f"answered by {' > '.join(map(client.printable, answer['path']))}", err=True)


def _text(prompt: tuple[str, ...]) -> str:
    """The prompt, from stdin where it is "-". Raises UsageError for an empty one."""
    text = _stdin() if prompt == ("-",) else " ".join(prompt)
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise click.UsageError("the prompt is not UTF-8")
    return text


def _stdin() -> str:
    """The prompt from stdin. Raises UsageError for what is no text, or too long for any peer."""
    if sys.stdin is None:
        raise click.UsageError("the prompt is to come from stdin, which is closed")
    data = sys.stdin.buffer.read(_STDIN_BYTES_MAX + 1)
    if len(data) > _STDIN_BYTES_MAX:
        raise click.UsageError(f"the prompt on stdin is longer than {_STDIN_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise click.UsageError(
            f"the prompt on stdin is not UTF-8: byte {exc.start} is {data[exc.start]:#04x}"
        ) from None


def _take(answer: dict[str, Any], event: dict[str, Any]) -> None:
    """Keep what an event tells beside its text."""
    answer["usage"] = event.get("usage", answer["usage"])
    answer["model"], answer["id"] = event["model"], event["id"]
    if "p2pmesh" in event:
        answer["receipt"] = event["p2pmesh"].get("receipt", answer["receipt"])
        answer["path"] = [hop["name"] for hop in event["p2pmesh"]["path"]]
        answer["served_by"] = answer["path"][-1]


@main.command()
@_verb
def status(url: str | None, state: str, as_json: bool) -> None:
    """How the running peer is."""
    told = client.call(client.find(url, state), "GET", "/mesh/v1/status")
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo(f"{told['name']}  {told['id']}")
    click.echo(f"peers alive: {told['alive']}, links: {told['links']}, queries in flight: {told['flights']}")
    if told["draining"]:
        click.echo("it is about to go, and takes nothing new")
    if told["mesh"] is None:
        click.echo("in no mesh: whoever can reach it can join it")
    else:
        outside = f", but not let in any more: {told['mesh']['outside']}" if told["mesh"]["outside"] else ""
        signs = ", and signs for it" if told["mesh"]["signs"] else ""
        click.echo(f"in the mesh {client.printable(told['mesh']['name'])}{signs}{outside}")
        if zones := [zone for zone in told["mesh"]["zones"] if zone != "general"]:
            click.echo(f"it may see, beside the general zone: {client.printable(', '.join(zones))}")
        now, *later = told["mesh"]["signers"]
        coming = "".join(f", {len(row['signers'])} from {_when(row['since'])} on" for row in later)
        click.echo(f"signers: {len(now['signers'])}{coming}")
        if told["mesh"]["unkept"]:
            click.echo(f"what it has heard since is not kept: {told['mesh']['unkept']}")
    for address in told["addresses"]:
        click.echo(f"join at {address}")
    for why in told["unreachable"].values():
        click.echo(f"cannot reach {why}; trying on")
    for engine in told["engines"]:
        detail = f": {engine['detail']}" if engine["detail"] else ""
        pid = f" (pid {engine['pid']})" if engine["pid"] else ""
        click.echo(f"{engine['name']} is {engine['state']}{detail}{pid}{_doing(engine.get('metrics'))}")


def _when(since: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))


def _doing(metrics: dict[str, Any] | None) -> str:
    """How an engine does, where it has told."""
    if not metrics:
        return ""
    return (
        f": {metrics['running']} running, {metrics['waiting']} waiting, first token after "
        f"{metrics['ttft_s']:.2f} s, then {metrics['decode_tps']:.0f} tokens/s"
    )


@main.command()
@_verb
def peers(url: str | None, state: str, as_json: bool) -> None:
    """Who is here, as seen by the running peer."""
    told = client.call(client.find(url, state), "GET", "/mesh/v1/peers")
    if as_json:
        click.echo(json.dumps(told))
        return
    head = ("NAME", "ID", "LINKS", "RTT", "SKILLS", "MODELS", "ZONES", "WAIT")
    _table([head, *map(_peer_row, told["peers"])])


@main.command(cls=_Prompted)
@_verb
@click.argument("prompt", nargs=-1, required=True)
@click.option("--model", default="auto", show_default=True, help="A model's name, or auto.")
@click.option("--zone", default="general", show_default=True, help="As of a query that only some may see.")
def explain(
    prompt: tuple[str, ...], model: str, zone: str, url: str | None, state: str, as_json: bool
) -> None:
    """Where a prompt would go from the running peer, and why; nobody is asked."""
    body = {"prompt": _text(prompt), "model": model, "zone": zone}
    told = client.call(client.find(url, state), "POST", "/mesh/v1/explain", body)
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo(client.printable(told["why"]))
    head = ("PEER", "MODEL", "SKILL", "QUALITY", "WAIT", "WORK", "RTT", "J", "")
    _table([head, *map(_scored_row, told["table"])])


@main.command(name="id")
@_verb
def id_(url: str | None, state: str, as_json: bool) -> None:
    """The running peer's id, and where others can join it."""
    told = client.call(client.find(url, state), "GET", "/mesh/v1/status")
    if as_json:
        click.echo(json.dumps({name: told[name] for name in ("id", "name", "addresses")}))
        return
    click.echo("\n".join(told["addresses"] or [told["id"]]))


@main.command()
@_verb
def stop(url: str | None, state: str, as_json: bool) -> None:
    """End the running peer at once; it says goodbye to its neighbours first, and is gone when this returns.

    Answers that it writes for others go on elsewhere; those that were asked of it end in an error. See
    `drain`."""
    base = client.find(url, state)
    told = client.call(base, "POST", "/mesh/v1/stop", {})
    client.wait_gone(base, url is None, state)
    if as_json:
        click.echo(json.dumps(told))


@main.command()
@_verb
def drain(url: str | None, state: str, as_json: bool) -> None:
    """End the running peer once what it has begun has ended: it takes no new work, and hands over what waits.

    After `relay.drain_s` seconds it goes all the same: answers that it writes for others go on elsewhere, and
    those that were asked of it end in an error. SIGTERM and Ctrl-C do the same; a second one ends it at
    once."""
    base = client.find(url, state)
    told = client.call(base, "POST", "/mesh/v1/drain", {})
    client.wait_gone(base, url is None, state, told["grace_s"])
    if as_json:
        click.echo(json.dumps(told))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models(as_json: bool) -> None:
    """The models on this machine that a peer can be told to serve by name."""
    from p2pmesh.engine import catalog

    found = catalog.listing()
    if as_json:
        click.echo(json.dumps({"models": found}))
        return
    head = ("NAME", "SIZE", "FORMAT", "CONTEXT", "LICENCE", "TEMPLATE", "SHA-256", "")
    _table([head, *map(_model_row, found)])


@main.command()
@click.argument("model")
@click.option("--undo", is_flag=True, help="Serve the original again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tune(model: str, undo: bool, as_json: bool) -> None:
    """Measure whether this machine serves MODEL faster in another quantisation, and keep a copy if so.

    A running peer uses it when it is started the next time."""
    from dataclasses import asdict

    from p2pmesh.engine import catalog
    from p2pmesh.engine import tune as engine_tune
    from p2pmesh.errors import MeshError

    try:
        if undo:
            catalog.forget_tuned(catalog.find(model))
            return
        outcome = engine_tune.tune(model, lambda line: click.echo(line, err=True))
    except MeshError as exc:
        raise click.ClickException(str(exc)) from None
    if as_json:
        click.echo(json.dumps(asdict(outcome)))
        return
    head = ("FORMAT", "SIZE", "READS", "WRITES", "EIGHT WRITE", "PERPLEXITY")
    _table([head, *(_tried_row(figures) for figures in outcome.tried)])
    click.echo(f"{outcome.kept or 'the original'} is used from the next start on: {outcome.why}")


def _model_row(row: dict[str, Any]) -> tuple[str, ...]:
    template = "yes" if row["template"] else "no"
    size = f"{row['bytes'] / 1e6:.0f} MB"
    context = str(row["context_tokens"] or "?")
    told = f"as {row['tuned']}" if row["tuned"] else row["detail"]
    digest = row["digest"][:12]
    return (row["name"], size, row["format"], context, row["licence"], template, digest, told)


def _tried_row(figures: Any) -> tuple[str, ...]:
    speeds = (figures.prefill_tps, figures.decode_tps, figures.together_tps)
    told = [f"{speed:.0f} tokens/s" for speed in speeds]
    return (figures.format, f"{figures.bytes / 1e6:.0f} MB", *told, f"{figures.perplexity:.2f}")


def _peer_row(peer: dict[str, Any]) -> tuple[str, ...]:
    return (
        peer["name"],
        peer["id"][-8:],
        "gone" if not peer["alive"] else "out of reach" if peer["distance"] < 0 else str(peer["distance"]),
        "" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms",
        ", ".join(skill["name"] for skill in peer["skills"]),
        ", ".join(model["name"] + _labels(model) for model in peer["models"]),
        ", ".join(peer["zones"]),
        "" if peer["load"] is None else f"{peer['load']['remaining_s']:.1f} s",
    )


def _labels(model: dict[str, Any]) -> str:
    """The zones that a model is for alone."""
    return f" (for {' '.join(model['zones'])})" if model.get("zones") else ""


def _scored_row(row: dict[str, Any]) -> tuple[str, ...]:
    seconds = [f"{row[name]:.2f} s" for name in ("wait_s", "work_s", "rtt_s", "j_s")]
    return (row["peer"], row["model"], row["skill"], f"{row['quality']:.2f}", *seconds, row["why_not"] or "")


def _table(rows: list[tuple[str, ...]]) -> None:
    rows = [tuple(map(client.printable, row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
