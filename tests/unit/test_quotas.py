"""Nobody uses more than his quota of the mesh, and nobody is charged for what others ask."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from p2pmesh.config import Config, Limits, Quota
from p2pmesh.errors import ConfigError, Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol import quotas
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.origins import Origins
from p2pmesh.protocol.quotas import Quotas
from p2pmesh.query import Accepted, Hop, Message, Options, Query, Usage
from p2pmesh.record import GENERAL, Capability, Load, PeerId
from p2pmesh.sim.signer import SimSigner
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, C, D, of, query, sent, signed
from tests.unit.test_relay import failed, forwarded
from tests.unit.test_sealing import RED, part
from tests.unit.test_sealing import asked as sealed_for

TIGHT = Config(quota=Quota(tokens_per_minute=100, zones={"hr": 1_000, "lab": 0}))


def table(config: Config = TIGHT, links: set[PeerId] | None = None) -> tuple[Quotas, list[e.Effect]]:
    out: list[e.Effect] = []
    return Quotas(config, links or {B, C}, lambda peer, zone: peer == B, out), out


# -- counting ---------------------------------------------------------------------------------------


def test_what_was_used_fades_and_then_there_is_more() -> None:
    counts, _ = table()
    assert counts.wait_s(A, GENERAL, 0.0) == 0.0
    counts.charge(A, GENERAL, 100, 0.0)
    assert counts.wait_s(A, GENERAL, 0.0) == 0.0
    counts.charge(A, GENERAL, 100, 0.0)
    wait_s = counts.wait_s(A, GENERAL, 0.0)
    assert wait_s == pytest.approx(60.0 * math.log(2.0))
    assert counts.wait_s(A, GENERAL, wait_s / 2) == pytest.approx(wait_s / 2)
    assert counts.wait_s(A, GENERAL, wait_s + 0.001) == 0.0
    assert counts.wait_s(A, GENERAL, 0.0, slack=2.0) == 0.0
    assert counts.wait_s(B, GENERAL, 0.0) == 0.0


@pytest.mark.parametrize("each", [1, 10, 40])
def test_who_asks_without_a_pause_gets_the_tokens_a_minute_that_he_may(each: int) -> None:
    counts, _ = table()
    got = 0
    for tick in range(20 * 600):
        now = tick / 10.0
        if not counts.wait_s(A, GENERAL, now):
            counts.charge(A, GENERAL, each, now)
            got += each
    assert got / 20.0 == pytest.approx(100.0, rel=0.25)
    assert counts.used(A, GENERAL, 1_200.0) <= 100.0 + each


def test_each_zone_has_its_own_and_one_may_be_without() -> None:
    counts, _ = table()
    for zone in (GENERAL, "hr", "lab", "legal"):
        counts.charge(A, zone, 500, 0.0)
    waits = {zone: counts.wait_s(A, zone, 0.0) > 0.0 for zone in (GENERAL, "hr", "lab", "legal")}
    assert waits == {GENERAL: True, "hr": False, "lab": False, "legal": True}


def test_where_there_are_no_quotas_and_nobody_asks_nothing_is_counted() -> None:
    counts, out = table(Config())
    counts.connected(B, 0.0)
    assert not counts.counts
    assert counts.wait_s(A, GENERAL, 0.0) == 0.0
    assert counts.deadline == math.inf
    assert not out


# -- adding up --------------------------------------------------------------------------------------


def said(out: list[e.Effect], to: PeerId = B) -> list[m.Spent]:
    return sent(out, m.Spent, to)


def test_what_links_say_is_added_and_fades_too() -> None:
    counts, _ = table()
    counts.charge(A, GENERAL, 40, 0.0)
    for link in (B, C):
        counts.on_spent(link, m.Spent((m.Spending(A, GENERAL, 40.0),)), 0.0)
    assert counts.used(A, GENERAL, 0.0) == pytest.approx(120.0)
    assert counts.used(A, GENERAL, 60.0) == pytest.approx(120.0 / math.e)
    counts.on_spent(B, m.Spent(()), 0.0)  # what it says now is all there is
    assert counts.used(A, GENERAL, 0.0) == pytest.approx(80.0)
    counts.disconnected(C)
    assert counts.used(A, GENERAL, 0.0) == pytest.approx(80.0)


def test_no_link_alone_can_say_that_a_quota_is_used_up_nor_anything_of_a_zone_it_may_not_see() -> None:
    counts, _ = table()
    counts.on_spent(B, m.Spent((m.Spending(A, GENERAL, 1e9), m.Spending(A, "hr", 1e9))), 0.0)
    assert counts.used(A, GENERAL, 0.0) == 50.0
    assert counts.wait_s(A, GENERAL, 0.0) == 0.0
    assert counts.used(A, "hr", 0.0) == 500.0
    counts.on_spent(C, m.Spent((m.Spending(A, "hr", 1e9),)), 0.0)
    assert counts.used(A, "hr", 0.0) == 500.0


def test_what_is_given_back_has_faded_like_what_was_charged() -> None:
    """Who waited for long and was cancelled took back what others of his queries had really used."""
    counts, _ = table()
    counts.charge(A, GENERAL, 1_000, 0.0)
    counts.charge(A, GENERAL, 500, 120.0)
    counts.refund(A, GENERAL, 1_000, 0.0)
    assert counts.used(A, GENERAL, 120.0) == pytest.approx(500.0)
    counts.refund(B, GENERAL, 1_000, 0.0)
    assert counts.used(B, GENERAL, 120.0) == 0.0


def test_who_keeps_quotas_says_so_and_is_told_what_changes_once_a_second_at_most() -> None:
    keeper, out = table()
    keeper.connected(B, 0.0)
    assert keeper.deadline == 1.0
    keeper.advance(1.0)
    assert said(out) == [m.Spent((), True)]
    other, told = table(Config())  # has none itself
    other.on_spent(B, m.Spent(()), 0.0)
    other.advance(1.0)
    other.charge(A, GENERAL, 7, 2.0)
    other.charge(A, GENERAL, 7, 2.0)
    other.advance(2.5)
    other.advance(3.0)
    [nothing, spent] = said(told)
    assert nothing == m.Spent((), False)
    assert spent == m.Spent((m.Spending(A, GENERAL, pytest.approx(13.8, abs=0.1)),), False)
    assert other.deadline == math.inf
    keeper.on_spent(B, spent, 3.0)  # who keeps none is not told in turn
    assert keeper.deadline == math.inf
    other.on_spent(B, m.Spent((), False), 3.0)
    assert not other.counts
    other.on_spent(B, m.Spent(()), 3.0)
    other.advance(4.0)
    other.disconnected(B)
    other.charge(A, GENERAL, 7, 4.0)
    assert other.deadline == math.inf


def test_of_a_zone_only_those_hear_who_may_see_it() -> None:
    counts, out = table()
    for link in (B, C):
        counts.on_spent(link, m.Spent(()), 0.0)
    counts.charge(A, "hr", 5, 0.0)
    counts.charge(A, GENERAL, 5, 0.0)
    counts.advance(1.0)
    assert {row.zone for row in said(out, B)[-1].rows} == {"hr", GENERAL}
    assert {row.zone for row in said(out, C)[-1].rows} == {GENERAL}


def test_only_so_many_are_counted_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "ASKERS_MAX", 70)
    monkeypatch.setattr(quotas, "TOLD_BY_MAX", 2)
    counts, out = table()
    counts.on_spent(B, m.Spent(()), 0.0)
    for number in range(100):
        counts.charge(PeerId(f"p{number}"), GENERAL, 10 + number, 0.0)
    assert len(counts._own) == 70
    counts.advance(1.0)
    assert [row.asker for row in said(out)[-1].rows] == [f"p{99 - i}" for i in range(m.SPENT_MAX)]
    for link in "xyz":
        counts.on_spent(PeerId(link), m.Spent(()), 0.0)
    assert list(counts._told) == ["y", "z"]
    counts.charge(A, GENERAL, 1, 1_000.0)
    counts.advance(1_001.0)
    assert list(counts._own) == [(A, GENERAL)]  # the others have faded


# -- serving ----------------------------------------------------------------------------------------


LONG = Options(max_tokens=400)


def asks(bench: Bench, number: int, peer: PeerId = A, **changes: object) -> list[e.Effect]:
    asked = query(number, origin=peer, options=LONG, path=(Hop(peer, "x", ""),))
    return bench.say(peer, m.Forward(replace(asked, **changes)))  # type: ignore[arg-type]


def write(bench: Bench, number: int, tokens: int = 150) -> None:
    bench.handle(e.Generated(query(number).id, 0, tuple(range(tokens)), "x " * tokens))


def reasons(effects: list[e.Effect]) -> list[Reason]:
    return [refuse.reason for refuse in sent(effects, m.Refuse)]


def served(*peers: PeerId) -> Bench:
    bench = Bench(Capability(models=(replace(MODEL, slots=9),)), TIGHT)
    bench.link(*peers, capability=UNABLE)
    return bench


def test_who_has_used_up_his_quota_is_refused_and_told_when_to_come_back() -> None:
    bench = served(A, B)
    assert of(asks(bench, 1), e.Generate)
    write(bench, 1)
    [refuse] = sent(asks(bench, 2), m.Refuse, A)
    assert refuse.reason is Reason.QUOTA
    assert refuse.retry_after_s == pytest.approx(60.0 * math.log(1.5), rel=0.05)
    assert of(asks(bench, 3, B), e.Generate)
    assert of(bench.ask(query(4, origin=bench.machine.me, options=LONG)), e.Generate)
    bench.wait(refuse.retry_after_s + 0.1)
    bench.link(A, capability=UNABLE)
    assert of(asks(bench, 5), e.Generate)


def by(origin: PeerId, number: int, **changes: object) -> Query:
    """What `origin` asks, signed by it."""
    asked = query(number, origin=origin, options=LONG, path=(Hop(origin, "x", ""), Hop(A, "a", "")))
    return Origins(Codec(Limits()), SimSigner(origin)).signed(replace(asked, **changes), 1)  # type: ignore[arg-type]


def test_who_asked_is_charged_whoever_passes_it_on() -> None:
    bench = served(A, B)
    assert of(bench.say(A, m.Forward(by(B, 1))), e.Generate)
    assert reasons(asks(bench, 2, B)) == [Reason.QUOTA]
    assert of(asks(bench, 3, A), e.Generate)


@pytest.mark.parametrize(
    "forged",
    [
        replace(by(B, 1), signature=b""),
        replace(by(B, 1), origin=C),
        replace(by(B, 1), options=Options(max_tokens=401)),
        replace(by(B, 1), messages=(Message("user", "another"),)),
        replace(by(B, 1), id=query(9).id),
        replace(by(B, 1), model="small"),
        replace(by(B, 1, attempt=1), attempt=0),
        Origins(Codec(Limits()), SimSigner(B)).signed(by(B, 1), 0),  # in an earlier life
        by(D, 1),  # by nobody who is known: anybody can make a key
    ],
)
def test_nobody_is_charged_for_what_others_ask_in_his_name(forged: Query) -> None:
    bench = served(A, B)
    assert of(bench.say(A, m.Forward(forged)), e.Generate)
    assert reasons(asks(bench, 3, A)) == [Reason.QUOTA]
    assert of(asks(bench, 2, B), e.Generate)


def test_what_is_asked_is_signed_on_its_way_and_those_on_it_change_nothing_of_that() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    _, asked = forwarded(bench.ask())
    origins, life = Origins(Codec(Limits()), SimSigner(C)), bench.machine.gossip.me.record.version.epoch
    assert origins.proven(asked.query, life)
    assert not origins.proven(asked.query, life + 1)
    relay = Bench(UNABLE, me=A)
    relay.link(ME, capability=UNABLE)
    relay.link(B)
    _, onward = forwarded(relay.say(ME, asked))
    assert len(onward.query.path) == 2
    assert origins.proven(onward.query, life)


@pytest.mark.parametrize("known", [True, False])
def test_who_has_sealed_it_is_charged_if_he_is_known_and_may_see_the_zone(known: bool) -> None:
    """Anybody can make a key, and seal with it."""
    bench = Bench(RED, TIGHT)
    bench.link(C, capability=UNABLE)
    if known:
        bench.say(C, m.Records((signed(A, capability=RED),)))
    outside, _ = part(A).wrap(sealed_for(target=bench.machine.me), "small")
    assert of(bench.say(C, m.Forward(replace(outside, path=(*outside.path, Hop(C, "c", ""))))), e.Generate)
    charges = {peer: bench.machine._quotas.used(peer, "red", bench.now) > 0 for peer in (A, C)}
    assert charges == {A: known, C: not known}


def test_how_long_a_prompt_is_nobody_on_the_way_says() -> None:
    bench = served(A, B)
    bench.say(A, m.Forward(replace(by(B, 1), prompt_tokens=90)))
    assert charged(bench, B) == pytest.approx(129)
    asks(bench, 2, A, messages=(Message("user", "x" * 800),), prompt_tokens=1)
    assert charged(bench, A) == pytest.approx(328)


def test_what_is_handed_over_is_charged_where_it_is_answered_and_taken_back_without_a_question() -> None:
    """An idle peer took it and would not have it, as its asker had used up his quota there: it was refused
    here too, where it had been accepted."""
    bench = Bench(ABLE, Config(quota=Quota(tokens_per_minute=1_500)))
    bench.link(A, capability=UNABLE)
    for number in (1, 2):
        asks(bench, number)
    assert not sent(asks(bench, 3, messages=(Message("user", "x" * 4_000),)), m.Refuse)  # it waits
    assert charged(bench) == pytest.approx(2 * 129 + 1_128)
    bench.link(B)
    effects = bench.say(B, m.LoadReport(Load(free_slots=2))) + bench.say(B, m.Steal())
    [onward] = sent(effects, m.Forward, B)
    assert charged(bench) == pytest.approx(2 * 129)
    bench.machine._quotas.charge(A, GENERAL, 5_000, bench.now)
    effects = bench.say(B, m.Refuse(onward.query.id, 0, Reason.QUOTA, "", 60.0))
    assert not sent(effects, m.Refuse)
    assert charged(bench) == pytest.approx(2 * 129 + 5_000 + 1_128)


def charged(bench: Bench, peer: PeerId = A) -> float:
    return bench.machine._quotas.used(peer, GENERAL, bench.now)


def test_what_an_answer_is_expected_to_be_is_charged_at_once_and_what_it_was_in_the_end() -> None:
    """Or whoever asks for a hundred at once gets them all."""
    bench = served(A)
    asks(bench, 1)
    assert charged(bench) == pytest.approx(1 + 128)  # a prompt of five bytes, an answer as long as most
    write(bench, 1, 20)
    assert charged(bench) == pytest.approx(129)
    bench.handle(e.Finished(query(1).id, 0, Usage(1, 20), "stop"))
    assert charged(bench) == pytest.approx(21)


def test_what_was_not_foreseen_is_charged_as_it_comes() -> None:
    bench = served(A)
    asks(bench, 1)
    write(bench, 1, 300)
    assert charged(bench) == pytest.approx(301)
    bench.handle(e.Finished(query(1).id, 0, Usage(7, 300), "stop"))
    assert charged(bench) == pytest.approx(307)


def busy() -> Bench:
    """Both slots are taken by B, and A's is the third."""
    bench = Bench(ABLE, Config(quota=Quota(tokens_per_minute=1_000)))
    bench.link(A, B, capability=UNABLE)
    for number, peer in ((1, B), (2, B), (3, A)):
        asks(bench, number, peer, messages=(Message("user", "x" * 400),))
    return bench


