"""An answer outlives its peer: what who asks, who holds it and who comes for it do and say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Limits
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Accepted, Chunk, Ended, Hop, Options, Query, QueryId, Resume, Usage
from p2pmesh.record import GENERAL, NOBODY, Capability, PeerId
from tests.machines import ABLE, ME, MODEL, UNABLE, A, B, Bench, C, D, of, query, sent

ASKED = replace(query(1, origin=ME), options=Options(max_tokens=16))
ID = ASKED.id
HERS = replace(ASKED, origin=A)
"""The same, asked at `A`."""
NEW = QueryId(f"{99:032x}")
ENDED = Ended(Usage(1, 2), "stop", "small", MODEL.digest, (Hop(B, "b", ""),))


def wrote(index: int) -> e.Generated:
    return e.Generated(ID, 0, (index,), f"{index} ")


def chunk(index: int, query_id: QueryId = ID) -> Chunk:
    return Chunk(query_id, 0, index, (index,), f"{index} ")


def delivered(effects: list[e.Effect]) -> list[object]:
    return [effect.item for effect in of(effects, e.Deliver)]


def texts(effects: list[e.Effect]) -> str:
    return "".join(item.text for item in delivered(effects) if isinstance(item, Chunk))


# -- who asks -----------------------------------------------------------------------------------------


class Guarded(Bench):
    """A peer with a model that was asked a query to be held elsewhere, linked to some without one."""

    def __init__(self, *links: PeerId, asked: Query = ASKED, config: Config | None = None) -> None:
        super().__init__(config=config)
        self.link(*links, capability=UNABLE)
        self.begun = self.handle(e.Asked(asked, guarded=True))

    def holder(self, effects: list[e.Effect]) -> PeerId:
        """Return who is asked to hold it."""
        [peer] = [s.peer for s in of(effects, e.Send) if isinstance(s.message, m.Keep)]
        return peer


def test_what_the_asker_gets_is_held_elsewhere_first() -> None:
    bench = Guarded(B)
    [keep] = sent(bench.begun, m.Keep, B)
    assert keep.query.messages == ASKED.messages
    assert delivered(bench.begun) == []
    told = delivered(bench.say(B, m.Kept(ID, 0)))
    assert told[0] == e.Guarded(B)
    assert isinstance(told[1], e.Placed)
    effects = bench.handle(wrote(0))
    assert [copy.chunk for copy in sent(effects, m.Copy, B)] == [chunk(0)]
    assert sent(effects, m.Copy, B)[0].digest == MODEL.digest
    assert delivered(effects) == []
    assert delivered(bench.say(B, m.Kept(ID, 1))) == [chunk(0)]
    effects = bench.handle(e.Finished(ID, 0, Usage(1, 1), "stop"))
    assert delivered(effects) == []
    [settle] = sent(effects, m.Settle, B)
    assert settle.ended is not None
    assert delivered(bench.say(B, m.Kept(ID, 2))) == [settle.ended]


def test_several_pieces_may_be_under_way() -> None:
    bench = Guarded(B)
    bench.say(B, m.Kept(ID, 0))
    for index in range(3):
        bench.handle(wrote(index))
    assert texts(bench.say(B, m.Kept(ID, 2))) == "0 1 "
    assert texts(bench.say(B, m.Kept(ID, 1))) == ""
    assert texts(bench.say(B, m.Kept(ID, 3))) == "2 "


def test_nobody_else_says_what_is_held() -> None:
    bench = Guarded(B)
    bench.link(C, capability=UNABLE)
    assert delivered(bench.say(C, m.Kept(ID, 7))) == []


def test_without_anybody_to_hold_it_the_asker_gets_it_at_once() -> None:
    bench = Guarded()
    assert len(delivered(bench.begun)) == 1
    assert texts(bench.handle(wrote(0))) == "0 "


def test_who_may_not_see_the_zone_does_not_hold_it() -> None:
    secret = replace(ASKED, zone="hr")
    bench = Bench(replace(ABLE, zones=(GENERAL, "hr")))
    bench.link(B, capability=UNABLE)
    assert not sent(bench.handle(e.Asked(secret, guarded=True)), m.Keep)
    bench = Bench(replace(ABLE, zones=(GENERAL, "hr")))
    bench.link(C, capability=Capability(zones=(GENERAL, "hr")))
    assert sent(bench.handle(e.Asked(secret, guarded=True)), m.Keep, C)


def test_when_the_holder_goes_another_gets_all_there_is() -> None:
    bench = Guarded(B, C)
    first = bench.holder(bench.begun)
    bench.say(first, m.Kept(ID, 0))
    bench.handle(wrote(0))
    bench.say(first, m.Kept(ID, 1))
    bench.handle(wrote(1))
    effects = bench.handle(e.Disconnected(first))
    [keep] = sent(effects, m.Keep)
    assert keep.query.accepted == Accepted((0, 1), "0 1 ", 2, MODEL.digest)
    assert texts(effects) == ""
    second = bench.holder(effects)
    assert {first, second} == {B, C}
    told = bench.say(second, m.Kept(ID, 2))
    assert delivered(told) == [e.Guarded(second), chunk(1)]


def test_who_does_not_say_that_it_holds_it_is_replaced_and_the_last_is_not_waited_for() -> None:
    bench = Guarded(A, B, C, D)
    asked = [bench.holder(bench.begun)]
    for patience_s in (0.26, 0.51):
        effects = bench.wait(patience_s)
        asked.append(bench.holder(effects))
        assert delivered(effects) == []
    assert len(set(asked)) == 3
    effects = bench.wait(1.01)
    assert not sent(effects, m.Keep)
    assert isinstance(delivered(effects)[0], e.Placed)


def test_who_held_it_before_is_asked_twice_as_something_may_have_been_lost() -> None:
    bench = Guarded(A, B)
    holder = bench.holder(bench.begun)
    bench.say(holder, m.Kept(ID, 0))
    bench.handle(wrote(0))
    assert bench.holder(bench.wait(0.21)) == holder
    assert bench.holder(bench.wait(0.21)) != holder


def replaced() -> tuple[Guarded, PeerId, PeerId]:
    """Return one whose holder said that it holds a piece, and then nothing: it, the next one, the bench."""
    bench = Guarded(A, B)
    former = bench.holder(bench.begun)
    bench.say(former, m.Kept(ID, 0))
    bench.handle(wrote(0))
    bench.say(former, m.Kept(ID, 1))
    bench.handle(wrote(1))
    bench.wait(0.21)
    effects = bench.wait(0.21)
    assert not sent(effects, m.Settle)
    return bench, former, bench.holder(effects)


def test_a_holder_is_let_go_when_the_next_one_holds_it_and_no_sooner() -> None:
    """For an instant nobody held it: the asker would have come for it in vain."""
    bench, former, holder = replaced()
    effects = bench.say(holder, m.Kept(ID, 2))
    assert sent(effects, m.Settle, former) == [m.Settle(ID, None)]
    assert delivered(effects) == [e.Guarded(holder), chunk(1)]
    assert not sent(bench.handle(e.Cancelled(ID)), m.Settle, former)


@pytest.mark.parametrize("end", ["cancelled", "nobody", "failed"])
def test_a_former_holder_is_let_go_at_the_end_too(end: str) -> None:
    bench, former, holder = replaced()
    match end:
        case "cancelled":
            effects = bench.handle(e.Cancelled(ID))
        case "nobody":
            effects = bench.wait(2.0)
            assert e.Guarded(NOBODY) in delivered(effects)
        case _:
            effects = bench.handle(e.Failed(ID, 0, Reason.BAD_REQUEST, "no"))
    assert sent(effects, m.Settle, former) == [m.Settle(ID, None)]
    assert sent(effects, m.Settle, holder) == [m.Settle(ID, None)]


def test_who_comes_for_it_at_a_former_holder_gets_it_there_and_here_it_ends() -> None:
    bench, former, _ = replaced()
    effects = bench.say(former, m.Settle(ID, None))
    assert [fail.reason for fail in of(effects, e.Fail)] == [Reason.CANCELLED]
    assert not len(bench.machine.relay.flights)


def test_a_former_holder_that_goes_is_forgotten() -> None:
    bench, former, holder = replaced()
    assert not sent(bench.handle(e.Disconnected(former)), m.Keep)
    assert not sent(bench.say(holder, m.Kept(ID, 2)), m.Settle, former)


def test_a_link_that_is_slow_by_nature_has_time_to_say_that_it_holds() -> None:
    bench = Guarded(A)
    link = bench.machine.membership.links[A]
    for _ in range(40):
        link.measured(0.6)
    asked = replace(ASKED, id=QueryId("f" * 32))
    bench.handle(e.Asked(asked, guarded=True))
    bench.wait(0.55)
    assert e.Guarded(A) in delivered(bench.say(A, m.Kept(asked.id, 0)))


@pytest.mark.parametrize(("zones", "reads"), [(None, True), (("hr",), True), (("law",), False), ((), False)])
def test_an_answer_of_a_zone_is_given_to_whom_may_read_it(zones: tuple[str, ...] | None, reads: bool) -> None:
    bench = Bench()
    bench.link(B)
    bench.handle(e.Claimed(NEW, ID, B, 0, zones))
    held = replace(ASKED, id=ID, zone="hr", accepted=Accepted((0,), "secret ", 1, MODEL.digest))
    effects = bench.say(B, m.Legacy(held, ENDED))
    assert ("secret" in texts(effects)) == reads
    if not reads:
        [fail] = of(effects, e.Fail)
        assert fail.reason is Reason.ANSWER_NOT_FOUND


def test_what_was_lost_on_the_way_to_who_came_for_it_is_asked_for_again() -> None:
    bench = Bench()
    bench.link(B)
    assert sent(bench.handle(e.Claimed(NEW, ID, B, 0)), m.Claim, B)
    assert sent(bench.wait(2.6), m.Claim, B) == [m.Claim(ID)]
    held = replace(ASKED, accepted=Accepted((0,), "rest ", 1, MODEL.digest))
    assert "rest" in texts(bench.say(B, m.Legacy(held, ENDED)))


def test_who_is_far_holds_nothing_while_somebody_is_near() -> None:
    bench = Guarded(A, B, C)
    for peer in (A, C):
        bench.machine.membership.links[peer].measured(1.0)
    holders = set()
    for number in range(20):
        asked = replace(ASKED, id=QueryId(f"{number + 99:032x}"))
        holders.add(bench.holder(bench.handle(e.Asked(asked, guarded=True))))
    assert holders == {B}


def test_a_holder_that_is_ever_later_is_replaced() -> None:
    """What went to it over a slow link held up the whole answer."""
    bench = Guarded(A, B)
    holder = bench.holder(bench.begun)
    bench.say(holder, m.Kept(ID, 0))
    replaced, read = None, 0
    for index in range(40):
        effects = bench.handle(wrote(index)) + bench.wait(0.05)
        if index % 4 == 3:  # it takes four times as long as they are written
            effects += bench.say(holder, m.Kept(ID, index // 4 + 1))
        read += sum(isinstance(item, Chunk) for item in delivered(effects))
        keeps = [s.peer for s in of(effects, e.Send) if isinstance(s.message, m.Keep)]
        if keeps and keeps[-1] != holder:
            replaced = index
            break
    assert replaced is not None
    assert replaced * 0.05 <= 2.0
    assert read < replaced


def test_an_answer_too_long_to_travel_goes_on_unheld_and_nobody_is_blamed() -> None:
    """It was sent to one after the other, none could take it, and each was blamed."""
    bench = Guarded(A, B, config=Config(limits=Limits(accepted_bytes_max=5)))
    holder = bench.holder(bench.begun)
    bench.say(holder, m.Kept(ID, 0))
    bench.handle(wrote(0))
    bench.handle(wrote(1))
    effects = bench.handle(wrote(2))
    assert texts(effects) == "0 1 2 "
    assert e.Guarded(NOBODY) in delivered(effects)
    assert sent(effects, m.Settle, holder) == [m.Settle(ID, None)]
    assert texts(bench.handle(wrote(3))) == "3 "
    assert not bench.machine.backups._silent


def test_who_was_away_himself_blames_no_holder() -> None:
    bench = Guarded(A, B)
    holder = bench.holder(bench.begun)
    bench.now += 5.0  # stopped, and what the holder said waits
    effects = bench.say(holder, m.Kept(ID, 0))
    assert e.Guarded(holder) in delivered(effects)
    assert not sent(effects, m.Keep)


def test_who_was_away_himself_gets_what_he_came_for() -> None:
    bench, _ = claimant()
    bench.now += 9.0
    assert texts(bench.say(B, m.Legacy(HELD))) == "1 "


def test_what_is_claimed_is_counted_on() -> None:
    """The end of one that was over at once was said to be of no pieces."""
    bench, _ = claimant()
    bench.link(C, capability=UNABLE)
    effects = bench.say(B, m.Legacy(HELD))
    bench.say(next(s.peer for s in of(effects, e.Send) if isinstance(s.message, m.Keep)), m.Kept(NEW, 2))
    effects = bench.handle(e.Finished(NEW, 1, Usage(1, 2), "stop"))
    assert [settle.chunks for settle in sent(effects, m.Settle) if settle.ended is not None] == [2]


def test_who_said_nothing_is_not_chosen_again_for_a_while() -> None:
    bench = Guarded(A, B)
    silent = bench.holder(bench.begun)
    bench.wait(0.26)
    chosen = set()
    for number in range(2, 12):
        asked = query(number, origin=ME)
        effects = bench.handle(e.Asked(asked, guarded=True))
        chosen.add(bench.holder(effects))
        bench.say(bench.holder(effects), m.Kept(asked.id, 0))
    assert chosen == {A, B} - {silent}


def test_who_held_it_and_says_nothing_more_is_told_of_as_no_holder() -> None:
    bench = Guarded(B)
    bench.say(B, m.Kept(ID, 0))
    bench.handle(wrote(0))
    assert delivered(bench.wait(0.21)) == []
    effects = bench.wait(0.21)
    assert delivered(effects) == [e.Guarded(NOBODY), chunk(0)]
    assert texts(bench.handle(wrote(1))) == "1 "


def test_who_was_told_of_a_holder_is_told_that_there_is_none_however_many_were_tried_since() -> None:
    """Found by one world of ten thousand: he went to the first one for the rest, which held nothing."""
    bench = Guarded(A, B)
    holder = bench.holder(bench.begun)
    bench.say(holder, m.Kept(ID, 0))
    effects = bench.handle(e.Disconnected(holder))
    assert bench.holder(effects) != holder
    assert e.Guarded(NOBODY) in delivered(bench.wait(2.0))


def test_the_asker_has_all_there_is_when_his_time_is_over() -> None:
    bench = Guarded(B, C, asked=replace(ASKED, budget_s=0.5))
    bench.handle(wrote(0))
    effects = bench.wait(0.501)
    assert texts(effects) == "0 "
    [fail] = of(effects, e.Fail)
    assert fail.reason is Reason.DEADLINE


def test_a_query_that_fails_is_not_held_any_longer_unless_a_peer_was_lost() -> None:
    bench = Guarded(B)
    bench.say(B, m.Kept(ID, 0))
    bench.handle(wrote(0))
    effects = bench.handle(e.Failed(ID, 0, Reason.BAD_REQUEST, "no"))
    assert sent(effects, m.Settle, B) == [m.Settle(ID, None)]
    assert texts(effects) == "0 "
    assert len(of(effects, e.Fail)) == 1


def test_who_no_longer_waits_lets_the_holder_forget() -> None:
    bench = Guarded(B)
    bench.say(B, m.Kept(ID, 0))
    effects = bench.handle(e.Cancelled(ID))
    assert sent(effects, m.Settle, B) == [m.Settle(ID, None)]
    assert delivered(bench.say(B, m.Kept(ID, 1))) == []


def test_who_came_for_it_elsewhere_gets_it_there_and_here_it_ends() -> None:
    bench = Guarded(B)
    bench.say(B, m.Kept(ID, 0))
    effects = bench.say(B, m.Settle(ID, None))
    assert [abort.query_id for abort in of(effects, e.Abort)] == [ID]
    [fail] = of(effects, e.Fail)
    assert fail.reason is Reason.CANCELLED
    assert not len(bench.machine.relay.flights)


def test_who_comes_for_it_at_the_very_peer_that_lives_gets_it_there() -> None:
    bench = Guarded(B)
    bench.say(B, m.Kept(ID, 0))
    bench.handle(wrote(0))
    bench.say(B, m.Kept(ID, 1))
    assert sent(bench.handle(e.Claimed(NEW, ID, B, 0)), m.Claim, B)
    assert [fail.query_id for fail in of(bench.say(B, m.Settle(ID, None)), e.Fail)] == [ID]
    held = replace(ASKED, accepted=Accepted((0,), "0 ", 1, MODEL.digest))
    assert texts(bench.say(B, m.Legacy(held))) == "0 "


def test_nobody_else_ends_it() -> None:
    bench = Guarded(B)
    bench.link(C, capability=UNABLE)
    assert not of(bench.say(C, m.Settle(ID, None)), e.Fail)


# -- who holds ----------------------------------------------------------------------------------------


class Holder(Bench):
    """A peer that holds what was asked at `A`, of whose answer there are two pieces."""

    def __init__(self, *, pieces: int = 2, asked: Query = HERS) -> None:
        super().__init__(UNABLE)
        self.link(A, B, capability=UNABLE)
        self.said = self.say(A, m.Keep(asked))
        for index in range(pieces):
            self.said += self.say(A, m.Copy(chunk(index, asked.id), MODEL.digest))


def test_it_says_how_much_it_holds() -> None:
    assert [kept.chunks for kept in sent(Holder().said, m.Kept, A)] == [0, 1, 2]


def test_whoever_comes_gets_it_and_whose_it_was_hears_of_that_once() -> None:
    bench = Holder()
    bench.wait(2.0)
    bench.link(A, B, capability=UNABLE)
    effects = bench.say(B, m.Claim(ID))
    [legacy] = sent(effects, m.Legacy, B)
    assert legacy.query.accepted == Accepted((0, 1), "0 1 ", 2, MODEL.digest)
    assert legacy.query.budget_s == pytest.approx(HERS.budget_s - 2.0)
    assert sent(effects, m.Settle, A) == [m.Settle(ID, None)]
    effects = bench.say(B, m.Claim(ID))
    assert not sent(effects, m.Settle)
    assert sent(effects, m.Legacy, B) == [legacy]


def test_after_somebody_came_for_it_nothing_more_of_it_is_held() -> None:
    """Whose it was may not have heard of that yet, and two would write it."""
    bench = Holder()
    [legacy] = sent(bench.say(B, m.Claim(ID)), m.Legacy, B)
    assert not sent(bench.say(A, m.Copy(chunk(2), MODEL.digest)), m.Kept)
    assert not sent(bench.say(A, m.Settle(ID, ENDED, 2)), m.Kept)
    assert not sent(bench.say(A, m.Settle(ID, None)), m.Kept)
    assert sent(bench.say(B, m.Claim(ID)), m.Legacy, B) == [legacy]


def test_it_outlives_whose_it_was() -> None:
    bench = Holder()
    bench.handle(e.Disconnected(A))
    assert sent(bench.say(B, m.Claim(ID)), m.Legacy, B)


def test_a_whole_answer_is_held_for_a_minute() -> None:
    bench = Holder()
    assert sent(bench.say(A, m.Settle(ID, ENDED, 2)), m.Kept, A) == [m.Kept(ID, 3)]
    bench.handle(e.Disconnected(A))
    bench.wait(59.0)
    bench.link(B, capability=UNABLE)
    [legacy] = sent(bench.say(B, m.Claim(ID)), m.Legacy, B)
    assert legacy.ended == ENDED
    late = Holder()
    late.say(A, m.Settle(ID, ENDED, 2))
    late.wait(61.0)
    late.link(B, capability=UNABLE)
    assert not sent(late.say(B, m.Claim(ID)), m.Legacy)


def test_an_end_after_a_lost_piece_is_not_held() -> None:
    """It was said to be held, and so the asker got a piece that was not (chaos, seed 6)."""
    bench = Holder()
    assert not sent(bench.say(A, m.Settle(ID, ENDED, 3)), m.Kept)
    [legacy] = sent(bench.say(B, m.Claim(ID)), m.Legacy, B)
    assert legacy.ended is None


def test_what_nobody_waits_for_is_forgotten() -> None:
    bench = Holder()
    bench.say(A, m.Settle(ID, None))
    assert not sent(bench.say(B, m.Claim(ID)), m.Legacy)


def test_a_question_that_comes_late_is_not_held_anew() -> None:
    """Whoever came for it got an empty answer, less than he had seen (chaos, seed 58)."""
    bench = Holder()
    bench.say(A, m.Settle(ID, None))
    assert not sent(bench.say(A, m.Keep(HERS)), m.Kept)
    assert not sent(bench.say(B, m.Claim(ID)), m.Legacy)


def test_a_question_that_comes_late_takes_nothing_of_what_somebody_came_for() -> None:
    bench = Holder()
    [legacy] = sent(bench.say(B, m.Claim(ID)), m.Legacy, B)
    assert not sent(bench.say(A, m.Keep(HERS)), m.Kept)
    assert sent(bench.say(B, m.Claim(ID)), m.Legacy, B) == [legacy]


def test_a_question_that_comes_twice_takes_nothing_of_its_answer() -> None:
    bench = Holder()
    assert sent(bench.say(A, m.Keep(HERS)), m.Kept, A) == [m.Kept(ID, 2)]
    bench.say(A, m.Settle(ID, ENDED, 2))
    assert sent(bench.say(A, m.Keep(HERS)), m.Kept, A) == [m.Kept(ID, 3)]
    [legacy] = sent(bench.say(B, m.Claim(ID)), m.Legacy, B)
    assert (legacy.query.accepted, legacy.ended) == (Accepted((0, 1), "0 1 ", 2, MODEL.digest), ENDED)


def test_a_question_that_comes_after_its_end_is_not_held() -> None:
    bench = Bench(UNABLE)
    bench.link(A)
    bench.say(A, m.Settle(ID, None))
    assert not sent(bench.say(A, m.Keep(HERS)), m.Kept)
    assert sent(bench.say(A, m.Keep(replace(HERS, id=QueryId("07" * 16)))), m.Kept)


def test_a_query_is_held_for_who_asked_it_alone() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B, capability=UNABLE)
    assert not sent(bench.say(B, m.Keep(HERS)), m.Kept)
    bench.say(A, m.Keep(HERS))
    assert not sent(bench.say(B, m.Copy(chunk(0))), m.Kept)
    bench.say(B, m.Settle(ID, None))
    [legacy] = sent(bench.say(B, m.Claim(ID)), m.Legacy)
    assert legacy.query.accepted is None


def test_a_piece_that_does_not_follow_is_not_held() -> None:
    bench = Holder()
    assert not sent(bench.say(A, m.Copy(chunk(3))), m.Kept)
    assert not sent(bench.say(A, m.Copy(chunk(1))), m.Kept)


def test_who_may_not_see_the_zone_gets_nothing() -> None:
    secret = replace(HERS, zone="hr")
    bench = Bench(Capability(zones=(GENERAL, "hr")))
    bench.link(A, capability=Capability(zones=(GENERAL, "hr")))
    bench.link(B, capability=UNABLE)
    bench.say(A, m.Keep(secret))
    assert sent(bench.say(B, m.Claim(ID)), m.Settle, B)
    assert sent(bench.say(A, m.Claim(ID)), m.Legacy, A)


def test_more_tokens_than_were_asked_for_are_not_held() -> None:
    bench = Holder(asked=replace(HERS, options=Options(max_tokens=2)))
    assert not sent(bench.say(A, m.Copy(chunk(2))), m.Kept)


def crowded(*owners: PeerId, each: int) -> Bench:
    """A peer that holds so many for each of those."""
    bench = Bench(UNABLE)
    bench.link(A, B, C, capability=UNABLE)
    for number, owner in enumerate([owner for owner in owners for _ in range(each)]):
        assert sent(bench.say(owner, m.Keep(query(number, origin=owner))), m.Kept)
    return bench


def test_what_somebody_came_for_counts_for_whose_it_was() -> None:
    bench = crowded(A, each=128)
    bench.say(B, m.Claim(query(0, origin=A).id))
    assert sent(bench.say(A, m.Keep(query(200, origin=A))), m.Kept)  # in its place
    assert not sent(bench.say(A, m.Keep(query(201, origin=A))), m.Kept)


def test_one_that_somebody_came_for_makes_room() -> None:
    bench = crowded(A, B, each=128)
    bench.say(A, m.Claim(query(200, origin=B).id))
    assert sent(bench.say(C, m.Keep(query(256, origin=C))), m.Kept)


def test_only_so_many_are_held_and_whole_ones_make_room() -> None:
    bench = crowded(A, B, each=128)
    assert not sent(bench.say(C, m.Keep(query(256, origin=C))), m.Kept)
    bench.say(A, m.Settle(query(7).id, ENDED, 0))
    assert sent(bench.say(C, m.Keep(query(256, origin=C))), m.Kept)
    assert not sent(bench.say(A, m.Claim(query(7).id)), m.Legacy)


def test_nobody_takes_the_places_of_all_others_nor_their_whole_answers() -> None:
    bench = crowded(B, A, each=128)
    bench.say(B, m.Settle(query(7).id, ENDED, 0))
    assert not sent(bench.say(A, m.Keep(query(256, origin=A))), m.Kept)
    bench.say(A, m.Settle(query(200).id, ENDED, 0))
    assert sent(bench.say(A, m.Keep(query(256, origin=A))), m.Kept)
    assert sent(bench.say(B, m.Claim(query(7).id)), m.Legacy)


def test_a_query_that_claims_to_have_for_ever_is_held_no_longer_than_others() -> None:
    bench = Holder(asked=replace(HERS, budget_s=1e6))
    bench.handle(e.Disconnected(A))
    bench.wait(bench.config.relay.budget_max_s + 61.0)
    bench.link(B, capability=UNABLE)
    assert not sent(bench.say(B, m.Claim(ID)), m.Legacy)


def test_a_piece_of_nothing_is_not_held() -> None:
    bench = Holder()
    assert not sent(bench.say(A, m.Copy(Chunk(ID, 0, 2, (), ""))), m.Kept)


def test_a_whole_answer_is_given_to_who_comes_again() -> None:
    """His connection may break again; one that is not whole goes on at one place alone."""
    bench = Holder()
    bench.say(A, m.Settle(ID, ENDED, 2))
    for _ in range(2):
        assert sent(bench.say(B, m.Claim(ID)), m.Legacy, B)


# -- who comes for it ---------------------------------------------------------------------------------


def claimant(seen: int = 2, holder: PeerId = B) -> tuple[Bench, list[e.Effect]]:
    """A peer with a model at which somebody comes for the answer, and what it does at once."""
    bench = Bench()
    bench.link(B, capability=UNABLE)
    return bench, bench.handle(e.Claimed(NEW, ID, holder, seen))


HELD = replace(HERS, accepted=Accepted((0, 1), "0 1 ", 2, MODEL.digest), budget_s=30.0)


def test_the_asker_gets_what_he_has_not_seen_and_what_follows() -> None:
    bench, effects = claimant()
    assert sent(effects, m.Claim, B) == [m.Claim(ID)]
    effects = bench.say(B, m.Legacy(HELD))
    assert texts(effects) == "1 "
    [generate] = of(effects, e.Generate)
    assert generate.query.id == NEW
    assert generate.query.origin == ME
    assert generate.query.accepted == HELD.accepted
    [keep] = sent(effects, m.Keep, B)
    assert keep.query.accepted == HELD.accepted
    bench.say(B, m.Kept(NEW, 2))
    bench.handle(e.Generated(NEW, 1, (2,), "2 "))
    assert texts(bench.say(B, m.Kept(NEW, 3))) == "2 "


def test_what_was_held_is_gone_on_with_again_when_its_new_writer_is_lost() -> None:
    bench = Bench(UNABLE)
    bench.link(B, capability=UNABLE)
    bench.link(C)
    bench.handle(e.Claimed(NEW, ID, B, 4))
    effects = bench.say(B, m.Legacy(HELD))
    assert sent(effects, m.Forward, C)[0].query.accepted == HELD.accepted
    bench.say(B, m.Kept(NEW, 2))
    bench.link(D)
    effects = bench.handle(e.Disconnected(C))
    assert sent(effects, m.Forward, D)[0].query.accepted == HELD.accepted


def test_of_a_whole_answer_the_rest_and_the_end() -> None:
    bench, _ = claimant()
    effects = bench.say(B, m.Legacy(HELD, ENDED))
    assert texts(effects) == "1 "
    assert delivered(effects)[-1] == ENDED
    assert not of(effects, e.Generate)


def test_a_query_of_which_nothing_came_is_asked_again() -> None:
    bench, _ = claimant(seen=0)
    [generate] = of(bench.say(B, m.Legacy(HERS)), e.Generate)
    assert (generate.query.accepted, generate.query.attempt) == (None, 0)


def test_who_wants_nobody_to_go_on_gets_what_there_is_and_an_error() -> None:
    bench, _ = claimant()
    effects = bench.say(B, m.Legacy(replace(HELD, resume=Resume.NEVER)))
    assert texts(effects) == "1 "
    assert [fail.reason for fail in of(effects, e.Fail)] == [Reason.PEER_LOST]


def test_who_has_seen_more_than_there_was_is_told() -> None:
    bench, _ = claimant(seen=5)
    [fail] = of(bench.say(B, m.Legacy(HELD)), e.Fail)
    assert fail.reason is Reason.BAD_REQUEST


def test_where_nobody_holds_it_that_is_said() -> None:
    bench, _ = claimant()
    [fail] = of(bench.say(B, m.Settle(ID, None)), e.Fail)
    assert fail.reason is Reason.ANSWER_NOT_FOUND
    assert [f.reason for f in of(claimant(holder=ME)[1], e.Fail)] == [Reason.ANSWER_NOT_FOUND]


@pytest.mark.parametrize("what", ["silent", "gone"])
def test_a_holder_that_does_not_answer_is_not_waited_for(what: str) -> None:
    bench, _ = claimant()
    effects = bench.wait(5.01) if what == "silent" else bench.handle(e.Disconnected(B))
    assert [fail.query_id for fail in of(effects, e.Fail)] == [NEW]
    assert not of(bench.say(B, m.Legacy(HELD)) if what == "silent" else [], e.Generate)


def test_a_holder_that_is_not_linked_is_dialled() -> None:
    bench, effects = claimant(holder=C)
    assert not sent(effects, m.Claim)
    assert sent(bench.link(C), m.Claim, C) == [m.Claim(ID)]


def test_who_holds_it_here_needs_nobody() -> None:
    bench = Holder()
    bench.handle(e.Disconnected(A))
    bench.link(C)
    effects = bench.handle(e.Claimed(NEW, ID, ME, 0))
    assert texts(effects) == "0 1 "
    assert sent(effects, m.Forward, C)[0].query.id == NEW


def test_who_went_away_before_it_came_gets_nothing() -> None:
    bench, _ = claimant()
    bench.handle(e.Cancelled(NEW))
    assert bench.say(B, m.Legacy(HELD)) == []
