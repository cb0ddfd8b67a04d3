"""Who is here: probes, suspicion, refutation, leaving, dialling; and what a liar cannot do."""

from __future__ import annotations

import pytest

from p2pmesh.config import Config, Membership, Net
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.messages import DISTANCE_MAX, Status, Update
from p2pmesh.record import PeerId, Version
from tests.machines import ME, A, B, Bench, C, D, of, sent, signed

V1 = Version(1, 1)
HUGE = Version(2**62, 2**62)
ADDRESS = ("/ip4/10.0.0.1/tcp/1",)


def bench(*peers: PeerId, addresses: tuple[str, ...] = (), **knobs: float) -> Bench:
    made = Bench(config=Config(membership=Membership(**knobs)))  # type: ignore[arg-type]
    made.link(*peers, addresses=addresses)
    return made


def learn(on: Bench, peer: PeerId, via: PeerId = A, distance: int = 1) -> None:
    """Let `on` hold the record of `peer`, which is not a link, and a way to it."""
    on.say(via, m.Records((signed(peer, addresses=ADDRESS),)))
    on.say(via, m.Announce((m.Line(peer, V1, distance),)))


def news(on: Bench, to: PeerId = A) -> tuple[Update, ...]:
    """What a ping from `to` is told."""
    [ack] = sent(on.say(to, m.Ping(77)), m.Ack, to)
    return ack.updates


# -- probes -------------------------------------------------------------------------------------------


def test_a_ping_is_answered_with_its_number() -> None:
    on = bench(A)
    assert [a.seq for a in sent(on.say(A, m.Ping(5)), m.Ack, A)] == [5]


def test_a_link_that_answers_stays_alive_and_its_round_trip_is_known() -> None:
    on = bench(A)
    for _ in range(100):
        for ping in sent(on.wait(0.05), m.Ping, A):
            on.now += 0.004
            on.say(A, m.Ack(ping.seq))
    assert on.status(A) is Status.ALIVE
    assert 0.0 < (on.machine.membership.links[A].rtt_s or 0.0) < 0.06


def test_a_silent_link_is_probed_directly_then_through_others_then_suspected_then_dead() -> None:
    on = bench(A, B, C)
    seen: list[Status] = []
    direct = indirect = 0
    for _ in range(300):
        effects = on.wait(0.1)
        direct = max(direct, len(sent(effects, m.Ping, A)))
        indirect += len([r for r in sent(effects, m.PingRequest) if r.target == A])
        for peer in (B, C):
            for ping in sent(effects, m.Ping, peer):
                on.say(peer, m.Ack(ping.seq))
        if on.status(A) not in seen:
            seen.append(on.status(A))
        if of(effects, e.Hangup):
            on.handle(e.Disconnected(A))
    assert seen == [Status.ALIVE, Status.SUSPECT, Status.DEAD]
    assert direct
    assert indirect >= 2
    assert A not in on.machine.membership.links


def test_an_ack_through_a_helper_clears_the_target() -> None:
    on = bench(A, B)
    while True:
        effects = on.wait(0.05)
        requests = [r for r in sent(effects, m.PingRequest, B) if r.target == A]
        if requests:
            break
    on.say(B, m.Ack(requests[0].seq))
    on.wait(0.3)
    assert on.status(A) is Status.ALIVE


def test_nobody_else_can_vouch_for_the_silent() -> None:
    on = bench(A, B)
    for _ in range(200):
        effects = on.wait(0.05)
        for ping in sent(effects, m.Ping, A):
            on.say(B, m.Ack(ping.seq))  # B answers for A unasked
        if on.status(A) is not Status.ALIVE:
            break
    assert on.status(A) is Status.SUSPECT


def test_a_probe_for_another_reports_only_if_the_target_answers() -> None:
    on = bench(A, B)
    [ping] = sent(on.say(A, m.PingRequest(9, B)), m.Ping, B)
    assert not sent(on.wait(0.1), m.Ack, A)
    assert [a.seq for a in sent(on.say(B, m.Ack(ping.seq)), m.Ack, A)] == [9]


def test_a_flood_of_probe_requests_is_bounded() -> None:
    on = bench(A, B, links_max=2, links_far=1)
    sends = sum(len(sent(on.say(A, m.PingRequest(i, B)), m.Ping, B)) for i in range(1_000))
    assert sends <= 8
    assert not sent(on.say(A, m.PingRequest(1, D)), m.Ping, D)


