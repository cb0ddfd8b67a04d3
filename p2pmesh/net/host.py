"""The wire: links to neighbours, and frames over them.

Knows who it is, where it listens and which links there are; knows nothing of what a frame means, whom to
dial or whether a silent peer is dead. Everything that happens comes out of `receive`, in order for each
peer: LinkUp, its frames, LinkDown. No stranger and no failing link can end a host: every task of a link is
caught at `_guarded`.

There is at most one link to a peer, the same at both ends, for the lower of the two ids decides: it accepts
the first connection that greets and refuses later ones, unless the peer has been started anew.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from p2pmesh.config import Net
from p2pmesh.errors import LocalProtocolError, MeshError, NetworkError, RemoteProtocolError
from p2pmesh.net.address import of_socket, parse
from p2pmesh.net.door import Door, Open
from p2pmesh.net.events import DialFailed, FrameReceived, LinkDown, LinkUp, NetEvent
from p2pmesh.net.identity import Identity
from p2pmesh.net.inbox import Inbox
from p2pmesh.net.link import DUPLICATE, NONCE_BYTES, Duplicate, Link, Priority
from p2pmesh.net.listen import announced, listen
from p2pmesh.net.secure import Connection, ForeignProtocol, Security
from p2pmesh.record import PeerId

__all__ = ["DialFailed", "FrameReceived", "Host", "LinkDown", "LinkUp", "NetEvent", "Priority", "open_host"]

_log = logging.getLogger("p2pmesh.net")

DIALS_MAX = 32
"""Dials under way at once; more wait. Each costs two handshakes' CPU, so more at once would only time out."""
DIALS_WAITING_MAX = 1_024
"""Dials under way and waiting; one more fails. As many as peers are known (membership.members_max)."""
DIAL_ADDRESSES_MAX = 8
"""Addresses tried in one dial, as many as a record holds (limits.addresses_max)."""
INBOX_FRAMES_WORTH = 64
"""How many frames of the greatest length the inbox holds at most, in bytes: 16 MiB by default."""
CLOSE_S = 1.0
"""Seconds a closing host waits for its links to say goodbye."""
ACCEPT_PAUSE_S = 0.1
"""Seconds without accepting after the operating system refused to."""
PROOF_S = 5.0
"""Seconds in which who opened a connection must have proven who he is, and be let in."""
RACE_S = 1.0
"""Seconds the loser of a simultaneous dial waits for the winner before it reports failure."""


@asynccontextmanager
async def open_host(
    identity: Identity, config: Net, frame_bytes_max: int, door: Door | None = None
) -> AsyncIterator[Host]:
    """Listen as `identity` where `config.listen` says, and yield the host.

    `frame_bytes_max`: longest frame sent or taken, in bytes. `door`: who is let in; None: who has no mesh.
    Leaving says goodbye on every link, within CLOSE_S, and leaves no listener, no task and no descriptor
    behind, cancelled or not. Raises ConfigError for an address that is none, and ListenError for one that is
    taken or not ours; nothing then listens.
    """
    listeners = await listen(config.listen)
    failure: Exception | None = None
    try:
        host = Host(identity, config, frame_bytes_max, listeners, door or Open())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host._run)
            try:
                await host._started.wait()
                yield host
            except Exception as error:  # noqa: BLE001 - raised below, as it was: not in the nursery's group
                failure = error
            finally:
                host._stop.set()
        if failure is not None:
            raise failure
    finally:
        for listener in listeners:
            listener.socket.close()


