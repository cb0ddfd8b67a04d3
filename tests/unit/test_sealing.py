"""What a peer does with sealed queries: its own, others', and those that are not what they seem."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from p2pmesh.config import Config, Limits, Relay
from p2pmesh.errors import LocalProtocolError, Reason, RemoteProtocolError, Untrusted
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.codec import Codec
from p2pmesh.protocol.sealing import CLOSED, LOOK_S, Cover, Sealing
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Lead, Message, Options, Query, Search, Usage
from p2pmesh.record import GENERAL, Capability, PeerId, record_to_sign
from p2pmesh.sim.sealer import SimSealer
from p2pmesh.sim.signer import SimSigner
from tests.machines import ME, MODEL, UNABLE, A, B, Bench, C, of, query, receipted, sent, signed

ID = query().id
RED = Capability(models=(MODEL,), zones=(GENERAL, "red"))
CANARY = "the canary sings at midnight"


def part(me: PeerId, limits: Limits | None = None) -> Sealing:
    limits = limits or Limits()
    return Sealing(
        me, limits, Codec(limits), SimSealer(me), lambda p: SimSealer(p).key(), lambda _: None, 0.0
    )


def asked(**changes: object) -> Query:
    way = {"target": B, "path": (Hop(A, "a", "law"),)}
    return query(origin=A, text=CANARY, zone="red", **{**way, **changes})  # type: ignore[arg-type]


def arrive(sealed: Query, at: PeerId = B) -> tuple[Query, Cover]:
    opened, cover = part(at).arrived(sealed)
    assert cover is not None
    return opened, cover


# -- the envelope -------------------------------------------------------------------------------------


def test_outside_stands_no_more_than_the_way_and_inside_all_that_was_asked() -> None:
    whole = asked(
        vector=np.ones(8, np.int8),
        space="s",
        prompt_tokens=7,
        accepted=Accepted((1, 2), CANARY, 2, "00" * 32),
        search=Search((Lead(C, 0.5),)),
        path=(Hop(A, "a", "law, quality 0.9"),),
        excluded=(C,),
    )
    outside, _ = part(A).wrap(whole, "small")
    plain = Codec(Limits()).encode(m.Forward(replace(outside, sealed=b"")))
    for told in (CANARY.encode(), b"red", b"law", b"small"):
        assert told not in plain
    assert (outside.messages, outside.accepted, outside.vector, outside.search) == ((), None, None, None)
    assert (outside.id, outside.origin, outside.target, outside.excluded) == (whole.id, A, B, (C,))
    assert outside.path == (Hop(A, "a", CLOSED),)
    opened, _ = arrive(outside)
    assert opened.messages == whole.messages
    assert (opened.zone, opened.model, opened.options) == ("red", "small", whole.options)
    assert opened.accepted == whole.accepted
    assert opened.vector is None, "the executor plans nothing"
    assert (opened.hops_left, opened.excluded) == (0, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"id": query(2).id},
        {"attempt": 1},
        {"origin": C},
        {"sealed": b"x" * 99},
        {"sealed": b"", "zone": "red"},
    ],
)
def test_what_was_relabelled_on_the_way_does_not_open(changes: dict[str, object]) -> None:
    outside, _ = part(A).wrap(asked(), "small")
    with pytest.raises(Untrusted):
        part(B).arrived(replace(outside, **changes))  # type: ignore[arg-type]


def test_who_it_is_not_sealed_to_passes_it_on_unread() -> None:
    outside, _ = part(A).wrap(asked(), "small")
    assert part(C).arrived(outside) == (outside, None)
    with pytest.raises(Untrusted):
        part(C).arrived(replace(outside, target=C))


@pytest.mark.parametrize(
    "message",
    [
        m.Forward(query(origin=A, target=B)),
        m.Forward(asked(attempt=3)),
        m.Steal(),
        m.Forward(asked(sealed=b"x", messages=())),
    ],
    ids=["of no zone", "another attempt", "no query", "sealed twice"],
)
def test_what_is_inside_must_be_that_query(message: m.PeerMessage) -> None:
    sealing = part(A)
    outside, _ = sealing.wrap(asked(), "small")
    context = b"".join(
        len(raw).to_bytes(2, "big") + raw for raw in (x.encode() for x in (outside.id, "0", str(A), str(B)))
    )
    forged, _ = SimSealer(A).seal(sealing._codec.encode(message), context, SimSealer(B).key())
    with pytest.raises(Untrusted):
        part(B).arrived(replace(outside, sealed=forged))
    junk, _ = SimSealer(A).seal(b"\xc1", context, SimSealer(B).key())
    with pytest.raises(Untrusted, match="no message"):
        part(B).arrived(replace(outside, sealed=junk))


def test_one_too_long_for_a_frame_is_told() -> None:
    limits = Limits(
        frame_bytes_max=40_000, prompt_bytes_max=20_000, record_bytes_max=1_000, records_per_frame_max=1
    )
    with pytest.raises(LocalProtocolError, match="once it is sealed"):
        part(A, limits).wrap(asked(messages=(Message("user", "x" * 9_000),)), "small")


def test_the_answer_is_opened_by_the_asker_alone_and_in_its_order() -> None:
    outside, ours = part(A).wrap(asked(), "small")
    _, theirs = arrive(outside)
    chunk = Chunk(ID, 0, 0, (1, 2), CANARY)
    closed = theirs.close_chunk(chunk, "00" * 32)
    assert CANARY.encode() not in Codec(Limits()).encode(m.Tokens(closed))
    assert ours.open_chunk(closed) == (chunk, "00" * 32)
    for changed in (
        replace(closed, index=1),
        replace(closed, sealed=b""),
        replace(closed, sealed=closed.sealed[:-1]),
    ):
        with pytest.raises(Untrusted):
            ours.open_chunk(changed)
    end = m.End(ID, 0, 1, Ended(Usage(3, 2), "stop", "small", "00" * 32, (Hop(B, "b", "law"),)))
    said = theirs.close_end(end)
    assert said.ended.path == (Hop(B, "b", CLOSED),)
    assert (said.ended.model, said.ended.usage) == ("", Usage())
    assert ours.open_end(said) == end.ended
    for changed_end in (replace(said, chunks=0), replace(said, ended=end.ended)):
        with pytest.raises(Untrusted):
            ours.open_end(changed_end)
    with pytest.raises(Untrusted):
        ours.open_chunk(replace(closed, index=1, sealed=said.ended.sealed))


def test_a_piece_that_is_another_inside_is_none() -> None:
    outside, ours = part(A).wrap(asked(), "small")
    _, theirs = arrive(outside)
    codec = Codec(Limits())
    for inside in (m.Copy(Chunk(ID, 0, 5, (1,), "x")), m.Copy(Chunk(ID, 1, 0, (1,), "x")), m.Steal()):
        forged = theirs._cipher.close(0, False, codec.encode(inside))
        with pytest.raises(Untrusted):
            ours.open_chunk(Chunk(ID, 0, 0, (), "", (), forged))
    ended = Ended(Usage(), "stop", "small", "")
    for other in (m.Steal(), m.End(ID, 0, 5, ended), m.End(ID, 1, 0, ended), m.End(query(2).id, 0, 0, ended)):
        forged = theirs._cipher.close(0, True, codec.encode(other))
        with pytest.raises(Untrusted):
            ours.open_end(m.End(ID, 0, 0, Ended(Usage(), CLOSED, "", "", (), forged)))


def test_nobody_reads_a_sealed_message_that_tells_something_outside() -> None:
    codec = Codec(Limits())
    outside, _ = part(A).wrap(asked(), "small")
    for told in (
        replace(outside, messages=(Message("user", "x"),)),
        replace(outside, vector=np.ones(8, np.int8)),
    ):
        with pytest.raises(RemoteProtocolError, match="outside"):
            codec.decode(codec.encode(m.Forward(told)))
    with pytest.raises(RemoteProtocolError, match="outside"):
        codec.decode(codec.encode(m.Tokens(Chunk(ID, 0, 0, (1,), "x", (), b"sealed"))))


def test_a_new_key_is_published_once_a_minute_has_passed() -> None:
    bench = Bench()
    bench.link(A)
    before = bench.machine.gossip.me.record
    bench.machine._sealing._sealer._key = bytes(32)  # type: ignore[attr-defined]
    bench.wait(LOOK_S + 0.1)
    after = bench.machine.gossip.me.record
    assert (before.seal_key, after.seal_key) == (SimSealer(ME).key(), bytes(32))
    assert before.version < after.version
    assert bench.machine.codec.decode_record(bench.machine.gossip.me.body).seal_key == bytes(32)


# -- the asker's peer ---------------------------------------------------------------------------------


def asker(*peers: PeerId) -> tuple[Bench, m.Forward]:
    """A bench that has asked in the zone, and what it sent to the first of `peers`."""
    bench = Bench(UNABLE)
    bench.link(*peers, capability=RED)
    [forward] = sent(bench.ask(query(origin=ME, text=CANARY, zone="red")), m.Forward)
    return bench, forward


def answering(forward: m.Forward) -> Cover:
    _, cover = part(forward.query.target).arrived(forward.query)
    assert cover is not None
    return cover


def test_a_sealed_answer_reaches_the_asker_whole() -> None:
    bench, forward = asker(A)
    cover = answering(forward)
    path = (*forward.query.path, Hop(A, "a", CLOSED))
    [placed] = of(bench.say(A, m.Accept(ID, 0, True, 1.0, path)), e.Deliver)
    assert isinstance(placed.item, e.Placed)
    assert "quality" in placed.item.path[0].why
    chunk = Chunk(ID, 0, 0, (7,), "secret")
    [piece] = of(bench.say(A, m.Tokens(cover.close_chunk(chunk, "00" * 32))), e.Deliver)
    assert piece.item == chunk
    flight = bench.machine.relay.flights.get(ID)
    assert flight is not None
    accepted = flight.accepted()
    assert accepted is not None
    assert (accepted.digest, accepted.text) == ("00" * 32, "secret")
    ended = Ended(Usage(1, 1), "stop", "small", "00" * 32, path)
    ended = receipted(query(origin=ME, text=CANARY, zone="red"), ended, "secret")
    [whole] = of(bench.say(A, cover.close_end(m.End(ID, 0, 1, ended))), e.Deliver)
    assert isinstance(whole.item, Ended)
    assert (whole.item.model, whole.item.usage) == ("small", Usage(1, 1))
    assert not bench.machine.ratings.awaits(ID), "what is rated is told to others"


@pytest.mark.parametrize("lie", ["open", "changed", "open end", "cut short"])
def test_what_the_executor_did_not_say_is_not_believed(lie: str) -> None:
    bench, forward = asker(A, B)
    target = forward.query.target
    cover = answering(forward)
    chunk = Chunk(ID, 0, 0, (7,), "secret")
    closed = cover.close_chunk(chunk, "00" * 32)
    ended = Ended(Usage(1, 1), "stop", "small", "00" * 32)
    said: m.PeerMessage
    match lie:
        case "open":
            said = m.Tokens(replace(chunk, text="forged"))
        case "changed":
            said = m.Tokens(replace(closed, sealed=closed.sealed[:-1] + b"?"))
        case "open end":
            said = m.End(ID, 0, 0, ended)
        case _:
            bench.say(target, m.Tokens(closed))
            end = cover.close_end(m.End(ID, 0, 2, ended))
            said = replace(end, chunks=1)
    effects = bench.say(target, said)
    assert not of(effects, e.Deliver)
    [again] = sent(effects, m.Forward)
    assert again.query.attempt == 1
    assert again.query.target != target


def test_a_refusal_that_a_relay_passes_on_is_the_executors() -> None:
    """C alone is linked; whom it was sealed to is not asked again, and the next is asked by way of C too."""
    bench = Bench(UNABLE)
    bench.link(C)
    lines = []
    for peer in (A, B):
        record = signed(peer, capability=RED)
        lines.append(m.Line(peer, record.record.version, 1))
        bench.say(C, m.Announce((lines[-1],)))
        bench.say(C, m.Records((record,)))
    effects = bench.ask(query(origin=ME, text=CANARY, zone="red"))
    [first] = sent(effects, m.Forward, C)
    again = sent(bench.say(C, m.Refuse(ID, 0, Reason.OVERLOADED, "", 1.0)), m.Forward, C)
    assert [f.query.target for f in again] == [B if first.query.target == A else A]
    fails = of(bench.say(C, m.Refuse(ID, 0, Reason.OVERLOADED, "", 1.0)), e.Fail)
    assert [fail.reason for fail in fails] == [Reason.OVERLOADED]


def far(*executors: PeerId, keys: dict[PeerId, bytes] | None = None) -> tuple[Bench, list[e.Effect]]:
    """A bench that knows `executors` by way of C alone, and has asked."""
    bench = Bench(UNABLE)
    bench.link(C)
    for peer in executors:
        record = signed(peer, capability=RED)
        if keys and peer in keys:
            changed = replace(record.record, seal_key=keys[peer])
            body = bench.machine.codec.encode_record(changed)
            record = replace(
                record, record=changed, body=body, signature=SimSigner(peer).sign(record_to_sign(body, b""))
            )
        bench.say(C, m.Announce((m.Line(peer, record.record.version, 1),)))
        bench.say(C, m.Records((record,)))
    return bench, bench.ask(query(origin=ME, text=CANARY, zone="red"))


@pytest.mark.parametrize("reason", [Reason.NO_ROUTE, Reason.VISITED, Reason.OVERLOADED, Reason.ENGINE_FAILED])
def test_after_any_refusal_the_next_executor_is_asked_by_the_same_way(reason: Reason) -> None:
    bench, effects = far(A, B)
    [first] = sent(effects, m.Forward, C)
    [second] = sent(bench.say(C, m.Refuse(ID, 0, reason, prompt_tokens=2**31 - 1)), m.Forward, C)
    assert {first.query.target, second.query.target} == {A, B}
    for peer in (A, B, C):
        assert bench.machine._breakers.success(peer, bench.now) == 1.0, "nobody knows who refused it"


def test_where_the_way_was_lost_it_is_looked_for_again_under_the_next_attempt() -> None:
    bench, effects = far(A)
    assert sent(effects, m.Forward, C)
    assert not of(bench.say(C, m.Refuse(ID, 0, Reason.NO_ROUTE)), e.Fail)
    [again] = sent(bench.wait(0.3), m.Forward, C)
    assert (again.query.target, again.query.attempt) == (A, 1)


def test_of_one_that_brought_junk_and_one_that_may_have_written_it_neither_is_asked_again() -> None:
    bench, effects = far(A, B)
    [first] = sent(effects, m.Forward, C)
    effects = bench.say(C, m.Tokens(Chunk(ID, 0, 0, (), "", (), b"junk")))
    flight = bench.machine.relay.flights.get(ID)
    assert flight is not None
    assert set(flight.query.excluded) == {C, first.query.target}
    assert bench.machine._breakers.success(C, bench.now) == 1.0


def test_one_that_published_no_key_to_seal_to_is_passed_over_and_not_its_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = b"\0" * 32
    seal = SimSealer.seal

    def refusing(self: SimSealer, data: bytes, context: bytes, key: bytes) -> Any:
        if key == bad:
            raise Untrusted("no key")
        return seal(self, data, context, key)

    monkeypatch.setattr(SimSealer, "seal", refusing)
    _, effects = far(A, B, keys={A: bad})
    assert [f.query.target for f in sent(effects, m.Forward, C)] == [B]
    bench, effects = far(A, keys={A: bad})
    assert [f.reason for f in of(effects + bench.wait(2.0), e.Fail)] == [Reason.NO_ROUTE]


def test_one_too_long_once_it_is_sealed_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pmesh.protocol.sealing.sealed_bytes_max", lambda limits: 10)
    _, effects = far(A, B)
    assert [f.reason for f in of(effects, e.Fail)] == [Reason.TOO_LONG]


# -- the executor -------------------------------------------------------------------------------------


def executor() -> tuple[Bench, Cover]:
    """A bench in the zone, that was sent a sealed query by A, of A."""
    bench = Bench(RED)
    bench.link(A, B, capability=RED)
    outside, cover = part(A).wrap(asked(target=ME, path=(Hop(A, "a", "law"),)), "small")
    effects = bench.say(A, m.Forward(outside))
    [run] = of(effects, e.Generate)
    assert run.query.text == CANARY
    assert run.model == "small"
    [accept] = sent(effects, m.Accept, A)
    assert accept.digest == ""
    assert [hop.why for hop in accept.path] == [CLOSED, CLOSED]
    return bench, cover


def test_who_was_sealed_to_answers_sealed() -> None:
    bench, cover = executor()
    [piece] = sent(bench.handle(e.Generated(ID, 0, (7,), CANARY)), m.Tokens, A)
    assert (piece.chunk.tokens, piece.chunk.text) == ((), "")
    assert cover.open_chunk(piece.chunk)[0].text == CANARY
    [sign] = sent(bench.wait(bench.config.relay.keepalive_s + 0.1), m.Accept, A)
    assert [hop.why for hop in sign.path] == [CLOSED, CLOSED]
    [end] = sent(bench.handle(e.Finished(ID, 0, Usage(3, 1), "stop")), m.End, A)
    assert cover.open_end(end).usage == Usage(3, 1)
    assert "quality" in cover.open_end(end).path[-1].why


def test_what_it_cannot_answer_it_gives_to_nobody_and_tells_no_more_than_that() -> None:
    bench, _ = executor()
    effects = bench.handle(e.Failed(ID, 0, Reason.TOO_LONG, "the prompt is 99 tokens", 99))
    assert not sent(effects, m.Forward)
    [refused] = sent(effects, m.Refuse, A)
    assert (refused.reason, refused.detail, refused.prompt_tokens) == (Reason.TOO_LONG, "", 0)


def test_one_outside_the_zone_to_whom_it_is_sealed_all_the_same_gives_it_to_nobody() -> None:
    bench = Bench()
    bench.link(A, B, capability=RED)
    outside, _ = part(A).wrap(asked(target=ME), "small")
    effects = bench.say(A, m.Forward(outside))
    assert not of(effects, e.Generate)
    assert not sent(effects, m.Forward)
    assert [r.reason for r in sent(effects, m.Refuse, A)] == [Reason.NO_ROUTE]


def test_it_is_not_embedded_where_it_is_answered() -> None:
    bench = Bench(replace(RED, space="s"))
    bench.link(A, capability=RED)
    outside, _ = part(A).wrap(asked(target=ME), "small")
    effects = bench.say(A, m.Forward(outside))
    assert not of(effects, e.Embed)
    assert of(effects, e.Generate)


@pytest.mark.parametrize("junk", [False, True])
def test_what_does_not_open_is_refused_so_that_its_origin_tries_another(junk: bool) -> None:
    bench = Bench(RED)
    bench.link(A)
    outside, _ = part(A).wrap(asked(target=ME), "small")
    came = replace(outside, sealed=b"junk" * 99) if junk else asked(target=ME)
    [refused] = sent(bench.say(A, m.Forward(came)), m.Refuse, A)
    assert (refused.reason, refused.dead) == (Reason.PEER_LOST, (ME,))


@pytest.mark.parametrize("over", [False, True])
def test_played_back_it_is_answered_once(over: bool) -> None:
    bench, _ = executor()
    if over:
        bench.handle(e.Finished(ID, 0, Usage(3, 0), "stop"))
    outside, _ = part(A).wrap(asked(target=ME), "small")
    [refused] = sent(bench.say(B, m.Forward(outside)), m.Refuse, B)
    assert refused.reason is Reason.VISITED


def test_how_long_the_prompt_is_its_origin_keeps_for_itself() -> None:
    """The origin's own engine told it, and the executor has no room."""
    bench = Bench(replace(RED, models=(replace(MODEL, slots=0),)))
    bench.link(A, capability=RED)
    outside, _ = part(A).wrap(asked(target=ME, prompt_tokens=21), "small")
    [refused] = sent(bench.say(A, m.Forward(outside)), m.Refuse, A)
    assert (refused.prompt_tokens, refused.detail) == (0, "")
    assert refused.reason is Reason.NO_ROUTE, "no model crashed over it"