def test_probe_numbers_begin_again_before_the_codec_runs_out_of_them() -> None:
    on = bench(A)
    on.machine.membership._seq = 2**31 - 2
    assert on.wait(5.0)  # the bench encodes all that is sent


# -- suspicion and refutation ---------------------------------------------------------------------------


def test_a_suspicion_of_ourselves_is_refuted_with_a_newer_version() -> None:
    on = bench(A)
    before = on.machine.gossip.me.record.version
    on.say(A, m.Ping(1, (Update(ME, Status.SUSPECT, before),)))
    assert before < on.machine.gossip.me.record.version


def test_a_suspicion_of_an_older_version_of_ours_is_refuted_already() -> None:
    on = bench(A)
    before = on.machine.gossip.me.record.version
    effects = on.say(A, m.Ping(1, (Update(ME, Status.SUSPECT, Version(before.epoch, before.seq - 1)),)))
    assert on.machine.gossip.me.record.version == before
    assert not sent(effects, m.Pull)


def test_many_suspicions_in_one_frame_are_refuted_once() -> None:
    on = bench(A)
    before = on.machine.gossip.me.record.version
    lies = tuple(Update(ME, Status.DEAD, Version(before.epoch, before.seq + i)) for i in range(12))
    on.say(A, m.Ping(1, lies))
    assert on.machine.gossip.me.record.version.seq <= before.seq + 1


def test_a_made_up_version_of_ours_is_asked_for_and_never_believed() -> None:
    on = bench(A)
    before = on.machine.gossip.me.record.version
    effects = on.say(A, m.Ping(1, (Update(ME, Status.DEAD, HUGE),)))
    assert on.machine.gossip.me.record.version == before
    assert sent(effects, m.Pull, A) == [m.Pull((ME,))]


def test_a_made_up_version_of_another_can_still_be_refuted() -> None:
    on = bench(A)
    learn(on, D)
    on.say(A, m.Ping(1, (Update(D, Status.DEAD, HUGE),)))
    assert on.status(D) is Status.DEAD
    on.say(A, m.Records((signed(D, Version(1, 2)),)))
    assert on.status(D) is Status.ALIVE


@pytest.mark.parametrize("status", [Status.DEAD, Status.LEFT])
def test_hearsay_does_not_cut_a_link(status: Status) -> None:
    on = bench(A, B, probe_interval_s=100.0)
    on.say(B, m.Ping(1, (Update(A, status, V1),)))
    assert on.status(A) is Status.ALIVE  # it has just answered us
    on.wait(2.0)
    effects = on.say(B, m.Ping(1, (Update(A, status, V1),)))
    assert not of(effects, e.Hangup)
    assert on.status(A) is Status.SUSPECT
    assert on.machine.membership.is_alive(A)


def test_the_suspect_is_told_and_its_newer_record_clears_it() -> None:
    on = bench(A, B, probe_interval_s=100.0)
    on.wait(2.0)
    on.say(B, m.Ping(1, (Update(A, Status.SUSPECT, V1),)))
    assert Update(A, Status.SUSPECT, V1) in news(on)
    on.say(A, m.Records((signed(A, Version(1, 2)),)))
    assert on.status(A) is Status.ALIVE


def test_old_news_and_news_of_strangers_change_nothing() -> None:
    on = bench(A)
    on.say(A, m.Records((signed(D, Version(3, 1)),)))
    on.say(A, m.Ping(1, (Update(D, Status.DEAD, Version(2, 9)), Update(C, Status.DEAD, V1))))
    assert on.status(D) is Status.ALIVE
    assert C not in on.machine.membership.members


def test_an_update_is_told_a_few_times_and_then_no_more() -> None:
    on = bench(A, B)
    learn(on, D)
    on.say(A, m.Ping(1, (Update(D, Status.DEAD, V1),)))
    told = sum(Update(D, Status.DEAD, V1) in news(on, B) for _ in range(20))
    assert 1 <= told <= 4


def test_a_line_about_one_we_hold_for_dead_has_the_death_told_again() -> None:
    on = bench(A, B)
    learn(on, D)
    on.say(A, m.Ping(1, (Update(D, Status.DEAD, V1),)))
    for _ in range(20):
        news(on, B)
    on.say(B, m.Announce((m.Line(D, V1, 1),)))
    assert Update(D, Status.DEAD, V1) in news(on, B)


