"""The verbs of keys: who may ask this peer over HTTP from another machine, and in which zones."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from p2pmesh.gateway.keys import Keys

_STATE = click.option("--state", default="", envvar="P2PMESH_STATE", help="State directory of the peer.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def key() -> None:
    """Keys for those who ask from other machines, where `http.public` lets them."""


@key.command()
@click.argument("name")
@click.option("--zone", "zones", multiple=True, help="A zone it may ask in beside the general one.")
@click.option("--per-minute", type=click.IntRange(0, 1_000_000), default=0, help="Most queries; 0: any.")
@_STATE
@_JSON
def create(name: str, zones: tuple[str, ...], per_minute: int, state: str, as_json: bool) -> None:
    """Make a key called NAME and print it, once. It is good at once, also where the peer runs."""
    from p2pmesh.errors import ConfigError

    try:
        secret = _keys(state).make(name, zones, per_minute)
    except ConfigError as exc:
        _stop(exc)
    if as_json:
        click.echo(json.dumps({"name": name, "key": secret, "zones": sorted({*zones} - {"general"})}))
        return
    click.echo(secret)
    click.echo("keep it: it is shown this once. Clients send it as their API key (Bearer)", err=True)
    _warn(state)


@key.command(name="list")
@_STATE
@_JSON
def list_(state: str, as_json: bool) -> None:
    """List the keys, without what they are."""
    from p2pmesh.errors import ConfigError

    try:
        rows = _keys(state).rows()
    except ConfigError as exc:
        _stop(exc)
    if as_json:
        told = [
            {"name": row.name, "zones": list(row.zones), "per_minute": row.per_minute, "made": row.made}
            for row in rows
        ]
        click.echo(json.dumps({"keys": told}))
        return
    _warn(state)
    for row in rows:
        made = time.strftime("%Y-%m-%d", time.localtime(row.made))
        often = f"  {row.per_minute} a minute" if row.per_minute else ""
        click.echo(f"{row.name:24s} {made}  {' '.join(('general', *row.zones))}{often}")
    if not rows:
        click.echo("there are no keys: make one with `p2pmesh key create NAME`", err=True)


@key.command()
@click.argument("name")
@_STATE
def remove(name: str, state: str) -> None:
    """Take the key called NAME back, at once."""
    from p2pmesh.errors import ConfigError

    try:
        _keys(state).remove(name)
    except ConfigError as exc:
        _stop(exc)
    click.echo(f"the key {name} is good for nothing from now on", err=True)


def _warn(state: str) -> None:
    """Say where the keys are of no peer: a forgotten --state makes a key that is good nowhere."""
    from p2pmesh.peer import state as states

    path = states.directory(state)
    if not (path / states.KEY).exists():
        click.echo(f"no peer has been started in {path} yet: is --state right?", err=True)


def _keys(state: str) -> Keys:
    from p2pmesh.gateway.keys import Keys
    from p2pmesh.peer import state as states

    return Keys(states.directory(state))


def _stop(failure: Exception) -> NoReturn:
    click.echo(f"p2pmesh: {failure}", err=True)
    sys.exit(1)