def test_a_full_executor_says_in_steps_when_to_ask_again() -> None:
    bench = Bench(RED, Config(relay=Relay(waiting_max=1)))
    bench.link(A, capability=RED)
    for number in range(MODEL.slots + 2):
        outside, _ = part(A).wrap(asked(id=query(number).id, target=ME), "small")
        effects = bench.say(A, m.Forward(outside))
        assert all(accept.eta_s == 0.0 for accept in sent(effects, m.Accept))
    [refused] = sent(effects, m.Refuse, A)
    assert refused.reason is Reason.OVERLOADED
    assert math.log2(refused.retry_after_s).is_integer()


def test_junk_in_a_later_attempts_name_ends_no_answer() -> None:
    bench, cover = executor()
    junk = replace(part(A).wrap(asked(target=ME), "small")[0], attempt=9, sealed=b"junk" * 99)
    effects = bench.say(B, m.Forward(junk))
    assert [r.reason for r in sent(effects, m.Refuse, B)] == [Reason.PEER_LOST]
    assert not of(effects, e.Abort)
    [piece] = sent(bench.handle(e.Generated(ID, 0, (7,), "x")), m.Tokens, A)
    assert cover.open_chunk(piece.chunk)[0].text == "x"


def test_what_waits_sealed_is_not_handed_to_an_idle_peer() -> None:
    """The same in the general zone is: the peer that asks would serve it far sooner."""
    for zone, handed in ((GENERAL, 1), ("red", 0)):
        bench = Bench(RED)
        bench.link(A, B, capability=RED)
        for number in range(MODEL.slots + 3):
            plain = query(number, origin=A, target=ME, path=(Hop(A, "a", ""),), zone=zone)
            if zone != GENERAL:
                plain, _ = part(A).wrap(plain, "small")
            bench.say(A, m.Forward(plain))
        assert len(sent(bench.say(B, m.Steal()), m.Forward, B)) == handed, zone


