"""How good they proved to be: each peer's quality in each topic, learnt from outcomes.

A claim counts as a few trials, an outcome of our own as one, and what others report as a few more, weighted
by how well that reporter foretold our own outcomes. It knows peers, topics and outcomes; it knows no
message, link, candidate or clock, throws no dice, and never believes a peer about itself. The codec has
checked every report: `0 <= successes <= trials`, both finite.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from p2pmesh.record import PeerId

Key: TypeAlias = tuple[PeerId, str]
"""A peer, and a topic: the name of the skill that routing rated it by, "general" included."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How outcomes become qualities. "Research" is `research/routing/REPORT.md`, section 6."""

    claim_trials: float = 4.0
    """Trials that the claim of an honest peer counts for (research: m0)."""
    prior_successes: float = 0.8
    """With `prior_failures`, what is believed of a peer nobody vouches for: 0.4, as two trials (research)."""
    prior_failures: float = 1.2
    reporter_trials_max: float = 10.0
    """Most trials that one reporter's word on one row counts for, however many it names (research)."""
    reports_trials_max: float = 30.0
    """Most trials that all reports on one row count for together: thirty outcomes of our own outweigh
    any number of liars (research)."""
    eta: float = 1.0
    """How fast a wrong prediction costs trust; 0: never (research: multiplicative weights)."""
    slack: float = 0.06
    """How far the squared error of a forecast may exceed what it allowed for itself. Less distrusts the
    honest where outcomes are noisy, more lets cunning liars live: of 0.03, 0.06 and 0.1 the middle one
    (measured, `sim.learn`)."""
    stranger_weight: float = 0.3
    """Weight of a reporter that has foretold nothing yet. At 0.1 a mesh of strangers learns more slowly
    (regret .082, here .071, at 1.0 .060), at 1.0 liars who keep coming back under new names get more
    (47 % of the queries, here 43 %, at 0.1 40 %): measured, `sim.learn`, with 20 % liars."""
    stranger_honesty: float = 0.5
    """Weight of the claims of a peer that was never tried. Where nobody lies, 0.5 and 1.0 learn alike (regret
    .018); of liars who come back every 50 queries, 0.5 sends them 16 % and 1.0 23 % (measured)."""
    weight_min: float = 1e-3
    """Least weight: whoever lost all trust can earn it back, in some hundred good forecasts. A guess."""
    own_rows_max: int = 1_024
    """Most rows of our own outcomes. A guess: one for each member."""
    reporters_max: int = 64
    """Most peers whose reports are kept: `membership.links_max`, and room for those who just left."""
    reporter_rows_max: int = 512
    """Most rows kept of one reporter. A guess: with `reporters_max`, 14 MB at worst (measured)."""
    judged_max: int = 1_024
    """Most peers whose honesty, and whose weight as reporters, are remembered: `membership.members_max`."""
    report_rows_max: int = 64
    """Most rows in one report: 4.6 kB as msgpack, with ids of 52 bytes and topics of 5 (measured)."""


@dataclass(frozen=True, order=True)
class Row:
    """What one peer knows at first hand of another in one topic: a counter that only its owner adds to.

    Of two rows on the same peer and topic the greater is the newer, and wins: a total order, so that merging
    is a join and copies may come twice, late, or by any way.
    """

    peer: PeerId
    topic: str
    born: int
    """Counts the rows its owner ever began: one begun again, after `forget`, beats the old one."""
    trials: int
    successes: float
    """Sum of the outcomes, each 0..1."""

    @property
    def mean(self) -> float:
        """The share of successes, 0..1, with half of one and half of a failure added: what one trial
        says is not certain (Krichevsky and Trofimov)."""
        return (self.successes + 0.5) / (self.trials + 1.0)


