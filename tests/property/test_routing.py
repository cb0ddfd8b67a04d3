"""The choice: pure, feasible, and never a forward without a clear gain."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import Routing
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol import routing
from p2pmesh.protocol.batching import PACE_MAX, PACE_MIN, Backlog
from p2pmesh.protocol.routing import Candidate, Decision, Estimates, Kind, Scored
from p2pmesh.protocol.workload import salted
from p2pmesh.query import Accepted, Hop, Query
from p2pmesh.record import Capability, ModelInfo, PeerId, Skill
from p2pmesh.sim.world import World
from tests.machines import ME, MODEL, A, B, Bench, C, D, query, sent
from tests.property.strategies import capabilities as any_capability
from tests.property.strategies import queries as any_query

models: st.SearchStrategy[ModelInfo] = st.builds(
    replace,
    st.just(MODEL),
    name=st.sampled_from(["small", "large"]),
    digest=st.sampled_from([MODEL.digest, "11" * 32]),
    context_tokens=st.sampled_from([16, 2_048]),
    decode_tps=st.floats(0.0, 1e9),
)
skills = st.builds(
    Skill,
    st.sampled_from(["one", "two"]),
    st.none() | st.integers(0, 3).map(World.topic),
    st.floats(0.0, 1.0),
    model=st.sampled_from(["", "small"]),
)
capabilities = st.builds(
    Capability,
    st.sampled_from(["sim", ""]),
    st.lists(skills, max_size=3).map(tuple),
    st.lists(models, max_size=2).map(tuple),
    st.sampled_from([("general",), ("general", "secret"), ()]),
)


def candidates_of(peer: PeerId) -> st.SearchStrategy[Candidate]:
    times = st.floats(0.0, 100.0)
    works = st.lists(times, max_size=3).map(tuple)
    backlogs: st.SearchStrategy[Backlog | None] = st.builds(Backlog, works, works, st.integers(0, 3))
    if peer != ME:  # what this one has to do it knows
        backlogs = st.none() | backlogs
    return st.builds(
        Candidate,
        st.just(peer),
        st.just(f"peer {peer}"),
        capabilities,
        backlogs,
        times,
        st.just(peer),
        st.sampled_from([(), (salted(query().prefixes[-1][0], "small"),), (bytes(8),)]),
        st.floats(PACE_MIN, PACE_MAX),
    )


tables = st.lists(st.sampled_from([ME, A, B, C]), unique=True, max_size=4).flatmap(
    lambda peers: st.tuples(*map(candidates_of, peers)).map(list)
)
asked = st.builds(
    lambda **changes: query(**changes),
    model=st.sampled_from(["auto", "small"]),
    zone=st.sampled_from(["general", "secret"]),
    vector=st.none() | st.integers(0, 3).map(World.topic),
    space=st.just("sim"),
    hops_left=st.integers(0, 3),
    budget_s=st.sampled_from([0.0, 1.0, 30.0, 1e6]),
    prompt_tokens=st.sampled_from([0, 10, 500, 5_000]),
    path=st.sampled_from([(), (Hop(D, "d", ""),)]),
    target=st.sampled_from(["", ME, A]),
    accepted=st.sampled_from([None, Accepted((1,), "x", 1, MODEL.digest), Accepted((1,), "x", 1)]),
)
CONFIG = Routing()


def choose(q: Query, me: PeerId, table: list[Candidate]) -> Decision:
    return routing.choose(q, me, table, Estimates(), CONFIG)


def score(q: Query, table: list[Candidate]) -> tuple[Scored, ...]:
    return routing.score(q, ME, table, Estimates(), CONFIG)


def late_for_its_load(q: Query, feasible: list[Scored]) -> bool:
    """Whether nobody can be in time, and somebody could if it were idle: the mesh is overloaded."""
    return (
        q.accepted is None
        and all(row.time_s > q.budget_s for row in feasible)
        and any(row.time_s - row.wait_s <= q.budget_s for row in feasible)
    )


@settings(max_examples=200, deadline=None)
@given(asked, tables)
def test_who_holds_a_beginning_or_is_faster_needs_no_longer_for_it(q: Query, table: list[Candidate]) -> None:
    plain = score(q, [c._replace(held=(), pace=1.0) for c in table])
    for row in score(q, [c._replace(pace=max(1.0, c.pace)) for c in table]):
        its = [other.work_s for other in plain if (other.peer, other.model) == (row.peer, row.model)]
        assert row.work_s <= max(its) * (1.0 + 1e-9)


@settings(max_examples=300, deadline=None)
@given(asked, tables)
def test_the_chosen_is_feasible_and_a_refusal_means_that_nobody_is(q: Query, table: list[Candidate]) -> None:
    decision = choose(q, ME, table)
    if decision.chosen is None:
        able = [row for row in decision.table if row.why_not is None]
        told = {c.peer for c in table if c.backlog is not None}
        if q.target == ME:  # it passes a query on only to one whose load it knows
            able = [row for row in able if row.peer in told] or able
        assert not able or q.hops_left == 0 or late_for_its_load(q, able)
        assert decision.reason is not None
        assert (decision.reason is Reason.OVERLOADED) == (bool(able) and late_for_its_load(q, able))
        return
    row = decision.chosen
    assert row.why_not is None
    [chosen] = [c for c in table if c.peer == row.peer]
    model = chosen.capability.model(row.model)
    assert model is not None
    assert q.zone in chosen.capability.zones
    assert q.model in ("auto", row.model)
    assert (decision.kind is Kind.SERVE) == (row.peer == ME)
    assert decision.kind is not Kind.FORWARD or q.hops_left > 0


@settings(max_examples=300, deadline=None)
@given(asked, tables)
def test_a_forward_is_for_a_clear_gain_or_to_be_in_time(q: Query, table: list[Candidate]) -> None:
    decision = choose(q, ME, table)
    own = [row for row in decision.table if row.peer == ME and row.why_not is None]
    if decision.kind is not Kind.FORWARD or not own or q.target == A:
        return
    best = decision.chosen
    assert best is not None
    if best.continues and not own[0].continues:
        return  # the same model goes on exactly where it broke off, wherever it is
    least_s = CONFIG.gain_min_s * 2 ** max(0, len(q.path) - 1) if q.target == ME else 0.0
    in_time = [row for row in own if row.time_s <= q.budget_s]
    if best.time_s <= q.budget_s:
        assert all(row.j_s - best.j_s > least_s for row in in_time)
    else:
        assert min(row.time_s for row in own) - best.time_s > least_s


@settings(max_examples=200, deadline=None)
@given(asked, tables)
def test_where_it_was_asked_nobody_in_reach_is_better_than_the_chosen(
    q: Query, table: list[Candidate]
) -> None:
    decision = choose(replace(q, path=(), target="", hops_left=1), ME, table)
    feasible = [row for row in decision.table if row.why_not is None]
    assert (decision.chosen is None) == (not feasible or late_for_its_load(q, feasible))
    if decision.chosen is None:
        return
    in_time = [row for row in feasible if row.time_s <= q.budget_s]
    if in_time:
        likes = [row for row in in_time if row.continues] or in_time
        assert decision.chosen.j_s == min(row.j_s for row in likes)
    else:
        assert decision.chosen.time_s == min(row.time_s for row in feasible)


@settings(max_examples=200, deadline=None)
@given(asked, tables, st.randoms(use_true_random=False))
def test_the_same_question_has_the_same_answer_in_whatever_order_it_is_put(
    q: Query, table: list[Candidate], rng: object
) -> None:
    first = choose(q, ME, table)
    assert first == choose(q, ME, table)
    mixed = list(table)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    again = choose(q, ME, mixed)
    assert (first.kind, first.chosen and first.chosen.peer) == (
        again.kind,
        again.chosen and again.chosen.peer,
    )


@settings(max_examples=100, deadline=None)
@given(asked, tables)
def test_the_best_in_time_come_first_and_the_infeasible_never(q: Query, table: list[Candidate]) -> None:
    rows = score(q, table)
    assert len(rows) == sum(len(c.capability.models) for c in table)
    in_time = [r for r in rows if r.why_not is None and r.time_s <= q.budget_s]
    assert list(rows[: len(in_time)]) == sorted(
        in_time, key=lambda r: (not r.continues, r.j_s, r.peer, r.model)
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([A, B, C, D]), max_size=4),
    st.lists(st.sampled_from([A, B, C, D]), max_size=4),
)
def test_a_barred_peer_is_never_asked(excluded: list[PeerId], visited: list[PeerId]) -> None:
    bench = Bench(Capability(models=(replace(MODEL, decode_tps=1.0),)))
    bench.link(A, B, C)
    bench.say(A, m.Records(()))
    path = tuple(Hop(peer, "", "") for peer in visited)
    effects = bench.handle(e.Received(A, m.Forward(query(path=path, excluded=tuple(excluded)))))
    to = {f.peer for f in effects if isinstance(f, e.Send) and isinstance(f.message, m.Forward)}
    assert not to & {*excluded, *visited}
    assert sent(effects, m.Accept, A)


@settings(max_examples=300, deadline=None)
@given(any_query, st.lists(any_capability, min_size=1, max_size=4))
def test_whatever_peers_claim_there_is_a_decision(asked: Query, claimed: list[Capability]) -> None:
    candidates = [
        Candidate(PeerId(f"n{i}"), f"n{i}", able, Backlog(), 0.0, PeerId(f"n{i}"))
        for i, able in enumerate(claimed)
    ]
    decision = choose(asked, PeerId("n0"), candidates)
    assert decision.explain()