def test_who_goes_gives_back_what_waits_sealed_and_would_not_be_begun_in_time() -> None:
    slow = replace(RED, models=(replace(MODEL, slots=1, decode_tps=10.0),))
    bench = Bench(slow, Config(relay=Relay(drain_s=5.0)))
    bench.link(A, capability=RED)
    for number in range(4):
        long = asked(id=query(number).id, target=ME, options=Options(max_tokens=100))
        bench.say(A, m.Forward(part(A).wrap(long, "small")[0]))
    effects = bench.handle(e.Drained())
    given_back = sent(effects, m.Refuse, A)
    assert {r.reason for r in given_back} == {Reason.OVERLOADED}
    assert [r.query_id for r in given_back] == [query(n).id for n in (1, 2, 3)]


# -- those between ------------------------------------------------------------------------------------


def between() -> tuple[Bench, Query, Cover]:
    """A bench of no zone, linked to the asker's peer and the executor, that passes a sealed query on."""
    bench = Bench()
    bench.link(A, B, C, capability=RED)
    outside, _ = part(A).wrap(asked(path=(Hop(A, "a", "law"),)), "small")
    [(forward)] = sent(bench.say(A, m.Forward(outside)), m.Forward)
    assert forward.query.sealed == outside.sealed
    assert forward.query.path == (Hop(A, "a", CLOSED), Hop(ME, "peer me", CLOSED))
    _, theirs = part(B).arrived(forward.query)
    assert theirs is not None
    return bench, forward.query, theirs


