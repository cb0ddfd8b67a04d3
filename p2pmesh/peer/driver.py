"""The real host of a machine: real time, a real wire, real models. The simulator is the other.

It performs effects and feeds events, and decides nothing. `feed` never waits and may be called from anywhere
in this trio run: what happens while effects are performed queues up behind them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeAlias

import trio
from typing_extensions import assert_never

from p2pmesh.errors import LocalProtocolError, Reason, RemoteProtocolError
from p2pmesh.net.host import DialFailed, FrameReceived, Host, LinkDown, LinkUp, Priority
from p2pmesh.peer.models import Models
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.machine import Machine
from p2pmesh.query import Ended, QueryId
from p2pmesh.record import PeerId

_log = logging.getLogger("p2pmesh.peer")

BAD_FRAMES_MAX = 8
"""Bad frames of one link after which it is ended: one may be a bug, a series is an attack."""

UNREACHABLE_MAX = 64
"""Addresses remembered as unreachable, and as met."""

Outcome: TypeAlias = e.Deliver | e.Fail
Sink: TypeAlias = Callable[[Outcome], None]
"""Takes what is delivered to one who asks here. Must not wait."""

_TOKENS = (m.Tokens, m.End, m.Error)
_BULK = (m.Records, m.Evidence, m.Digest, m.Announce, m.Pull)


class Driver:
    """One machine and its host."""

    def __init__(self, machine: Machine, host: Host, models: Models) -> None:
        self.machine = machine
        self.counters: Counter[str] = Counter()
        self.unreachable: dict[str, str] = {}
        """Addresses given by somebody at which nobody was found, and why."""
        self.met: dict[str, PeerId] = {}
        """Who was found at the addresses we dialled."""
        self._host = host
        self._models = models
        self._sinks: dict[QueryId, Sink] = {}
        self._pending: deque[e.Event] = deque()
        self._handling = False
        self._sleep = trio.CancelScope()
        self._bad_frames: Counter[PeerId] = Counter()
        self._closed = False

    # -- for those who ask here -----------------------------------------------------------------------

    def ask(self, asked: e.Asked | e.Claimed, sink: Sink) -> None:
        """Put a query to the mesh, or come for what was put to it elsewhere; `sink` gets everything that
        comes of it, to its end."""
        query_id = asked.query.id if isinstance(asked, e.Asked) else asked.query_id
        if self._closed:
            sink(_left(query_id))
            return
        self._sinks[query_id] = sink
        self.feed(asked)

    def cancel(self, query_id: QueryId) -> None:
        """Nobody waits for it any more. A query that is over is ignored."""
        if self._sinks.pop(query_id, None) is not None:
            self.feed(e.Cancelled(query_id))

    def close(self) -> None:
        """Tell those who still wait that nothing will come, and whoever asks from now on."""
        self._closed = True
        while self._sinks:
            query_id, sink = self._sinks.popitem()
            sink(_left(query_id))

    # -- the loop -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Feed what the wire says and the passing of time, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            while True:
                event = self._from_wire(await self._host.receive())
                if event is not None:
                    self.feed(event)

    def feed(self, event: e.Event) -> None:
        """Let `event` happen now: handle it, and perform what follows."""
        self._pending.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._pending:
                for effect in self.machine.handle(self._pending.popleft(), trio.current_time()):
                    self._perform(effect)
        finally:
            self._handling = False
        self._sleep.deadline = self.machine.deadline

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self.machine.deadline) as self._sleep:
                await trio.sleep(math.inf)
            self.feed(e.Tick())

    def _from_wire(self, event: LinkUp | LinkDown | FrameReceived | DialFailed) -> e.Event | None:
        match event:
            case LinkUp():
                _log.info("linked to %s at %s", event.peer, event.address)
                for address in (event.address, f"{event.address}/p2p/{event.peer}"):
                    self.unreachable.pop(address, None)
                if not event.inbound and len(self.met) < UNREACHABLE_MAX:
                    self.met[event.address] = event.peer
                self._bad_frames.pop(event.peer, None)
                return e.Connected(event.peer)
            case LinkDown():
                _log.info("link to %s ended: %s", event.peer, event.detail)
                return e.Disconnected(event.peer)
            case DialFailed():
                self._not_reached(event)
                return None if event.peer is None else e.DialFailed(event.peer)
            case FrameReceived():
                try:
                    return e.Received(event.peer, self.machine.codec.decode(event.data))
                except RemoteProtocolError as exc:
                    self._bad_frame(event.peer, exc)
                    return None
            case _:
                assert_never(event)

    def _not_reached(self, event: DialFailed) -> None:
        """Tell the first failure at an address somebody gave; those we heard of by gossip come and go."""
        given = event.peer is None
        first = given and event.address not in self.unreachable
        level = logging.WARNING if first else logging.INFO
        _log.log(level, "cannot reach %s: %s%s", event.peer or "a peer", event.detail, "; trying on" * first)
        if given and len(self.unreachable) < UNREACHABLE_MAX:
            self.unreachable[event.address] = event.detail

    def _bad_frame(self, peer: PeerId, error: RemoteProtocolError) -> None:
        self.counters["bad_frames"] += 1
        self._bad_frames[peer] += 1
        if self._bad_frames[peer] == 1:
            _log.warning("peer misbehaving: %s sent a bad frame: %s", peer, error)
        if self._bad_frames[peer] >= BAD_FRAMES_MAX:
            self._host.hangup(peer)

    # -- effects --------------------------------------------------------------------------------------

    def _perform(self, effect: e.Effect) -> None:
        match effect:
            case e.Send():
                self._send(effect)
            case e.Dial():
                self._host.dial(effect.peer, effect.addresses)
            case e.Hangup():
                self._host.hangup(effect.peer)
            case e.Embed():
                self._models.embed(effect.query_id, effect.text)
            case e.Generate():
                self._models.generate(effect.query, effect.model)
            case e.Abort():
                self._models.abort(effect.query_id, effect.attempt)
            case e.Deliver():
                self._deliver(effect)
            case e.Fail():
                self._deliver(effect)
            case e.Notify():
                level = logging.WARNING if effect.peer == self.machine.me else logging.INFO
                _log.log(level, "%s: %s", effect.peer, effect.what)
            case _:
                assert_never(effect)

    def _send(self, effect: e.Send) -> None:
        message = effect.message
        # A query's messages must not overtake one another where order matters: a Cancel its Forward, an
        # End its tokens. Within one priority a link keeps order.
        priority = Priority.CONTROL
        if isinstance(message, _TOKENS):
            priority = Priority.TOKENS
        elif isinstance(message, _BULK):
            priority = Priority.BULK
        try:
            data = self.machine.codec.encode(message)
        except LocalProtocolError as exc:
            self.counters["unsendable"] += 1
            _log.error("a %s cannot be sent: %s", type(message).__name__, exc)
            return
        if not self._host.send(effect.peer, data, priority):
            self.counters["unsent"] += 1

    def _deliver(self, outcome: Outcome) -> None:
        over = isinstance(outcome, e.Fail) or isinstance(outcome.item, Ended)
        sink = self._sinks.pop(outcome.query_id, None) if over else self._sinks.get(outcome.query_id)
        if sink is not None:
            sink(outcome)


def _left(query_id: QueryId) -> e.Fail:
    return e.Fail(query_id, Reason.PEER_LOST, "this peer has left the mesh")