def test_the_suspect_without_a_link_gets_no_work() -> None:
    on = bench(A)
    learn(on, D)
    on.say(A, m.Ping(1, (Update(D, Status.SUSPECT, V1),)))
    assert not on.machine.membership.is_alive(D)
    assert not on.machine.membership.is_alive(C)


# -- closed links and dials ---------------------------------------------------------------------------


def test_a_closed_link_is_redialled_at_once_and_a_failed_redial_is_a_death() -> None:
    on = bench(A, addresses=ADDRESS)
    assert of(on.handle(e.Disconnected(A)), e.Dial) == [e.Dial(A, ADDRESS)]
    assert on.status(A) is Status.SUSPECT
    on.handle(e.DialFailed(A))
    assert on.status(A) is Status.DEAD


def test_the_dead_are_dialled_again_ever_more_slowly() -> None:
    on = bench(A, addresses=ADDRESS)
    on.handle(e.Disconnected(A))
    gaps, last = [], on.now
    on.handle(e.DialFailed(A))
    for _ in range(60_000):
        if of(on.wait(0.1), e.Dial):
            gaps.append(on.now - last)
            last = on.now
            on.handle(e.DialFailed(A))
        if len(gaps) == 9:
            break
    most = on.config.membership.redial_max_s * 1.25 + 0.2
    assert gaps[0] < 1.0
    assert gaps[-1] > 7.0
    assert max(gaps) <= most


def test_of_two_that_know_each_other_the_lower_id_dials_first() -> None:
    low, high = PeerId("aa"), PeerId("zz")
    for me, other, at_once in ((low, high, True), (high, low, False)):
        on = Bench(me=me)
        on.link(B)
        on.wait(1.0)
        on.say(B, m.Records((signed(other, addresses=ADDRESS),)))
        soon = on.wait(0.25)
        assert bool(of(soon, e.Dial)) is at_once
        assert bool(of(on.wait(on.config.membership.dial_grace_s), e.Dial)) is not at_once


def test_a_dial_that_failed_for_one_that_is_linked_meanwhile_means_nothing() -> None:
    on = bench(A, addresses=ADDRESS)
    on.handle(e.DialFailed(A))
    on.handle(e.DialFailed(D))
    assert on.status(A) is Status.ALIVE


def test_the_discovered_are_dialled_unless_linked_or_ourselves() -> None:
    on = bench(A)
    assert of(on.handle(e.Discovered(B, ADDRESS)), e.Dial) == [e.Dial(B, ADDRESS)]
    for peer in (ME, A):
        assert not of(on.handle(e.Discovered(peer, ADDRESS)), e.Dial)


def test_without_dial_discovered_nobody_heard_of_is_dialled() -> None:
    on = Bench(config=Config(net=Net(dial_discovered=False)))
    on.link(A)
    learn(on, D)
    assert not of(on.wait(30.0), e.Dial)


def test_whoever_left_dials_nobody_that_mdns_tells_of() -> None:
    on = bench(A)
    on.handle(e.Departed())
    assert not of(on.handle(e.Discovered(D, ADDRESS)), e.Dial)


def test_a_member_that_mdns_tells_of_is_dialled_at_once() -> None:
    on = bench(A)
    on.say(A, m.Records((signed(D, addresses=ADDRESS),)))
    assert of(on.handle(e.Discovered(D, ("/other",))), e.Dial) == [e.Dial(D, ADDRESS)]
    assert not of(on.handle(e.Discovered(D, ("/other",))), e.Dial)  # one at a time


# -- leaving and forgetting ---------------------------------------------------------------------------


def test_who_leaves_is_hung_up_and_not_dialled() -> None:
    on = bench(A, addresses=ADDRESS)
    effects = on.say(A, m.Leave(V1))
    assert of(effects, e.Hangup) == [e.Hangup(A)]
    on.handle(e.Disconnected(A))
    assert on.status(A) is Status.LEFT
    assert not of(on.wait(120.0), e.Dial)


def test_an_old_farewell_means_nothing() -> None:
    on = bench(A)
    on.say(A, m.Records((signed(A, Version(2, 1)),)))
    on.say(A, m.Leave(V1))
    assert on.status(A) is Status.ALIVE


