"""Where a query goes next: one pure function, which explains itself.

It minimises J = wait + work / speed + RTT + lambda * (1 - quality), in seconds, over the feasible models.
Privacy, the model's name, its context and loops are hard filters and never weights. It knows nothing of
messages, members or queues: it gets candidates and returns a decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from p2pmesh.config import Routing
from p2pmesh.errors import Reason
from p2pmesh.protocol.batching import Backlog
from p2pmesh.protocol.workload import AnswerLength, Remembered, work_s
from p2pmesh.query import AUTO, Lead, Query, Resume, Search
from p2pmesh.record import GENERAL, NOBODY, Capability, ModelInfo, PeerId, Skill, unit

_CROWD = 2.0
"""How many times as busy as the others those are held for that everybody would choose. A guess."""
_CLEAR = 0.05
"""Cosine by which the best skill must lead the next topic's to count wholly: between two skills that are
equally near, a general peer is the better choice. Measured on 10 topics, as `Routing.near`."""
_WAIT_DOUBT = 0.15
"""Share by which a wait may turn out longer than reckoned before a query comes too late. A guess; without it
up to a fifth of what was taken under a tenfold load came too late (benchmarks.overload on busy cores)."""


class Candidate(NamedTuple):
    """A peer that might serve, seen from here."""

    peer: PeerId
    name: str
    capability: Capability
    backlog: Backlog | None
    """What it has to do, as known here, and exactly for this peer itself; None: it never told, and is taken
    to be as busy as the others are."""
    rtt_s: float
    """Round trip to it, in seconds; 0 for this peer itself."""
    next_hop: PeerId
    """The link it is reached through; itself where it is linked."""
    held: Collection[bytes] = ()
    """Keys of the prompts that its models have in their caches, as last told."""
    pace: float = 1.0
    """How many times as fast as it says it is, as last told. What it has to do reckons with that already."""


def _as_claimed(peer: PeerId, skill: str, claim: float) -> float:
    return claim


@dataclass(frozen=True)
class Estimates:
    """What a peer has learned, by which it reckons."""

    lengths: AnswerLength = field(default_factory=AnswerLength)
    quality: Callable[[PeerId, str, float], float] = _as_claimed
    """What a peer's answers in a skill are worth, 0..1, given what it claims."""


class Scored(NamedTuple):
    """One model of one candidate, and why it is or is not the one."""

    peer: PeerId
    name: str
    model: str
    next_hop: PeerId
    skill: str
    quality: float
    wait_s: float
    """Seconds by which what the peer has to do already makes the answer later."""
    work_s: float
    """Seconds the answer would take on the model alone."""
    rtt_s: float
    j_s: float
    lot: float = 0.0
    """What decides between equals."""
    continues: bool = True
    """Whether it would go on exactly where an earlier attempt broke off: it is the same model."""
    why_not: Reason | None = None
    """The hard filter it fails; None: feasible."""
    held: int = 0
    """Tokens of the prompt that it has in its cache, and need not read."""
    pace: float = 1.0
    """How many times as fast as it says it was reckoned to be."""

    @property
    def time_s(self) -> float:
        """Seconds until the answer is whole."""
        return self.wait_s + self.work_s + self.rtt_s

    def explain(self) -> str:
        """Return one line for people."""
        if self.why_not is not None:
            return f"{self.model or 'no model'}: {self.why_not.value}"
        holds = f", holds {self.held} tokens" if self.held else ""
        paces = f", at {self.pace:.2f} of its speed" if self.pace != 1.0 else ""
        return f"{self.skill} quality {self.quality:.2f}, {self.time_s:.1f} s{holds}{paces}"


class Kind(Enum):
    """What to do with a query."""

    SERVE = "serve"
    FORWARD = "forward"
    SEEK = "seek"
    """Pass it to one who may know a nearer peer."""
    RETURN = "return"
    """Give it back to one it has been to: nobody better was found."""
    REFUSE = "refuse"


@dataclass(frozen=True)
class Decision:
    """What to do with a query, and the table it was read from, best first."""

    kind: Kind
    chosen: Scored | None
    reason: Reason | None
    """Why it is refused; None otherwise."""
    detail: str
    table: tuple[Scored, ...]
    search: Search | None = None
    """What the query carries on, where it is passed to one who may know a nearer peer."""
    retry_after_s: float = 0.0
    """Where all are too busy: seconds until the first of them could be in time."""

    def explain(self) -> str:
        """Return one line for people: what was decided, and for what."""
        if self.chosen is None:
            return f"refuse: {self.detail}"
        if self.kind is Kind.SEEK:
            return f"to {self.chosen.name}, who may know a nearer one"
        if self.kind is Kind.RETURN:
            return f"back to {self.chosen.name}: {self.chosen.explain()}"
        verb = "serve" if self.kind is Kind.SERVE else f"to {self.chosen.name}"
        return f"{verb}: {self.chosen.explain()}"


