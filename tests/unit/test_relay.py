"""Queries in flight through one peer: each line of the relay's promise, driven by events."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Limits, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Accepted, Chunk, Ended, Hop, QueryId, Resume, TokenLogprobs, Usage
from p2pmesh.record import Capability, PeerId
from p2pmesh.sim.signer import SimSigner
from p2pmesh.sim.world import World
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, C, D, of, query, receipted, sent

ID = query().id


def chunk(index: int, attempt: int = 0) -> m.Tokens:
    return m.Tokens(Chunk(ID, attempt, index, (index,), f"{index} "))


def end(chunks: int, attempt: int = 0) -> m.End:
    return m.End(ID, attempt, chunks, Ended(Usage(1, chunks), "stop", "small", "00" * 32))


def signed_end(chunks: int, by: PeerId, attempt: int = 0, **changes: object) -> m.End:
    """The end of an answer to what was asked here, with the receipt of who gave it; then changed."""
    whole = replace(end(chunks).ended, path=(Hop(ME, "me", ""), Hop(by, "it", "")))
    asked, text = query(origin=ME, attempt=attempt), "".join(f"{index} " for index in range(chunks))
    return m.End(ID, attempt, chunks, replace(receipted(asked, whole, text), **changes))  # type: ignore[arg-type]


def refuse(reason: Reason, attempt: int = 0, **more: object) -> m.Refuse:
    return m.Refuse(ID, attempt, reason, "because", **more)  # type: ignore[arg-type]


def asker(*peers: PeerId, config: Config | None = None) -> Bench:
    """A bench without a model, linked to `peers`, that has asked: the query goes out at once."""
    bench = Bench(UNABLE, config)
    bench.link(*peers)
    return bench


def forwarded(effects: list[e.Effect]) -> tuple[PeerId, m.Forward]:
    [(peer, forward)] = [(s.peer, s.message) for s in of(effects, e.Send) if isinstance(s.message, m.Forward)]
    return peer, forward


def failed(effects: list[e.Effect]) -> e.Fail:
    [fail] = of(effects, e.Fail)
    return fail


# -- served here --------------------------------------------------------------------------------------


def test_a_question_asked_here_is_placed_streamed_and_ended_here() -> None:
    bench = Bench()
    effects = bench.ask()
    assert [g.model for g in of(effects, e.Generate)] == ["small"]
    [placed] = of(effects, e.Deliver)
    assert isinstance(placed.item, e.Placed)
    assert [hop.peer for hop in placed.item.path] == [ME]
    told = (TokenLogprobs(b"t", -0.5), TokenLogprobs(b"wo", -1.5))
    [piece] = of(bench.handle(e.Generated(ID, 0, (7, 8), "two", told)), e.Deliver)
    assert piece.item == Chunk(ID, 0, 0, (7, 8), "two", told)
    [whole] = of(bench.handle(e.Finished(ID, 0, Usage(3, 2), "stop")), e.Deliver)
    assert isinstance(whole.item, Ended)
    assert (whole.item.model, whole.item.digest) == (MODEL.name, MODEL.digest)
    assert not bench.machine.relay.flights


def test_a_forward_is_accepted_with_its_place_and_streamed_back() -> None:
    bench = Bench()
    bench.link(A)
    effects = bench.say(A, m.Forward(query(path=(Hop(A, "a", "to me"),))))
    [accept] = sent(effects, m.Accept, A)
    assert accept.placed
    assert [hop.peer for hop in accept.path] == [A, ME]
    assert sent(bench.handle(e.Generated(ID, 0, (1,), "x")), m.Tokens, A) == [
        m.Tokens(Chunk(ID, 0, 0, (1,), "x"))
    ]
    [whole] = sent(bench.handle(e.Finished(ID, 0, Usage(1, 1), "stop")), m.End, A)
    assert whole.chunks == 1


def test_while_no_token_flows_a_sign_of_life_goes_up_each_keepalive() -> None:
    bench = Bench()
    bench.link(A)
    bench.say(A, m.Forward(query()))
    signs = sent(bench.wait(3.5), m.Accept, A)
    assert [s.placed for s in signs] == [True, True, True]


def test_a_model_that_cannot_hands_the_query_to_the_next_peer() -> None:
    bench = Bench()
    bench.link(A, B)
    bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),))))
    effects = bench.handle(e.Failed(ID, 0, Reason.TOO_LONG, "too long", 11))
    peer, forward = forwarded(effects)
    assert peer == B
    assert forward.query.prompt_tokens == 11
    assert ME in forward.query.excluded


def test_a_model_that_breaks_off_after_a_token_ends_the_answer_with_an_error() -> None:
    bench = Bench()
    bench.link(A)
    bench.say(A, m.Forward(query()))
    bench.handle(e.Generated(ID, 0, (1,), "x"))
    effects = bench.handle(e.Failed(ID, 0, Reason.ENGINE_FAILED, "boom"))
    assert sent(effects, m.Error, A) == [m.Error(ID, 0, Reason.ENGINE_FAILED, "boom")]


@pytest.mark.parametrize("detail", ["x" * 5_000, "lone \ud800 surrogate", "é" * 5_000])
def test_whatever_a_model_says_went_wrong_can_travel(detail: str) -> None:
    bench = Bench()
    bench.link(A)
    bench.say(A, m.Forward(query()))
    [refusal] = sent(bench.handle(e.Failed(ID, 0, Reason.BAD_REQUEST, detail)), m.Refuse, A)
    assert refusal.reason is Reason.BAD_REQUEST


def test_what_a_model_says_of_a_dead_flight_is_dropped() -> None:
    bench = Bench()
    bench.link(A)
    bench.say(A, m.Forward(query(attempt=1)))
    for event in (
        e.Generated(ID, 0, (1,), "x"),
        e.Finished(ID, 0, Usage(), "stop"),
        e.Failed(ID, 0, Reason.ENGINE_FAILED),
        e.Generated(QueryId("ff"), 0, (1,), "x"),
    ):
        assert not sent(bench.handle(event), m.Tokens) + sent(bench.handle(event), m.End)
    assert bench.machine.relay.flights.find(ID, 1) is not None


def test_a_full_queue_refuses_and_says_when_to_ask_again() -> None:
    bench = Bench(config=Config(relay=Relay(waiting_max=1)))
    bench.link(A, capability=UNABLE)
    for number in range(MODEL.slots + 1):
        bench.say(A, m.Forward(query(number)))
    [refusal] = sent(bench.say(A, m.Forward(query(99))), m.Refuse, A)
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.retry_after_s >= 1.0


def test_too_many_flights_are_refused_to_peers_and_to_askers() -> None:
    bench = Bench(config=Config(relay=Relay(flights_max=1)))
    bench.link(A)
    bench.say(A, m.Forward(query(1)))
    [refusal] = sent(bench.say(A, m.Forward(query(2))), m.Refuse, A)
    assert refusal.reason is Reason.OVERLOADED
    fail = failed(bench.ask(query(3, origin=ME)))
    assert fail.reason is Reason.OVERLOADED
    assert fail.retry_after_s >= 1.0


def test_the_same_query_id_is_not_asked_twice_at_once() -> None:
    bench = Bench()
    bench.ask()
    assert failed(bench.ask()).reason is Reason.BAD_REQUEST


# -- embedding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_a_query_waits_for_its_vector_and_goes_on_without_one(known: bool) -> None:
    vector = World.topic(1) if known else None
    bench = Bench(replace(ABLE, space="sim"))
    effects = bench.ask()
    assert [(f.query_id, f.text) for f in of(effects, e.Embed)] == [(ID, "hello")]
    assert not of(effects, e.Generate)
    [generate] = of(bench.handle(e.Embedded(ID, vector)), e.Generate)
    assert generate.query.vector is vector
    assert generate.query.space == ("sim" if known else "")
    assert not of(bench.handle(e.Embedded(ID, vector)), e.Generate)  # a late second one


def test_a_forward_that_needs_a_vector_is_accepted_before_it_is_placed() -> None:
    bench = Bench(replace(ABLE, space="sim"))
    bench.link(A)
    assert [a.placed for a in sent(bench.say(A, m.Forward(query())), m.Accept, A)] == [False]
    assert [a.placed for a in sent(bench.handle(e.Embedded(ID, None)), m.Accept, A)] == [True]


# -- passed on ----------------------------------------------------------------------------------------


def test_a_refusal_is_handled_here_by_the_next_best_peer() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    second, forward = forwarded(bench.say(first, refuse(Reason.OVERLOADED)))
    assert {first, second} == {A, B}
    assert forward.query.attempt == 0
    assert forward.query.excluded == (first,)


def test_when_all_refuse_the_asker_hears_the_most_telling_reason() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    second, _ = forwarded(bench.say(first, refuse(Reason.OVERLOADED, retry_after_s=7.0)))
    fail = failed(bench.say(second, refuse(Reason.OVERLOADED, retry_after_s=9.0)))
    assert (fail.reason, fail.retry_after_s) == (Reason.OVERLOADED, 9.0)


def test_an_exact_length_told_in_a_refusal_spares_the_others_the_question() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    fail = failed(bench.say(first, refuse(Reason.TOO_LONG, prompt_tokens=9_999)))
    assert fail.reason is Reason.TOO_LONG
    assert "2048" in fail.detail


@pytest.mark.parametrize("reason", [Reason.BAD_REQUEST, Reason.CANCELLED, Reason.DEADLINE])
def test_a_refusal_everybody_would_repeat_ends_the_query(reason: Reason) -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    assert failed(bench.say(first, refuse(reason))).reason is reason


def test_a_refusal_after_it_was_placed_forgets_the_place() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.say(first, m.Accept(ID, 0, True, 1.0, (Hop(ME, "me", ""), Hop(first, "x", ""))))
    second, _ = forwarded(bench.say(first, refuse(Reason.ENGINE_FAILED)))
    path = (Hop(ME, "me", ""), Hop(second, "y", ""))
    [placed] = of(bench.say(second, m.Accept(ID, 0, True, 1.0, path)), e.Deliver)
    assert placed.item == e.Placed(path, 1.0)


def test_silence_means_the_next_peer_and_a_new_attempt_without_the_silent_one() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    effects = bench.wait(bench.config.relay.accept_timeout_s)
    assert sent(effects, m.Cancel, first) == [m.Cancel(ID, 0)]
    second, forward = forwarded(effects)
    assert second != first
    assert (forward.query.attempt, forward.query.excluded) == (1, (first,))


@pytest.mark.parametrize(
    ("round_trip_s", "silence_max_s", "late_s"),
    [(None, 3.0, 0.5), (0.001, 3.0, 0.2), (0.4, 3.0, 0.8), (0.4, 0.7, 0.7)],
    ids=["never measured", "near", "far", "no longer than any silence"],
)
def test_how_long_an_offer_may_go_unanswered_its_link_says(
    round_trip_s: float | None, silence_max_s: float, late_s: float
) -> None:
    bench = asker(A, config=Config(relay=Relay(silence_max_s=silence_max_s, keepalive_s=0.5)))
    link = bench.machine.membership.links[A]
    link.rtt_s = None
    if round_trip_s is not None:
        link.measured(round_trip_s)
    forwarded(bench.ask())
    assert not sent(bench.wait(late_s - 0.02), m.Cancel)
    assert sent(bench.wait(0.04), m.Cancel, A) == [m.Cancel(ID, 0)]


def test_a_long_prompt_has_time_to_come_over_a_slow_link() -> None:
    bench = asker(A)
    forwarded(bench.ask(query(origin=ME, text="word " * 1_200)))
    assert not sent(bench.wait(0.4), m.Cancel)
    assert sent(bench.wait(0.1), m.Cancel, A)


def test_an_accept_buys_patience_that_ends() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.say(first, m.Accept(ID, 0, False))
    assert not sent(bench.wait(bench.config.relay.silence_max_s - 0.01), m.Forward)
    assert sent(bench.wait(0.02), m.Forward)


def test_only_the_origin_starts_a_new_attempt() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B, C)
    bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),), excluded=(C,))))
    [refusal] = sent(bench.handle(e.Disconnected(B)), m.Refuse, A)
    assert (refusal.reason, refusal.dead) == (Reason.PEER_LOST, (B,))


def test_the_dead_that_a_refusal_names_are_excluded_but_never_ourselves() -> None:
    bench = Bench()
    bench.link(A, B)
    busy = replace(MODEL, decode_tps=1.0)
    bench.handle(e.Described(Capability(models=(busy,)), ()))
    first, _ = forwarded(bench.ask())
    effects = bench.say(first, refuse(Reason.PEER_LOST, dead=(ME, A, B, A)))
    [generate] = of(effects, e.Generate)
    assert generate.query.excluded == (A, B)
    assert generate.query.attempt == 1


def test_after_a_lost_link_the_next_peer_goes_on_without_a_gap() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.say(first, m.Accept(ID, 0, True, 1.0, (), "d1"))
    assert of(bench.say(first, chunk(0)), e.Deliver)
    second, forward = forwarded(bench.handle(e.Disconnected(first)))
    assert (forward.query.attempt, forward.query.excluded) == (1, (first,))
    assert forward.query.accepted == Accepted((0,), "0 ", 1, "d1")
    assert not of(bench.say(second, chunk(0, attempt=1)), e.Deliver)  # the asker has it
    assert of(bench.say(second, chunk(1, attempt=1)), e.Deliver)
    assert of(bench.say(second, signed_end(2, second, attempt=1)), e.Deliver)


def test_where_nobody_can_go_on_the_asker_hears_why_the_answer_stopped() -> None:
    bench = asker(A)
    bench.ask()
    bench.say(A, chunk(0))
    assert not of(bench.handle(e.Disconnected(A)), e.Fail)
    assert failed(bench.wait(2.0)).reason is Reason.PEER_LOST


def test_who_wants_no_other_writer_gets_what_there_is_and_why_there_is_no_more() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask(query(origin=ME, resume=Resume.NEVER)))
    bench.say(first, m.Accept(ID, 0, True, 1.0, (), "d1"))
    bench.say(first, chunk(0))
    effects = bench.handle(e.Disconnected(first))
    assert failed(effects).reason is Reason.PEER_LOST
    assert not sent(effects, m.Forward)


def test_who_wants_no_other_writer_is_served_by_another_before_anything_is_written() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask(query(origin=ME, resume=Resume.NEVER)))
    second, _ = forwarded(bench.handle(e.Disconnected(first)))
    assert second != first


@pytest.mark.parametrize(("digest", "goes_on"), [(MODEL.digest, True), ("another", False)])
def test_who_wants_the_same_model_goes_on_with_no_other(digest: str, goes_on: bool) -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask(query(origin=ME, resume=Resume.SAME_MODEL)))
    bench.say(first, m.Accept(ID, 0, True, 1.0, (), digest))
    bench.say(first, chunk(0))
    effects = bench.handle(e.Disconnected(first))
    if goes_on:
        second, forward = forwarded(effects)
        assert (second != first, forward.query.resume) == (True, Resume.SAME_MODEL)
    else:
        assert not sent(effects, m.Forward)
        assert failed(bench.wait(2.0)).reason is Reason.PEER_LOST


def test_an_answer_too_long_to_travel_is_not_gone_on_with() -> None:
    bench = asker(A, B, config=Config(limits=Limits(accepted_bytes_max=3)))
    first, _ = forwarded(bench.ask())
    bench.say(first, chunk(0))
    bench.say(first, chunk(1))
    effects = bench.handle(e.Disconnected(first))
    assert failed(effects).reason is Reason.PEER_LOST
    assert not sent(effects, m.Forward)


def test_a_relay_that_loses_an_answer_midway_names_the_dead_to_the_origin() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B)
    bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),))))
    bench.say(B, chunk(0))
    [error] = sent(bench.handle(e.Disconnected(B)), m.Error, A)
    assert (error.reason, error.dead) == (Reason.PEER_LOST, (B,))
    origin = asker(A, B)
    first, _ = forwarded(origin.ask())
    origin.say(first, chunk(0))
    second, forward = forwarded(origin.say(first, m.Error(ID, 0, Reason.PEER_LOST, "gone", (C,))))
    assert forward.query.excluded == (C,)
    assert forward.query.attempt == 1
    assert second == first  # it lives


def test_what_a_relay_is_sent_to_go_on_with_counts_against_the_longest_answer() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B)
    asked = query(path=(Hop(A, "a", ""),), accepted=Accepted((1,) * 7, "x", 3))  # of 8 tokens
    bench.say(A, m.Forward(asked))
    assert sent(bench.say(B, chunk(3)), m.Tokens, A) == [chunk(3)]
    effects = bench.say(B, chunk(4))
    assert not sent(effects, m.Tokens)
    assert sent(effects, m.Cancel, B)


def test_attempts_end_when_too_many_peers_went_away() -> None:
    bench = asker(A, B, C, config=Config(relay=Relay(attempts_max=2)))
    first, _ = forwarded(bench.ask())
    second, _ = forwarded(bench.handle(e.Disconnected(first)))
    assert failed(bench.handle(e.Disconnected(second))).reason is Reason.PEER_LOST


def test_a_peer_cannot_name_more_dead_than_a_query_can_carry() -> None:
    bench = asker(A, B, config=Config(limits=Limits(excluded_max=1)))
    first, _ = forwarded(bench.ask())
    assert failed(bench.say(first, refuse(Reason.PEER_LOST, dead=(C, D)))).reason is Reason.PEER_LOST


# -- the stream ---------------------------------------------------------------------------------------


def test_a_repeated_chunk_is_dropped_and_the_end_delivered_once() -> None:
    bench = asker(A)
    bench.ask()
    ends = signed_end(2, A)
    items = [of(bench.say(A, msg), e.Deliver) for msg in (chunk(0), chunk(0), chunk(1), ends, ends)]
    assert [len(found) for found in items] == [1, 0, 1, 1, 0]


def test_a_gap_in_the_stream_cancels_below_and_another_goes_on_from_before_it() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.say(first, chunk(0))
    effects = bench.say(first, chunk(2))
    assert sent(effects, m.Cancel, first)
    second, forward = forwarded(effects)
    assert second != first
    assert forward.query.accepted == Accepted((0,), "0 ", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"receipt": None},
        {"model": "large"},
        {"digest": "11" * 32},
        {"finish_reason": "length"},
        {"usage": Usage(1, 3)},
        {"path": (Hop(ME, "me", ""), Hop(B, "b", ""))},
        {"path": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_end_that_its_writer_did_not_sign_is_told_and_not_gone_on_from(changes: dict[str, object]) -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.say(first, chunk(0))
    effects = bench.say(first, signed_end(1, first, **changes))
    assert failed(effects).reason is Reason.FORGED
    assert not sent(effects, m.Forward)
    assert not of(effects, e.Deliver)


@pytest.mark.parametrize(("index", "text"), [(0, "0!"), (1, "1")], ids=["changed", "longer"])
def test_a_piece_that_was_changed_on_the_way_is_noticed_at_the_end(index: int, text: str) -> None:
    bench = asker(A)
    bench.ask()
    for at in range(2):
        said = Chunk(ID, 0, at, (at,), text if at == index else f"{at} ")
        bench.say(A, m.Tokens(said))
    assert failed(bench.say(A, signed_end(2, A))).reason is Reason.FORGED


def test_a_receipt_of_another_question_is_none() -> None:
    bench = asker(A)
    bench.ask(query(origin=ME, text="another question"))
    bench.say(A, chunk(0))
    assert failed(bench.say(A, signed_end(1, A))).reason is Reason.FORGED


def test_what_this_peer_answers_it_signs() -> None:
    bench = Bench()
    bench.link(A)
    asked = query(path=(Hop(A, "a", "to me"),))
    bench.say(A, m.Forward(asked))
    bench.handle(e.Generated(ID, 0, (1,), "x"))
    bench.handle(e.Generated(ID, 0, (2,), "y"))
    [whole] = sent(bench.handle(e.Finished(ID, 0, Usage(1, 2), "stop")), m.End, A)
    receipt = whole.ended.receipt
    assert receipt is not None
    assert (receipt.executor, receipt.model, receipt.completion_tokens) == (ME, MODEL.name, 2)
    assert receipt.tells("xy")
    assert not receipt.tells("x")
    assert SimSigner(ME).verify(ME, receipt.body(), receipt.signature)
    assert whole.ended == receipted(asked, replace(whole.ended, receipt=None), "xy")


def test_a_lost_last_chunk_is_noticed_at_the_end() -> None:
    bench = asker(A)
    bench.ask()
    bench.say(A, chunk(0))
    bench.say(A, end(2))
    bench.handle(e.Disconnected(A))
    assert failed(bench.wait(2.0)).reason is Reason.PEER_LOST


@pytest.mark.parametrize("message", [chunk(1), end(1)], ids=["a later chunk", "the end"])
def test_where_nothing_was_delivered_yet_a_gap_is_a_loss_and_the_query_goes_out_again(
    message: m.PeerMessage,
) -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    second, forward = forwarded(bench.say(first, message))
    assert second != first
    assert forward.query.attempt == 1


def test_an_error_before_the_first_token_is_a_refusal() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    second, _ = forwarded(bench.say(first, m.Error(ID, 0, Reason.ENGINE_FAILED, "boom")))
    assert second != first


def test_after_a_crash_midway_another_model_goes_on_and_after_two_the_answer_ends() -> None:
    bench = asker(A, B, C)
    first, _ = forwarded(bench.ask())
    bench.say(first, chunk(0))
    second, forward = forwarded(bench.say(first, m.Error(ID, 0, Reason.ENGINE_FAILED, "boom")))
    assert second != first
    assert forward.query.accepted == Accepted((0,), "0 ", 1)
    effects = bench.say(second, m.Error(ID, 1, Reason.ENGINE_FAILED, "boom"))
    assert failed(effects).detail == "boom"
    assert not sent(effects, m.Forward)


def test_after_a_crash_here_midway_a_peer_goes_on() -> None:
    bench = Bench()
    bench.link(A)
    bench.ask()
    bench.handle(e.Generated(ID, 0, (7,), "x "))
    peer, forward = forwarded(bench.handle(e.Failed(ID, 0, Reason.ENGINE_FAILED, "boom")))
    assert peer == A
    assert forward.query.accepted == Accepted((7,), "x ", 1, MODEL.digest)


def test_an_error_that_is_nobody_s_loss_ends_an_answer_that_has_begun() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.say(first, chunk(0))
    effects = bench.say(first, m.Error(ID, 0, Reason.TOO_LONG, "full"))
    assert failed(effects).reason is Reason.TOO_LONG
    assert not sent(effects, m.Forward)


def test_late_words_of_a_dead_attempt_are_dropped() -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    bench.wait(0.25)
    for message in (chunk(0), end(0), m.Accept(ID, 0, True), refuse(Reason.VISITED)):
        effects = bench.say(first, message)
        assert not of(effects, e.Deliver) + of(effects, e.Fail)
    assert bench.machine.relay.flights.find(ID, 1) is not None


@pytest.mark.parametrize(
    "message",
    [chunk(0), end(0), m.Accept(ID, 0, True), refuse(Reason.BAD_REQUEST), m.Cancel(ID, 0)],
    ids=lambda message: type(message).__name__,
)
def test_who_was_not_asked_has_no_say(message: m.PeerMessage) -> None:
    bench = asker(A, B)
    first, _ = forwarded(bench.ask())
    other = B if first == A else A
    effects = bench.say(other, message)
    assert not of(effects, e.Deliver) + of(effects, e.Fail)
    assert bench.machine.relay.flights.toward(first, ID, 0) is not None


def test_tokens_pass_through_a_relay_unchanged() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B)
    bench.say(A, m.Forward(query(path=(Hop(A, "a", ""),))))
    assert sent(bench.say(B, chunk(0)), m.Tokens, A) == [chunk(0)]
    assert sent(bench.say(B, end(1)), m.End, A) == [end(1)]
