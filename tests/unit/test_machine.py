"""The composition: one boundary, one deadline, reads of local knowledge, and what it takes from outside."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from p2pmesh.config import Config
from p2pmesh.errors import LocalProtocolError, Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.directory import ALL_WEIGHED_MAX
from p2pmesh.protocol.machine import Machine
from p2pmesh.protocol.routing import Kind
from p2pmesh.protocol.workload import salted
from p2pmesh.query import Message, Options, Usage
from p2pmesh.record import Capability, Load, PeerId, Version
from p2pmesh.sim.sealer import SimSealer
from p2pmesh.sim.signer import SimSigner
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, C, D, of, query, sent, signed

V1 = Version(1, 1)


def test_time_does_not_run_backwards() -> None:
    on = Bench()
    on.now -= 1.0
    with pytest.raises(AssertionError, match="forward"):
        on.handle(e.Tick())


def test_the_deadline_lies_ahead_and_a_tick_there_is_enough() -> None:
    on = Bench()
    on.link(A, B)
    on.ask(query(origin=ME, budget_s=0.0))
    assert on.machine.deadline > on.now
    ticks = 0
    until = on.now + 60.0
    while on.machine.deadline < until:
        on.now, ticks = on.machine.deadline, ticks + 1
        on.handle(e.Tick())
    assert ticks < 60 * 12  # a dozen a second: probes, loads, announcements; no spin


def test_a_name_that_others_could_not_read_is_refused_before_anything_starts() -> None:
    with pytest.raises(LocalProtocolError, match="name"):
        Machine(ME, "n" * 65, 1, Config(), SimSigner(ME), SimSealer(ME), Random(0), 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": Options(max_tokens=0)},
        {"options": Options(max_tokens=10**6)},
        {"options": Options(temperature=float("nan"))},
        {"options": Options(temperature=10**400)},  # type: ignore[arg-type]
        {"options": Options(seed=-1)},
        {"options": Options(stop=("x",) * 9)},
        {"messages": (Message("user", "x" * 200_000),)},
        {"messages": (Message("user", "\ud800"),)},
        {"budget_s": float("inf")},
        {"budget_s": -1.0},
        {"hops_left": 99},
        {"model": "m" * 65},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_a_question_that_could_not_travel_is_refused_at_once(changes: dict[str, object]) -> None:
    on = Bench()
    [fail] = of(on.ask(query(origin=ME, **changes)), e.Fail)
    assert fail.reason is Reason.BAD_REQUEST
    assert not on.machine.relay.flights


def test_who_is_not_linked_is_not_heard() -> None:
    on = Bench()
    assert on.say(A, m.Ping(1)) == []
    assert on.say(A, m.Forward(query())) == []


def test_the_end_of_a_link_that_never_counted_means_nothing() -> None:
    on = Bench()
    on.link(A)
    before = on.machine.deadline
    assert on.handle(e.Disconnected(D)) == []
    assert on.machine.deadline == before


def test_a_decision_can_be_explained_without_being_taken() -> None:
    on = Bench()
    decision = on.machine.explain(query(origin=ME))
    assert decision.kind is Kind.SERVE
    assert decision.explain().startswith("serve: general")
    assert not on.machine.relay.flights


def test_records_are_ours_first_and_then_by_id() -> None:
    on = Bench()
    on.link(C, A)
    assert [r.id for r in on.machine.records()] == [ME, A, C]


def test_load_is_exact_of_ourselves_reported_of_links_and_unknown_of_others() -> None:
    on = Bench()
    on.link(A)
    on.say(A, m.LoadReport(Load(2.0, 1, 0)))
    assert on.machine.load(ME) == Load(0.0, MODEL.slots, 0)
    assert on.machine.load(A) == Load(2.0, 1, 0)
    assert on.machine.load(D) is None


def test_a_load_beyond_the_bound_of_the_wire_is_told_as_the_bound() -> None:
    slow = replace(MODEL, prefill_tps=0.0, decode_tps=0.0, context_tokens=10**6)
    on = Bench(Capability(models=(slow,)))
    on.link(A, capability=UNABLE)
    for number in range(30):
        effects = on.say(A, m.Forward(query(number, prompt_tokens=900_000, budget_s=1e7)))
        assert sent(effects, m.Accept, A)  # the bench checks that others can read it
    assert sent(on.wait(6.0), m.LoadReport, A)


def test_a_query_goes_to_the_idle_peer_when_this_one_is_busy_for_long() -> None:
    on = Bench(Capability(models=(replace(MODEL, decode_tps=1.0),)))
    on.link(A)
    assert [f.query.id for f in sent(on.ask(), m.Forward, A)] == [query().id]


def test_what_was_passed_on_counts_against_the_next_choice() -> None:
    on = Bench(UNABLE)
    on.link(A, B)
    for peer in (A, B):
        on.say(peer, m.LoadReport(Load(free_slots=1)))
    first = of(on.ask(query(1, origin=ME)), e.Send)
    second = of(on.ask(query(2, origin=ME)), e.Send)
    assert {s.peer for s in first + second if isinstance(s.message, m.Forward)} == {A, B}


def test_a_conversation_goes_to_the_neighbour_that_holds_it_and_no_query_to_a_slow_one() -> None:
    on = Bench(UNABLE)
    on.link(A, B)
    said = query(1, origin=ME, text="x" * 4_000)
    holds = (salted(said.prefixes[-1][0], MODEL.name),)
    on.say(A, m.LoadReport(Load(free_slots=2)))
    on.say(B, m.LoadReport(Load(free_slots=2, held=holds)))
    decision = on.machine.explain(said)
    assert decision.explain() == "to peer b: general quality 0.45, 0.1 s, holds 1000 tokens"
    on.say(B, m.LoadReport(Load(free_slots=2, held=holds, pace=0.05)))
    assert on.machine.explain(said).chosen.peer == A  # type: ignore[union-attr]


def test_a_peer_knows_what_it_holds_and_how_fast_it_is() -> None:
    on = Bench(Capability(models=(replace(MODEL, prefixes=4),)))
    said = query(1, origin=ME, text="x" * 4_000)
    on.ask(said)
    on.handle(e.Generated(said.id, 0, (1,), "a"))
    on.handle(e.Finished(said.id, 0, Usage(1_000, 1), "stop"))
    assert on.machine.explain(said).explain() == "serve: general quality 0.45, 0.1 s, holds 1000 tokens"
    assert len(on.machine.load(ME).held) == 1  # type: ignore[union-attr]


def test_where_the_nearest_neighbour_is_barred_the_other_way_is_taken() -> None:
    on = Bench(UNABLE)
    on.link(A, B, capability=UNABLE)
    on.say(A, m.Records((signed(D),)))
    for peer, distance in ((A, 1), (B, 2)):
        on.say(peer, m.Announce((m.Line(D, V1, distance),)))
    effects = on.ask()
    assert sent(effects, m.Forward, A)
    effects = on.say(A, m.Refuse(query().id, 0, Reason.OVERLOADED))
    assert sent(effects, m.Forward, B)


def test_of_more_peers_than_are_weighed_the_best_is_still_found_and_its_death_noticed() -> None:
    on = Bench(UNABLE)
    on.link(A, capability=UNABLE)
    slow = Capability(models=(replace(MODEL, decode_tps=1.0),))
    fast, next_fast = PeerId("n77"), PeerId("n99")
    for number in range(ALL_WEIGHED_MAX + 20):
        peer = PeerId(f"n{number}")
        able = {fast: ABLE, next_fast: Capability(models=(replace(MODEL, decode_tps=90.0),))}.get(peer, slow)
        on.say(A, m.Records((signed(peer, capability=able),)))
        on.say(A, m.Announce((m.Line(peer, V1, 1),)))
    [forward] = sent(on.ask(query(1, origin=ME)), m.Forward, A)
    assert forward.query.target == fast
    on.say(A, m.Ping(1, (m.Update(fast, m.Status.DEAD, V1),)))
    [forward] = sent(on.ask(query(2, origin=ME)), m.Forward, A)
    assert forward.query.target == next_fast
    on.say(A, m.Records((signed(fast, Version(1, 2)),)))  # it lives
    [forward] = sent(on.ask(query(3, origin=ME)), m.Forward, A)
    assert forward.query.target == fast
    assert len(forward.query.path) == 1


def test_the_excluded_are_asked_for_nothing() -> None:
    on = Bench(UNABLE)
    on.link(A)
    [fail] = of(on.ask(query(origin=ME, excluded=(A,))), e.Fail)
    assert fail.reason is Reason.NO_ROUTE


def test_the_suspect_that_is_linked_still_gets_work_and_the_dead_does_not() -> None:
    on = Bench(UNABLE)
    on.link(A, B, capability=UNABLE)
    on.say(A, m.Records((signed(A, Version(1, 2), ABLE),)))
    on.say(B, m.Ping(1, (m.Update(A, m.Status.SUSPECT, Version(1, 2)),)))
    assert sent(on.ask(query(1, origin=ME)), m.Forward, A)
    on.say(A, m.Leave(Version(1, 2)))
    assert of(on.ask(query(2, origin=ME)), e.Fail)
