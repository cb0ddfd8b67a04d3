"""The HTTP server. The only import of hypercorn, so that another could take its place."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import hypercorn.config
import hypercorn.trio

from p2pmesh.errors import ConfigError, ListenError
from p2pmesh.gateway.app import create_app
from p2pmesh.peer.background import background
from p2pmesh.peer.peer import Peer

_log = logging.getLogger("p2pmesh.gateway")
_GRACE_S = 1.0
"""Seconds that running requests have when the server ends."""

_DEAF_S = 5.0
"""Seconds a client may take nothing while its buffers, megabytes, are full; then it is dropped."""


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
        config = hypercorn.config.Config()
        config.graceful_timeout = _GRACE_S
        config.include_server_header = False
        config.errorlog = logging.getLogger("p2pmesh.gateway.http")
        config.accesslog = None
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it from here on
        app = create_app(peer, stop, drain or stop)
        async with background() as nursery:
            await nursery.start(hypercorn.trio.serve, app, config)
            yield url
    finally:
        listener.close()


def _parse(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
        raise ConfigError(f"http.bind must be HOST:PORT, not {bind!r}")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(f"http.bind must be a loopback address, not {host!r}: HTTP has no keys yet")
    return host, int(port)


def listen(bind: str) -> socket.socket:
    """Return a socket that listens at `bind`. Raises ConfigError for an address that is not loopback or not
    HOST:PORT, ListenError when it is taken."""
    host, port = _parse(bind)
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
            f"cannot serve HTTP on {host}:{port}: {exc.strerror}; choose another with --http HOST:PORT"
        ) from None
    listener.setblocking(False)
    return listener