def test_pieces_pass_as_they_are() -> None:
    bench, _, theirs = between()
    closed = theirs.close_chunk(Chunk(ID, 0, 0, (7,), CANARY), "00" * 32)
    assert sent(bench.say(B, m.Tokens(closed)), m.Tokens, A) == [m.Tokens(closed)]
    end = theirs.close_end(m.End(ID, 0, 1, Ended(Usage(1, 1), "stop", "small", "00" * 32)))
    assert sent(bench.say(B, end), m.End, A) == [end]


def test_sealed_or_not_it_goes_to_nobody_else() -> None:
    bench, _, _ = between()
    effects = bench.say(B, m.Refuse(ID, 0, Reason.OVERLOADED, "", 2.0))
    assert not sent(effects, m.Forward)
    [refused] = sent(effects, m.Refuse, A)
    assert (refused.reason, refused.retry_after_s) == (Reason.OVERLOADED, 2.0)


def test_when_the_executor_is_lost_its_origin_is_told_who() -> None:
    bench, _, _ = between()
    effects = bench.handle(e.Disconnected(B))
    assert not sent(effects, m.Forward)
    [refused] = sent(effects, m.Refuse, A)
    assert (refused.reason, refused.dead) == (Reason.PEER_LOST, (B,))


def test_a_full_relay_says_that_there_is_no_way_through_it() -> None:
    bench = Bench(config=Config(relay=Relay(flights_max=1)))
    bench.link(A, B, capability=RED)
    bench.say(A, m.Forward(query(9, path=(Hop(A, "a", ""),))))
    outside, _ = part(A).wrap(asked(), "small")
    assert [r.reason for r in sent(bench.say(A, m.Forward(outside)), m.Refuse, A)] == [Reason.NO_ROUTE]


