"""A shortlist of many peers holds whom weighing all of them would have put first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import Routing
from p2pmesh.protocol.directory import Directory
from p2pmesh.protocol.routing import Candidate, Estimates, score
from p2pmesh.protocol.workload import AnswerLength
from p2pmesh.query import Accepted, Query
from p2pmesh.record import GENERAL, Capability, ModelInfo, PeerId, Skill, quantise
from tests.machines import query

CONFIG = Routing()
shares = st.floats(0.0, 1.0)
directions = st.integers(0, 30).map(lambda seed: quantise(np.random.default_rng(seed).normal(size=8)))
skills = st.builds(
    Skill,
    name=st.sampled_from(["a", "b", GENERAL]),
    vector=st.none() | directions,
    quality=shares,
    model=st.sampled_from(["", "small", "big"]),
)
models = st.builds(
    ModelInfo,
    name=st.sampled_from(["small", "big"]),
    digest=st.sampled_from(["0" * 64, "1" * 64]),
    context_tokens=st.sampled_from([16, 2_048]),
    prefill_tps=st.floats(0.0, 1_000.0),
    decode_tps=st.floats(0.0, 100.0),
    slots=st.integers(0, 4),
    zones=st.sampled_from([(), (GENERAL,), ("hr",)]),
)
capabilities = st.builds(
    Capability,
    space=st.sampled_from(["", "s"]),
    skills=st.lists(skills, max_size=3).map(tuple),
    models=st.lists(models, max_size=2, unique_by=lambda m: m.name).map(tuple),
    zones=st.sampled_from([(GENERAL,), (GENERAL, "hr"), ()]),
)
queries = st.builds(
    query,
    vector=st.none() | directions,
    space=st.just("s"),
    model=st.sampled_from(["auto", "small"]),
    zone=st.sampled_from([GENERAL, "hr"]),
    prompt_tokens=st.sampled_from([0, 20]),
    accepted=st.none() | st.just(Accepted((1, 2), "x y", 1, "1" * 64)),
    budget_s=st.just(1e9),
)


@settings(max_examples=100)
@given(queries, st.lists(capabilities, max_size=30), st.integers(1, 30))
def test_whom_weighing_all_would_put_first_is_on_the_list(
    asked: Query, pool: list[Capability], most: int
) -> None:
    # A thin lead lowers all skills alike only where no two topics compete: that is what the list leaves out.
    pool = [replace(its, skills=tuple(replace(s, name="one") for s in its.skills)) for its in pool]
    known = {PeerId(f"p{i:02}"): its for i, its in enumerate(pool)}
    listed = Directory(known).shortlist(asked, AnswerLength(), CONFIG, most)
    candidates = [Candidate(i, i, its, None, 0.0, i) for i, its in known.items()]
    rows = [r for r in score(asked, PeerId("me"), candidates, Estimates(), CONFIG) if r.why_not is None]
    assert set(listed) <= {row.peer for row in rows}
    assert len(listed) <= most
    if rows:
        least = min(row.j_s for row in rows if row.continues is rows[0].continues)
        best = {row.peer for row in rows if row.continues is rows[0].continues and row.j_s <= least + 1e-3}
        assert best & set(listed)
        if len(rows) <= most:
            assert set(listed) == {row.peer for row in rows}
