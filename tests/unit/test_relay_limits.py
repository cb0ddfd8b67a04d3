"""What one peer may cost another through a query: pieces, crashes, seconds, and the truth about the way."""

from __future__ import annotations

import pytest

from p2pmesh.config import Config, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Chunk, Ended, Hop, Options, Usage
from tests.machines import ME, UNABLE, A, B, Bench, C, of, query, receipted, sent
from tests.unit.test_relay import ID, asker, chunk, failed, forwarded, refuse


def test_more_tokens_than_were_asked_for_end_the_answer() -> None:
    bench = asker(A)
    bench.ask()  # for 8 tokens
    for index in range(8):
        assert of(bench.say(A, chunk(index)), e.Deliver)
    effects = bench.say(A, chunk(8))
    assert not of(effects, e.Deliver)
    assert sent(effects, m.Cancel, A)
    bench.handle(e.Disconnected(A))
    assert failed(bench.wait(2.0)).reason is Reason.PEER_LOST


def test_text_that_no_token_spells_is_not_delivered() -> None:
    bench = asker(A)
    bench.ask()
    effects = bench.say(A, m.Tokens(Chunk(ID, 0, 0, (), "for ever ")))
    assert not of(effects, e.Deliver)


def test_a_new_attempt_may_write_as_much_as_the_first() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    many = m.Tokens(Chunk(ID, 0, 1, (1,) * 8, "x"))  # a gap: lost before anything was delivered
    second, _ = forwarded(bench.say(first, many))
    whole = m.Tokens(Chunk(ID, 1, 0, (1,) * 8, "x"))
    assert of(bench.say(second, whole), e.Deliver)


def test_two_crashes_are_the_query_s_doing_and_a_third_model_is_spared() -> None:
    bench = asker(A, B, C)
    first, _ = forwarded(bench.ask())
    second, _ = forwarded(bench.say(first, refuse(Reason.ENGINE_FAILED)))
    effects = bench.say(second, refuse(Reason.ENGINE_FAILED))
    assert failed(effects).reason is Reason.ENGINE_FAILED
    assert not sent(effects, m.Forward)


@pytest.mark.parametrize("here", [True, False])
def test_a_relay_hands_a_crash_up_and_offers_the_query_to_no_other(here: bool) -> None:
    bench = Bench() if here else Bench(UNABLE)
    bench.link(A, B, C)
    effects = bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),))))
    if here:
        effects = bench.handle(e.Failed(ID, 0, Reason.ENGINE_FAILED, "killed by signal 9"))
    else:
        onward, _ = forwarded(effects)
        effects = bench.say(onward, refuse(Reason.ENGINE_FAILED))
    assert [r.reason for r in sent(effects, m.Refuse, A)] == [Reason.ENGINE_FAILED]
    assert not sent(effects, m.Forward)


def test_how_long_answers_are_is_learned_from_all_that_pass_and_all_that_are_written_here() -> None:
    asked = query(origin=ME, options=Options(max_tokens=4_096))
    through, here = Bench(UNABLE), Bench()
    through.link(A)
    before = through.machine.explain(asked).table[0].work_s
    for number in range(40):
        ident = query(number).id
        through.ask(query(number, origin=ME, options=asked.options))
        through.say(A, m.Tokens(Chunk(ident, 0, 0, (1,) * 1_000, "x")))
        ended = Ended(Usage(1, 1_000), "stop", "small", "", (Hop(A, "a", ""),))
        put = query(number, origin=ME, options=asked.options)
        through.say(A, m.End(ident, 0, 1, receipted(put, ended, "x")))
        here.ask(query(number, origin=ME, options=asked.options))
        here.handle(e.Finished(ident, 0, Usage(1, 1_000), "stop"))
    for on in (through, here):
        assert on.machine.explain(asked).table[0].work_s > 5 * before


def test_another_s_query_holds_its_place_no_longer_than_we_allow() -> None:
    bench = Bench(UNABLE, Config(relay=Relay(budget_max_s=30.0)))
    bench.link(A, B)
    effects = bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),), budget_s=1e7)))
    onward, forward = forwarded(effects)
    assert forward.query.budget_s <= 30.0
    refusals: list[m.Refuse] = []
    for _ in range(40):  # it is kept alive from below all the while
        bench.say(onward, m.Accept(ID, 0, True, 1.0, (Hop(B, "b", ""),)))
        refusals += sent(bench.wait(1.0), m.Refuse, A)
    assert [r.reason for r in refusals] == [Reason.DEADLINE]


def test_when_a_relay_places_it_anew_the_asker_hears_where() -> None:
    bench = asker(A)
    bench.ask()
    mine = (Hop(ME, "me", ""), Hop(A, "a", ""))
    for last in (Hop(B, "b", ""), Hop(C, "c", "")):
        [placed] = of(bench.say(A, m.Accept(ID, 0, True, 1.0, (*mine, last))), e.Deliver)
        assert placed.item == e.Placed((*mine, last), 1.0)
    assert not of(bench.say(A, m.Accept(ID, 0, True, 0.0, (*mine, Hop(C, "c", "")))), e.Deliver)
