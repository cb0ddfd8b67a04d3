"""`p2pmesh up`, which is `python -m p2pmesh.peer`: a peer and its HTTP door, until a signal ends it.

Flags beat the environment, which beats the file, which beats the defaults. What is heavy is imported when it
runs, so that `p2pmesh --help` is not.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from p2pmesh.errors import MeshError


class _Flags(click.Command):
    """Names the nearest flag to a wrong one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse. Raises UsageError, naming the nearest flag."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            known = [name for param in self.params for name in (*param.opts, *param.secondary_opts)]
            near = difflib.get_close_matches(exc.option_name, known, 2)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"no option {exc.option_name}{hint}", ctx) from None


def _option(flag: str, *names: str, **how: Any) -> Callable[[Any], Any]:
    """A flag, and the environment variable of the same name: --tokens-per-s is P2PMESH_TOKENS_PER_S."""
    variable = "P2PMESH_" + flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(flag, *names, envvar=variable, **how)


@click.command(cls=_Flags, context_settings={"show_default": False, "help_option_names": ["-h", "--help"]})
@_option("--model", "models", multiple=True, metavar="PATH-or-NAME", help="A model to serve; repeatable.")
@_option("--no-model", is_flag=True, help="Serve none: ask and relay only.")
@_option("--engine", type=click.Choice(["llama", "echo"]), default=None, help="What runs the models.")
@_option("--tokens-per-s", type=float, default=None, help="Speed of --engine echo.")
@_option("--skill", "skills", multiple=True, metavar="NAME=FILE", help="A skill and its example prompts.")
@_option("--name", default=None, help="What people call this peer.")
@_option("--listen", multiple=True, metavar="MULTIADDR", help="Where to listen; repeatable.")
@_option("--join", multiple=True, metavar="MULTIADDR", help="A peer to meet first; repeatable.")
@_option("--mdns/--no-mdns", default=None, help="Look for peers on the local network.")
@_option("--http", metavar="HOST:PORT", default=None, help='Where to serve HTTP; "" for nowhere.')
@_option("--state", default=None, metavar="DIR", help="Where the key is kept.")
@_option("--config", "config_file", default=None, metavar="FILE", help="A TOML file with all of this.")
@_option("--json", "as_json", is_flag=True, help="Say one JSON object when ready.")
@click.option("-v", "--verbose", count=True, help="Log to stderr; twice for more.")
def up(config_file: str | None, as_json: bool, verbose: int, **flags: Any) -> None:
    """Start a peer, and serve it until SIGTERM or Ctrl-C.

    Each flag may be given as an environment variable instead: --name as P2PMESH_NAME.
    """
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for foreign in ("libp2p", "multiaddr", "zeroconf"):
        logging.getLogger(foreign).setLevel(max(level, logging.ERROR))
    try:
        config = _config(config_file, flags)
        _run(config, as_json)
    except MeshError as exc:
        from p2pmesh.errors import ConfigError

        click.echo(f"p2pmesh: {exc}", err=True)
        sys.exit(2 if type(exc) is ConfigError else 1)


def _config(config_file: str | None, flags: dict[str, Any]) -> Any:
    """The settings of file and flags together."""
    from p2pmesh.peer import settings

    over: dict[str, Any] = {}
    for name in ("name", "state"):
        if flags[name] is not None:
            over[name] = flags[name]
    for section, name in (("net", "mdns"), ("net", "listen"), ("net", "join")):
        if flags[name] not in (None, ()):
            value = flags[name]
            over.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    if flags["http"] is not None:
        over["http"] = {"bind": flags["http"]}
    models = _models(flags)
    if models is not None:
        if models:
            _check_labels(config_file, settings.load(config_file).models)
        over["models"] = models
    if flags["skills"]:
        over["skills"] = [_skill(text) for text in flags["skills"]]
    config = settings.load(config_file, over)
    if not config.models and not flags["no_model"]:
        config = settings.with_default_model(config)
    return config


def _check_labels(config_file: str | None, models: Any) -> None:
    """Raise ConfigError where flags would take the place of models that are for zones alone: the same model
    would answer everybody."""
    from p2pmesh.errors import ConfigError

    if labelled := [model.model for model in models if model.zones]:
        raise ConfigError(
            f"--model and --engine take the place of all [[models]] of {config_file}, and of the zones that "
            f"{', '.join(labelled)} is for: say in the file what to serve"
        )


