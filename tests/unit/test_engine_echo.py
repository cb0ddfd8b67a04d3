"""The echo keeps its speed, says what it was asked, and takes the same refusals as a real model."""

from __future__ import annotations

import numpy as np
import pytest

from p2pmesh.engine.base import Embed, Embedded, Event, Failed, Finished, Generate, Generated, Load
from p2pmesh.engine.echo import Echo, token_id
from p2pmesh.errors import Reason
from p2pmesh.query import Message, Options, Usage


class World:
    """An echo and the clock it lives by."""

    def __init__(self, **load: object) -> None:
        self.now = 0.0
        fields = {"kind": "echo", "tokens_per_s": 10.0, "slots": 2, **load}
        self.echo = Echo(Load(**fields), "e", lambda: self.now)  # type: ignore[arg-type]

    def ask(self, job: str, text: str, **options: object) -> list[Event]:
        return self.echo.submit(Generate(job, (Message("user", text),), Options(**options)))  # type: ignore[arg-type]

    def run(self) -> list[tuple[float, Event]]:
        seen = []
        while (wait := self.echo.wait_s()) is not None:
            self.now += wait
            seen += [(round(self.now, 6), e) for e in self.echo.step()]
        return seen


def text(seen: list[tuple[float, Event]], job: str) -> str:
    return "".join(e.text for _, e in seen if isinstance(e, Generated) and e.job == job)


def test_one_word_a_token_at_the_set_speed():
    world = World()
    assert world.ask("a", "one two") == []
    seen = world.run()
    # Two prompt words at 80 a second, then a word each 0.1 s.
    assert [at for at, e in seen if isinstance(e, Generated)] == [0.125, 0.225, 0.325]
    assert text(seen, "a") == "echo: one two"
    assert seen[-1][1] == Finished("a", Usage(2, 3), "stop")


def test_slots_keep_their_speed_and_the_third_waits():
    world = World()
    for job in "abc":
        world.ask(job, "x")
    ends = {e.job: at for at, e in world.run() if isinstance(e, Finished)}
    assert ends["a"] == ends["b"]
    assert ends["c"] == pytest.approx(2 * ends["a"])


def test_max_tokens_cuts_and_says_length():
    world = World()
    world.ask("a", "one two three", max_tokens=2)
    seen = world.run()
    assert text(seen, "a") == "echo: one"
    assert seen[-1][1] == Finished("a", Usage(3, 2), "length")


def test_a_stop_text_ends_the_answer():
    world = World()
    world.ask("a", "one two three", stop=(" tw",))
    seen = world.run()
    assert text(seen, "a") == "echo: one"
    assert isinstance(seen[-1][1], Finished)


def test_token_ids_are_stable():
    assert token_id(" one") == 73_084_865


def test_too_long_too_many_and_wrong_are_refused():
    world = World(context_tokens=4, jobs_max=1)
    (failed,) = world.ask("a", "a b c d")
    assert failed == Failed("a", Reason.TOO_LONG, "the prompt is 4 tokens, the context 4", 4)
    (wrong,) = world.ask("a", "a", max_tokens=0)
    assert isinstance(wrong, Failed)
    assert wrong.reason is Reason.BAD_REQUEST
    assert world.ask("a", "a") == []
    (full,) = world.ask("b", "a")
    assert full == Failed("b", Reason.OVERLOADED, "1 jobs are running or waiting")


def test_abort_frees_the_slot():
    world = World(slots=1)
    world.ask("a", "x " * 500)
    world.ask("b", "y")
    world.echo.step()
    assert world.echo.abort("a") == [Failed("a", Reason.CANCELLED)]
    assert world.echo.abort("a") == []
    assert text(world.run(), "b") == "echo: y"


def test_it_embeds_and_can_abort_that_too():
    world = World()
    assert world.echo.submit(Embed("v", ("one", "two"))) == []
    assert world.echo.submit(Embed("w", ("one",))) == []
    assert world.echo.abort("w") == [Failed("w", Reason.CANCELLED)]
    (event,) = world.echo.step()
    assert isinstance(event, Embedded)
    assert event.vectors.shape == (2, world.echo.ready.dimensions)
    assert np.allclose(np.linalg.norm(event.vectors, axis=1), 1.0)


@pytest.mark.parametrize("accepted", [((1, 2), ""), ((), "echo: one")])
def test_it_goes_on_after_what_was_said(accepted: tuple[tuple[int, ...], str]):
    world = World()
    world.echo.submit(Generate("a", (Message("user", "one two three"),), Options(), *accepted))
    seen = world.run()
    assert text(seen, "a") == " two three"
    assert seen[-1][1] == Finished("a", Usage(3, 4), "stop")


def test_where_all_was_said_it_only_ends():
    world = World()
    request = Generate("a", (Message("user", "one two"),), Options(max_tokens=2), (1, 2))
    assert world.echo.submit(request) == [Finished("a", Usage(2, 2), "length")]