def test_what_waited_and_was_never_begun_costs_nothing() -> None:
    bench = busy()
    bench.say(A, m.Cancel(query(3).id, 0))
    assert charged(bench) == 0.0


def test_what_was_read_counts_although_nothing_was_written_yet() -> None:
    """Who cancelled in time had his prompts read for nothing."""
    bench = busy()
    bench.say(B, m.Cancel(query(1).id, 0))
    assert charged(bench, B) == pytest.approx(228 + 100)
    asks(bench, 4, A, accepted=Accepted(tuple(range(50)), "x " * 50, 50, MODEL.digest), attempt=1)
    assert charged(bench) == pytest.approx(228 + 1 + 50 + 96)  # what goes on is read as well


def test_what_was_charged_as_it_came_is_not_charged_once_more_at_the_end() -> None:
    bench = served(A)
    asks(bench, 1, options=Options(max_tokens=4_000))
    for _ in range(60):
        bench.now += 5.0
        bench.handle(e.Generated(query(1).id, 0, tuple(range(50)), "x " * 50))
    before = charged(bench)
    bench.handle(e.Finished(query(1).id, 0, Usage(1, 3_000), "stop"))
    assert charged(bench) == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("end", ["cancelled", "crashed", "gone"])
def test_what_was_not_written_is_given_back_however_it_ended(end: str) -> None:
    bench = served(A, B)
    asks(bench, 1)
    write(bench, 1, 20)
    match end:
        case "cancelled":
            bench.say(A, m.Cancel(query(1).id, 0))
        case "crashed":
            bench.handle(e.Failed(query(1).id, 0, Reason.ENGINE_FAILED, "boom"))
        case _:
            bench.handle(e.Disconnected(A))
    assert charged(bench) == pytest.approx(21)


