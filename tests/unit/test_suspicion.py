"""How long a suspicion lasts: the less, the more we saw ourselves; and our own absence is nobody's fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pmesh.config import Config, Membership
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.messages import Status, Update
from p2pmesh.record import PeerId, Version
from tests.machines import UNABLE, A, B, Bench, C, D, of, query, sent, signed
from tests.unit.test_relay import ID, asker, chunk, forwarded

V1 = Version(1, 1)
LEAST, MOST = 3.0, 18.0
"""Seconds that a suspicion lasts among ten links or fewer, with all confirmations and with none."""
ACCUSED = Update(A, Status.SUSPECT, V1)
PEERS = tuple(PeerId(f"p{i}") for i in range(6))


def suspecting(*by: PeerId) -> Bench:
    """A bench that has heard from the first of `by`, and then from the rest, that D is silent. D is not a
    link."""
    on = Bench(config=Config(membership=Membership(probe_interval_s=1_000.0)))
    on.link(*PEERS)
    on.say(PEERS[0], m.Records((signed(D),)))
    for peer in by:
        confirm(on, peer)
    return on


def confirm(on: Bench, by: PeerId, version: Version = V1) -> None:
    on.say(by, m.Ping(1, (Update(D, Status.SUSPECT, version),)))


def keep(on: Bench, *answer: PeerId) -> None:
    """Let a moment pass, in which those of `answer` answer their probes."""
    effects = on.wait(0.05)
    for peer in answer:
        for ping in sent(effects, m.Ping, peer):
            on.say(peer, m.Ack(ping.seq))


def until(on: Bench, done: Callable[[], bool], answer: tuple[PeerId, ...] = (B, C)) -> None:
    """Let time pass until it is `done`."""
    for _ in range(1_000):
        if done():
            return
        keep(on, *answer)
    raise AssertionError("not in 50 s")


def told(on: Bench, peer: PeerId) -> bool:
    """Whether the suspicion of `peer` is told to whoever pings, B or `peer` itself."""
    acks = [ack for by in (B, peer) for ack in sent(on.say(by, m.Ping(7)), m.Ack, by)]
    return any(update.id == peer for ack in acks for update in ack.updates)


def lasts(on: Bench) -> float:
    """Seconds from now until D counts as dead."""
    began = on.now
    while on.status(D) is Status.SUSPECT:
        on.wait(0.25)
        assert on.now < began + 100.0
    return on.now - began


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_a_suspicion_that_we_only_heard_of_lasts_as_long_however_many_repeat_it(count: int) -> None:
    on = suspecting(*PEERS[:count] * 3)
    assert lasts(on) == pytest.approx(MOST, abs=0.3)
    assert on.status(D) is Status.DEAD


def test_a_new_suspicion_begins_anew() -> None:
    on = suspecting(PEERS[0])
    on.wait(MOST - 4.0)
    on.say(PEERS[0], m.Records((signed(D, Version(1, 2)),)))
    assert on.status(D) is Status.ALIVE
    confirm(on, PEERS[0], Version(1, 2))
    assert lasts(on) == pytest.approx(MOST, abs=0.3)


def test_a_link_that_stays_silent_is_dead_after_the_least_time() -> None:
    on = Bench()
    on.link(A, B, C)
    until(on, lambda: on.status(A) is Status.SUSPECT)
    began = on.now
    until(on, lambda: on.status(A) is Status.DEAD)
    assert LEAST - 0.06 <= on.now - began <= LEAST + 1.2  # after four probes; it is looked at every 0.05 s


def test_one_silence_is_kept_to_ourselves_and_the_second_is_told() -> None:
    on = Bench()
    on.link(A, B, C)
    until(on, lambda: on.status(A) is Status.SUSPECT)
    assert not told(on, A)
    until(on, lambda: on.machine.membership.members[A].evidence == 2)
    assert told(on, A)


def test_who_answers_while_it_is_suspected_is_cleared_and_nothing_more_is_told() -> None:
    on = Bench()
    on.link(A, B, C)
    until(on, lambda: on.machine.membership.members[A].evidence == 2)
    until(on, lambda: on.status(A) is Status.ALIVE, answer=(A, B, C))
    assert not told(on, A)
    for _ in range(600):
        keep(on, A, B, C)
    assert on.status(A) is Status.ALIVE


def test_an_accused_link_is_probed_at_once_and_once() -> None:
    """It was left until the next round: the dead were given work for longer, and the living cleared later."""
    on = Bench(config=Config(membership=Membership(probe_interval_s=1_000.0)))
    on.link(A, B, C)
    on.wait(950.0)
    probed = [ping for by in (B, C) for ping in sent(on.say(by, m.Ping(1, (ACCUSED,))), m.Ping, A)]
    assert len(probed) == 1
    assert on.status(A) is Status.SUSPECT


def test_an_accused_link_that_was_never_silent_to_us_makes_us_doubt_ourselves_first() -> None:
    on = Bench(config=Config(membership=Membership(probe_interval_s=10.0)))
    on.link(A, B, C)
    on.wait(2.1)
    on.say(B, m.Ping(1, (ACCUSED,)))
    health = [on.machine.membership._prober.health]
    on.wait(9.4)  # its probe has failed, and the next round's has not yet
    health.append(on.machine.membership._prober.health)
    assert health == [0, 1]


def test_an_accused_link_that_answers_is_cleared() -> None:
    on = Bench(config=Config(membership=Membership(probe_interval_s=1_000.0)))
    on.link(A, B)
    on.wait(950.0)
    [ping] = sent(on.say(B, m.Ping(1, (ACCUSED,))), m.Ping, A)
    on.say(A, m.Ack(ping.seq))
    assert on.status(A) is Status.ALIVE


def test_one_that_has_just_answered_is_not_suspected_on_the_word_of_others() -> None:
    on = Bench()
    on.link(A, B)
    for _ in range(60):
        on.say(B, m.Ping(1, (Update(A, Status.SUSPECT, V1),)))
        assert on.status(A) is Status.ALIVE
        keep(on, A, B)


def test_a_death_that_others_tell_of_is_believed_of_a_link_that_was_silent_long_enough() -> None:
    on = Bench()
    on.link(A, B, C)
    until(on, lambda: on.machine.membership.members[A].evidence == 3)
    on.say(B, m.Ping(1, (Update(A, Status.DEAD, V1),)))
    assert on.status(A) is Status.SUSPECT
    until(on, lambda: on.machine.membership.members[A].evidence == 4)
    if on.status(A) is Status.SUSPECT:
        assert of(on.say(B, m.Ping(1, (Update(A, Status.DEAD, V1),))), e.Hangup) == [e.Hangup(A)]
    assert on.status(A) is Status.DEAD


# -- our own absence ----------------------------------------------------------------------------------


def away(on: Bench, seconds: float) -> list[e.Effect]:
    """Let the process be stopped: the next call comes so much later than was asked for."""
    on.now = on.machine.deadline + seconds
    return on.handle(e.Tick())


def test_who_was_away_puts_its_suspicions_off_by_as_long() -> None:
    on = suspecting(PEERS[0])
    away(on, 30.0)
    assert on.status(D) is Status.SUSPECT
    assert lasts(on) == pytest.approx(MOST, abs=6.0)


def test_one_more_silence_after_an_absence_does_not_take_it_back() -> None:
    on = Bench()
    on.link(A, B, C)
    member = on.machine.membership.members[A]
    until(on, lambda: member.evidence == 2)
    began = member.suspected_at
    away(on, 30.0)
    until(on, lambda: member.evidence == 3)
    assert on.now > began + 24.0  # more than any suspicion lasts
    until(on, lambda: on.status(A) is Status.DEAD)
    assert on.now >= began + 30.0 + 8.0


def test_who_was_away_blames_no_link_for_what_it_did_not_hear() -> None:
    on = Bench()
    on.link(A, B)
    on.wait(1.05)  # one probe runs
    away(on, 20.0)
    assert on.status(A) is on.status(B) is Status.ALIVE


def test_who_was_away_blames_no_downstream_for_what_it_did_not_hear() -> None:
    on = asker(A, B)
    first, _ = forwarded(on.ask())
    on.say(first, m.Accept(ID, 0, True))
    on.now = on.machine.deadline + 60.0
    assert of(on.say(first, chunk(0)), e.Deliver)
    assert on.machine.relay.flights.toward(first, ID, 0) is not None


def test_an_absence_does_not_put_off_a_budget() -> None:
    on = asker(A)
    on.ask(query(origin=on.machine.me, budget_s=5.0))
    assert of(away(on, 10.0), e.Fail)


def test_a_call_that_is_a_little_late_excuses_nobody() -> None:
    on = Bench(UNABLE)
    on.link(A)
    for _ in range(40):
        for ping in sent(away(on, 0.2), m.Ping, A):
            on.say(A, m.Ack(ping.seq))
    assert on.machine.membership._prober.health == 0
    away(on, 0.3)
    assert on.machine.membership._prober.health >= 1


def test_a_call_before_the_deadline_is_never_late() -> None:
    on = Bench()
    while on.machine.deadline - on.now < 0.3:
        on.wait(0.1)
    on.now = on.machine.deadline - 0.001
    on.handle(e.Disconnected(C))
    assert on.machine.membership._prober.health == 0
