"""The judge itself: it must fail on each thing it is there to forbid."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import attrgetter

import pytest

from p2pmesh.config import Config, Membership, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import machine
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.sealing import CLOSED
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Query, Resume, Usage
from p2pmesh.record import GENERAL, PeerId, SignedRecord, record_to_sign
from p2pmesh.sim.judge import SEARCH_EVERY, TICKS_MAX, Judge, Violation
from p2pmesh.sim.signer import SimSigner
from p2pmesh.sim.world import Spec, World
from tests.machines import ME, A, B, Bench, C, D, query

Q = query(origin=ME, budget_s=10.0)


@pytest.fixture
def judge() -> Judge:
    made = Judge(Config())
    for ident in (ME, A, B, C):
        made.started(ident, (GENERAL,))
    made.asked(Q, 0.0)
    return made


def piece(index: int, text: str | None = None) -> e.Deliver:
    return e.Deliver(Q.id, Chunk(Q.id, 0, index, (index,), f"{index} " if text is None else text))


def whole(tokens: int) -> e.Deliver:
    return e.Deliver(Q.id, Ended(Usage(1, tokens), "stop", "m", "d", (Hop(A, "a", ""),)))


FAIL = e.Fail(Q.id, Reason.NO_ROUTE, "")


def test_a_whole_answer_passes(judge: Judge) -> None:
    judge.delivered(e.Deliver(Q.id, e.Placed((Hop(B, "b", ""),), 1.0)), 1.0)
    assert judge.askings[Q.id].served_by == B
    for index in range(3):
        judge.delivered(piece(index), 2.0 + index)
    judge.delivered(whole(3), 10.0)
    judge.close(99.0)
    asking = judge.askings[Q.id]
    assert (asking.text, asking.first_at, asking.over_at, asking.served_by) == ("0 1 2 ", 2.0, 10.0, A)


@pytest.mark.parametrize("wrong", [0, 2], ids=["a duplicate", "a gap"])
def test_a_stream_with_a_gap_or_a_duplicate_fails(judge: Judge, wrong: int) -> None:
    judge.delivered(piece(0), 1.0)
    with pytest.raises(Violation, match="after 1 chunks"):
        judge.delivered(piece(wrong), 1.0)


@pytest.mark.parametrize("later", [piece(0), whole(0)])
def test_anything_after_the_end_fails(judge: Judge, later: e.Deliver) -> None:
    judge.failed(FAIL, 1.0)
    with pytest.raises(Violation, match="follows the end"):
        judge.delivered(later, 1.0)


def test_two_ends_fail(judge: Judge) -> None:
    judge.delivered(whole(0), 1.0)
    with pytest.raises(Violation, match="follows the end"):
        judge.failed(FAIL, 1.0)


def test_anything_after_a_cancel_fails(judge: Judge) -> None:
    judge.cancelled(judge.askings[Q.id])
    judge.close(99.0)
    with pytest.raises(Violation, match="follows the end"):
        judge.failed(FAIL, 1.0)


def test_anything_after_the_budget_fails(judge: Judge) -> None:
    with pytest.raises(Violation, match="after its budget"):
        judge.failed(FAIL, 10.1)


def test_a_stopped_peer_is_excused_until_it_goes_on(judge: Judge) -> None:
    judge.resumed(A, 30.0)
    with pytest.raises(Violation, match="never ended"):
        judge.close(29.0)
    judge.resumed(ME, 30.0)
    judge.close(29.0)
    judge.failed(FAIL, 30.0)


def test_a_query_that_never_ends_fails_unless_its_peer_died(judge: Judge) -> None:
    judge.close(9.0)
    with pytest.raises(Violation, match="never ended"):
        judge.close(11.0)
    judge.crashed(ME)
    judge.close(11.0)


def test_an_answer_that_was_not_generated_fails(judge: Judge) -> None:
    judge.delivered(piece(0, "other"), 1.0)
    with pytest.raises(Violation, match="not what was generated"):
        judge.delivered(whole(1), 1.0)


def test_generating_one_attempt_twice_fails_at_one_peer_only(judge: Judge) -> None:
    judge.generating(A, Q, "d")
    judge.generating(B, Q, "d")
    judge.generating(A, Query(Q.id, ME, Q.messages, attempt=1), "d")
    with pytest.raises(Violation, match=r"generates attempt 0 of .* twice"):
        judge.generating(A, Q, "d")
    judge.started(A, (GENERAL,))  # it remembers nothing
    judge.generating(A, Q, "d")


@pytest.mark.parametrize(
    ("resume", "fails"),
    [(Resume.ANY, ()), (Resume.SAME_MODEL, ("another",)), (Resume.NEVER, ("d", "another"))],
)
def test_who_goes_on_against_the_asker_s_will_fails(resume: Resume, fails: tuple[str, ...]) -> None:
    judge = Judge(Config())
    judge.started(A, (GENERAL,))
    judge.asked(replace(Q, resume=resume), 0.0)
    judge.generating(A, Q, "another")  # nothing was written yet
    for attempt, digest in enumerate(("d", "another"), 1):
        later = replace(Q, attempt=attempt, accepted=Accepted((0,), "0 ", 1, "d"))
        if digest in fails:
            with pytest.raises(Violation, match=f"was to do so: {resume.value}"):
                judge.generating(A, later, digest)
        else:
            judge.generating(A, later, digest)


def test_a_piece_of_an_attempt_that_is_over_fails(judge: Judge) -> None:
    judge.delivered(piece(0), 1.0)
    judge.delivered(e.Deliver(Q.id, Chunk(Q.id, 1, 1, (1,), "1 ")), 1.0)
    with pytest.raises(Violation, match=r"attempt 0 of .* comes late"):
        judge.delivered(piece(2), 1.0)


def test_what_was_asked_at_one_who_died_is_nobodys_and_what_is_asked_there_later_is_not(judge: Judge) -> None:
    judge.crashed(ME)
    judge.close(99.0)
    with pytest.raises(Violation, match="follows the end"):
        judge.failed(FAIL, 1.0)
    judge.asked(query(2, origin=ME, budget_s=10.0), 20.0)
    with pytest.raises(Violation, match="never ended"):
        judge.close(99.0)


# -- ways ---------------------------------------------------------------------------------------------


def passing(*path: PeerId, zone: str = GENERAL) -> m.Forward:
    return m.Forward(query(origin=ME, zone=zone, path=tuple(Hop(p, p, "") for p in path)))


def test_a_query_sent_back_along_its_path_fails(judge: Judge) -> None:
    idle = Bench().machine
    judge.handled(A, idle, e.Tick(), [e.Send(B, passing(ME, A))])
    for path, target in (((ME, A), ME), ((A, B, A), C), ((ME, B), C)):
        with pytest.raises(Violation, match="sends"):
            judge.handled(A, idle, e.Tick(), [e.Send(target, passing(*path))])


SECRET = query(7, origin=ME, zone="red")
PIECE, END = Chunk(SECRET.id, 0, 0, (1,), "x"), Ended(Usage(1, 1), "stop", "small", "")
WHY, CLOSED_WHY = (Hop(A, "a", "law, quality 0.9"),), (Hop(A, "a", CLOSED),)
OUTSIDE = replace(SECRET, messages=(), zone=GENERAL, sealed=b"?", path=CLOSED_WHY)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (m.Forward(replace(SECRET, path=CLOSED_WHY)), "the prompt"),
        (m.Forward(replace(OUTSIDE, prompt_tokens=9)), "the prompt"),
        (m.Forward(replace(OUTSIDE, path=WHY)), "why"),
        (m.Tokens(PIECE), "a piece"),
        (m.End(SECRET.id, 0, 1, END), "the end"),
        (m.End(SECRET.id, 0, 1, replace(END, usage=Usage(), model="", path=WHY)), "why"),
        (m.Accept(SECRET.id, 0, True, 0.0, CLOSED_WHY, "00" * 32), "the model"),
        (m.Accept(SECRET.id, 0, True, 0.0, WHY), "why"),
        (m.Accept(SECRET.id, 0, True, 0.5, CLOSED_WHY), "how long it takes"),
        (m.Refuse(SECRET.id, 0, Reason.TOO_LONG, prompt_tokens=9), "the prompt's length"),
        (m.Keep(SECRET), "the prompt"),
        (m.Copy(PIECE), "a piece"),
        (m.Settle(SECRET.id, END), "the end"),
        (m.Legacy(SECRET), "the prompt"),
    ],
)
def test_what_tells_of_a_query_outside_its_zone_fails(
    judge: Judge, message: m.PeerMessage, told: str
) -> None:
    idle = Bench().machine
    judge.asked(SECRET, 0.0)
    judge.started(B, (GENERAL, "red"))
    with pytest.raises(Violation, match=f"a tells c {told}"):
        judge.handled(A, idle, e.Tick(), [e.Send(C, message)])
    if isinstance(message, m.Keep | m.Copy | m.Settle | m.Legacy):
        judge.handled(A, idle, e.Tick(), [e.Send(B, message)])  # who holds it may read it
    else:
        with pytest.raises(Violation, match=f"a sends b {told}.*open"):
            judge.handled(A, idle, e.Tick(), [e.Send(B, message)])


def test_what_tells_no_more_than_the_way_may_go_anywhere(judge: Judge) -> None:
    idle = Bench().machine
    judge.asked(SECRET, 0.0)
    closed = Ended(Usage(), CLOSED, "", "", CLOSED_WHY, b"?")
    for message in (
        m.Forward(OUTSIDE),
        m.Tokens(Chunk(SECRET.id, 0, 0, (), "", (), b"?")),
        m.End(SECRET.id, 0, 1, closed),
        m.Accept(SECRET.id, 0, True, 0.0, CLOSED_WHY),
        m.Refuse(SECRET.id, 0, Reason.TOO_LONG),
        m.Settle(SECRET.id),
    ):
        judge.handled(A, idle, e.Tick(), [e.Send(C, message)])


def test_an_answer_by_one_outside_the_zone_fails(judge: Judge) -> None:
    judge.asked(SECRET, 0.0)
    with pytest.raises(Violation, match=r"answers .* of the zone red"):
        judge.generating(C, replace(SECRET, zone=GENERAL), "")


def test_an_answer_by_a_model_that_is_for_another_zone_fails(judge: Judge) -> None:
    judge.asked(SECRET, 0.0)
    judge.started(B, (GENERAL, "red", "blue"), ("blue",))
    with pytest.raises(Violation, match=r"of the zone red, with a model that is not for it"):
        judge.generating(B, SECRET, "")
    judge.started(B, (GENERAL, "red", "blue"), ("blue", "red"))
    judge.generating(B, SECRET, "")


def test_proof_that_somebody_equivocates_fails() -> None:
    world = met(3)
    ident, other = World.peer(1), World.peer(2)
    signed = world.nodes[ident].machine.gossip.records[other]
    record = replace(signed.record, name="another")
    body = world.nodes[ident].machine.codec.encode_record(record)
    twice = SignedRecord(record, body, SimSigner(other).sign(record_to_sign(body, b"")))
    with pytest.raises(Violation, match="p1 has proof that p2 equivocates"):
        world.happen(ident, e.Received(other, m.Records((twice,))))


def test_an_attempt_taken_twice_fails_and_one_refused_is_not_taken(judge: Judge) -> None:
    bench, came = Bench(), e.Received(ME, passing(ME))
    idle = bench.machine
    no = e.Send(ME, m.Refuse(Q.id, 0, Reason.VISITED))
    for _ in range(2):  # before there is a link it comes to nobody's ears
        judge.handled(A, idle, came, [])
    bench.link(ME)
    judge.handled(A, idle, came, [no])
    judge.handled(A, idle, came, [])
    judge.handled(A, idle, came, [no])
    with pytest.raises(Violation, match=r"takes attempt 0 .* twice"):
        judge.handled(A, idle, came, [e.Send(B, m.Refuse(Q.id, 0, Reason.VISITED))])
    judge.started(A, (GENERAL,))
    judge.handled(A, idle, came, [])


# -- the end ------------------------------------------------------------------------------------------


def met(count: int) -> World:
    world = World(1, [Spec() for _ in range(count)])
    world.run(5.0)
    return world


def test_a_ghost_or_a_stranger_at_the_end_fails() -> None:
    world = met(3)
    world.judge.settled(world.nodes)
    rest = {ident: node for ident, node in world.nodes.items() if ident != world.peer(2)}
    with pytest.raises(Violation, match="p0 is still linked to p2"):
        world.judge.settled(rest)
    for ident in rest:
        rest[ident].machine.membership.links.pop(world.peer(2), None)
    with pytest.raises(Violation, match="p0 still takes p2 for alive"):
        world.judge.settled(rest)
    world.add(Spec())
    with pytest.raises(Violation, match="p0 does not know p3"):
        world.judge.settled(world.nodes)


def test_where_nobody_knows_all_a_ghost_among_the_links_fails_and_so_does_being_alone() -> None:
    world = met(3)
    for node in world.nodes.values():
        node.machine.membership.partial = True
    world.judge.settled(world.nodes)
    rest = {ident: node for ident, node in world.nodes.items() if ident != world.peer(2)}
    with pytest.raises(Violation, match="p0 is still linked to p2"):
        world.judge.settled(rest)
    gone = world.nodes[world.peer(0)].machine.membership.members.pop(world.peer(2))
    with pytest.raises(Violation, match="p0 does not know who p2 is"):
        world.judge.settled(world.nodes)
    world.nodes[world.peer(0)].machine.membership.members[gone.id] = gone
    world.nodes[world.peer(0)].machine.membership.links.clear()
    with pytest.raises(Violation, match="p0 is alone"):
        world.judge.settled(world.nodes)


def test_work_for_nobody_at_the_end_fails() -> None:
    world = met(2)
    world.judge.over(world.nodes, world.now)
    asking = world.ask(world.peer(0), tokens=400, budget_s=50.0)
    world.run(1.0)
    asking.orphaned = True
    with pytest.raises(Violation, match="still holds 1 queries"):
        world.judge.over(world.nodes, world.now)


# -- tables -------------------------------------------------------------------------------------------


class Many:
    """A table that has outgrown its bound, whatever is in it."""

    _seen = _alarms = ()

    def __len__(self) -> int:
        return 100_000


@pytest.mark.parametrize(
    ("config", "table"),
    [
        (Config(relay=Relay(flights_max=1)), "flights"),
        (Config(membership=Membership(members_max=1)), "members"),
        (Config(membership=Membership(links_max=2, links_far=1)), "links"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_over_its_bound_fails(config: Config, table: str) -> None:
    bench = Bench()
    bench.link(A, B, C, D, PeerId("e"))
    for number in range(2):
        bench.ask(query(number, origin=ME))
    Judge(Config()).check(ME, bench.machine)
    with pytest.raises(Violation, match=table):
        Judge(config).check(ME, bench.machine)


@pytest.mark.parametrize(
    ("part", "table", "said"),
    [
        ("relay", "flights", "flights"),
        ("relay.flights", "_seen", "attempts seen"),
        ("relay.flights", "_alarms", "alarms of flights"),
        ("membership", "members", "members"),
        ("membership", "links", "links"),
        ("membership", "_alarms", "alarms of members"),
        ("membership", "_rumours", "updates"),
        ("membership._prober", "_probes", "probes"),
        ("membership._prober", "_order", "probes to come"),
        ("_linking", "_chosen", "chosen links"),
        ("gossip", "records", "records"),
        ("gossip", "_fresh", "fresh records"),
        ("gossip", "_pulls", "pulls"),
        ("gossip", "_declined", "declined records"),
        ("_linking", "_similar", "similarities"),
        ("gossip", "_new", "links to compare with"),
        ("loads", "_loads", "loads"),
        ("loads", "_queued", "loads that wait"),
        ("_stealing", "_asked", "requests for work"),
        ("_local", "_jobs", "jobs"),
        ("_local", "_waiting", "waiting jobs"),
        ("_local", "_held", "conversations"),
        ("_local", "_pieces", "pieces not reckoned with"),
    ],
)
def test_every_table_is_counted_after_every_event(part: str, table: str, said: str) -> None:
    bench, judge = Bench(), Judge(Config())
    judge.check(ME, bench.machine)
    setattr(attrgetter(part)(bench.machine), table, Many())
    with pytest.raises(Violation, match=f"holds 100000 {said}, at most"):
        judge.check(ME, bench.machine)


def test_a_way_over_a_link_that_is_gone_fails_but_not_at_once() -> None:
    bench, judge = Bench(), Judge(Config())
    bench.link(A, B)
    judge.check(ME, bench.machine)
    bench.machine.membership.members[A].distances[C] = 1
    for _ in range(SEARCH_EVERY - 1):
        judge.check(ME, bench.machine)
    with pytest.raises(Violation, match="a distance by no link: c"):
        judge.check(ME, bench.machine)


@pytest.mark.parametrize(
    ("part", "table", "said"),
    [
        ("membership._rumours", "_left", "an update of no member"),
        ("loads", "_loads", "a load of no link"),
        ("loads", "_queued", "a waiting load of no link"),
        ("gossip", "records", "a record of no member"),
    ],
)
def test_what_should_have_been_forgotten_fails(part: str, table: str, said: str) -> None:
    bench = Bench()
    getattr(attrgetter(part)(bench.machine), table)[C] = None
    with pytest.raises(Violation, match=f"{said}: c"):
        Judge(Config()).check(ME, bench.machine)


def test_ticks_without_time_fail_and_ticks_in_time_do_not() -> None:
    judge, now = Judge(Config()), 5.0
    for _ in range(TICKS_MAX):
        judge.ticked(ME, now)
        judge.ticked(A, now)
        now = math.nextafter(now, math.inf)
    with pytest.raises(Violation, match="me spins"):
        judge.ticked(ME, now)
    for number in range(3 * TICKS_MAX):
        judge.ticked(B, number * 0.01)


@pytest.mark.parametrize("part", [machine.Relay, machine.Membership, machine.Gossip])
def test_a_machine_whose_part_never_gets_done_is_caught(monkeypatch: pytest.MonkeyPatch, part: type) -> None:
    world = World(1, [Spec(), Spec()])
    world.run(3.0)
    monkeypatch.setattr(part, "deadline", 1.0)
    with pytest.raises(Violation, match="spins"):
        world.run(3.0)
