"""The verbs of a private mesh: found one, let machines in, throw them out. Each says what to do next.

`create` and `join` work on the state directory of a peer that does not run; the others talk to one that does.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import click

from p2pmesh.cli import client

_ID_CHARS_MIN = 50
"""An id has 52 characters, a name rarely so many."""
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_STATE = click.option("--state", default="", envvar="P2PMESH_STATE", help="State directory of the peer.")
_URL = click.option("--url", default=None, envvar="P2PMESH_URL", help="URL of the peer.")
_ANEW = click.option("--anew", is_flag=True, help="Although this machine signed one nobody else will sign.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class Span(click.ParamType[float]):
    """A time span, like 90s, 30m, 12h or 7d, in seconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return it in seconds. Fails for anything else."""
        if isinstance(value, (int, float)):
            return float(value)
        number, unit = value[:-1], value[-1:]
        if not (number.isascii() and number.isdigit() and len(number) < 9 and unit in _UNITS):
            self.fail(f"{value!r} is no time span like 90s, 30m, 12h or 7d", param, ctx)
        return float(int(number) * _UNITS[unit])


@click.group()
def mesh() -> None:
    """A private mesh: one that lets in only whom its signers have let in."""


@mesh.command()
@click.argument("name", default="mesh")
@click.option("--zone", "zones", multiple=True, help="A zone this peer may see beside the general one.")
@_STATE
@_JSON
def create(name: str, zones: tuple[str, ...], state: str, as_json: bool) -> None:
    """Found a mesh called NAME, on this machine alone; the key that lets others in stays here."""
    from p2pmesh.errors import MeshError
    from p2pmesh.net.identity import load_or_create
    from p2pmesh.peer import credentials
    from p2pmesh.peer import state as states

    path = states.directory(state)
    try:
        with states.locked(path):
            standing = credentials.found(path, load_or_create(path / states.KEY), name, zones)
    except MeshError as exc:
        _stop(exc)
    if as_json:
        click.echo(json.dumps({"name": name, "id": standing.roster.mesh.hex(), "peer": standing.me}))
        return
    click.echo(
        f"the mesh {name} is founded; who has {path / credentials.SIGNER_KEY} lets others in: keep a copy"
    )
    flag = f" --state {state}" if state else ""
    click.echo(f"start it: `p2pmesh up{flag} --listen /ip4/0.0.0.0/tcp/4001`, then `p2pmesh invite{flag}`")


@mesh.command()
@_STATE
@_JSON
def key(state: str, as_json: bool) -> None:
    """Make a signer's key on this machine, if there is none, and print its word.

    `p2pmesh mesh change --add WORD`, where one signs already, lets it sign too."""
    from p2pmesh.errors import ConfigError, MeshError
    from p2pmesh.net.identity import load_or_create
    from p2pmesh.peer import credentials, signers
    from p2pmesh.peer import state as states

    path = states.directory(state)
    try:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"cannot use the state directory {path}: {exc.strerror}") from None
        made = load_or_create(path / credentials.SIGNER_KEY)
    except MeshError as exc:
        _stop(exc)
    word = signers.word_of(made)
    if as_json:
        click.echo(json.dumps({"key": word, "id": made.id}))
        return
    click.echo(word)
    click.echo(f"the key {made.id}; a peer that runs here takes it up when it starts next", err=True)


@mesh.command()
@click.option(
    "--add", multiple=True, metavar="WORD", help="A key that signs too, as `p2pmesh mesh key` prints it."
)
@click.option(
    "--remove",
    multiple=True,
    metavar="ID",
    help="One that signs no more: `p2pmesh status --json` has the ids.",
)
@click.option("--after", type=Span(), help="When it holds.  [default: 10m; where somebody goes, 1d]")
@_ANEW
@_URL
@_STATE
@_JSON
def change(
    add: tuple[str, ...],
    remove: tuple[str, ...],
    after: float | None,
    anew: bool,
    url: str | None,
    state: str,
    as_json: bool,
) -> None:
    """Let others sign for the mesh. Most of those who sign must say so: `p2pmesh mesh sign CHANGE`.

    Until it holds, certificates are renewed that would not hold then, of peers that are linked to one who
    stays. Who is not meanwhile, and whose certificate only those have signed who sign no more, needs a new
    ticket. With --after 0s a stolen key is out at once, and so is everybody whom it alone has let in.
    """
    body = {"add": add, "remove": remove, "after_s": after, "anew": anew}
    _told(_call(url, state, "signers", body), as_json)


@mesh.command()
@click.argument("change")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--at-once", is_flag=True, help="Although nobody can have his certificate renewed before.")
@_ANEW
@_URL
@_STATE
@_JSON
def sign(
    change: str, yes: bool, at_once: bool, anew: bool, url: str | None, state: str, as_json: bool
) -> None:
    """Sign CHANGE, which was proposed on another signer's machine, on this one."""
    from p2pmesh.errors import MeshError
    from p2pmesh.peer import signers

    mesh = client.call(client.find(url, state), "GET", "/mesh/v1/status")["mesh"]
    before = {signer for row in mesh["signers"] for signer in row["signers"]} if mesh else ()
    try:
        lines = signers.describe(signers.parse(change), before)
    except MeshError as exc:
        _stop(exc)
    for line in lines:
        click.echo(line, err=True)
    if not yes and not sys.stdin.isatty():
        _stop("nobody can be asked here: --yes signs it all the same")
    if not yes:
        click.confirm("sign it?", abort=True, err=True)
    _told(_call(url, state, "sign", {"change": change, "anew": anew, "at_once": at_once}), as_json)


