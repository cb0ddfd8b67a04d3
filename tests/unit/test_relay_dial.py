"""A query waits for a link to the peer chosen for it, and not for ever."""

from __future__ import annotations

from dataclasses import replace

from p2pmesh.config import Config, Net
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Query
from tests.machines import ABLE, ME, UNABLE, A, B, Bench, C, of, query, sent, signed

ASKED = query(1, origin=ME)


def knowing(*able: str, config: Config | None = None) -> Bench:
    """Linked to A, which has no model and tells of others that have one."""
    bench = Bench(UNABLE, config)
    bench.link(A, capability=UNABLE)
    records = tuple(signed(peer, addresses=(f"/there/{peer}",)) for peer in able)  # type: ignore[arg-type]
    bench.say(A, m.Lines((), tuple(m.Line(r.record.id, r.record.version, 1) for r in records)))
    bench.say(A, m.Records(records))
    return bench


def dialled(effects: list[e.Effect]) -> list[str]:
    return [effect.peer for effect in of(effects, e.Dial)]


def test_the_chosen_peer_is_dialled_and_gets_the_query_over_the_new_link() -> None:
    bench = knowing(B)
    effects = bench.ask(ASKED)
    assert dialled(effects) == [B]
    assert not sent(effects, m.Forward)
    [forward] = sent(bench.handle(e.Connected(B)), m.Forward, B)
    assert forward.query.target == B


def test_two_queries_wait_for_one_dial() -> None:
    bench = knowing(B)
    bench.ask(ASKED)
    assert dialled(bench.ask(query(2, origin=ME))) == []
    assert len(sent(bench.handle(e.Connected(B)), m.Forward, B)) == 2


def test_a_dial_that_fails_sends_the_query_through_the_neighbour_who_told_of_it() -> None:
    bench = knowing(B)
    bench.ask(ASKED)
    [forward] = sent(bench.handle(e.DialFailed(B)), m.Forward, A)
    assert forward.query.target == B


def test_a_dial_that_fails_leaves_the_next_best() -> None:
    bench = knowing(B, C)
    [first] = dialled(bench.ask(replace(ASKED, excluded=(A,))))
    effects = bench.handle(e.DialFailed(first))  # type: ignore[arg-type]
    assert dialled(effects) == [({B, C} - {first}).pop()]


def test_a_dial_that_takes_too_long_leaves_the_next_best() -> None:
    bench = knowing(B, C)
    [first] = dialled(bench.ask(ASKED))
    effects = bench.wait(bench.config.relay.dial_patience_s)
    assert not sent(effects, m.Cancel)
    second = ({B, C} - {first}).pop()
    forward = sent(bench.handle(e.Connected(second)), m.Forward, second)  # type: ignore[arg-type]
    assert forward[0].query.excluded == (first,)


def test_who_gives_up_while_it_is_dialled_is_told_of_no_more() -> None:
    bench = knowing(B)
    bench.ask(ASKED)
    assert not sent(bench.handle(e.Cancelled(ASKED.id)), m.Cancel)
    assert not sent(bench.handle(e.Connected(B)), m.Forward)


def test_another_link_that_ends_means_nothing_to_a_query_that_is_dialling() -> None:
    bench = knowing(B)
    bench.ask(ASKED)
    assert not of(bench.handle(e.Disconnected(A)), e.Fail)
    assert sent(bench.handle(e.Connected(B)), m.Forward, B)


def test_where_nobody_may_be_dialled_the_query_goes_through_the_neighbour() -> None:
    bench = knowing(B, config=Config(net=Net(dial_discovered=False)))
    effects = bench.ask(ASKED)
    assert not dialled(effects)
    [forward] = sent(effects, m.Forward, A)
    assert forward.query.target == B


def onward(to: str, **changes: object) -> Query:
    return replace(query(3, origin=C), target=to, **changes)  # type: ignore[arg-type]


def test_on_the_way_to_another_nobody_takes_the_query_for_himself() -> None:
    bench = Bench(ABLE)
    bench.link(A, B)
    effects = bench.say(A, m.Forward(onward(B)))
    assert sent(effects, m.Forward, B)
    assert not of(effects, e.Generate)


def test_where_the_chosen_one_is_out_of_reach_whoever_has_the_query_chooses() -> None:
    bench = Bench(ABLE)
    bench.link(A)
    assert of(bench.say(A, m.Forward(onward("nobody"))), e.Generate)
    assert of(bench.say(A, m.Forward(onward(B, id=query(4).id, hops_left=0))), e.Generate)


def test_a_peer_that_has_no_room_for_the_link_is_not_waited_for() -> None:
    bench = knowing(B)
    bench.ask(ASKED)
    bench.machine._linking.make_room = lambda: False  # type: ignore[method-assign]
    effects = bench.handle(e.Connected(B))
    assert sent(effects, m.Part, B)
    assert sent(effects, m.Forward, A)


def test_what_was_offered_to_a_peer_that_had_no_room_goes_elsewhere_in_the_same_attempt() -> None:
    """It gave the room to another while our query was on its way: it never had it, and it is not dead."""
    bench = Bench(UNABLE)
    bench.link(A, B)
    [first] = {e_.peer for e_ in of(bench.ask(ASKED), e.Send) if isinstance(e_.message, m.Forward)}
    [forward] = sent(bench.say(first, m.Part()), m.Forward)
    assert (forward.query.attempt, forward.query.excluded) == (0, ())
    assert not of(bench.handle(e.Disconnected(first)), e.Fail)


def test_who_had_no_room_and_alone_can_serve_it_is_asked_by_another_way() -> None:
    """It had none for this link: that is no refusal, and a neighbour of both has a way."""
    bench = Bench(UNABLE)
    bench.link(B)
    bench.link(A, capability=UNABLE)
    record = signed(B)
    bench.say(A, m.Announce((m.Line(B, record.record.version, 1),)))
    [first] = sent(bench.ask(ASKED), m.Forward, B)
    assert first.query.target == B
    [again] = sent(bench.say(B, m.Part()), m.Forward, A)
    assert again.query.target == B