def fit(similarity: float, config: Routing) -> float:
    """Return how far a skill at this cosine covers a query, 0 at `far` and below to 1 at `near` and above."""
    return min(1.0, max(0.0, (similarity - config.far) / (config.near - config.far)))


class Nearness:
    """How near each skill of the candidates is to one query."""

    def __init__(self, query: Query, candidates: Sequence[Candidate]) -> None:
        self._cosines: dict[int, float] = {}
        self._first, self._second = ("", -1.0), -1.0
        skills: list[Skill] = []
        rows: list[NDArray[np.float32]] = []
        width = 0 if query.vector is None else len(query.vector)
        for capability in (candidate.capability for candidate in candidates):
            its, directions = capability.directions_in(query.zone)
            # Vectors of different spaces do not compare, nor those of different lengths: somebody lies.
            if its and capability.space == query.space and directions.shape[1] == width:
                skills += its
                rows.append(directions)
        if query.vector is None or not rows:
            return
        # One product for all of them: a thousand peers' skills in a millisecond.
        cosines = (np.concatenate(rows) @ unit(query.vector)).tolist()
        nearest: dict[str, float] = {}
        for skill, cosine in zip(skills, cosines, strict=True):
            self._cosines[id(skill)] = cosine
            if cosine > nearest.get(skill.name, -1.0):
                nearest[skill.name] = cosine
        ranked = sorted(nearest.items(), key=lambda item: (-item[1], item[0]))
        self._first = ranked[0]
        self._second = ranked[1][1] if len(ranked) > 1 else -1.0

    def cosine(self, skill: Skill) -> float | None:
        """Return the cosine between query and skill; None where they do not compare."""
        return self._cosines.get(id(skill))

    def lead(self, skill: Skill) -> float:
        """Return the cosine by which it is nearer than the nearest skill of another name."""
        rival = self._second if skill.name == self._first[0] else self._first[1]
        return self._cosines[id(skill)] - rival


def quality(
    candidate: Candidate, model: str, near: Nearness, estimates: Estimates, config: Routing
) -> tuple[float, str]:
    """Return the expected quality 0..1 of this model's answer, and the skill it rests on.

    A specialist far from the query, or one whose lead over the next topic is thin, falls below a general
    peer.
    """
    best, name = 0.0, "none"
    skills = [s for s in candidate.capability.skills if s.model in ("", model)]
    if not skills:
        return estimates.quality(candidate.peer, GENERAL, config.general_quality), GENERAL
    for skill in skills:
        value = estimates.quality(candidate.peer, skill.name, skill.quality)
        if skill.vector is not None:
            cosine = near.cosine(skill)
            if cosine is None:
                value *= config.general_quality  # it cannot be known how near it is
            else:
                clear = 0.5 + 0.5 * min(1.0, max(0.0, near.lead(skill) / _CLEAR))
                value *= fit(cosine, config) * clear
        if value > best:
            best, name = value, skill.name
    return best, name


def why_not(query: Query, its: Capability, model: ModelInfo, config: Routing) -> Reason | None:
    """Return the hard filter that this model of a peer fails for `query`; None: it may serve it."""
    if query.zone not in its.zones:
        return Reason.NO_ROUTE
    if not model.answers_in(query.zone):  # whoever names it hears no more than of one that is not there
        return Reason.NO_ROUTE if query.model == AUTO else Reason.MODEL_NOT_FOUND
    if query.model not in (AUTO, model.name):
        return Reason.MODEL_NOT_FOUND
    if query.accepted and query.resume is Resume.SAME_MODEL and query.accepted.digest != model.digest:
        return Reason.MODEL_NOT_FOUND
    if model.slots == 0:
        return Reason.ENGINE_FAILED
    # An estimate must not turn away a prompt that would fit, so only what surely does not is filtered.
    least = query.prompt_tokens or int(query.prompt_bytes / config.bytes_per_token_max)
    if least >= model.context_tokens:
        return Reason.TOO_LONG
    return None