def _told(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(told))
    elif told["missing"]:
        click.echo(told["change"])
        click.echo(f"{told['missing']} more must sign it: p2pmesh mesh sign CHANGE", err=True)
    else:
        click.echo(
            "enough have signed it, and all hear of it: `p2pmesh status --json` says who signs", err=True
        )


@click.command()
@click.option("--zone", "zones", multiple=True, help="A zone whoever joins may see beside the general one.")
@click.option("--expires", type=Span(), default="1h", show_default=True, help="How long the ticket is good.")
@click.option("--uses", type=int, default=1, show_default=True, help="How many machines it lets in.")
@click.option("--qr", is_flag=True, help="Show the ticket as a QR code as well, on stderr.")
@_URL
@_STATE
@_JSON
def invite(
    zones: tuple[str, ...], expires: float, uses: int, qr: bool, url: str | None, state: str, as_json: bool
) -> None:
    """Print a ticket that lets another machine join. Whoever has it is let in: show it to nobody else."""
    body = {"zones": list(zones), "expires_s": expires, "uses": uses}
    told = _call(url, state, "invite", body)
    if qr:
        import segno

        segno.make(told["ticket"], error="l", micro=False).terminal(sys.stderr, compact=True)
    if as_json:
        click.echo(json.dumps(told))
        return
    click.echo(told["ticket"])
    click.echo("on the other machine: p2pmesh join TICKET", err=True)
    if all(address.startswith(("/ip4/127.", "/ip6/::1/")) for address in told["addresses"]):
        click.echo(
            "this peer listens on loopback only, so only this machine can use it: see --listen", err=True
        )


@click.command()
@click.argument("ticket")
@_STATE
@_JSON
def join(ticket: str, state: str, as_json: bool) -> None:
    """Join the mesh that TICKET is for, or get a new certificate there: who was away for too long, or was
    thrown out, is in again. The peer of this state directory must not run."""
    from p2pmesh.errors import MeshError

    try:
        told = _join(ticket, state)
    except MeshError as exc:
        _stop(exc)
    if as_json:
        click.echo(json.dumps(told))
        return
    flag = f" --state {state}" if state else ""
    also = "".join(f" and {zone}" for zone in told["zones"] if zone != "general")
    click.echo(f"joined {told['name']}; this peer may see general{also}. Start it with `p2pmesh up{flag}`")


