"""Of many peers known, those who are weighed: the links, and the likeliest."""

from __future__ import annotations

from dataclasses import replace

from p2pmesh.config import Routing
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.directory import ALL_WEIGHED_MAX, SHORTLIST_MAX, Directory
from p2pmesh.protocol.workload import AnswerLength
from p2pmesh.record import Capability, PeerId, SignedRecord, Version
from tests.machines import ABLE, ME, MODEL, UNABLE, A, Bench, query, signed

CROWD = ALL_WEIGHED_MAX + 40


def fast(times: float) -> Capability:
    return Capability(models=(replace(MODEL, decode_tps=MODEL.decode_tps * times),))


def told(bench: Bench, records: list[SignedRecord]) -> None:
    """Let A tell of them."""
    lines = tuple(m.Line(r.record.id, r.record.version, 1) for r in records)
    bench.say(A, m.Lines((), lines))
    for start in range(0, len(records), 32):
        bench.say(A, m.Records(tuple(records[start : start + 32])))


def crowded() -> Bench:
    """Linked to A; knows, by way of it, a crowd of whom p7 is the fastest and the odd ones have no model."""
    bench = Bench(UNABLE)
    bench.link(A)
    able = [fast(2.0) if i == 7 else (ABLE if i % 2 == 0 else UNABLE) for i in range(2 * CROWD)]
    told(bench, [signed(PeerId(f"p{i}"), capability=its) for i, its in enumerate(able)])
    return bench


def test_nobody_known_is_an_empty_list() -> None:
    assert Directory({}).shortlist(query(), AnswerLength(), Routing()) == []
    assert Directory({A: UNABLE}).shortlist(query(), AnswerLength(), Routing()) == []


def test_of_a_crowd_the_links_and_the_likeliest_are_weighed() -> None:
    table = crowded().machine.explain(query(origin=ME)).table
    peers = {row.peer for row in table}
    assert len(peers) == SHORTLIST_MAX  # the link is one of the likeliest
    assert {A, PeerId("p7")} <= peers


def test_news_of_one_of_them_counts_at_once() -> None:
    bench = crowded()
    bench.machine.explain(query(origin=ME))
    told(bench, [signed(PeerId("p9"), Version(1, 2), fast(3.0))])
    best = min(bench.machine.explain(query(origin=ME)).table, key=lambda row: row.work_s)
    assert best.peer == "p9"


def test_one_that_is_dead_takes_nobodys_place() -> None:
    bench = crowded()
    bench.machine.explain(query(origin=ME))
    dead = m.Update(PeerId("p7"), m.Status.DEAD, Version(1, 1))
    bench.say(A, m.Ping(1, (dead,)))
    peers = {row.peer for row in bench.machine.explain(query(origin=ME)).table}
    assert len(peers) == SHORTLIST_MAX  # the link is one of the likeliest
    assert "p7" not in peers