def stranger(lead: Lead, config: Routing) -> Scored:
    """Return what is to be expected of a peer that others told the query of, and that can serve it; of one
    that the query has been to, as it said itself, and with no way to it but back."""
    assert lead.work_s is not None, "a lead that cannot serve is no candidate"
    rtt_s = 2 * config.rtt_default_s  # a dial takes a round trip more
    return Scored(
        peer=lead.peer,
        name=lead.peer[-8:],
        model="",
        next_hop=NOBODY if lead.expanded else lead.peer,
        skill="by hearsay",
        quality=lead.quality,
        wait_s=0.0,
        work_s=lead.work_s,
        rtt_s=rtt_s,
        j_s=lead.work_s + rtt_s + config.lambda_s * (1.0 - lead.quality),
    )


def score(
    query: Query,
    me: PeerId,
    candidates: Sequence[Candidate],
    estimates: Estimates,
    config: Routing,
    strangers: Sequence[Scored] = (),
) -> tuple[Scored, ...]:
    """Return every model of every candidate and all `strangers`, the feasible first, each by J; ties by peer
    id.

    Where no feasible one meets the query's budget, quality is given up for time (lambda is 0): the deadline
    form of the same rule. An answer that broke off goes to the same model before any other.
    """
    near = Nearness(query, candidates)
    remembered = Remembered(query, config)
    rows = [row for row in strangers if row.next_hop == NOBODY]
    unknown = [row for row in strangers if row.next_hop != NOBODY]
    waits = [0.0, 0.0]  # of those who told: how many, and seconds in all
    for candidate in candidates:
        for model in candidate.capability.models:
            value, skill = quality(candidate, model.name, near, estimates, config)
            held = remembered.tokens(model.name, candidate.held)
            work = work_s(query, model, config, estimates.lengths, held) / candidate.pace
            wait = 0.0
            if candidate.backlog is not None:
                wait = candidate.backlog.finish_s(work) - work
                if candidate.peer != me:  # how busy we are says nothing of others
                    waits[0] += 1
                    waits[1] += wait
            row = Scored(
                peer=candidate.peer,
                name=candidate.name,
                model=model.name,
                next_hop=candidate.next_hop,
                skill=skill,
                quality=value,
                wait_s=wait,
                work_s=work,
                rtt_s=candidate.rtt_s,
                j_s=wait + work + candidate.rtt_s + config.lambda_s * (1.0 - value),
                continues=query.accepted is None or query.accepted.digest == model.digest,
                why_not=why_not(query, candidate.capability, model, config),
                held=held,
                pace=candidate.pace,
            )
            (rows if candidate.backlog is not None else unknown).append(row)
    rows += _guessed(query, unknown, waits[1] / waits[0] if waits[0] else 0.0)
    feasible = [row for row in rows if row.why_not is None]
    in_time = [row for row in feasible if row.time_s <= query.budget_s]
    if in_time:
        feasible = sorted(in_time, key=lambda row: (not row.continues, row.j_s, row.lot, row.peer, row.model))
    else:
        feasible.sort(key=lambda row: (row.time_s, row.peer, row.model))
    kept = {id(row) for row in feasible}
    return (*feasible, *sorted((r for r in rows if id(r) not in kept), key=lambda r: (r.peer, r.model)))


def _guessed(query: Query, unknown: list[Scored], wait_s: float) -> list[Scored]:
    """Return `unknown`, whose load nobody told us, with a guess at it: they are as busy as the others are,
    and the best of them busier, for everybody chooses them. Those whom the guess makes alike share the
    queries by lot, each by its speed; or all would send to the same one at once.
    """
    best = min((row.j_s for row in unknown if row.why_not is None), default=0.0)
    level = best + _CROWD * wait_s
    guessed = []
    for row in unknown:
        j_s = max(row.j_s + wait_s, level)
        digest = blake2b(f"{query.id} {row.peer}".encode(), digest_size=7).digest()
        turn = -math.log(1.0 - int.from_bytes(digest, "big") / 2**56) * row.work_s
        guessed.append(row._replace(wait_s=j_s - row.j_s, j_s=j_s, lot=turn))
    return guessed