class Host:
    """A running peer's wire. Made by `open_host`; every method but `receive` returns at once."""

    def __init__(
        self,
        identity: Identity,
        config: Net,
        frame_bytes_max: int,
        listeners: Sequence[trio.SocketListener],
        door: Door,
    ) -> None:
        self.id = identity.id
        self.addresses = announced(config.announce, listeners)
        """Where others can dial this peer: concrete multiaddresses without the peer id."""
        self._config = config
        self._frame_bytes_max = frame_bytes_max
        self._listeners = listeners
        self._door = door
        self._security = Security(identity, config, self._note)
        self._nonce = os.urandom(NONCE_BYTES)
        self._counters: Counter[str] = Counter()
        self._inbox: Inbox[NetEvent] = Inbox(config.inbox_frames_max, INBOX_FRAMES_WORTH * frame_bytes_max)
        self._links: dict[PeerId, Link] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._dialling: dict[object, dict[PeerId | None, str]] = {}
        """Dials waiting or under way, and by whom each names, the last address of those who wait for it."""
        self._dial_turns = trio.Semaphore(DIALS_MAX)
        self._greeting = 0
        self._scopes: set[trio.CancelScope] = set()
        self._started = trio.Event()
        self._stop = trio.Event()
        self._ended = False
        self._nursery: trio.Nursery

    @property
    def counters(self) -> Mapping[str, int]:
        """What went wrong on the wire since the start, by kind."""
        return self._counters

    def links(self) -> tuple[PeerId, ...]:
        """Return the peers that frames can be sent to now."""
        return tuple(peer for peer, link in self._links.items() if link.open)

    async def receive(self) -> LinkUp | LinkDown | FrameReceived | DialFailed:
        """Return what happened next. While nobody calls this, the inbox fills and then reading pauses."""
        return await self._inbox.get()

    def send(self, peer: PeerId, data: bytes, priority: Priority) -> bool:
        """Queue a frame to `peer`. False: there is no link, or its outbox is full, and then LinkDown follows.

        Raises LocalProtocolError for a frame longer than `frame_bytes_max`; nothing was sent.
        """
        if len(data) > self._frame_bytes_max:
            raise LocalProtocolError(f"a frame of {len(data)} bytes, at most {self._frame_bytes_max}")
        link = self._links.get(peer)
        return link is not None and link.send(data, priority)

    def dial(self, peer: PeerId | None, addresses: Sequence[str]) -> None:
        """Start to link to `peer`, or to whoever is there, at the first of `addresses` that works. LinkUp or
        DialFailed follows.

        Does nothing where that peer is linked. Where it is being dialled, what follows that dial follows this
        one too: a DialFailed for `peer` and, where another dial named no peer, one for None.
        """
        addresses = addresses[:DIAL_ADDRESSES_MAX]
        key: object = peer or _peer_in(addresses) or tuple(addresses)
        if self._stop.is_set() or self._is_linked(key):
            return
        if key in self._dialling:
            self._dialling[key].setdefault(peer, addresses[-1] if addresses else "")
            return
        if len(self._dialling) >= DIALS_WAITING_MAX or not addresses:
            why = "too many dials at once" if addresses else "no address is known"
            self._start(self._inbox.put, DialFailed(peer, addresses[0] if addresses else "", why))
            return
        self._dialling[key] = {peer: addresses[-1]}
        self._start(self._dial, key, peer, tuple(addresses))

    def hangup(self, peer: PeerId) -> None:
        """End the link to `peer` after what is queued for it, within half a second; LinkDown follows."""
        link = self._links.get(peer)
        if link is not None:
            link.hang_up("hung up")

    # Living and closing

    async def _run(self) -> None:
        """Serve until stopped. Shielded, so that a cancelled peer says goodbye like any other."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self._nursery:
                for listener in self._listeners:
                    self._start(self._accept, listener)
                self._started.set()
                await self._stop.wait()
                self._inbox.close()
                for listener in self._listeners:
                    listener.socket.close()
                for link in self._links.values():
                    link.hang_up("leaving")
                with trio.move_on_after(CLOSE_S):
                    while self._links:
                        await self._changed.park()
                self._ended = True
                for scope in self._scopes:
                    scope.cancel()

    def _start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        self._nursery.start_soon(self._guarded, work, args)

    async def _guarded(self, work: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        """Do one task's work so that its failure ends nothing but itself, and closing ends it."""
        scope = trio.CancelScope()
        if self._ended:
            scope.cancel()
        self._scopes.add(scope)
        try:
            with scope:
                await work(*args)
        except Exception as error:  # noqa: BLE001 - a bug in one link's task must not end the others'
            self._fault(error)
        finally:
            self._scopes.discard(scope)

    def _fault(self, error: Exception) -> None:
        """Tell of a bug of ours; a task that closing interrupts may end in any way."""
        if not self._ended:
            self._counters["failed tasks"] += 1
            _log.error("a task of the wire failed", exc_info=error)

    def _note(self, kind: str, detail: str) -> None:
        """Count what a stranger did wrong; log the first of a kind, so that no stranger can fill the log."""
        self._counters[kind] += 1
        first = self._counters[kind] == 1
        _log.log(
            logging.WARNING if first else logging.DEBUG,
            "%s%s: %s",
            kind,
            " (from now on counted)" if first else "",
            detail,
        )

    # Making links

    async def _accept(self, listener: trio.SocketListener) -> None:
        while True:
            try:
                tcp = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:  # out of descriptors, mostly: let some close
                self._note("refused connections", str(error))
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._greeting + len(self._links) >= self._config.connections_max or (
                self._greeting >= self._config.connections_max // 2
            ):
                self._note("refused connections", "there are too many")
                tcp.socket.close()
                continue
            self._greeting += 1
            self._start(self._welcome, tcp)

    async def _welcome(self, tcp: trio.SocketStream) -> None:
        """Make a link of a connection opened to us, or close it in time: whoever opened it has a place that
        others want."""
        settled = False
        try:
            with trio.fail_after(min(PROOF_S, self._config.dial_timeout_s)):
                address = str(of_socket(tcp.socket.getpeername()))
                connection = await self._security.accept(tcp)
                self._start(connection.run)
                await connection.accepted()
                await self._settle(self._link(connection, address, inbound=True))
                settled = True
        except trio.TooSlowError:
            self._note("half-open connections", "one did not become a link in time")
        except (Duplicate, _NoLink):
            pass
        except ForeignProtocol as error:
            self._note("foreign protocols", str(error))
        except RemoteProtocolError as error:
            self._note("bad frames", str(error))
        except (NetworkError, OSError) as error:
            self._note("failed handshakes", str(error))
        finally:
            self._greeting -= 1
            if not settled:
                tcp.socket.close()

    async def _dial(self, key: object, peer: PeerId | None, addresses: tuple[str, ...]) -> None:
        failures: list[str] = []
        reached = False
        try:
            async with self._dial_turns:
                for text in addresses:
                    failure = await self._dial_one(peer, text)
                    if not failure:
                        reached = True
                        break
                    failures.append(f"{text}: {failure}")
        finally:
            waiting = self._dialling.pop(key)
        if self._is_linked(key):  # by now the peer may have dialled us
            return
        why = "; ".join(failures) or "another peer is there"
        for named, address in waiting.items():
            if not reached or named != peer:
                await self._inbox.put(DialFailed(named, address, why))

    async def _dial_one(self, peer: PeerId | None, text: str) -> str:
        """Try one address; return why it led to no link, or nothing where it did."""
        try:
            address = parse(text)
        except ValueError as error:
            return str(error)
        expected = address.peer or peer
        if peer is not None and expected != peer:
            return "the address is another peer's"
        tcp: trio.SocketStream | None = None
        found = expected
        settled = False
        try:
            with trio.fail_after(self._config.dial_timeout_s):
                tcp = await trio.open_tcp_stream(address.host, address.port)
                connection = await self._security.connect(tcp, expected)
                found = connection.peer
                self._start(connection.run)
                await connection.open()
                await self._settle(self._link(connection, str(address), inbound=False))
                settled = True
        except trio.TooSlowError:
            return f"no answer within {self._config.dial_timeout_s:g} s"
        except Duplicate as error:
            return await self._other_link(found, str(error))
        except (NetworkError, RemoteProtocolError, OSError, UnicodeError) as error:  # the last: of a name
            return str(error) or type(error).__name__
        finally:
            if tcp is not None and not settled:
                tcp.socket.close()
        return ""

    async def _other_link(self, peer: PeerId | None, why: str) -> str:
        """Wait a moment for the link the peer prefers to the one we dialled."""
        with trio.move_on_after(RACE_S):
            while not self._is_linked(peer):
                await self._changed.park()
        return "" if self._is_linked(peer) else why

    def _link(self, connection: Connection, address: str, *, inbound: bool) -> Link:
        return Link(
            connection,
            address,
            inbound=inbound,
            outbox_frames_max=self._config.outbox_frames_max,
            frame_bytes_max=self._frame_bytes_max,
        )

    async def _settle(self, link: Link) -> None:
        """Agree with the peer that this is the link, and carry it from here on. Raises Duplicate where
        another is."""
        await link.greet(self._nonce, self._door.show())
        await self._admit(link)
        if self.id < link.peer:
            other = self._links.get(link.peer)
            if other is not None and other.open and other.nonce == link.nonce:
                await link.refuse(DUPLICATE)
                raise Duplicate(DUPLICATE)
            link.accept()
        else:
            await link.accepted()
        # No await between the decision and the entry: it is this that makes one link.
        old = self._links.get(link.peer)
        self._links[link.peer] = link
        if old is not None:
            old.abort("the peer linked anew")
        self._start(self._carry, link, old)
        self._changed.unpark_all()
        if self._stop.is_set():
            link.hang_up("leaving")

    async def _admit(self, link: Link) -> None:
        """Agree with the peer that each lets the other in. Raises NetworkError where it is not so."""
        try:
            granted = self._door.admit(link.peer, link.shown)
        except MeshError as error:  # not only Untrusted: what it asks for may not be to be had just now
            self._note("strangers", f"{link.peer} was not let in: {error}")
            await link.refuse(str(error))
            raise _NoLink(f"it is not let in: {error}") from None
        if granted:
            await link.grant(granted)
            raise _NoLink("it got what it asked for, which was no link")
        await link.admit()

    # Carrying them

    async def _carry(self, link: Link, old: Link | None) -> None:
        async def deliver(data: bytes) -> None:
            await self._inbox.put(FrameReceived(link.peer, data), len(data))

        try:
            if old is not None:
                await old.done.wait()
            await self._inbox.put(LinkUp(link.peer, link.address, link.inbound))
            try:
                detail = await link.run(deliver)
            except Exception as error:  # noqa: BLE001 - as in `_guarded`, and LinkDown must follow
                self._fault(error)
                detail = "a fault of ours"
            finally:
                self._forget(link)
            if link.violated:
                self._note("bad frames", detail)
            await self._inbox.put(LinkDown(link.peer, detail))
        finally:
            self._forget(link)
            link.done.set()

    def _forget(self, link: Link) -> None:
        link.abort("closing")
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        self._changed.unpark_all()

    def _is_linked(self, key: object) -> bool:
        link = self._links.get(PeerId(key)) if isinstance(key, str) else None
        return link is not None and link.open


class _NoLink(NetworkError):
    """The connection was not to become a link, and has served its purpose."""


def _peer_in(addresses: Sequence[str]) -> PeerId | None:
    """Return the peer that an address ends in, where one does."""
    for text in addresses:
        _, found, peer = text.rpartition("/p2p/")
        if found:
            return PeerId(peer)
    return None