def test_a_way_that_does_not_begin_with_its_origin_is_none() -> None:
    outside, _ = part(A).wrap(asked(), "small")
    for path in ((), (Hop(C, "c", CLOSED),)):
        [refused] = sent(linked().say(A, m.Forward(replace(outside, path=path))), m.Refuse, A)
        assert refused.reason is Reason.PEER_LOST


def linked() -> Bench:
    bench = Bench()
    bench.link(A, B, C, capability=RED)
    return bench


@pytest.mark.parametrize(
    "said",
    [
        m.Tokens(Chunk(ID, 0, 5, (7,), "open")),
        m.Tokens(Chunk(ID, 0, 5, (), "")),
        m.End(ID, 0, 5, Ended(Usage(1, 1), "stop", "small", "00" * 32)),
    ],
    ids=["a piece", "an empty piece", "an end"],
)
def test_what_comes_open_for_a_sealed_query_is_no_answer(said: m.PeerMessage) -> None:
    bench, _, _ = between()
    effects = bench.say(B, said)
    assert not sent(effects, m.Tokens) + sent(effects, m.End)
    assert [r.reason for r in sent(effects, m.Refuse, A)] == [Reason.PEER_LOST]


def test_what_comes_sealed_for_an_open_query_is_no_answer() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    bench.ask()
    effects = bench.say(A, m.Tokens(Chunk(ID, 0, 0, (), "", (), b"sealed")))
    assert not of(effects, e.Deliver)


def test_how_many_pieces_a_sealed_answer_has_teaches_nothing_of_lengths() -> None:
    bench, _, theirs = between()
    before = bench.machine._local.lengths.mean
    bench.say(B, m.Tokens(theirs.close_chunk(Chunk(ID, 0, 0, (7,), "x"), "00" * 32)))
    bench.say(B, theirs.close_end(m.End(ID, 0, 1, Ended(Usage(1, 1), "stop", "small", "00" * 32))))
    assert bench.machine._local.lengths.mean == before


def test_an_answer_of_too_many_pieces_ends() -> None:
    limits = Limits(max_tokens_max=8)
    bench = Bench(config=Config(limits=limits))
    bench.link(A, B, capability=RED)
    outside, _ = part(A, limits).wrap(asked(), "small")
    bench.say(A, m.Forward(outside))
    for index in range(8):
        assert sent(bench.say(B, m.Tokens(Chunk(ID, 0, index, (), "", (), b"sealed"))), m.Tokens, A)
    effects = bench.say(B, m.Tokens(Chunk(ID, 0, 8, (), "", (), b"sealed")))
    assert not sent(effects, m.Tokens)
    assert sent(effects, m.Cancel, B)
