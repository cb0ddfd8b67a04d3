"""Addresses as text: /ip4/192.0.2.1/tcp/4001, with or without /p2p/ID at the end.

The few multiaddresses a TCP wire can use, read and written. Knows the machine's interfaces, to say which of
them "all" means; opens no socket.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

import ifaddr

from p2pmesh.record import PeerId
from p2pmesh.trust.keys import public_key_of

_HOST_PROTOCOLS = ("ip4", "ip6", "dns", "dns4", "dns6")
_TEXT_MAX = 512


@dataclass(frozen=True)
class Address:
    """Where a peer listens, and who is meant to be there."""

    protocol: str
    host: str
    port: int
    peer: PeerId | None = None

    def __str__(self) -> str:
        """The multiaddress, without the peer id."""
        return f"/{self.protocol}/{self.host}/tcp/{self.port}"

    @property
    def is_ip(self) -> bool:
        """Whether the host is a number and needs no name service."""
        return self.protocol in ("ip4", "ip6")


def parse(text: str) -> Address:
    """Return the address that `text` tells. Raises ValueError for anything but TCP over IP or a DNS name."""
    parts = text[: _TEXT_MAX + 1].split("/")
    if len(text) > _TEXT_MAX or len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp":
        raise ValueError(
            f"{text[:80]!r} is not an address like /ip4/192.0.2.1/tcp/4001 (with /p2p/ID behind it: a peer's)"
        )
    protocol, host, port = parts[1], parts[2], parts[4]
    if protocol not in _HOST_PROTOCOLS or not host:
        raise ValueError(f"{text[:80]!r} names none of {', '.join(_HOST_PROTOCOLS)}")
    if protocol in ("ip4", "ip6"):
        number = ipaddress.IPv4Address(host) if protocol == "ip4" else ipaddress.IPv6Address(host)
        host = str(number)
    else:
        _check_name(host)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65_536):
        raise ValueError(f"{text[:80]!r} has no port below 65536")
    peer = None
    if len(parts) == 7:
        if parts[5] != "p2p":
            raise ValueError(f"{text[:80]!r} must end in /p2p/ID")
        public_key_of(parts[6])
        peer = PeerId(parts[6])
    return Address(protocol, host, int(port), peer)


def _check_name(host: str) -> None:
    """Raise ValueError for a name that no name service can be asked for."""
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{host[:80]!r} is not a DNS name") from error
    if not host.isprintable():
        raise ValueError(f"{host[:80]!r} is not a DNS name")


def of_socket(name: tuple[object, ...]) -> Address:
    """Return the address of a socket's name as the operating system tells it: host, port, ..."""
    number = ipaddress.ip_address(str(name[0]).partition("%")[0])
    return Address(f"ip{number.version}", str(number), int(str(name[1])))


def concrete(address: Address) -> tuple[Address, ...]:
    """Return `address`, or, where it means every interface, one address for each.

    Loopback is left out unless there is nothing else: to another machine it means that machine itself.
    """
    if not address.is_ip or not ipaddress.ip_address(address.host).is_unspecified:
        return (address,)
    numbers = [number for number in _interfaces() if f"ip{number.version}" == address.protocol]
    outward = [number for number in numbers if not number.is_loopback]
    return tuple(replace(address, host=str(number)) for number in outward or numbers)


def _interfaces() -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the numbers of this machine's interfaces, without link-local ones: those need a zone to mean
    anything."""
    numbers = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            number = ipaddress.ip_address(text)
            if not number.is_link_local:
                numbers.append(number)
    return numbers
