"""Records announced and pulled once, loads pushed on change; and what a liar cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Gossip, Limits
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.messages import DISTANCE_MAX, Line, Update
from p2pmesh.record import GENERAL, VERSION_MAX, Capability, Load, ModelInfo, PeerId, Skill, Version
from tests.machines import ABLE, ME, MODEL, A, B, Bench, C, D, of, query, sent, signed

V1, V2 = Version(1, 1), Version(1, 2)


def bench(*peers: PeerId, **knobs: object) -> Bench:
    made = Bench(config=Config(**knobs))  # type: ignore[arg-type]
    made.link(*peers)
    made.wait(1.0)  # the first announcements
    return made


# -- records ------------------------------------------------------------------------------------------


def test_a_new_link_hears_all_we_know_and_how_busy_we_are() -> None:
    on = bench(A)
    effects = on.handle(e.Connected(B))
    [digest] = sent(effects, m.Digest, B)
    assert {line.id: line.distance for line in digest.lines} == {ME: 0, A: 1}
    assert sent(effects, m.LoadReport, B)


def test_news_is_pulled_once_kept_and_announced_on() -> None:
    on = bench(A, B)
    line = Line(D, V1, 1)
    assert sent(on.say(A, m.Announce((line,))), m.Pull) == [m.Pull((D,))]
    assert not sent(on.say(B, m.Announce((line,))), m.Pull)
    on.say(A, m.Records((signed(D),)))
    assert D in {r.id for r in on.machine.records()}
    told = [line for a in sent(on.wait(1.0), m.Announce, B) for line in a.lines]
    assert Line(D, V1, DISTANCE_MAX) in told or Line(D, V1, 2) in told
    assert not sent(on.say(B, m.Announce((line,))), m.Pull)


def test_an_unanswered_pull_is_made_again_from_whoever_announces_next() -> None:
    on = bench(A, B)
    on.say(A, m.Announce((Line(D, V1, 1),)))
    on.now += 2.0
    assert sent(on.say(B, m.Announce((Line(D, V1, 1),))), m.Pull, B) == [m.Pull((D,))]


def test_a_digest_is_answered_by_what_the_sender_lacks_or_holds_old() -> None:
    on = bench(A, B)
    on.say(A, m.Records((signed(D, V2),)))
    mine = on.machine.gossip.me.record.version
    effects = on.say(B, m.Digest((Line(ME, mine, 1), Line(A, V1, 1), Line(B, V1, 0), Line(D, V1, 1))))
    [announce] = sent(effects, m.Announce, B)
    assert [(line.id, line.version) for line in announce.lines] == [(D, V2)]


def test_a_digest_that_matches_is_answered_by_silence() -> None:
    on = bench(A)
    [digest] = sent(on.wait(5.1), m.Digest, A)
    assert not sent(on.say(A, digest), m.Announce) + sent(on.say(A, digest), m.Pull)


def test_a_pull_is_answered_in_frames_that_fit_and_each_record_once() -> None:
    on = bench(A)
    peers = [PeerId(f"n{i:02}") for i in range(40)]
    for peer in peers:
        on.say(A, m.Records((signed(peer),)))
    effects = on.say(A, m.Pull((*peers, *peers, PeerId("unknown"))))
    assert [len(r.records) for r in sent(effects, m.Records, A)] == [32, 8]


def test_a_record_that_its_owner_never_signed_is_dropped_and_counted() -> None:
    on = bench(A)
    effects = on.say(A, m.Records((signed(D, signer=A),)))
    assert D not in on.machine.membership.members
    assert on.machine.gossip.rejected == 1
    assert of(effects, e.Notify)


def test_an_older_record_does_not_replace_a_newer() -> None:
    on = bench(A)
    on.say(A, m.Records((signed(D, V2, Capability()), signed(D, V1))))
    assert {r.id: r.version for r in on.machine.records()}[D] == V2


def test_the_records_of_the_dead_are_not_passed_on_but_each_gets_its_own() -> None:
    on = bench(A, B)
    on.say(A, m.Ping(1, (m.Update(B, m.Status.SUSPECT, V1),)))
    on.wait(6.0)
    assert on.status(B) is m.Status.DEAD
    assert not sent(on.say(A, m.Pull((B,))), m.Records, A)
    assert sent(on.say(B, m.Pull((B,))), m.Records, B)


# -- our own record -----------------------------------------------------------------------------------


def test_a_life_we_do_not_remember_is_pulled_and_outbid() -> None:
    on = bench(A)
    old = signed(ME, Version(7, 3))
    assert sent(on.say(A, m.Digest((Line(ME, Version(7, 3), 1),))), m.Pull, A) == [m.Pull((ME,))]
    on.say(A, m.Records((old,)))
    assert on.machine.gossip.me.record.version == Version(7, 4)
    assert on.machine.gossip.me.record.capability == ABLE


@pytest.mark.parametrize(
    ("held", "published"),
    [(Version(7, VERSION_MAX), Version(8, 1)), (Version(VERSION_MAX, VERSION_MAX), None)],
)
def test_a_life_of_ours_at_the_end_of_its_numbers_is_outbid_by_the_next_or_not_at_all(
    held: Version, published: Version | None
) -> None:
    on = bench(A)
    before = on.machine.gossip.me.record.version
    on.say(A, m.Records((signed(ME, held),)))
    assert on.machine.gossip.me.record.version == (published or before)
    assert on.machine.gossip.rejected == (0 if published else 1)


def test_a_record_with_no_room_for_later_versions_is_not_published() -> None:
    addresses = ("x" * 100,)
    fits = replace(bench().machine.gossip.me.record, addresses=addresses)
    length = len(Codec(Limits()).encode_record(fits))
    on = bench(A, limits=Limits(record_bytes_max=length))
    on.handle(e.Described(ABLE, addresses))
    assert on.machine.gossip.me.record.addresses == ()
    for _ in range(200):  # each makes the version longer, and must not raise
        version = on.machine.gossip.me.record.version
        on.say(A, m.Ping(1, (Update(ME, m.Status.DEAD, version),)))


def test_our_own_record_bounced_back_changes_nothing() -> None:
    on = bench(A)
    before = on.machine.gossip.me
    for _ in range(3):
        on.say(A, m.Records((before,)))
    assert on.machine.gossip.me is before


def test_a_forged_record_of_ours_does_not_raise_our_version() -> None:
    on = bench(A)
    before = on.machine.gossip.me.record.version
    on.say(A, m.Records((signed(ME, Version(2**62, 2**62), signer=A),)))
    on.say(A, m.Announce((Line(ME, Version(2**62, 2**62), 1),)))
    assert on.machine.gossip.me.record.version == before


def test_what_is_no_news_is_not_published() -> None:
    on = bench(A)
    before = on.machine.gossip.me
    on.handle(e.Described(ABLE, ()))
    assert on.machine.gossip.me is before
    on.handle(e.Described(ABLE, ("/ip4/10.0.0.1/tcp/1",)))
    assert before.record.version < on.machine.gossip.me.record.version


@pytest.mark.parametrize(
    "capability",
    [
        Capability(models=(replace(MODEL, name="x" * 65),)),
        Capability(skills=tuple(Skill(f"{i}", None) for i in range(17))),
        Capability(models=tuple(replace(MODEL, name=f"{i:064}", digest="0" * 64) for i in range(16)) * 4),
        Capability(models=(ModelInfo("\ud800", "", 1, 1.0, 1.0, 1),)),
        Capability(models=(ModelInfo("m", "", 1, float("nan"), 1.0, 1),)),
    ],
    ids=["a long name", "too many skills", "too long", "no text", "not a number"],
)
def test_what_others_could_not_read_is_not_published_and_said_so(capability: Capability) -> None:
    on = bench(A)
    before = on.machine.gossip.me
    assert of(on.handle(e.Described(capability, ())), e.Notify)
    assert on.machine.gossip.me is before
    assert of(on.ask(), e.Generate)  # as it was before


# -- load ---------------------------------------------------------------------------------------------


def test_load_is_pushed_when_the_slots_run_out_and_kept_alive_otherwise() -> None:
    on = bench(A)
    on.link(B)
    quiet = sent(on.wait(11.0), m.LoadReport, A)
    assert 1 <= len(quiet) <= 3
    effects = [f for i in range(MODEL.slots) for f in on.ask(query(i, origin=ME, excluded=(A, B)))]
    report = sent(effects + on.wait(0.3), m.LoadReport, A)[-1]
    assert report.load.free_slots == 0
    assert report.load.remaining_s > 0.0


def test_load_is_not_pushed_more_often_than_the_least_interval() -> None:
    on = bench(A)
    pushes = 0
    for number in range(200):
        effects = on.ask(query(number, origin=ME, excluded=(A,))) + on.wait(0.01)
        effects += on.handle(e.Cancelled(query(number).id))
        pushes += len(sent(effects, m.LoadReport, A))
    assert pushes <= 2.0 / on.config.gossip.load_interval_min_s + 1


def test_load_goes_to_a_bounded_set() -> None:
    on = bench(*(PeerId(f"n{i}") for i in range(6)), gossip=Gossip(load_set_max=2))
    assert len(sent(on.wait(5.0), m.LoadReport)) <= 4


def test_a_reported_queue_drains_by_itself_and_grows_by_what_we_sent() -> None:
    on = bench(A)
    gossip = on.machine.gossip
    assert gossip.wait_s(A, on.now) == 0.0
    assert gossip.load(A) is None
    on.say(A, m.LoadReport(Load(5.0, 0, 2)))
    assert gossip.wait_s(A, on.now + 2.0) == pytest.approx(3.0)
    gossip.sent(A, 4.0, on.now)
    assert gossip.wait_s(A, on.now + 2.0) == pytest.approx(7.0)
    assert gossip.wait_s(A, on.now + 60.0) == 0.0
    on.say(A, m.LoadReport(Load(6.0, 0, 3)))
    assert gossip.wait_s(A, on.now) == pytest.approx(6.0)
    on.handle(e.Disconnected(A))
    assert gossip.load(A) is None


# -- ways ---------------------------------------------------------------------------------------------


def test_a_way_through_a_neighbour_is_told_to_it_as_none() -> None:
    on = bench(A, B)
    on.say(A, m.Records((signed(D),)))
    on.say(A, m.Announce((Line(D, V1, 1),)))
    lines = {peer: {} for peer in (A, B)}  # type: dict[PeerId, dict[PeerId, int]]
    for effect in of(on.wait(2.0), e.Send):
        if isinstance(effect.message, m.Announce):
            lines[effect.peer] |= {line.id: line.distance for line in effect.message.lines}
    assert lines[A][D] == DISTANCE_MAX
    assert lines[B][D] == 2


def test_a_way_that_went_or_came_with_a_link_is_announced() -> None:
    on = bench(A, B)
    on.say(A, m.Records((signed(D),)))
    on.say(A, m.Announce((Line(D, V1, 1),)))
    on.wait(3.0)
    on.handle(e.Disconnected(A))
    told = [line for a in sent(on.wait(0.3), m.Announce, B) for line in a.lines]
    assert {Line(D, V1, DISTANCE_MAX), Line(A, V1, DISTANCE_MAX)} <= set(told)
    on.wait(0.5)
    on.handle(e.Connected(A))
    told = [line for a in sent(on.wait(0.3), m.Announce, B) for line in a.lines]
    assert Line(A, V1, 1) in told


def test_counting_to_infinity_ends_at_the_farthest_distance() -> None:
    on = bench(A, B)
    on.say(A, m.Records((signed(D),)))
    for distance in range(1, DISTANCE_MAX + 1):
        on.say(A, m.Announce((Line(D, V1, distance),)))
        on.say(B, m.Announce((Line(D, V1, distance),)))
    assert on.machine.membership.route(D) is None
    assert D in on.machine.membership.members


# -- bounds -------------------------------------------------------------------------------------------


def test_a_storm_of_names_is_remembered_up_to_a_bound_and_starves_nobody() -> None:
    on = bench(A, B, limits=Limits(digest_max=64))
    for burst in range(50):
        on.say(A, m.Announce(tuple(Line(PeerId(f"x{burst}-{i}"), V1, 1) for i in range(64))))
    gossip = on.machine.gossip
    assert len(gossip._pulls) <= 64
    assert sent(on.say(B, m.Announce((Line(C, V1, 1),))), m.Pull, B) == [m.Pull((C,))]
    assert len(gossip._fresh) <= len(on.machine.membership.members) + 1


def test_a_name_said_twice_in_one_frame_is_pulled_once() -> None:
    on = bench(A)
    assert sent(on.say(A, m.Announce((Line(D, V1, 1),) * 5)), m.Pull) == [m.Pull((D,))]


def test_the_digest_stays_within_its_bound() -> None:
    on = bench(A, limits=Limits(digest_max=3))
    for number in range(5):
        on.say(A, m.Records((signed(PeerId(f"n{number}")),)))
    [digest, *_] = sent(on.handle(e.Connected(B)), m.Digest, B)
    assert len(digest.lines) == 3
    assert digest.lines[0].id == ME


def test_the_general_skill_is_what_a_peer_without_skills_has() -> None:
    on = Bench(Capability(skills=(Skill(GENERAL, None, 0.5),)))
    assert on.machine.records()[0].capability.skills[0].name == GENERAL