def test_leaving_says_so_and_dials_nobody_any_more() -> None:
    on = bench(A, B, addresses=ADDRESS)
    effects = on.handle(e.Departed())
    assert len(sent(effects, m.Leave)) == 2
    assert {f.peer for f in of(effects, e.Hangup)} == {A, B}
    assert not of(on.handle(e.Disconnected(A)), e.Dial)
    assert not of(on.wait(120.0), e.Dial)


def test_who_dials_one_that_has_left_is_told_so_and_nothing_else() -> None:
    on = bench(A)
    on.handle(e.Departed())
    effects = on.handle(e.Connected(B))
    assert [f.peer for f in of(effects, e.Hangup)] == [B]
    assert sent(effects, m.Leave, B)
    assert not sent(effects, m.Digest)


def test_one_that_has_left_does_not_refute_it() -> None:
    on = bench(A)
    version = on.machine.gossip.me.record.version
    on.handle(e.Departed())
    on.say(A, m.Ping(1, (Update(ME, Status.LEFT, version),)))
    assert on.machine.gossip.me.record.version == version


def test_the_dead_are_forgotten_after_a_while_and_their_records_with_them() -> None:
    on = bench(A, tombstone_s=30.0)
    learn(on, D)
    on.say(A, m.Ping(1, (Update(D, Status.DEAD, V1),)))
    on.handle(e.Disconnected(A))
    on.wait(31.0)
    assert D not in on.machine.membership.members
    on.link(A)
    assert D not in {r.id for r in on.machine.records()}


def test_a_tombstone_of_one_that_is_linked_is_kept() -> None:
    on = bench(A, B, tombstone_s=5.0)
    on.say(A, m.Leave(V1))  # and its link never closes
    for _ in range(12):
        for ping in sent(on.wait(1.0), m.Ping, B):
            on.say(B, m.Ack(ping.seq))
    assert on.status(A) is Status.LEFT


def test_a_flood_of_records_forgets_the_departed_first_and_never_keeps_a_link_out() -> None:
    on = bench(A, members_max=4)
    for number in range(3):
        on.say(A, m.Records((signed(PeerId(f"n{number}")),)))
    on.say(A, m.Ping(1, (Update(PeerId("n1"), Status.DEAD, V1),)))
    on.say(A, m.Records((signed(PeerId("n3")),)))
    assert sorted(on.machine.membership.members) == ["a", "n0", "n2", "n3"]
    assert not on.machine.membership.partial
    on.say(A, m.Records(tuple(signed(PeerId(f"n{number}")) for number in range(4, 30))))
    assert on.machine.membership.partial
    on.link(B)
    assert {A, B} < on.machine.membership.members.keys()
    assert len(on.machine.records()) == 5


def test_where_all_members_are_links_there_is_no_room_for_another() -> None:
    on = bench(A, members_max=1)
    on.link(B)
    assert list(on.machine.membership.members) == [A]


def test_updates_about_the_forgotten_are_forgotten() -> None:
    on = bench(A, members_max=2)
    for number in range(50):
        peer = PeerId(f"n{number}")
        on.say(A, m.Records((signed(peer),)))
        on.say(A, m.LoadReport(on.machine.load(ME)))  # type: ignore[arg-type]
        on.machine.membership._absorb(A, (Update(peer, Status.DEAD, V1),), on.now)
    assert len(on.machine.membership._rumours) <= 2


# -- ways ---------------------------------------------------------------------------------------------


def test_the_nearest_way_counts_and_a_closed_link_takes_its_ways_along() -> None:
    on = bench(A, B)
    learn(on, D, via=A, distance=3)
    learn(on, D, via=B, distance=1)
    route = on.machine.membership.route
    assert route(D) == (B, 2)
    assert route(D, barred=(B,)) == (A, 4)
    assert route(D, barred=(A, B)) is None
    on.handle(e.Disconnected(B))
    assert route(D) == (A, 4)
    on.say(A, m.Announce((m.Line(D, V1, DISTANCE_MAX),)))
    assert route(D) is None
    assert route(C) is None


def test_a_way_longer_than_any_path_is_none() -> None:
    on = bench(A)
    learn(on, D, distance=DISTANCE_MAX - 1)
    assert on.machine.membership.route(D) is None


def test_a_neighbour_says_nothing_of_the_way_to_itself() -> None:
    on = bench(A)
    on.say(A, m.Announce((m.Line(A, V1, 7), m.Line(C, V1, 1))))
    assert on.machine.membership.route(A) == (A, 1)