@dataclass(frozen=True)
class Report:
    """What a peer tells of others: rows that are new since it last told."""

    epoch: int
    """The start of the reporter that counted them, as in `record.Version`: a later one replaces all."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Word:
    """A row that was heard, and what it counts for at full weight: worked out once, not at each estimate."""

    row: Row
    trials: float
    successes: float


@dataclass
class _Own:
    """A row of ours, and when it last changed."""

    row: Row
    news: int


@dataclass
class _Reporter:
    """Which rows we hold of one reporter, the least recently heard first."""

    epoch: int
    keys: OrderedDict[Key, None]


class Experience:
    """What one peer makes of the others, from what it saw and what it was told."""

    def __init__(self, me: PeerId, epoch: int, config: Learning | None = None) -> None:
        self._me = me
        self._epoch = epoch
        self._config = config or Learning()
        self._own: OrderedDict[Key, _Own] = OrderedDict()
        self._told: dict[Key, dict[PeerId, _Word]] = {}
        self._reporters: OrderedDict[PeerId, _Reporter] = OrderedDict()
        self._weights: OrderedDict[PeerId, float] = OrderedDict()
        self._honesty: OrderedDict[PeerId, float] = OrderedDict()
        self._evidence: dict[Key, tuple[float, float]] = {}
        self._serial = 0

    # -- what is asked of it --------------------------------------------------------------------------

    def quality(self, peer: PeerId, topic: str, claim: float) -> float:
        """Return how good `peer`'s next answer in `topic` is expected to be, 0..1, where it claims `claim`.

        The mean of a Beta distribution: prior, claim, own outcomes and weighted reports add up as trials.
        """
        successes, trials = self._evidence_of((peer, topic))
        config = self._config
        claimed = config.claim_trials * self.honesty(peer)
        prior = config.prior_successes + config.prior_failures
        return (config.prior_successes + claimed * claim + successes) / (prior + claimed + trials)

    def honesty(self, peer: PeerId) -> float:
        """Return how far `peer`'s claims are believed, `weight_min`..1."""
        return self._honesty.get(peer, self._config.stranger_honesty)

    def weight(self, reporter: PeerId) -> float:
        """Return how far `reporter`'s reports are believed, `weight_min`..1."""
        return self._weights.get(reporter, self._config.stranger_weight)

    def rows(self, reporter: PeerId) -> tuple[Row, ...]:
        """Return what is held of `reporter`, or, for this peer itself, what it saw; least recent first."""
        if reporter == self._me:
            return tuple(own.row for own in self._own.values())
        known = self._reporters.get(reporter)
        return () if known is None else tuple(self._told[key][reporter].row for key in known.keys)

    @property
    def rows_count(self) -> int:
        """How many rows of our own there are."""
        return len(self._own)

    def _evidence_of(self, key: Key) -> tuple[float, float]:
        """Successes and trials, of our own and reported; kept until something changes them."""
        found = self._evidence.get(key)
        if found is not None:
            return found
        told = self._told.get(key)
        own = self._own.get(key)
        if told is None and own is None:
            return 0.0, 0.0
        successes = trials = 0.0
        if told is not None:
            stranger = self._config.stranger_weight
            for reporter, word in told.items():
                weight = self._weights.get(reporter, stranger)
                successes += weight * word.successes
                trials += weight * word.trials
            if trials > self._config.reports_trials_max:
                successes *= self._config.reports_trials_max / trials
                trials = self._config.reports_trials_max
        if own is not None:
            successes += own.row.successes
            trials += own.row.trials
        self._evidence[key] = successes, trials
        return successes, trials

    # -- what it learns -------------------------------------------------------------------------------

    def observed(self, peer: PeerId, topic: str, outcome: float, claim: float) -> None:
        """`peer`, which claimed `claim`, gave this peer an answer in `topic` that was worth `outcome`, 0..1.

        Everybody who had foretold it is judged first, the claim like a report.
        """
        key = (peer, topic)
        for reporter, word in self._told.get(key, {}).items():
            said = min(1.0, word.row.trials / 3.0)  # who has seen little has not said much (research)
            self._judge(self._weights, reporter, self.weight(reporter), word.row.mean, outcome, said)
        self._judge(self._honesty, peer, self.honesty(peer), claim, outcome, 1.0)
        self._serial += 1
        own = self._own.get(key)
        row = Row(peer, topic, self._serial, 0, 0.0) if own is None else own.row
        row = Row(peer, topic, row.born, row.trials + 1, row.successes + outcome)
        self._own[key] = _Own(row, self._serial)
        self._own.move_to_end(key)
        self._evidence.clear()  # whose weight changed has a say in many rows
        if len(self._own) > self._config.own_rows_max:
            self._own.popitem(last=False)

    def _judge(
        self,
        scores: OrderedDict[PeerId, float],
        peer: PeerId,
        score: float,
        foretold: float,
        outcome: float,
        said: float,
    ) -> None:
        """Move `score` by the squared error of `foretold`, less what a forecast of that height has on average
        where it is true, p * (1 - p), and less some slack.

        The research compares with a coin instead, whose error is 1/4. Then every easy forecast earns trust,
        which liars who are right about everybody else spend on one another: 23 % of the queries, 10 % so
        (measured). An outcome between 0 and 1 counts as that share of a success.
        """
        error = outcome * (1.0 - foretold) ** 2 + (1.0 - outcome) * foretold**2
        excess = error - foretold * (1.0 - foretold) - self._config.slack
        moved = score * math.exp(-self._config.eta * excess * said)
        scores[peer] = min(1.0, max(self._config.weight_min, moved))
        scores.move_to_end(peer)
        if len(scores) > self._config.judged_max:
            scores.popitem(last=False)

    def heard(self, reporter: PeerId, report: Report) -> None:
        """Merge what `reporter` itself counted; what it says of itself is dropped."""
        if reporter == self._me:
            return
        known = self._reporters.get(reporter)
        if known is not None and report.epoch < known.epoch:
            return
        if known is None or known.epoch < report.epoch:
            self._forget_reporter(reporter)
            known = self._reporters[reporter] = _Reporter(report.epoch, OrderedDict())
        self._reporters.move_to_end(reporter)
        for row in report.rows:
            if row.peer == reporter:
                continue
            key = (row.peer, row.topic)
            told = self._told.setdefault(key, {})
            if reporter not in told or told[reporter].row < row:
                trials = min(float(row.trials), self._config.reporter_trials_max)
                told[reporter] = _Word(row, trials, trials * row.mean)
                self._evidence.pop(key, None)
            known.keys[key] = None
            known.keys.move_to_end(key)
            if len(known.keys) > self._config.reporter_rows_max:
                self._drop(reporter, known.keys.popitem(last=False)[0])
        if len(self._reporters) > self._config.reporters_max:
            self._forget_reporter(next(iter(self._reporters)))

    # -- what it forgets ------------------------------------------------------------------------------

    def forget(self, peer: PeerId) -> None:
        """`peer` serves other models than before: drop every outcome it had, ours and others'.

        Its honesty stays, and its weight as a reporter: a liar must not be clean by renaming a model.
        """
        for key in [key for key in self._own if key[0] == peer]:
            del self._own[key]
            self._evidence.pop(key, None)
        for key in [key for key in self._told if key[0] == peer]:
            for reporter in list(self._told[key]):
                del self._reporters[reporter].keys[key]
                self._drop(reporter, key)

    def _forget_reporter(self, reporter: PeerId) -> None:
        """Drop its rows; its weight stays, or a liar would come back as a stranger."""
        known = self._reporters.pop(reporter, None)
        if known is not None:
            for key in known.keys:
                self._drop(reporter, key)

    def _drop(self, reporter: PeerId, key: Key) -> None:
        told = self._told[key]
        del told[reporter]
        if not told:
            del self._told[key]
        self._evidence.pop(key, None)

    # -- what it tells --------------------------------------------------------------------------------

    def report(self, since: int = 0) -> tuple[Report, int]:
        """Return what changed after `since`, at most `report_rows_max` rows, and the next `since`.

        The longest unsaid go first, so that one who keeps asking is told everything. Rows about this peer
        itself are left out: nobody would believe them.
        """
        fresh = []
        for own in reversed(self._own.values()):
            if own.news <= since:
                break
            if own.row.peer != self._me:
                fresh.append(own)
        fresh = fresh[-self._config.report_rows_max :][::-1]
        return Report(self._epoch, tuple(own.row for own in fresh)), fresh[-1].news if fresh else since
