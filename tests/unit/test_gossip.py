"""Records announced and pulled once, loads pushed on change; and what a liar cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Gossip, Limits
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.digests import bucket
from p2pmesh.protocol.gossip import _NEW_MAX
from p2pmesh.protocol.messages import DIGEST_BUCKETS, DISTANCE_MAX, Line, Update
from p2pmesh.record import GENERAL, VERSION_MAX, Capability, ModelInfo, PeerId, Skill, Version
from tests.machines import ABLE, ME, MODEL, A, B, Bench, C, D, of, query, sent, signed

V1, V2 = Version(1, 1), Version(1, 2)
NOTHING = m.Digest(bytes(8 * DIGEST_BUCKETS))
"""The digest of one that holds nothing at all."""


def bench(*peers: PeerId, **knobs: object) -> Bench:
    made = Bench(config=Config(**knobs))  # type: ignore[arg-type]
    made.link(*peers)
    made.wait(1.0)  # the first announcements
    return made


def held(on: Bench) -> dict[PeerId, Version]:
    """The versions of all the records that `on` passes on."""
    return {record.id: record.version for record in on.machine.records()}


def digest_of(on: Bench) -> m.Digest:
    """The next digest that `on` sends."""
    for _ in range(100):
        digests = sent(on.wait(0.1), m.Digest)
        if digests:
            return digests[0]
    raise AssertionError("no digest in 10 s")


def ways(announced: list[m.Announce]) -> set[tuple[PeerId, int]]:
    """Who is told of, and how far away."""
    return {(line.id, line.distance) for message in announced for line in message.lines}


# -- records ------------------------------------------------------------------------------------------


def test_a_new_link_hears_how_busy_we_are_and_what_we_hold_and_may_ask_for_its_names() -> None:
    on = bench(A)
    effects = on.handle(e.Connected(B))
    assert sent(effects, m.LoadReport, B)
    [digest] = sent(effects, m.Digest, B)
    assert len(digest.sums) == 8 * DIGEST_BUCKETS
    [told] = sent(on.say(B, NOTHING), m.Lines, B)
    assert {line.id: line.distance for line in told.lines} == {ME: 0, A: 1}
    assert set(told.buckets) == {bucket(ME), bucket(A)}


def test_news_is_pulled_once_kept_and_announced_on() -> None:
    on = bench(A, B)
    line = Line(D, V1, 1)
    assert sent(on.say(A, m.Announce((line,))), m.Pull) == [m.Pull((D,))]
    assert not sent(on.say(B, m.Announce((line,))), m.Pull)
    on.say(A, m.Records((signed(D),)))
    assert D in {r.id for r in on.machine.records()}
    told = ways(sent(on.wait(1.0), m.Announce, B))
    assert (D, DISTANCE_MAX) in told or (D, 2) in told
    assert not sent(on.say(B, m.Announce((line,))), m.Pull)


def test_an_unanswered_pull_is_made_again_from_whoever_announces_next() -> None:
    on = bench(A, B)
    on.say(A, m.Announce((Line(D, V1, 1),)))
    on.now += 2.0
    assert sent(on.say(B, m.Announce((Line(D, V1, 1),))), m.Pull, B) == [m.Pull((D,))]


def test_a_digest_is_answered_by_all_names_in_the_buckets_that_differ_and_no_others() -> None:
    on = bench(A, B)
    own = digest_of(on)
    on.say(A, m.Records((signed(D, V2),)))
    [told] = sent(on.say(B, own), m.Lines, B)
    assert told.buckets == (bucket(D),)
    assert [(line.id, line.version) for line in told.lines] == [
        (i, v) for i, v in held(on).items() if bucket(i) == bucket(D)
    ]
    assert D in {line.id for line in told.lines}


def test_a_digest_that_matches_is_answered_by_silence() -> None:
    on = bench(A)
    [digest] = sent(on.wait(5.1), m.Digest, A)
    assert on.say(A, digest) == []


def test_names_are_answered_by_what_their_sender_lacks_or_holds_old_and_a_pull_of_what_is_news() -> None:
    on = bench(A, B)
    n1, n2 = PeerId("n1"), PeerId("n2")
    on.say(A, m.Records((signed(D, V2), signed(n1))))
    buckets = tuple(sorted({bucket(D), bucket(n1), bucket(n2)}))
    effects = on.say(B, m.Lines(buckets, (Line(D, V1, 1), Line(n2, V1, 1))))
    assert sent(effects, m.Pull, B) == [m.Pull((n2,))]
    told = {line.id: line.version for a in sent(effects, m.Announce, B) for line in a.lines}
    assert told == {i: v for i, v in held(on).items() if bucket(i) in buckets}


def test_names_are_not_answered_with_what_lies_in_other_buckets_or_is_the_same() -> None:
    on = bench(A)
    known = [i for i in held(on) if bucket(i) == bucket(A)]
    lines = tuple(Line(i, held(on)[i], 1) for i in known)
    effects = on.say(A, m.Lines((bucket(A),), lines))
    assert not sent(effects, m.Announce) + sent(effects, m.Pull)


def test_two_that_hold_the_same_agree_however_they_came_to_know_it() -> None:
    one, other = Bench(me=A), Bench(me=B)
    records = [signed(PeerId(f"n{i}"), Version(i + 1, 3)) for i in range(20)]
    for on, told in ((one, records), (other, records[::-1])):
        on.link(C)
        for record in told:
            on.say(C, m.Records((record,)))
    one.say(C, m.Records((other.machine.gossip.me,)))
    other.say(C, m.Records((one.machine.gossip.me,)))
    assert digest_of(one) == digest_of(other)
    other.say(C, m.Records((signed(PeerId("n7"), Version(8, 4)),)))
    assert digest_of(one) != digest_of(other)


def test_new_links_are_compared_with_one_after_another_and_each_once() -> None:
    on = Bench()
    on.wait(1.0)
    peers = [PeerId(f"n{i}") for i in range(4)]
    told = [(0.0, s.peer) for p in peers for s in of(on.link(p), e.Send) if isinstance(s.message, m.Digest)]
    began = on.now
    for _ in range(40):
        sends = of(on.wait(0.05), e.Send)
        told += [(on.now - began, s.peer) for s in sends if isinstance(s.message, m.Digest)]
    assert [peer for _, peer in told] == peers
    assert [at for at, _ in told] == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=0.06)


def test_a_new_link_that_went_before_its_turn_is_not_compared_with() -> None:
    on = bench()
    on.link(A, B, C)
    on.handle(e.Disconnected(B))
    told = {s.peer for s in of(on.wait(1.0), e.Send) if isinstance(s.message, m.Digest)}
    assert told == {C}


def test_of_many_new_links_a_few_are_compared_with_at_once_and_the_rest_in_their_turn() -> None:
    on = bench()
    on.link(A)
    for number in range(50):
        on.handle(e.Connected(PeerId(f"n{number}")))
    assert len(sent(on.wait(4.0), m.Digest)) == _NEW_MAX
    assert len(sent(on.wait(20.0), m.Digest)) == 4


# -- ways that were lost ------------------------------------------------------------------------------


def test_a_lost_way_is_asked_for_until_one_is_known() -> None:
    on = bench(A, B)
    on.say(A, m.Records((signed(D),)))
    seeks = sent(on.wait(6.0), m.Seek)
    assert seeks
    assert set(seeks) == {m.Seek((D,))}
    on.say(B, m.Announce((Line(D, V1, 1),)))
    assert not sent(on.wait(11.0), m.Seek)


def test_ways_that_went_with_a_link_are_asked_for_at_all_others_at_once() -> None:
    """It took up to five seconds, in which no query could be served."""
    on = bench(A, B, C)
    on.say(A, m.Records((signed(D),)))
    on.say(A, m.Announce((Line(D, V1, 1),)))
    effects = on.handle(e.Disconnected(A))
    [seek] = sent(effects, m.Seek, B)
    assert D in seek.ids
    assert sent(effects, m.Seek, C) == [seek]
    on.say(C, m.Announce((Line(D, V1, 1),)))
    assert on.machine.membership.route(D) == (C, 2)


def test_who_is_asked_for_a_way_tells_those_it_knows_and_of_others_nothing() -> None:
    on = bench(A, B)
    on.say(A, m.Records((signed(C), signed(D))))
    on.say(A, m.Announce((Line(D, V1, 1),)))
    ask = m.Seek((A, B, C, D, PeerId("stranger")))
    [told] = sent(on.say(B, ask), m.Announce, B)
    assert ways([told]) == {(A, 1), (D, 2)}  # not the way to B through B, none to C
    assert not sent(on.say(A, m.Seek((D, PeerId("stranger")))), m.Announce)


def test_a_pull_is_answered_in_frames_that_fit_and_each_record_once() -> None:
    on = bench(A)
    peers = [PeerId(f"n{i:02}") for i in range(40)]
    for peer in peers:
        on.say(A, m.Records((signed(peer),)))
    effects = on.say(A, m.Pull((*peers, *peers, PeerId("unknown"))))
    assert [len(r.records) for r in sent(effects, m.Records, A)] == [16, 16, 8]


def test_one_whose_record_we_lack_is_sent_those_of_others_all_the_same() -> None:
    on = bench(A)
    on.handle(e.Connected(B))
    [records] = sent(on.say(B, m.Pull((A, B, ME))), m.Records, B)
    assert {signed.record.id for signed in records.records} == {A, ME}


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
    on.wait(30.0)
    assert on.status(B) is m.Status.DEAD
    assert not sent(on.say(A, m.Pull((B,))), m.Records, A)
    assert sent(on.say(B, m.Pull((B,))), m.Records, B)


# -- our own record -----------------------------------------------------------------------------------


def test_a_life_we_do_not_remember_is_pulled_and_outbid() -> None:
    on = bench(A)
    old = signed(ME, Version(7, 3))
    assert sent(on.say(A, m.Lines((), (Line(ME, Version(7, 3), 1),))), m.Pull, A) == [m.Pull((ME,))]
    on.say(A, m.Records((old,)))
    # It may have said more in that life than has come here, and never two things of one version.
    assert on.machine.gossip.me.record.version == Version(8, 1)
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
    assert {(D, DISTANCE_MAX), (A, DISTANCE_MAX)} <= ways(sent(on.wait(0.3), m.Announce, B))
    on.wait(0.5)
    on.handle(e.Connected(A))
    assert (A, 1) in ways(sent(on.wait(0.3), m.Announce, B))


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


def test_the_names_told_stay_within_their_bound() -> None:
    on = bench(A, limits=Limits(digest_max=3))
    for number in range(5):
        on.say(A, m.Records((signed(PeerId(f"n{number}")),)))
    on.link(B)
    [told] = sent(on.say(B, NOTHING), m.Lines, B)
    assert len(told.lines) == 3
    assert told.lines[0].id == ME


def test_the_general_skill_is_what_a_peer_without_skills_has() -> None:
    on = Bench(Capability(skills=(Skill(GENERAL, None, 0.5),)))
    assert on.machine.records()[0].capability.skills[0].name == GENERAL
