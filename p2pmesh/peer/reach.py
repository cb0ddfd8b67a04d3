"""How far a peer in no mesh may reach: to its own machine, as there is nobody to say who may come.

Knows settings and addresses, and nothing of certificates.
"""

from __future__ import annotations

import ipaddress

from p2pmesh.config import Net
from p2pmesh.errors import ConfigError
from p2pmesh.net.address import parse


def check_loopback(net: Net) -> None:
    """Raise ConfigError for what would let a peer in no mesh be reached, or reach, beyond this machine."""
    if net.mdns and not net.mdns_interface.startswith("127."):
        raise ConfigError(
            "net.mdns finds anybody's peers, and this peer is in no mesh that could tell them apart: found "
            "one with `p2pmesh mesh create`, or join one with `p2pmesh join TICKET`"
        )
    for text in (*net.listen, *net.announce, *net.join):
        check_address(text)


def check_address(text: str) -> None:
    """Raise ConfigError for an address that is not on this machine alone. One that is none passes: the host
    says what is wrong with it."""
    try:
        address = parse(text)
    except ValueError:
        return
    if not (address.is_ip and ipaddress.ip_address(address.host).is_loopback):
        raise ConfigError(
            f"{text} is not on this machine alone, and this peer is in no mesh: whoever is there could "
            "join. Found a mesh with `p2pmesh mesh create`, or join one with `p2pmesh join TICKET`"
        )
