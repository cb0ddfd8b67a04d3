"""Whole characters, whole tokens, never a part of a stop text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.engine.answer import HELD_TOKENS_MAX, AnswerText


def run(
    pieces: list[bytes], stop: tuple[str, ...] = ()
) -> tuple[AnswerText, list[tuple[tuple[int, ...], str]]]:
    answer = AnswerText(stop)
    released = []
    for token, piece in enumerate(pieces):
        released.append(answer.push(token, piece))
        if answer.stopped:
            return answer, released
    released.append(answer.flush())
    return answer, released


def test_a_character_over_three_tokens_is_held_back_with_its_tokens():
    _, released = run([b"\xe6", b"\x97", b"\xa5!"])
    assert released == [((), ""), ((), ""), ((0, 1, 2), "日!"), ((), "")]


def test_a_stop_text_over_tokens_is_never_seen_in_part():
    answer, released = run([b"one", b" EN", b"D", b" two"], stop=(" END",))
    assert released == [((0,), "one"), ((), ""), ((1, 2), "")]
    assert answer.stopped


def test_a_false_alarm_is_released_whole():
    _, released = run([b"one", b" EN", b"V", b"Y"], stop=(" END",))
    assert released == [((0,), "one"), ((), ""), ((1, 2), " ENV"), ((3,), "Y"), ((), "")]


def test_the_earliest_of_two_stop_texts_counts():
    answer, released = run([b"abcd"], stop=("cd", "bc"))
    assert released == [((0,), "a")]
    assert answer.stopped


def test_an_unfinished_character_ends_as_a_replacement():
    _, released = run([b"a", b"\xe6"])
    assert released[-1] == ((1,), "\ufffd")


@given(
    st.lists(st.binary(max_size=4), max_size=12),
    st.lists(st.text("abé日", min_size=1, max_size=3), max_size=2),
)
def test_what_is_released_is_the_text_up_to_the_first_stop(pieces: list[bytes], stop: list[str]):
    answer, released = run(pieces, tuple(stop))
    text = "".join(t for _, t in released)
    whole = b"".join(pieces).decode("utf-8", "replace")
    cuts = [at for at in (whole.find(s) for s in stop) if at >= 0]
    assert text == (whole[: min(cuts)] if cuts else whole)
    assert answer.stopped == bool(cuts)
    tokens = [t for ts, _ in released for t in ts]
    assert tokens == list(range(len(tokens)))


@given(st.text("ab日", max_size=20), st.sampled_from(["a", "ab", "aba", "日a"]))
def test_each_release_spells_exactly_its_tokens(text: str, stop: str):
    pieces = [bytes([b]) for b in text.encode()]
    answer, released = run(pieces, (stop,))
    for tokens, said in released[:-1] if answer.stopped else released:
        assert b"".join(pieces[t] for t in tokens).decode() == said


def test_tokens_that_spell_nothing_do_not_pile_up_behind_what_may_be_a_stop_text():
    """A thousand control tokens, forced by a bias, made a chunk that no peer reads."""
    text = AnswerText(("end here",))
    released = [text.push(7, b"end ")]
    released += [text.push(8, b"") for _ in range(3 * HELD_TOKENS_MAX)]
    released.append(text.flush())
    assert sum(len(tokens) for tokens, _ in released) == 3 * HELD_TOKENS_MAX + 1
    assert max(len(tokens) for tokens, _ in released) <= HELD_TOKENS_MAX + 1
    assert "".join(spelled for _, spelled in released) == "end "
