"""Where a query goes next: one pure function, which explains itself.

It minimises J = wait + work / speed + RTT + lambda * (1 - quality), in seconds, over the feasible models.
Privacy, the model's name, its context and loops are hard filters and never weights. It knows nothing of
messages, members or queues: it gets candidates and returns a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from p2pmesh.config import Routing
from p2pmesh.errors import Reason
from p2pmesh.query import AUTO, Query
from p2pmesh.record import Capability, ModelInfo, PeerId, Skill, cosine

ANSWER_TOKENS_TYPICAL = 128
"""Tokens an answer is expected to have where more were allowed. A guess until sizes are learned."""
_CLEAR = 0.05
"""Cosine by which the best skill must lead the next topic's to count wholly: between two skills that are
equally near, a general peer is the better choice. Measured on 10 topics, as `Routing.near`."""


@dataclass(frozen=True)
class Candidate:
    """A peer that might serve, seen from here."""

    peer: PeerId
    name: str
    capability: Capability
    wait_s: float
    """Seconds until its queue, as known here, lets a new query run; exact for this peer itself."""
    rtt_s: float
    """Round trip to it, in seconds; 0 for this peer itself."""
    next_hop: PeerId
    """The link it is reached through; itself where it is linked."""


@dataclass(frozen=True)
class Scored:
    """One model of one candidate, and why it is or is not the one."""

    peer: PeerId
    name: str
    model: str
    next_hop: PeerId
    skill: str
    quality: float
    wait_s: float
    work_s: float
    rtt_s: float
    j_s: float
    why_not: Reason | None = None
    """The hard filter it fails; None: feasible."""

    @property
    def time_s(self) -> float:
        """Seconds until the answer is whole."""
        return self.wait_s + self.work_s + self.rtt_s

    def explain(self) -> str:
        """Return one line for people."""
        if self.why_not is not None:
            return f"{self.model or 'no model'}: {self.why_not.value}"
        return f"{self.skill} quality {self.quality:.2f}, {self.time_s:.1f} s"


class Kind(Enum):
    """What to do with a query."""

    SERVE = "serve"
    FORWARD = "forward"
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

    def explain(self) -> str:
        """Return one line for people: what was decided, and for what."""
        if self.chosen is None:
            return f"refuse: {self.detail}"
        verb = "serve" if self.kind is Kind.SERVE else f"to {self.chosen.name}"
        return f"{verb}: {self.chosen.explain()}"


def prompt_tokens(query: Query, config: Routing) -> int:
    """Return the prompt's length in tokens: exact where an engine has told it, else an estimate."""
    return query.prompt_tokens or max(1, round(query.prompt_bytes / config.bytes_per_token))


def work_s(query: Query, model: ModelInfo, config: Routing) -> float:
    """Return the seconds `model` needs for `query` when it has nothing else to do."""
    answer = min(query.options.max_tokens, ANSWER_TOKENS_TYPICAL)
    return prompt_tokens(query, config) / max(model.prefill_tps, 1e-3) + answer / max(model.decode_tps, 1e-3)


def fit(similarity: float, config: Routing) -> float:
    """Return how far a skill at this cosine covers a query, 0 at `far` and below to 1 at `near` and above."""
    return min(1.0, max(0.0, (similarity - config.far) / (config.near - config.far)))


def quality(
    query: Query, capability: Capability, model: str, rivals: dict[str, float], config: Routing
) -> tuple[float, str]:
    """Return the expected quality 0..1 of this model's answer, and the skill it rests on.

    `rivals` holds the best cosine of each skill name among all candidates. A specialist far from the query,
    or one whose lead over the next topic is thin, falls below a general peer.
    """
    best, name = 0.0, "none"
    skills = [s for s in capability.skills if s.model in ("", model)]
    if not skills:
        skills = [Skill("general", None, config.general_quality)]
    for skill in skills:
        if skill.vector is None:
            value = skill.quality
        elif (similarity := _similarity(query, capability, skill)) is None:
            value = skill.quality * config.general_quality  # it cannot be known how near it is
        else:
            rival = max((s for n, s in rivals.items() if n != skill.name), default=-1.0)
            clear = 0.5 + 0.5 * min(1.0, max(0.0, (similarity - rival) / _CLEAR))
            value = skill.quality * fit(similarity, config) * clear
        if value > best:
            best, name = value, skill.name
    return best, name


def _similarity(query: Query, capability: Capability, skill: Skill) -> float | None:
    """The cosine between query and skill; None where they do not compare: vectors of different spaces, or of
    different lengths, which somebody lies about."""
    if query.vector is None or skill.vector is None or query.space != capability.space:
        return None
    if query.vector.shape != skill.vector.shape:
        return None
    return cosine(query.vector, skill.vector)


def _rivals(query: Query, candidates: Sequence[Candidate]) -> dict[str, float]:
    nearest: dict[str, float] = {}
    for candidate in candidates:
        for skill in candidate.capability.skills:
            similarity = _similarity(query, candidate.capability, skill)
            if similarity is not None:
                nearest[skill.name] = max(similarity, nearest.get(skill.name, -1.0))
    return nearest