def _models(flags: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The models that flags name; None: none, so that a file's stand."""
    if flags["no_model"]:
        if flags["models"]:
            raise click.UsageError("--no-model and --model exclude each other")
        return []
    names = flags["models"] or (("echo",) if flags["engine"] == "echo" else ())
    common = {"engine": flags["engine"], "tokens_per_s": flags["tokens_per_s"]}
    given = {name: value for name, value in common.items() if value is not None}
    return [{"model": name, **given} for name in names] or None


def _skill(text: str) -> dict[str, Any]:
    from p2pmesh.errors import ConfigError
    from p2pmesh.peer import settings

    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise ConfigError(f"--skill must be NAME=FILE, not {text!r}")
    return {"name": name, "examples": list(settings.examples(Path(file)))}


def _run(config: Any, as_json: bool) -> None:
    import resource

    import trio

    from p2pmesh.peer.background import background

    async def main() -> None:
        drain, stop, ready = trio.Event(), trio.Event(), trio.Event()
        async with background() as nursery:
            await nursery.start(_until_signal, drain, stop, ready, nursery.cancel_scope)
            await _serve(config, as_json, drain, stop, ready)

    with suppress(ValueError, OSError):  # it is lower already. 1, and not 0, stops one to a program, too
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # prompts and keys must not end up in a core file
    trio.run(main)


async def _until_signal(drain: Any, stop: Any, ready: Any, scope: Any, *, task_status: Any) -> None:
    """End the peer at a signal: when what it has begun has ended, at the second one or while it starts at
    once."""
    import trio

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        signalled = False
        async for _ in signals:
            if signalled:
                stop.set()
            signalled = True
            drain.set()
            if not ready.is_set():
                scope.cancel()


async def _call_after(event: Any, then: Any) -> None:
    await event.wait()
    then()


async def _serve(config: Any, as_json: bool, drain: Any, stop: Any, ready: Any) -> None:
    from contextlib import AsyncExitStack, closing

    from p2pmesh.gateway.server import listen, open_gateway, open_public
    from p2pmesh.peer import state
    from p2pmesh.peer.background import background
    from p2pmesh.peer.peer import open_peer

    async with AsyncExitStack() as stack:
        # Before the models are loaded: whether the door's address can be had is known at once.
        listener = stack.enter_context(closing(listen(config.http.bind))) if config.http.bind else None
        peer = await stack.enter_async_context(open_peer(config))
        url = ""
        if listener is not None:
            url = await stack.enter_async_context(open_gateway(peer, stop.set, listener, drain.set))
        public = await stack.enter_async_context(open_public(peer)) if config.http.public else ""
        able = peer.members()[0].capability
        models = [model.name for model in able.models]
        told = {
            "id": peer.id,
            "name": peer.name,
            "addresses": list(peer.addresses),
            "http": url,
            "public": public,
            "models": models,
            "pid": os.getpid(),
        }
        stack.enter_context(state.announced(peer.state_directory, {**told, "token": peer.token}))
        if as_json:
            click.echo(json.dumps(told))
        else:
            serves, mesh = ", ".join(models) or "no model", peer.status()["mesh"]
            where = f" in the mesh {mesh['name']}" if mesh else ""
            joins = f"join {' '.join(peer.addresses)}"
            click.echo(f"{peer.name} is up{where}: {serves}; HTTP {url or 'off'}; {joins}")
            if public:
                click.echo(f"others ask at {public} with a key: `p2pmesh key create NAME`", err=True)
            if mesh and mesh["outside"]:
                click.echo(
                    f"p2pmesh: nobody lets this peer in: {mesh['outside']}; get a new ticket", err=True
                )
        if models and not able.space and config.embedder == "auto":
            click.echo(
                "p2pmesh: the embedder is missing, so this peer does not know what a prompt is about; "
                "`python -m p2pmesh.engine.embedder` makes it",
                err=True,
            )
        ready.set()
        async with background() as nursery:
            nursery.start_soon(_call_after, stop, nursery.cancel_scope.cancel)
            await drain.wait()
            await peer.drain()
        await peer.leave()
