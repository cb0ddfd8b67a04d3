"""What answers were worth: judged by who asked, told to links, forgotten with the models it was about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.experience import Report, Row
from p2pmesh.protocol.ratings import ANSWERED_MAX, TELL_INTERVAL_S
from p2pmesh.query import Ended, Hop, QueryId, Usage
from p2pmesh.record import GENERAL, Capability, PeerId, Skill, Version
from tests.machines import ME, MODEL, UNABLE, A, B, Bench, C, query, receipted, sent, signed

SKILLED = Capability(skills=(Skill(GENERAL, None, 0.8),), models=(MODEL,))


def bench(*peers: PeerId) -> Bench:
    """Somebody without a model, linked to peers with one, who may tell his outcomes at once."""
    asker = Bench(UNABLE)
    asker.wait(TELL_INTERVAL_S)
    asker.link(*(peers or (A,)), capability=SKILLED)
    return asker


def answered(asker: Bench, number: int = 1, by: PeerId = A) -> QueryId:
    """Ask, and let `by` answer."""
    asked = query(number, origin=ME)
    excluded = tuple(p for p in (A, B, C) if p != by)
    forward = sent(asker.ask(replace(asked, excluded=excluded)), m.Forward, by)
    assert forward
    ended = Ended(Usage(1, 0), "stop", MODEL.name, MODEL.digest, (Hop(ME, "", ""), Hop(by, "", "")))
    asker.say(by, m.End(asked.id, 0, 0, receipted(asked, ended, "")))
    return asked.id


def worth(asker: Bench, peer: PeerId = A) -> float:
    """How good `peer` is held to be."""
    decision = asker.machine.explain(query(99, origin=ME))
    return next(row.quality for row in decision.table if row.peer == peer)


def test_a_bad_rating_lowers_and_a_good_one_raises_what_a_peer_is_held_for() -> None:
    asker = bench()
    before = worth(asker)
    asker.handle(e.Rated(answered(asker, 1), 0.0))
    after = worth(asker)
    assert after < before
    asker.handle(e.Rated(answered(asker, 2), 1.0))
    assert worth(asker) > after


def test_only_the_first_rating_of_an_answer_counts() -> None:
    asker = bench()
    rated = answered(asker)
    asker.handle(e.Rated(rated, 0.0))
    once = worth(asker)
    asker.handle(e.Rated(rated, 0.0))
    assert worth(asker) == once


def test_a_rating_of_what_nobody_knows_teaches_nothing() -> None:
    asker = bench()
    before = worth(asker)
    assert asker.handle(e.Rated(QueryId("0" * 32), 0.0)) == []
    assert worth(asker) == before


def test_a_rating_of_one_that_is_gone_teaches_nothing() -> None:
    asker = bench()
    rated = answered(asker)
    asker.handle(e.Disconnected(A))
    asker.wait(60.0)
    assert asker.handle(e.Rated(rated, 0.0)) == []


def test_old_answers_cannot_be_rated_any_more() -> None:
    asker = bench()
    first = answered(asker, 0)
    for number in range(1, ANSWERED_MAX + 1):
        answered(asker, number)
    before = worth(asker)
    asker.handle(e.Rated(first, 0.0))
    assert worth(asker) == before


def test_own_answers_are_rated_too() -> None:
    alone = Bench(SKILLED)
    alone.ask(query(1, origin=ME))
    before = worth(alone, ME)
    alone.handle(e.Finished(QueryId(f"{1:032x}"), 0, Usage(1, 1), "stop"))
    alone.handle(e.Rated(QueryId(f"{1:032x}"), 0.0))
    assert worth(alone, ME) < before


def test_links_are_told_once_and_not_at_once() -> None:
    asker = bench(A, B)
    [told] = sent(asker.handle(e.Rated(answered(asker, 1), 1.0)), m.Outcomes, B)
    [row] = told.report.rows
    assert (row.peer, row.topic, row.trials, row.successes) == (A, GENERAL, 1, 1.0)
    assert not sent(asker.handle(e.Rated(answered(asker, 2), 1.0)), m.Outcomes)
    assert not sent(asker.wait(TELL_INTERVAL_S / 2), m.Outcomes)
    [told] = sent(asker.wait(TELL_INTERVAL_S), m.Outcomes, B)
    assert told.report.rows[0].trials == 2
    assert not sent(asker.wait(TELL_INTERVAL_S), m.Outcomes)


def test_a_new_link_is_told_all() -> None:
    asker = bench(A)
    asker.handle(e.Rated(answered(asker), 1.0))
    asker.wait(0.1)
    asker.link(C)
    assert sent(asker.wait(TELL_INTERVAL_S), m.Outcomes, C)


def test_what_a_link_tells_counts_and_what_it_says_of_itself_does_not() -> None:
    asker = bench(A, B)
    before = worth(asker)
    bad = Row(A, GENERAL, 1, 10, 0.0)
    asker.say(B, m.Outcomes(Report(1, (bad,))))
    assert worth(asker) < before
    told = worth(asker)
    asker.say(A, m.Outcomes(Report(1, (replace(bad, successes=10.0),))))
    assert worth(asker) == told


@pytest.mark.parametrize(("digest", "forgotten"), [("11" * 32, True), (MODEL.digest, False)])
def test_outcomes_are_forgotten_with_the_model_they_were_about(digest: str, forgotten: bool) -> None:
    asker = bench()
    for number in range(5):
        asker.handle(e.Rated(answered(asker, number), 0.0))
    low = worth(asker)
    renewed = replace(SKILLED, models=(replace(MODEL, digest=digest, slots=7),))
    asker.say(A, m.Records((signed(A, Version(1, 2), renewed),)))
    assert (worth(asker) > low) is forgotten
