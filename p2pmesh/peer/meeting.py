"""Whom this peer meets first: whom it was told of, whom it was linked to before, and who calls on the LAN.

Knows addresses, links and one file. Once it is linked to anybody the machine does the rest; who may be in the
mesh the door decides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec
import trio

from p2pmesh.errors import ConfigError
from p2pmesh.net.host import Host
from p2pmesh.peer import state
from p2pmesh.peer.driver import Driver
from p2pmesh.protocol import events as e
from p2pmesh.record import PeerId, PeerRecord

_log = logging.getLogger("p2pmesh.peer")
RETRY_S = 2.0
"""Seconds between tries of those addresses while there is no link at all. A guess."""
RETRY_MAX_S = 30.0
"""Most seconds between tries of those in `net.join` while there are other links, and of those who were met
before."""
KEEP_S = 5.0
"""Seconds between two looks whom to remember. A guess: a peer that lives shorter has met nobody yet."""
BEFORE_MAX = 16
"""Most peers remembered over a restart: some of them will be where they were. A guess."""
ADDRESSES_MAX = 4
"""Most addresses remembered of each."""
_FILE = "met"
_FILE_BYTES_MAX = 65_536

Places = dict[str, list[str]]
"""By the ids of peers, the multiaddresses where they were last."""


def before(path: Path) -> Places:
    """Return whom this peer was linked to when it ran in `path` before. What cannot be read is forgotten: it
    will be made anew."""
    try:
        data = state.kept(path, _FILE, _FILE_BYTES_MAX)
        return {} if data is None else msgspec.msgpack.decode(data, type=Places)
    except (ConfigError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        _log.warning("whom this peer met before is forgotten: %s", exc)
        return {}


def after(known: Places, linked: Iterable[PeerRecord]) -> Places:
    """Return `known` with those that are `linked` now before the others, and no more than are remembered."""
    now = {str(record.id): list(record.addresses[:ADDRESSES_MAX]) for record in linked if record.addresses}
    rest = {peer: addresses for peer, addresses in known.items() if peer not in now}
    return dict([*sorted(now.items()), *rest.items()][:BEFORE_MAX])


async def look_for_others(
    scope: trio.CancelScope, driver: Driver, host: Host, addresses: tuple[str, ...], path: Path | None
) -> None:
    """Until `scope` is cancelled, meet who is at `addresses`, and those who are remembered in the state
    directory `path`; None: nobody is."""
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_joined, driver, host, addresses)
            if path is not None:
                nursery.start_soon(remember, path, driver, before(path))


async def remember(path: Path, driver: Driver, known: Places) -> None:
    """Keep whom this peer is linked to, so that it finds somebody when it comes back and the one who let it
    in is gone; until it is linked to anybody, look for those `known` from before."""
    kept, unkept, pause = known, "", RETRY_S
    while True:
        linked = driver.machine.membership.links
        for peer, addresses in known.items() if not linked else ():
            driver.feed(e.Discovered(PeerId(peer), tuple(addresses)))
        known = after(known, [record for record in driver.machine.records() if record.id in linked])
        if known.items() != kept.items():
            try:
                state.keep(path, _FILE, msgspec.msgpack.encode(known))
                kept = known
            except ConfigError as exc:
                if str(exc) != unkept:
                    _log.warning("whom this peer has met will be forgotten: %s", exc)
                unkept = str(exc)
        await trio.sleep(KEEP_S if linked else pause)
        pause = RETRY_S if linked else min(RETRY_MAX_S, 2 * pause)


async def keep_joined(driver: Driver, host: Host, addresses: tuple[str, ...]) -> None:
    """Dial those that were named until each is linked, ever more slowly unless we are alone."""
    pause = RETRY_S
    while addresses:
        links = host.links()
        missing = [a for a in addresses if (_id_in(a) or driver.met.get(a)) not in links]
        for address in missing if links else addresses:
            host.dial(None, [address])
        pause = min(RETRY_MAX_S, 2 * pause) if links else RETRY_S
        await trio.sleep(pause)


def _id_in(address: str) -> str:
    """Return the peer id that a multiaddress ends in, or "" where it has none."""
    return address.partition("/p2p/")[2]


async def meet(driver: Driver, heard: trio.MemoryReceiveChannel[tuple[PeerId, tuple[str, ...]]]) -> None:
    """Pass on who is heard of on the local network."""
    async for peer, addresses in heard:
        driver.feed(e.Discovered(peer, addresses))
