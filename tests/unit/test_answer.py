"""What the asker holds: pieces in order, then the end, whole or in an error that keeps what came."""

from __future__ import annotations

import math

import pytest
import trio

from p2pmesh.errors import AnswerInterrupted, BudgetSpent, NoRoute, QueryError, Reason, Refused
from p2pmesh.peer.answer import Answer
from p2pmesh.protocol.events import Deliver, Fail, Guarded, Placed
from p2pmesh.query import Chunk, Ended, Hop, QueryId, Usage
from p2pmesh.record import PeerId

Q = QueryId("q")
PATH = (Hop(PeerId("A"), "ada", "to bea"), Hop(PeerId("B"), "bea", "serve"))


def unrated(query_id: QueryId, outcome: float) -> None:
    raise AssertionError("nobody rates it")


def piece(index: int, text: str) -> Deliver:
    return Deliver(Q, Chunk(Q, 0, index, (index,), text))


ENDED = Deliver(Q, Ended(Usage(1, 2), "stop", "m", "d", PATH))


async def test_an_answer_that_is_not_read_is_kept():
    answer = Answer(Q, unrated)
    assert (answer.served_by, math.isnan(answer.ttft_s)) == (None, True)
    for outcome in (Deliver(Q, Placed(PATH, 1.0)), piece(0, "a"), piece(1, "b"), ENDED):
        answer.put(outcome)
    assert [chunk.text async for chunk in answer] == ["a", "b"]
    assert (answer.text, answer.usage, answer.model, answer.served_by) == ("ab", Usage(1, 2), "m", "B")
    assert await answer.whole() is answer


async def test_it_names_who_went_on_with_it():
    answer = Answer(Q, unrated)
    for outcome in (Deliver(Q, Placed(PATH[:1], 1.0)), Deliver(Q, Placed(PATH, 1.0)), piece(0, "a")):
        answer.put(outcome)  # the first to have it handed it over: nobody was lost
    assert answer.resumed == ()
    for outcome in (Deliver(Q, Placed(PATH[:1], 1.0)), Deliver(Q, Chunk(Q, 1, 1, (1,), "b"))):
        answer.put(outcome)
    for outcome in (Deliver(Q, Placed(PATH, 1.0)), Deliver(Q, Chunk(Q, 3, 2, (2,), "c")), ENDED):
        answer.put(outcome)
    assert answer.resumed == (PATH[0], PATH[1])


async def test_it_names_who_went_on_with_it_though_nothing_was_to_be_read_yet():
    answer = Answer(Q, unrated)
    for outcome in (Deliver(Q, Placed(PATH[:1], 1.0)), piece(0, ""), Deliver(Q, Placed(PATH, 1.0))):
        answer.put(outcome)
    answer.put(Deliver(Q, Chunk(Q, 1, 1, (1,), "b")))
    assert answer.resumed == (PATH[1],)


async def test_an_attempt_that_was_lost_before_its_first_piece_is_not_gone_on_with():
    answer = Answer(Q, unrated)
    answer.put(Deliver(Q, Placed(PATH, 1.0)))
    answer.put(Deliver(Q, Chunk(Q, 1, 0, (0,), "a")))
    assert answer.resumed == ()


async def test_a_reader_is_woken_by_each_piece(autojump_clock: trio.testing.MockClock):
    answer, read = Answer(Q, unrated), []

    async def follow() -> None:
        async for chunk in answer:
            read.append((chunk.text, trio.current_time()))

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(follow)
        for outcome in (piece(0, "a"), piece(1, "b"), ENDED):
            await trio.sleep(1)
            answer.put(outcome)
    assert [(text, at - began) for text, at in read] == [("a", 1), ("b", 2)]
    assert (answer.ttft_s, answer.tokens_per_s) == (1, 0.5)


@pytest.mark.parametrize(
    ("reason", "text", "kind"),
    [
        (Reason.NO_ROUTE, "", NoRoute),
        (Reason.MODEL_NOT_FOUND, "", NoRoute),
        (Reason.PEER_LOST, "", NoRoute),
        (Reason.OVERLOADED, "", Refused),
        (Reason.BAD_REQUEST, "", Refused),
        (Reason.TOO_LONG, "", Refused),
        (Reason.DEADLINE, "", BudgetSpent),
        (Reason.DEADLINE, "some", BudgetSpent),
        (Reason.PEER_LOST, "some", AnswerInterrupted),
        (Reason.ENGINE_FAILED, "some", AnswerInterrupted),
    ],
)
async def test_a_failure_says_what_it_is_and_keeps_what_came(
    reason: Reason, text: str, kind: type[QueryError]
):
    answer = Answer(Q, unrated)
    if text:
        answer.put(piece(0, text))
    answer.put(Fail(Q, reason, "", PATH, 2.0))
    if text:
        await answer.begun()
        assert (await answer.__anext__()).text == text, "what came is read before the error"
    else:
        with pytest.raises(kind):
            await answer.begun()
    for _ in range(2):
        with pytest.raises(kind) as caught:
            await answer.whole()
        error = caught.value
        assert type(error) is kind
        assert (error.reason, error.partial, error.query_id) == (reason, text, "q")
        assert (error.path, error.retry_after_s, str(error)) == (("ada", "bea"), 2.0, reason.value)


async def test_an_empty_answer_is_an_answer():
    answer = Answer(Q, unrated)
    answer.put(ENDED)
    await answer.begun()
    assert (await answer.whole()).text == ""
    assert math.isnan(answer.tokens_per_s)


async def test_a_rating_goes_to_its_peer():
    said = []
    Answer(Q, lambda *rating: said.append(rating)).rate(0.5)
    assert said == [(Q, 0.5)]


async def test_a_bookmark_counts_what_was_had_before_from_another_peer():
    """Who came for the rest twice got a part of it twice."""
    answer = Answer(Q, unrated, before=4)
    answer.put(Deliver(Q, Guarded(PeerId("b"))))
    answer.put(piece(0, "two "))
    assert answer.bookmark() == "q.8.b"
    assert answer.bookmark(1) == "q.5.b"
