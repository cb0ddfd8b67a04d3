"""Peers on the local network, by multicast DNS: announced and heard, if its owner asked for it.

Knows names and addresses; dials nobody and trusts nothing: whoever answers a multicast may lie, and only a
dial proves an id. zeroconf calls back in threads of its own; what it says crosses into trio here, through a
bounded channel that drops when full, for everything is announced again.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from p2pmesh.config import Net
from p2pmesh.errors import ListenError
from p2pmesh.net.address import parse
from p2pmesh.record import PeerId
from p2pmesh.trust.keys import public_key_of

_log = logging.getLogger("p2pmesh.net")

SERVICE = "_p2pmesh._tcp.local."
HEARD_MAX = 64
"""Announcements that wait to be taken; more are dropped until there is room."""
ADDRESSES_MAX = 8
"""Most addresses told or taken of one peer (limits.addresses_max)."""
RESOLVE_MS = 3_000
"""Milliseconds a peer has to answer who it is, after it was heard."""

Heard = tuple[PeerId, tuple[str, ...]]


@asynccontextmanager
async def open_discovery(
    id: PeerId,  # noqa: A002 - the term of the whole project
    addresses: Sequence[str],
    config: Net,
) -> AsyncIterator[trio.MemoryReceiveChannel[Heard]]:
    """Announce `id` at `addresses`, and yield a channel of others' ids and addresses, each as often as it is
    heard.

    Uses only `config.mdns_interface` where that is set. Leaving withdraws the announcement and ends the
    threads. Raises ListenError where multicast is not to be had; nothing was announced.
    """
    sender, receiver = trio.open_memory_channel[Heard](HEARD_MAX)
    listener = _Listener(id, sender, trio.lowlevel.current_trio_token())
    zeroconf = await trio.to_thread.run_sync(_start, id, tuple(addresses), config.mdns_interface, listener)
    try:
        yield receiver
    finally:
        listener.closed = True
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(zeroconf.close)
        sender.close()


class _Listener(ServiceListener):
    """Called in zeroconf's thread."""

    def __init__(
        self, own: PeerId, sender: trio.MemorySendChannel[Heard], token: trio.lowlevel.TrioToken
    ) -> None:
        self.closed = False
        self._own = own
        self._sender = sender
        self._token = token

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        try:
            info = zc.get_service_info(type_, name, timeout=RESOLVE_MS)
            heard = None if info is None else _heard(info.decoded_properties)
            if heard is not None and heard[0] != self._own and not self.closed:
                self._token.run_sync_soon(self._put, heard)
        except Exception as error:  # noqa: BLE001 - strangers' packets, and a close at any moment, in a thread not ours
            _log.debug("mDNS: %r", error)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """A peer that left is found dead by those linked to it."""

    def _put(self, heard: Heard) -> None:
        try:
            self._sender.send_nowait(heard)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            _log.debug("dropped an announcement of %s", heard[0])


def _start(own: PeerId, addresses: tuple[str, ...], interface: str, listener: ServiceListener) -> Zeroconf:
    try:
        if interface:  # zeroconf leaks a socket where it fails
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((interface, 0))
        zeroconf = Zeroconf(
            interfaces=[interface] if interface else InterfaceChoice.Default, ip_version=IPVersion.V4Only
        )
    except (OSError, ZeroconfError) as error:
        raise ListenError(f"no multicast on {interface or 'any interface'}: {error}") from error
    try:
        zeroconf.register_service(_info(own, addresses, interface))
        ServiceBrowser(zeroconf, SERVICE, listener)
    except (OSError, ZeroconfError) as error:
        zeroconf.close()
        raise ListenError(f"cannot announce by multicast: {error!r}") from error
    return zeroconf


def _info(own: PeerId, addresses: tuple[str, ...], interface: str) -> ServiceInfo:
    told = [parse(address) for address in addresses[:ADDRESSES_MAX]]
    properties: dict[str | bytes, str | bytes | None] = {"id": str(own)}
    properties.update({f"a{index}": str(address) for index, address in enumerate(told)})
    numbers = [address.host for address in told if address.protocol == "ip4"] or [interface or "127.0.0.1"]
    return ServiceInfo(
        SERVICE,
        f"{own}.{SERVICE}",
        addresses=[socket.inet_aton(number) for number in numbers],
        port=told[0].port if told else 0,
        properties=properties,
        server=f"{own}.local.",
    )


def _heard(properties: dict[str, str | None]) -> Heard | None:
    """Return who announced itself and where; None for anything that is not a peer with an address."""
    peer = properties.get("id") or ""
    addresses = []
    try:
        public_key_of(peer)
        for index in range(ADDRESSES_MAX):
            text = properties.get(f"a{index}")
            if text:
                addresses.append(str(parse(text)))
    except ValueError:
        return None
    return (PeerId(peer), tuple(addresses)) if addresses else None