def choose(
    query: Query,
    me: PeerId,
    candidates: Sequence[Candidate],
    estimates: Estimates,
    config: Routing,
    strangers: Sequence[Scored] = (),
) -> Decision:
    """Decide where `query` goes from here. `candidates` includes this peer itself and leaves out the peers it
    has visited or that are excluded; `strangers` are peers of which others told the query.

    Where it was asked, the best is taken, and who is on the way to that one passes the query on. A peer that
    it was sent to passes it on only for a clear gain, twice as clear at each further one, and only to one
    whose load it knows: what is known of others is old, the best of many such estimates is too good to be
    true, and a query must come to rest.
    """
    table = score(query, me, candidates, estimates, config, strangers)
    feasible = [row for row in table if row.why_not is None]
    if query.target not in ("", me):
        bound = next((row for row in feasible if row.peer == query.target), None)
        if bound is not None and query.hops_left > 0:
            return Decision(Kind.FORWARD, bound, None, "", table)
    elif query.target == me:
        told = {c.peer for c in candidates if c.backlog is not None}
        feasible = [row for row in feasible if row.peer in told] or feasible
    if not feasible:
        reason, detail = _nobody(query, table, candidates)
        return Decision(Kind.REFUSE, None, reason, detail, table)
    if (late_s := _too_busy(query, feasible)) is not None:
        text = f"all are busy: the first could answer {late_s:.1f} s after the query's {query.budget_s:.1f} s"
        return Decision(Kind.REFUSE, None, Reason.OVERLOADED, text, table, retry_after_s=late_s)
    best = feasible[0]
    own = next((row for row in feasible if row.peer == me), None)
    if own is not None and best.peer != me and not _is_worth(query, own, best, config):
        best = own
    if best.peer == me:
        return Decision(Kind.SERVE, best, None, "", table)
    if best.next_hop == NOBODY:
        return Decision(Kind.RETURN, best, None, "", table)
    if query.hops_left <= 0:
        if own is not None:
            return Decision(Kind.SERVE, own, None, "", table)
        return Decision(Kind.REFUSE, None, Reason.NO_ROUTE, "no hops left", table)
    return Decision(Kind.FORWARD, best, None, "", table)


def _too_busy(query: Query, feasible: Sequence[Scored]) -> float | None:
    """Return the seconds by which everybody would be too late, but only for what they have to do already;
    None: somebody would not, or would be late even if idle, or an answer has been begun.

    To take what cannot be served in time is to serve nothing else in time either: a queue whose wait has
    grown to the budget works on none but the lost (goodput collapse). A wait may be longer than reckoned.
    """
    at_worst = [(row.time_s + _WAIT_DOUBT * row.wait_s, row.wait_s) for row in feasible]
    if query.accepted is not None or any(time_s <= query.budget_s for time_s, _ in at_worst):
        return None
    able = [time_s for time_s, wait_s in at_worst if time_s - (1 + _WAIT_DOUBT) * wait_s <= query.budget_s]
    return min(able) - query.budget_s if able else None


def _is_worth(query: Query, own: Scored, best: Scored, config: Routing) -> bool:
    """Whether a query that could be served here is better served there."""
    if best.continues and not own.continues:
        return True
    needed = 0.0
    if query.target == own.peer:
        needed = config.gain_min_s + config.gain_min_share * own.time_s
        needed *= 2.0 ** max(0, len(query.path) - 1)
    if best.time_s > query.budget_s:
        return own.time_s - best.time_s > needed
    return own.time_s > query.budget_s or own.j_s - best.j_s > needed


def _nobody(query: Query, table: tuple[Scored, ...], candidates: Sequence[Candidate]) -> tuple[Reason, str]:
    """The reason of those that came nearest to serving: too long, being restarted, of another name, none."""
    reasons = {row.why_not for row in table}
    if Reason.TOO_LONG in reasons:
        longest = max(
            (
                m.context_tokens
                for c in candidates
                for m in c.capability.models
                if query.model in (AUTO, m.name) and m.answers_in(query.zone)
            ),
            default=0,
        )
        length = str(query.prompt_tokens) if query.prompt_tokens else f"{query.prompt_bytes} bytes, too many"
        return Reason.TOO_LONG, f"the prompt is {length} tokens, the longest context within reach {longest}"
    if Reason.ENGINE_FAILED in reasons:
        why = "its model is being restarted, or it is about to go"
        return Reason.ENGINE_FAILED, f"who could answer takes nothing just now ({why}): ask again in a moment"
    if Reason.MODEL_NOT_FOUND in reasons or (query.model != AUTO and not table):
        where = "" if query.zone == GENERAL else f" in the zone {query.zone!r}"
        return Reason.MODEL_NOT_FOUND, f"no peer within reach serves the model {query.model!r}{where}"
    if not table:
        return Reason.NO_ROUTE, "no peer within reach serves any model"
    return Reason.NO_ROUTE, f"no peer within reach may see the zone {query.zone!r} and has a model for it"