def _join(text: str, state: str) -> dict[str, Any]:
    """Show the ticket where it was given out, and keep what comes of it. Raises MeshError."""
    import time
    from functools import partial

    import trio

    from p2pmesh.config import Config
    from p2pmesh.errors import NetworkError
    from p2pmesh.net.identity import load_or_create
    from p2pmesh.net.knock import knock
    from p2pmesh.peer import credentials
    from p2pmesh.peer import state as states
    from p2pmesh.record import PeerId
    from p2pmesh.trust.papers import shown_for
    from p2pmesh.trust.tickets import Ticket
    from p2pmesh.trust.welcome import welcomed

    ticket = Ticket.parse(text)
    path, config = states.directory(state), Config()
    with states.locked(path):
        identity = load_or_create(path / states.KEY)
        credentials.check_outside(path, identity.id, ticket.mesh)
        failures = []
        for address in ticket.addresses:
            show = partial(knock, identity, config.net, config.limits.frame_bytes_max, PeerId(ticket.peer))
            try:
                granted = trio.run(show, address, shown_for(ticket))
                break
            except NetworkError as exc:
                failures.append(f"{address}: {exc}")
        else:
            raise NetworkError(f"the peer that gave out the ticket: {'; '.join(failures) or 'no address'}")
        standing = welcomed(granted, ticket, identity.id, time.time)
        credentials.joined(path, standing, tuple(f"{a}/p2p/{ticket.peer}" for a in ticket.addresses))
        member = standing.member()
    return {
        "name": standing.roster.name,
        "id": standing.roster.mesh.hex(),
        "peer": standing.me,
        "zones": sorted(member.zones),
        "until": member.until,
    }


@click.command()
@click.argument("ticket")
@_URL
@_STATE
def withdraw(ticket: str, url: str | None, state: str) -> None:
    """Take TICKET back where it was given out: it lets nobody in any more. Whom it has let in stays."""
    told = _call(url, state, "withdraw", {"ticket": ticket})
    click.echo("the ticket is void", err=True)
    for peer in told["let_in"]:
        click.echo(f"it has let in {peer}, which stays: `p2pmesh revoke {peer}` throws it out", err=True)


@click.command()
@click.argument("peer")
@_URL
@_STATE
@_JSON
def revoke(peer: str, url: str | None, state: str, as_json: bool) -> None:
    """Throw PEER, a name or an id, out of the mesh. A new ticket lets it in again."""
    known = client.call(client.find(url, state), "GET", "/mesh/v1/peers")["peers"]
    meant = [other["id"] for other in known if other["name"] == peer]
    if len(peer) >= _ID_CHARS_MIN:
        meant = [peer]  # an id, which no name takes the place of
    if len(meant) > 1:
        raise click.UsageError(f"{len(meant)} peers are called {peer}: say which by its id")
    if not meant:
        raise click.UsageError(
            f"no peer known here is called {peer}: `p2pmesh peers` lists them; or give its id"
        )
    body = {"peer": meant[0]}
    _call(url, state, "revoke", body)
    if as_json:
        click.echo(json.dumps(body))
        return
    click.echo(f"{meant[0]} is thrown out; tickets it has used are void", err=True)
    if not any(other["linked"] for other in known if other["id"] != meant[0]):
        click.echo("nobody has heard of it yet, as this peer has no link: it tells whom it meets", err=True)


def _call(url: str | None, state: str, verb: str, body: dict[str, Any]) -> Any:
    """Ask the running peer for what only those may who can read its state directory."""
    headers = {"x-p2pmesh-token": client.token(state)}
    return client.call(client.find(url, state), "POST", f"/mesh/v1/{verb}", body, headers)


def _stop(failure: Exception | str) -> NoReturn:
    click.echo(f"p2pmesh: {failure}", err=True)
    sys.exit(1)
