"""Are they there: a probe to one link after the other, direct, then through others (SWIM, with Lifeguard).

Its verdicts are suspicions and nothing more; `membership` decides what is believed. Lifeguard's local health:
a peer whose own probes go unanswered, or that was called late by its host, doubts itself first, and probes
slower and more patiently. It knows links and numbers; nothing of versions, records and queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from p2pmesh.config import Membership as Config
from p2pmesh.protocol.events import Effect, Send
from p2pmesh.protocol.messages import Ack, Ping, PingRequest, Update
from p2pmesh.record import PeerId

_RTT_GAIN = 0.125
"""Share of a new measurement in the smoothed round trip (RFC 6298)."""
_DEVIATION_GAIN = 0.25
_DEVIATIONS = 4.0
"""RFC 6298's: an answer is late that takes the smoothed round trip and so many of its mean deviations."""
_LATE_MIN_S = 0.2
"""Least seconds after which an answer is late, however near: hosts stop processes so long (Linux: 0.2)."""
_FOREVER = math.inf
_SEQ_END = 2**31
"""Numbers of probes begin again here: the codec carries no higher ones."""
_LAG_PER_POINT_S = 1.0
"""Seconds of being called late that count as one missed answer. A guess."""


@dataclass
class Link:
    """A neighbour."""

    peer: PeerId
    since: float
    rtt_s: float | None = None
    """The round trip, smoothed; None: nothing was measured."""
    last_rtt_s: float = 0.0
    """The last one measured."""
    deviation_s: float = 0.0
    """Mean deviation of the round trip."""
    heard_at: float = -math.inf
    """When it last answered a probe of ours."""
    missed: int = 0
    """Probes that it left unanswered, while it is no member."""

    def measured(self, sample_s: float) -> None:
        """A round trip took so long (RFC 6298)."""
        self.last_rtt_s = sample_s
        if self.rtt_s is None:
            self.rtt_s, self.deviation_s = sample_s, sample_s / 2
            return
        self.deviation_s += _DEVIATION_GAIN * (abs(sample_s - self.rtt_s) - self.deviation_s)
        self.rtt_s += _RTT_GAIN * (sample_s - self.rtt_s)

    def late_s(self, unknown_s: float) -> float:
        """Return the seconds after which an answer is late: `unknown_s` where nothing was measured, and where
        the round trip is not half as long however it varies. A link that slows down is not waited for."""
        if self.rtt_s is None:
            return unknown_s
        late_s = self.rtt_s + _DEVIATIONS * self.deviation_s
        return max(_LATE_MIN_S, min(late_s, max(unknown_s, 2.0 * self.rtt_s)))

    def likely_rtt_s(self, unknown_s: float) -> float:
        """Return the round trip to reckon with: that it grew is known with one probe, that it fell is not."""
        return unknown_s if self.rtt_s is None else max(self.rtt_s, self.last_rtt_s)


@dataclass
class _Probe:
    """One running probe, ours or on behalf of another."""

    target: PeerId
    tries: dict[int, float]
    next_at: float
    give_up_at: float
    direct_left: int
    suspected: bool = False
    """It was silent before: that it is again tells nothing of us."""
    helpers: frozenset[PeerId] = frozenset()
    """Asked to probe it too: they, and the target, may answer."""
    asked_by: tuple[PeerId, int] | None = None
    """Who wants to know, under which number."""


