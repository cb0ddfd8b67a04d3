"""The wire in a box: links, and what happens to the frames on them.

It has every fault of a network and more than TCP's: frames are late, lost, cut off one way, doubled and
overtaken. Each frame goes through the real codec. A link is one thing with two ends: what was sent before its
end is heard before its end. It knows who sends what to whom, and nothing of what it means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from p2pmesh.config import Limits
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.record import PeerId, PeerRecord

_DIAL_TIMEOUT_S = 5.0
_COPY_S = 1.0
"""Most seconds by which a doubled frame comes after the first: what it is about may be over by then."""
_OVERTAKEN_S = 0.05
"""Most seconds for which a frame is held back while later ones pass it."""


class MemoCodec(Codec):
    """The real codec; what a hundred peers are sent alike is read once."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._frames: dict[bytes, m.PeerMessage] = {}
        self._records: dict[bytes, PeerRecord] = {}
        self._last: tuple[m.PeerMessage, bytes] | None = None

    def encode(self, message: m.PeerMessage) -> bytes:
        if self._last is None or self._last[0] is not message:
            self._last = message, super().encode(message)
        return self._last[1]

    def decode(self, data: bytes) -> m.PeerMessage:
        if len(self._frames) > 10_000:
            self._frames.clear()
        if data not in self._frames:
            self._frames[data] = super().decode(data)
        return self._frames[data]

    def decode_record(self, body: bytes) -> PeerRecord:
        if body not in self._records:
            self._records[body] = super().decode_record(body)
        return self._records[body]


@dataclass(frozen=True)
class Weather:
    """What a link does to frames."""

    latency_s: tuple[float, float] = (0.0005, 0.005)
    """One way, drawn anew for each frame."""
    loss: float = 0.0
    """Share that never comes."""
    duplicate: float = 0.0
    """Share that comes twice, the second time up to a second later."""
    reorder: float = 0.0
    """Share that later frames may overtake."""


