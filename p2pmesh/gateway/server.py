"""The HTTP server. The only import of hypercorn, so that another could take its place."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from starlette.applications import Starlette

from p2pmesh.errors import ConfigError, ListenError
from p2pmesh.gateway.app import Guest, create_app, create_public_app
from p2pmesh.gateway.keys import Keys
from p2pmesh.peer.background import background
from p2pmesh.peer.peer import Peer

_log = logging.getLogger("p2pmesh.gateway")
_DEAF_S = 5.0
"""Seconds a client may take nothing while its buffers, megabytes, are full; then it is dropped."""
_HANDSHAKE_S = 5.0
"""Seconds for a TLS handshake."""
_KNOWN_S = 10.0
"""Seconds in which a connection from another machine must have shown a key."""


@asynccontextmanager
async def open_gateway(
    peer: Peer,
    stop: Callable[[], None],
    listener: socket.socket | None = None,
    drain: Callable[[], None] | None = None,
) -> AsyncIterator[str]:
    """Serve `peer` over HTTP where its `http.bind` says, and yield the base URL.

    `stop` is called when somebody asks the peer to end, and `drain` (None: `stop`, too) when it is to finish
    what it has begun before that. `listener` is what `listen` returned for that address, where it was wanted
    before the peer was started. Without it raises as `listen`.
    """
    listener = listener or listen(peer.config.http.bind)
    try:
        host, port = listener.getsockname()[:2]
        app = create_app(peer, stop, drain or stop)
        async with background() as nursery:
            nursery.start_soon(_serve, app, trio.SocketListener(trio.socket.from_stdlib_socket(listener)))
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        listener.close()


@asynccontextmanager
async def open_public(peer: Peer) -> AsyncIterator[str]:
    """Serve `peer` to other machines where its `http.public` says, over TLS, to whoever has a key; yield the
    base URL. Raises ConfigError where the certificate or the keys cannot be read, ListenError as `listen`."""
    config = peer.config.http
    context = _context(config.certificate, config.private_key)
    app = create_public_app(peer, Keys(peer.state_directory))
    listener = listen(config.public, public=True)
    try:
        host, port = listener.getsockname()[:2]
        sockets = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        async with background() as nursery:
            nursery.start_soon(_serve, app, trio.SSLListener(sockets, context), config.requests_max)
            yield f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    finally:
        listener.close()


def _context(*named: str) -> ssl.SSLContext:
    """Return what TLS is spoken with: a certificate, and its private key. Raises ConfigError, naming the file
    and what is wrong with it."""
    certificate, private_key = (Path(name).expanduser() for name in named)
    for name, file in (("certificate", certificate), ("private_key", private_key)):
        try:
            data = file.read_bytes()
        except OSError as exc:
            raise ConfigError(f"http.{name}: cannot read {file}: {exc.strerror}") from None
        wanted = b"CERTIFICATE" if name == "certificate" else b"PRIVATE KEY"
        if wanted not in data:
            raise ConfigError(f"http.{name}: {file} holds no PEM block of a {wanted.decode().lower()}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def passphrase() -> str:
        raise ConfigError(f"http.private_key: {private_key} takes a passphrase: keep it without one")

    try:
        context.load_cert_chain(certificate, private_key, passphrase)
    except (OSError, ssl.SSLError) as exc:
        if getattr(exc, "reason", "") == "KEY_VALUES_MISMATCH":
            exc = ssl.SSLError("the private key is another certificate's")
        why = f"{certificate} with {private_key}: {exc.strerror or exc}"
        raise ConfigError(f"http.certificate: {why}") from None
    return context


async def _serve(app: Starlette, listener: trio.abc.Listener[Any], guests_max: int = 0) -> None:
    """Serve `app` until cancelled. Not by `hypercorn.trio.serve`, where a connection that fails, as one does
    whose HTTP/2 client sends on after its answer, takes the server and with it the peer."""
    config = Config()
    config.include_server_header = False
    config.errorlog = logging.getLogger("p2pmesh.gateway.http")
    config.accesslog = None
    config.ssl_handshake_timeout = _HANDSHAKE_S
    wrapped, context = ASGIWrapper(app), WorkerContext(None)  # type: ignore[arg-type]

    guests: list[Guest] = []

    async def connection(stream: trio.abc.Stream) -> None:
        guest = Guest(_address(stream) if guests_max else "")
        if guests_max and not make_room(guests, guest.address, guests_max):
            return await trio.aclose_forcefully(stream)
        guests.append(guest)
        try:
            async with trio.open_nursery() as nursery:
                if guests_max:
                    nursery.start_soon(_until_known, guest, guests, stream, nursery.cancel_scope)
                its = ConnectionState(LifespanState({"guest": guest}))
                await TCPServer(wrapped, config, context, its, stream)  # type: ignore[arg-type]
                nursery.cancel_scope.cancel()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this client's alone
            seen = _log.isEnabledFor(logging.DEBUG)
            _log.warning("an HTTP connection failed and was closed: %r", exc, exc_info=seen)
        finally:
            if guest in guests:
                guests.remove(guest)

    async with trio.open_nursery() as nursery:
        try:
            await trio.serve_listeners(connection, [listener], handler_nursery=nursery)
        finally:
            await context.terminated.set()


def _address(stream: Any) -> str:
    """Return where a connection comes from; nothing where it has gone already."""
    with suppress(OSError):
        return str(stream.transport_stream.socket.getpeername()[0])
    return ""


def make_room(guests: list[Guest], address: str, guests_max: int) -> bool:
    """Return whether there is room for one more, from `address`, who has shown no key yet: such have a
    quarter of it, and those of one address a quarter of that. Where that is taken, the one who has stood
    there for longest goes: who has a key shows it at once, and nobody can shut the door by standing in it."""
    strangers = [guest for guest in guests if not guest.known]
    near = [guest for guest in strangers if guest.address == address]
    if len(near) >= max(1, guests_max // 16):
        goes = near[0]
    elif len(strangers) >= max(1, guests_max // 4) or (strangers and len(guests) >= guests_max):
        most = Counter(guest.address for guest in strangers).most_common(1)[0][0]
        goes = next(guest for guest in strangers if guest.address == most)
    else:
        return len(guests) < guests_max
    guests.remove(goes)
    goes.unwanted.set()
    return True


async def _until_known(
    guest: Guest, guests: list[Guest], stream: trio.abc.Stream, scope: trio.CancelScope
) -> None:
    """Close a connection over which no key was shown in time, or before another wanted its place."""
    with trio.move_on_after(_KNOWN_S):
        await guest.unwanted.wait()
    if guest.known:
        if guest not in guests:  # it was shown just in time
            guests.append(guest)
    else:
        await trio.aclose_forcefully(stream)  # a write to who reads nothing is shielded
        scope.cancel()


def _parse(bind: str, public: bool) -> tuple[str, int]:
    named = "http.public" if public else "http.bind"
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
        raise ConfigError(f"{named} must be HOST:PORT, not {bind!r}")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        if public:
            raise ConfigError(f"http.public must be an IP address and a port, not {bind!r}") from None
        loopback = False
    if not loopback and not public:
        why = "it asks nobody who he is; for other machines there is http.public, with keys and TLS"
        raise ConfigError(f"http.bind must be a loopback address, not {host!r}: {why}")
    return host, int(port)


def listen(bind: str, public: bool = False) -> socket.socket:
    """Return a socket that listens at `bind`. Raises ConfigError for an address that is not HOST:PORT or,
    unless it is `public`, not loopback; ListenError when it is taken."""
    host, port = _parse(bind, public)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every connection: hypercorn shields its writes, so one to a client that reads nothing
        # would keep the whole peer from ending.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(_DEAF_S * 1e3))
        listener.bind((host, port))
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise ListenError(
            f"cannot serve HTTP on {host}:{port}: {exc.strerror}; choose another with "
            f"{'http.public' if public else '--http HOST:PORT'}"
        ) from None
    listener.setblocking(False)
    return listener