class Prober:
    """The probes of one peer."""

    def __init__(
        self,
        links: Mapping[PeerId, Link],
        config: Config,
        rng: Random,
        out: list[Effect],
        news: Callable[[PeerId], tuple[Update, ...]],
        answered: Callable[[PeerId], None],
        silent: Callable[[PeerId, float], None],
        now: float,
        suspects: Callable[[], Sequence[PeerId]] = tuple,
    ) -> None:
        """`news` is what to tell along with a probe; `answered` and `silent` hear how probes ended. The links
        that `suspects` names are probed in each round, beside the one whose turn it is."""
        self.health = 0
        """How much this peer doubts itself: 0, and up to `health_max`."""
        self._links = links
        self._config = config
        self._rng = rng
        self._out = out
        self._news = news
        self._answered = answered
        self._silent = silent
        self._suspects = suspects
        self._probes: list[_Probe] = []
        self._order: list[PeerId] = []
        self._seq = 0
        self._probe_at = now + config.probe_interval_s

    def __len__(self) -> int:
        """Return how many probes run."""
        return len(self._probes)

    @property
    def deadline(self) -> float:
        """When `advance` has something to do next."""
        times = [self._probe_at]
        times.extend(min(p.next_at, p.give_up_at) for p in self._probes)
        return min(times)

    # -- events ---------------------------------------------------------------------------------------

    def ping(
        self,
        target: PeerId,
        now: float,
        direct: int,
        asked_by: tuple[PeerId, int] | None = None,
        suspected: bool = False,
    ) -> None:
        """Probe a link, up to `direct` times before others are asked; `asked_by`: on behalf of another."""
        if asked_by is not None and len(self._probes) >= 4 * self._config.links_max:
            return
        give_up = now + self._config.probe_interval_s * 0.9 * (1 + self.health)
        probe = _Probe(target, {}, now, give_up, direct, suspected=suspected, asked_by=asked_by)
        self._probes.append(probe)
        self._try(probe, now)

    def on_ack(self, peer: PeerId, message: Ack, now: float) -> None:
        """A probe was answered, by its target or through one who was asked to help."""
        for probe in self._probes:
            sent_at = probe.tries.get(message.seq)
            if sent_at is None or (peer != probe.target and peer not in probe.helpers):
                continue
            self._probes.remove(probe)
            link = self._links.get(peer)
            if probe.target == peer and link is not None:
                link.heard_at, link.missed = now, 0
                link.measured(now - sent_at)
            self._answered(probe.target)
            if probe.asked_by is not None:
                asker, seq = probe.asked_by
                self._out.append(Send(asker, Ack(seq, ())))
            else:
                self.health = max(0, self.health - 1)
            return

    def forget(self, peer: PeerId) -> None:
        """The link to it closed."""
        self._probes = [p for p in self._probes if p.target != peer]

    def excuse(self, seconds: float) -> None:
        """This peer was away for `seconds`: whom it probed may have answered to deaf ears, and it may be away
        again soon."""
        for probe in self._probes:
            probe.give_up_at += seconds
        self._doubt(math.ceil(seconds / _LAG_PER_POINT_S))

    def _doubt(self, points: int) -> None:
        self.health = min(self._config.health_max, self.health + points)

    # -- time -----------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Do what is due."""
        for probe in list(self._probes):
            if now >= probe.give_up_at:
                self._probes.remove(probe)
                if probe.asked_by is None:
                    if not probe.suspected:
                        self._doubt(1)
                    self._silent(probe.target, now)
            elif now >= probe.next_at:
                self._try(probe, now)
        if now < self._probe_at:
            return
        # Not slower with doubt, unlike Lifeguard: links are few, and a probe waits longer for its answer.
        self._probe_at = now + self._config.probe_interval_s
        self._order = [p for p in self._order if p in self._links]
        if not self._order:
            self._order = sorted(self._links)
            self._rng.shuffle(self._order)
        if self._order:
            self.look(self._order.pop(), now, suspected=False)
        for target in self._suspects():
            self.look(target, now, suspected=True)

    def look(self, target: PeerId, now: float, suspected: bool) -> None:
        """Probe a link, unless one of our own probes of it runs."""
        if not any(p.target == target and p.asked_by is None for p in self._probes):
            self.ping(target, now, direct=self._config.direct_tries, suspected=suspected)

    def _try(self, probe: _Probe, now: float) -> None:
        self._seq = (self._seq + 1) % _SEQ_END
        probe.tries[self._seq] = now
        probe.next_at = now + self._config.probe_timeout_s * (1 + self.health)
        if probe.direct_left > 0:
            probe.direct_left -= 1
            self._out.append(Send(probe.target, Ping(self._seq, self._news(probe.target))))
            return
        probe.next_at = _FOREVER
        if probe.asked_by is None:
            others = [p for p in self._links if p != probe.target]
            helpers = self._rng.sample(others, min(len(others), self._config.indirect_peers))
            probe.helpers = frozenset(helpers)
            for peer in helpers:
                self._out.append(Send(peer, PingRequest(self._seq, probe.target, self._news(peer))))