class Hub(Protocol):
    """What the wire asks of the world."""

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        ...

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Do `step` when `seconds` have passed."""
        ...

    def happen(self, ident: PeerId, event: e.Event) -> None:
        """Let a peer handle an event."""
        ...

    def lives(self, ident: PeerId) -> bool:
        """Return whether there is such a peer."""
        ...

    def answers(self, ident: PeerId) -> bool:
        """Return whether it lives and is not stopped."""
        ...


class Wire:
    """All links of one world."""

    def __init__(self, hub: Hub, limits: Limits, weather: Weather, rng: Random, distance_s: float) -> None:
        """`distance_s` is added to latencies for a whole side of the square on which the peers lie."""
        self.weather = weather
        """Of the links that have none of their own."""
        self.bytes_sent: dict[PeerId, int] = {}
        """Of frames, by sender, without what Noise, yamux and TCP add."""
        self.kind_bytes: Counter[str] = Counter()
        self.kind_frames: Counter[str] = Counter()
        self._hub = hub
        self._codec = MemoCodec(limits)
        self._rng = rng
        self._distance_s = distance_s
        self._places: dict[PeerId, tuple[float, float]] = {}
        self._local: dict[tuple[PeerId, PeerId], Weather] = {}
        self._count = 0
        self._links: dict[tuple[PeerId, PeerId], int] = {}
        self._heard: dict[tuple[PeerId, PeerId], int] = {}
        """The link on which the second still listens to the first; it may have ended at the first's side."""
        self._arrivals: dict[tuple[PeerId, PeerId], float] = {}
        self._cut: Callable[[PeerId, PeerId], bool] = lambda a, b: False

    def place(self, ident: PeerId) -> None:
        """Give a new peer its place on the square."""
        self._places.setdefault(ident, (self._rng.random(), self._rng.random()))
        self.bytes_sent.setdefault(ident, 0)

    # -- faults ---------------------------------------------------------------------------------------

    def worsen(self, source: PeerId, target: PeerId, **changes: object) -> None:
        """Change the weather from `source` to `target` alone: `loss=0.5`, `latency_s=(0.1, 0.3)`."""
        before = self._local.get((source, target), self.weather)
        self._local[source, target] = replace(before, **changes)  # type: ignore[arg-type]

    def calm(self) -> None:
        """From now on no frame is lost, doubled or overtaken, and no link is worse than others."""
        self.weather = Weather(self.weather.latency_s)
        self._local.clear()

    def partition(self, apart: Callable[[PeerId, PeerId], bool]) -> None:
        """Lose every frame from a to b where `apart(a, b)`; links stay open, dials time out."""
        self._cut = apart

    def reset(self, ident: PeerId) -> None:
        """End all links of a peer that has just died, at once."""
        for a, b in [pair for pair in self._links if ident in pair]:
            self.unlink(ident, b if a == ident else a)

    def forget(self, ident: PeerId) -> None:
        """It is back, and what its silent death left open is reset."""
        self._links = {pair: n for pair, n in self._links.items() if ident not in pair}
        for _, other in [pair for pair in self._heard if pair[0] == ident]:
            self._hub.happen(other, e.Disconnected(ident))
        self._heard = {pair: n for pair, n in self._heard.items() if ident not in pair}

    # -- frames ---------------------------------------------------------------------------------------

    def send(self, source: PeerId, target: PeerId, message: m.PeerMessage) -> None:
        """Put a message on the link; where there is none it is dropped."""
        number = self._links.get((source, target))
        if number is None:
            return
        frame = self._codec.encode(message)
        self.bytes_sent[source] += len(frame)
        kind = type(message).__name__
        self.kind_bytes[kind] += len(frame)
        self.kind_frames[kind] += 1
        rng, weather = self._rng, self._local.get((source, target), self.weather)
        if (weather.loss and rng.random() < weather.loss) or self._cut(source, target):
            return
        at = max(self._hub.now + self._latency(source, target), self._arrivals.get((source, target), 0.0))
        if weather.reorder and rng.random() < weather.reorder:
            at += rng.uniform(0.0, _OVERTAKEN_S)
        else:
            self._arrivals[source, target] = at
        self._deliver(at, source, target, number, frame)
        if weather.duplicate and rng.random() < weather.duplicate:
            self._deliver(at + rng.uniform(0.0, _COPY_S), source, target, number, frame)

    def _deliver(self, at: float, source: PeerId, target: PeerId, number: int, frame: bytes) -> None:
        self._hub.later(at - self._hub.now, lambda: self._arrive(source, target, number, frame))

    def _arrive(self, source: PeerId, target: PeerId, number: int, frame: bytes) -> None:
        if self._heard.get((source, target)) == number and self._hub.lives(target):
            self._hub.happen(target, e.Received(source, self._codec.decode(frame)))

    def _latency(self, a: PeerId, b: PeerId) -> float:
        far = 0.0
        if self._distance_s:
            nowhere = self._places[a]
            far = self._distance_s * math.dist(self._places[a], self._places.get(b, nowhere))
        return far + self._rng.uniform(*self._local.get((a, b), self.weather).latency_s)

    # -- links ----------------------------------------------------------------------------------------

    def dial(self, source: PeerId, target: PeerId) -> None:
        """Try to link `source` to `target`, in the time that takes."""
        self._hub.later(self._latency(source, target), lambda: self.connect(source, target))

    def connect(self, source: PeerId, target: PeerId) -> None:
        """Link `source` to `target` now, or tell it later that it cannot be."""
        if (source, target) in self._links:
            return
        failed = e.DialFailed(target)
        if self._cut(source, target) or self._cut(target, source):
            self._hub.later(_DIAL_TIMEOUT_S, lambda: self._hub.happen(source, failed))
            return
        if not self._hub.answers(target) or not self._hub.lives(source):
            self._hub.later(self._latency(source, target), lambda: self._hub.happen(source, failed))
            return
        self._count += 1
        self._links[source, target] = self._links[target, source] = self._count
        for pair in ((source, target), (target, source)):
            if self._heard.pop(pair, None) is not None:
                self._hub.happen(pair[1], e.Disconnected(pair[0]))
            self._heard[pair] = self._links[pair]
        self._hub.happen(source, e.Connected(target))
        self._hub.happen(target, e.Connected(source))

    def unlink(self, a: PeerId, b: PeerId) -> None:
        """End a link from a's side: b still hears all that was sent before, and then the end."""
        number = self._links.pop((a, b), None)
        if number is None:
            return
        del self._links[b, a]
        self._heard.pop((b, a), None)
        self._hub.later(0.0, lambda: self._hub.happen(a, e.Disconnected(b)))
        at = max(self._hub.now + self._latency(a, b), self._arrivals.get((a, b), 0.0))

        def ended() -> None:
            if self._heard.get((a, b)) == number:
                del self._heard[a, b]
                self._hub.happen(b, e.Disconnected(a))

        self._hub.later(at - self._hub.now, ended)