def _why_not(query: Query, candidate: Candidate, model: ModelInfo, config: Routing) -> Reason | None:
    """The hard filters."""
    if query.zone not in candidate.capability.zones:
        return Reason.NO_ROUTE
    if query.model not in (AUTO, model.name):
        return Reason.MODEL_NOT_FOUND
    if model.slots == 0:
        return Reason.ENGINE_FAILED
    # An estimate must not turn away a prompt that would fit, so only what surely does not is filtered.
    least = query.prompt_tokens or int(query.prompt_bytes / config.bytes_per_token_max)
    if least >= model.context_tokens:
        return Reason.TOO_LONG
    return None


def score(query: Query, candidates: Sequence[Candidate], config: Routing) -> tuple[Scored, ...]:
    """Return every model of every candidate, the feasible first, each by J; ties by peer id.

    Where no feasible one meets the query's budget, quality is given up for time (lambda is 0): the deadline
    form of the same rule.
    """
    rivals = _rivals(query, candidates)
    rows = []
    for candidate in candidates:
        for model in candidate.capability.models:
            value, skill = quality(query, candidate.capability, model.name, rivals, config)
            work = work_s(query, model, config)
            time_s = candidate.wait_s + work + candidate.rtt_s
            rows.append(
                Scored(
                    peer=candidate.peer,
                    name=candidate.name,
                    model=model.name,
                    next_hop=candidate.next_hop,
                    skill=skill,
                    quality=value,
                    wait_s=candidate.wait_s,
                    work_s=work,
                    rtt_s=candidate.rtt_s,
                    j_s=time_s + config.lambda_s * (1.0 - value),
                    why_not=_why_not(query, candidate, model, config),
                )
            )
    feasible = [row for row in rows if row.why_not is None]
    in_time = [row for row in feasible if row.time_s <= query.budget_s]
    if in_time:
        feasible = sorted(in_time, key=lambda row: (row.j_s, row.peer, row.model))
    else:
        feasible.sort(key=lambda row: (row.time_s, row.peer, row.model))
    kept = {id(row) for row in feasible}
    return (*feasible, *sorted((r for r in rows if id(r) not in kept), key=lambda r: (r.peer, r.model)))


def choose(query: Query, me: PeerId, candidates: Sequence[Candidate], config: Routing) -> Decision:
    """Decide where `query` goes from here. `candidates` includes this peer itself and leaves out the peers it
    has visited or that are excluded.

    A query is passed on only for a clear gain, because what is known of others is old and what is known
    of ourselves is exact.
    """
    table = score(query, candidates, config)
    feasible = [row for row in table if row.why_not is None]
    if not feasible:
        reason, detail = _nobody(query, table, candidates)
        return Decision(Kind.REFUSE, None, reason, detail, table)
    best = feasible[0]
    own = next((row for row in feasible if row.peer == me), None)
    if own is not None and best.peer != me:
        needed = config.gain_min_s + config.gain_min_share * own.time_s
        nobody_in_time = best.time_s > query.budget_s
        gain = own.time_s - best.time_s if nobody_in_time else own.j_s - best.j_s
        if gain < needed and (nobody_in_time or own.time_s <= query.budget_s):
            best = own
    if best.peer == me:
        return Decision(Kind.SERVE, best, None, "", table)
    if query.hops_left <= 0:
        if own is not None:
            return Decision(Kind.SERVE, own, None, "", table)
        return Decision(Kind.REFUSE, None, Reason.NO_ROUTE, "no hops left", table)
    return Decision(Kind.FORWARD, best, None, "", table)


def _nobody(query: Query, table: tuple[Scored, ...], candidates: Sequence[Candidate]) -> tuple[Reason, str]:
    """The reason of those that came nearest to serving: too long, being restarted, of another name, none."""
    reasons = {row.why_not for row in table}
    if Reason.TOO_LONG in reasons:
        longest = max(
            (
                m.context_tokens
                for c in candidates
                for m in c.capability.models
                if query.model in (AUTO, m.name)
            ),
            default=0,
        )
        length = str(query.prompt_tokens) if query.prompt_tokens else f"{query.prompt_bytes} bytes, too many"
        return Reason.TOO_LONG, f"the prompt is {length} tokens, the longest context within reach {longest}"
    if Reason.ENGINE_FAILED in reasons:
        return Reason.ENGINE_FAILED, "the model crashed and is being restarted: ask again in a moment"
    if Reason.MODEL_NOT_FOUND in reasons or (query.model != AUTO and not table):
        return Reason.MODEL_NOT_FOUND, f"no peer within reach serves the model {query.model!r}"
    if not table:
        return Reason.NO_ROUTE, "no peer within reach serves any model"
    return Reason.NO_ROUTE, f"no peer within reach may see the zone {query.zone!r}"
