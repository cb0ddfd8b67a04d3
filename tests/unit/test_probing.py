"""Probes: direct, then through others, then a verdict; and how far a peer that was away doubts itself."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from p2pmesh.config import Membership
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.probing import Link, Prober
from p2pmesh.record import PeerId, Version
from tests.machines import A, B, C, D, sent

NEWS = (m.Update(D, m.Status.SUSPECT, Version(1, 1)),)
START = 100.0


class Probes:
    """A prober in time, with links that say only what a test makes them say."""

    def __init__(self, *links: PeerId, **knobs: float) -> None:
        self.config = Membership(**knobs)  # type: ignore[arg-type]
        self.now = START
        self.links = {peer: Link(peer, self.now) for peer in links}
        self.out: list[e.Effect] = []
        self.answered: list[PeerId] = []
        self.silent: list[tuple[PeerId, float]] = []
        self.prober = Prober(
            self.links,
            self.config,
            Random(1),
            self.out,
            lambda peer: NEWS,
            self.answered.append,
            lambda peer, now: self.silent.append((peer, now)),
            self.now,
        )

    def take(self) -> list[e.Effect]:
        effects = list(self.out)
        self.out.clear()
        return effects

    def wait(self, seconds: float, answer: Sequence[PeerId] = ()) -> list[e.Effect]:
        """Let time pass; those of `answer` answer their pings. Returns what was said."""
        until, said = self.now + seconds, self.take()
        while self.prober.deadline <= until:
            self.now = max(self.now, self.prober.deadline)
            self.prober.advance(self.now)
            effects = self.take()
            said += effects
            for peer in answer:
                for ping in sent(effects, m.Ping, peer):
                    self.ack(peer, ping.seq)
        self.now = until
        return said

    def ack(self, peer: PeerId, seq: int) -> list[e.Effect]:
        self.prober.on_ack(peer, m.Ack(seq), self.now)
        return self.take()

    def ping(self, peer: PeerId, direct: int = 1, asked_by: tuple[PeerId, int] | None = None) -> int:
        """Probe `peer`. Returns the number of the first try."""
        self.prober.ping(peer, self.now, direct, asked_by)
        [ping] = sent(self.take(), m.Ping, peer)
        return ping.seq


# -- one probe ----------------------------------------------------------------------------------------


def test_a_probe_tells_the_news_and_its_answer_the_round_trip() -> None:
    on = Probes(A)
    on.prober.ping(A, on.now, 1)
    [ping] = sent(on.take(), m.Ping, A)
    assert ping.updates == NEWS
    on.now += 0.04
    on.ack(A, ping.seq)
    assert on.answered == [A]
    assert on.links[A].rtt_s == pytest.approx(0.04)
    assert len(on.prober) == 0


def test_round_trips_are_smoothed() -> None:
    on = Probes(A)
    for rtt in (0.08, 0.16):
        seq = on.ping(A)
        on.now += rtt
        on.ack(A, seq)
    assert on.links[A].rtt_s == pytest.approx(0.09)
    assert on.links[A].deviation_s == pytest.approx(0.04 + (0.08 - 0.04) / 4)


@pytest.mark.parametrize(
    ("samples", "late_s"),
    [
        ((), 0.5),
        ((0.001,) * 9, 0.2),  # near: no sooner than a host may stop a process
        ((0.6,), 1.2),  # one says little
        ((0.6,) * 40, 0.6),  # a satellite's, and always the same
        ((0.5, 0.7) * 40, 1.0),  # the same, and it varies
        ((*(0.001,) * 9, 0.4, 0.4), 0.5),  # it was near, and is no longer
    ],
)
def test_an_answer_is_late_after_what_the_link_is_used_to(samples: tuple[float, ...], late_s: float) -> None:
    link = Link(A, START)
    for sample in samples:
        link.measured(sample)
    assert link.late_s(0.5) == pytest.approx(late_s, abs=0.05)


def test_one_probe_shows_that_a_link_slowed_down_and_not_that_it_is_as_it_was() -> None:
    link = Link(A, START)
    assert link.likely_rtt_s(0.005) == 0.005
    for sample in (0.001, 0.001, 0.3):
        link.measured(sample)
    assert link.likely_rtt_s(0.005) == 0.3
    link.measured(0.001)
    assert 0.03 < link.likely_rtt_s(0.005) < 0.04


def test_a_silent_one_is_tried_directly_a_few_times_then_through_others_then_judged() -> None:
    on = Probes(A, B, C, D)
    on.prober.ping(A, on.now, 3)
    timeline = []
    for _ in range(20):
        timeline += [type(s.message).__name__ for s in on.take() if isinstance(s, e.Send)]
        assert not on.silent
        if on.now + 0.05 >= START + 0.9:
            break
        on.now += 0.05
        on.prober.advance(on.now)
    assert timeline == ["Ping"] * 3 + ["PingRequest"] * 3
    on.wait(0.1)
    assert on.silent == [(A, pytest.approx(START + 0.9))]
    assert on.answered == []


def test_one_that_answers_a_later_try_or_an_earlier_one_late_is_cleared() -> None:
    on = Probes(A, B)
    first = on.ping(A, direct=3)
    on.wait(0.2)
    on.ack(A, first)
    assert on.answered == [A]
    assert on.wait(0.5) == []  # no further try


def test_through_others_only_those_who_were_asked_may_answer_for_it() -> None:
    on = Probes(A, B, C, D, indirect_peers=1)
    on.ping(A)
    requests = [s for s in on.wait(0.2) if isinstance(s, e.Send) and isinstance(s.message, m.PingRequest)]
    [(helper, seq)] = [(s.peer, s.message.seq) for s in requests]  # type: ignore[union-attr]
    on.ack(min({B, C, D} - {helper}), seq)
    assert on.answered == []
    on.ack(helper, seq)
    assert on.answered == [A]
    assert on.links[A].rtt_s is None  # that was not its round trip
    assert on.links[helper].rtt_s is None


def test_an_unknown_number_answers_nothing() -> None:
    on = Probes(A)
    seq = on.ping(A)
    on.ack(A, seq + 7)
    assert on.answered == []
    on.ack(B, seq)
    assert on.answered == []


def test_of_a_link_that_closed_nothing_is_asked_or_said() -> None:
    on = Probes(A, B)
    on.ping(A, direct=3)
    del on.links[A]
    on.prober.forget(A)
    assert len(on.prober) == 0
    assert not [s for s in on.wait(0.9) if isinstance(s, e.Send) and s.peer == A]
    assert on.silent == []


def test_a_link_that_closed_while_others_were_asked_about_it_is_cleared_all_the_same() -> None:
    on = Probes(A, B, indirect_peers=1)
    on.ping(A)
    [request] = sent(on.wait(0.2), m.PingRequest, B)
    del on.links[B]
    on.ack(B, request.seq)
    assert on.answered == [A]


def test_with_nobody_to_ask_it_waits_for_the_answer_alone() -> None:
    on = Probes(A)
    seq = on.ping(A)
    assert on.wait(0.6) == []
    on.ack(A, seq)
    assert on.answered == [A]


# -- on behalf of another -----------------------------------------------------------------------------


def test_who_asked_hears_of_an_answer_and_of_silence_nothing() -> None:
    on = Probes(A, B)
    seq = on.ping(A, asked_by=(B, 9))
    assert on.ack(A, seq) == [e.Send(B, m.Ack(9))]
    on.ping(A, asked_by=(B, 10))
    assert not sent(on.wait(0.95), m.Ack)
    assert on.silent == []
    assert on.prober.health == 0  # who is silent there says nothing of us


def test_others_are_not_asked_for_a_probe_that_somebody_else_wants() -> None:
    on = Probes(A, B, C)
    on.ping(A, asked_by=(B, 9))
    assert not sent(on.wait(0.9), m.PingRequest)


def test_a_flood_of_requests_is_bounded_and_our_own_probes_still_run() -> None:
    on = Probes(A, B, links_max=2, links_far=1)
    for number in range(100):
        on.prober.ping(A, on.now, 1, asked_by=(B, number))
    assert len(on.prober) == 8
    on.ping(B)
    assert len(on.prober) == 9


# -- one round after another --------------------------------------------------------------------------


def test_every_link_is_probed_once_a_round_in_an_order_that_changes() -> None:
    on = Probes(A, B, C, D)
    rounds = []
    for _ in range(6):
        said = on.wait(4.0, answer=(A, B, C, D))
        rounds.append(tuple(s.peer for s in said if isinstance(s, e.Send)))
    assert all(sorted(each) == [A, B, C, D] for each in rounds)
    assert len(set(rounds)) > 1


def test_one_that_is_being_probed_already_is_not_probed_twice() -> None:
    on = Probes(A, probe_interval_s=1.0, health_max=8)
    on.prober.health = 4  # a probe outlives its round
    on.wait(2.5)
    assert len(on.prober) == 1


def test_a_peer_without_links_probes_nobody_and_says_when_to_look_again() -> None:
    on = Probes()
    assert on.wait(3.5) == []
    assert on.prober.deadline == pytest.approx(START + 4.0)


def test_a_link_that_went_before_its_turn_is_left_out() -> None:
    on = Probes(A, B, C)
    on.wait(1.0, answer=(A, B, C))
    del on.links[B]
    on.prober.forget(B)
    assert not sent(on.wait(6.0, answer=(A, C)), m.Ping, B)


def test_numbers_begin_again_before_the_codec_runs_out_of_them() -> None:
    on = Probes(A)
    on.prober._seq = 2**31 - 2
    assert [on.ping(A), on.ping(A)] == [2**31 - 1, 0]


# -- how far it doubts itself ---------------------------------------------------------------------------


def test_unanswered_probes_make_a_peer_doubt_itself_and_answered_ones_believe_again() -> None:
    on = Probes(A, B)
    on.wait(6.0)
    doubt = on.prober.health
    assert doubt >= 2
    on.wait(60.0, answer=(A, B))
    assert on.prober.health == 0


def test_doubt_has_a_bound() -> None:
    on = Probes(A, B, health_max=3)
    on.wait(200.0)
    assert on.prober.health == 3


def test_who_doubts_itself_waits_longer_for_the_next_try_and_for_the_verdict() -> None:
    on = Probes(A, B)
    on.prober.health = 3
    on.ping(A, direct=2)
    assert not sent(on.wait(0.59), m.Ping, A)
    assert sent(on.wait(0.02), m.Ping, A)
    on.wait(2.9, answer=(B,))
    assert on.silent == []
    on.wait(0.2, answer=(B,))
    assert [peer for peer, _ in on.silent] == [A]


@pytest.mark.parametrize(("away_s", "doubt"), [(0.3, 1), (1.0, 1), (2.5, 3), (500.0, 8)])
def test_who_was_away_doubts_itself_for_as_long_and_excuses_whom_it_probed(away_s: float, doubt: int) -> None:
    on = Probes(A, B)
    on.ping(A)
    on.prober.excuse(away_s)
    assert on.prober.health == doubt
    on.now += away_s + 0.8
    on.prober.advance(on.now)
    assert on.silent == []
    on.now += 0.2
    on.prober.advance(on.now)
    assert [peer for peer, _ in on.silent] == [A]