def test_an_answer_that_was_begun_elsewhere_may_take_twice_as_much() -> None:
    bench = served(A)
    asks(bench, 1)
    write(bench, 1)
    assert reasons(asks(bench, 4, attempt=1)) == [Reason.QUOTA]  # of which there is nothing yet
    goes_on = {"attempt": 1, "accepted": Accepted((1,), "x ", 1, MODEL.digest)}
    assert of(asks(bench, 2, **goes_on), e.Generate)
    write(bench, 1, 100)
    assert reasons(asks(bench, 3, **goes_on)) == [Reason.QUOTA]


def test_whoever_is_refused_for_that_asks_the_next_and_then_is_told_so() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B)
    first, _ = forwarded(bench.ask())
    refuse = m.Refuse(query(1).id, 0, Reason.QUOTA, "used up", 7.0)
    second, _ = forwarded(bench.say(first, refuse))
    assert second != first
    fail = failed(bench.say(second, refuse))
    assert (fail.reason, fail.retry_after_s) == (Reason.QUOTA, 7.0)


def test_a_machine_tells_its_links_of_what_it_has_served() -> None:
    bench = served(A, B)
    bench.say(B, m.Spent(()))
    asks(bench, 1)
    write(bench, 1)
    [spent] = sent(bench.wait(1.1), m.Spent, B)[-1:]
    assert [(row.asker, row.zone) for row in spent.rows] == [(A, GENERAL)]
    assert spent.rows[0].tokens == pytest.approx(150, rel=0.1)


@pytest.mark.parametrize(
    "wrong", [{"tokens_per_minute": -1}, {"zones": {"hr": -1}}, {"zones": {"hr": 2**31}}]
)
def test_a_quota_is_a_number_of_tokens(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"quota\.(zones\.hr|tokens_per_minute) must lie within"):
        Quota(**wrong)  # type: ignore[arg-type]
