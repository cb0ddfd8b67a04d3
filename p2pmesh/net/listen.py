"""Sockets to be dialled at, and what to tell others about them.

Knows the operating system's errors and turns each into one line for a person. Two peers can never share a
port here: SO_REUSEPORT, with which libp2p's own listener lets a second process steal connections (B3b), is
not set, and Linux then refuses the second bind even where that one sets it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

import trio

from p2pmesh.errors import ConfigError, ListenError
from p2pmesh.net.address import Address, concrete, of_socket, parse

_BACKLOG = 128
"""Connections the operating system holds until they are accepted."""
_ADDRESSES_MAX = 8
"""Most addresses told to others, as many as a record holds (limits.addresses_max)."""


async def listen(addresses: Sequence[str]) -> list[trio.SocketListener]:
    """Return a listening socket for each address.

    Raises ConfigError for an address that is none, ListenError for one that is taken or not ours. No socket
    is left.
    """
    wanted = [_listenable(text) for text in addresses]
    listeners: list[trio.SocketListener] = []
    try:
        for address in wanted:
            listeners.append(await _listen(address))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def announced(announce: Sequence[str], listeners: Sequence[trio.SocketListener]) -> tuple[str, ...]:
    """Return the concrete addresses to tell others, without the peer id: `announce`, or where `listeners`
    listen.

    Raises ConfigError for an address that is none.
    """
    if announce:
        try:
            return tuple(str(parse(text)) for text in announce)[:_ADDRESSES_MAX]
        except ValueError as error:
            raise ConfigError(f"net.announce: {error}") from None
    found: dict[str, None] = {}
    for listener in listeners:
        for address in concrete(of_socket(listener.socket.getsockname())):
            found[str(address)] = None
    return tuple(found)[:_ADDRESSES_MAX]


def _listenable(text: str) -> Address:
    try:
        address = parse(text)
    except ValueError as error:
        raise ConfigError(f"net.listen: {error}") from None
    if not address.is_ip:
        raise ConfigError(f"net.listen: {text!r} is a name; say the number of an interface")
    return address


async def _listen(address: Address) -> trio.SocketListener:
    six = address.protocol == "ip6"
    try:
        sock = trio.socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise _listen_error(address, error) from error
    try:
        # So that a restarted peer gets its port back; it does not let two listen at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
        return trio.SocketListener(sock)
    except OSError as error:
        sock.close()
        raise _listen_error(address, error) from error
    except BaseException:
        sock.close()
        raise


def _listen_error(address: Address, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"cannot listen on {address}: another program does; choose another port, or 0 for a free one"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"cannot listen on {address}: no interface of this machine has that address")
    return ListenError(f"cannot listen on {address}: {os.strerror(error.errno) if error.errno else error}")
