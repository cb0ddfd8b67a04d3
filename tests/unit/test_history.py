"""The judge of chaos runs must fail on each thing it is there to forbid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.history import History, Judge, Row, Violation, counts, pauses, read, streams_of, tokens_of
from p2pmesh.engine.echo import token_id

PROMPT = "w0 w1 w2 w3"
WHOLE = ["echo:", " w0", " w1", " w2", " w3"]
BUDGET_S = 10.0


def row(at: float, what: str, **told: Any) -> Row:
    return {"at": at, "what": what, "query": "q1", **told}


def asked(at: float = 0.0, query: str = "q1", asker: str = "ada") -> Row:
    return row(at, "asked", query=query, asker=asker, prompt=PROMPT, budget_s=BUDGET_S)


def pieces(*texts: str, at: float = 1.0) -> list[Row]:
    return [row(at, "piece", text=text) for text in texts]


def killed(at: float, peer: str) -> Row:
    return {"at": at, "what": "killed", "peer": peer, "kind": "executor"}


END = row(2.0, "ended", path=["ada", "bea"])
FAILED = row(2.0, "failed", code="peer_lost")
CUT = row(2.0, "cut", detail="")


def judged(*rows: Row) -> list[Violation]:
    return Judge().read(rows)


def rules(*rows: Row) -> list[tuple[str, int]]:
    return [(violation.rule, violation.count) for violation in judged(*rows)]


def test_a_whole_answer_passes_however_its_words_are_put_together():
    assert judged(asked(), row(0.5, "placed", path=["ada"]), *pieces(*WHOLE), END) == []
    assert judged(asked(), *pieces("echo: w0 w1", " w2 w3"), END) == []


def test_an_error_with_a_code_is_an_end():
    assert judged(asked(), *pieces(*WHOLE[:2]), FAILED) == []


def test_a_query_without_an_end_is_lost():
    assert rules(asked(), *pieces(*WHOLE)) == [("lost", 1)]


def test_a_stream_that_is_cut_off_is_lost():
    assert rules(asked(), *pieces(*WHOLE), CUT) == [("lost", 1)]


def test_an_error_without_a_code_is_lost():
    assert rules(asked(), row(2.0, "failed", code="")) == [("lost", 1)]


@pytest.mark.parametrize("end", [END, FAILED])
def test_an_end_after_the_budget_is_late(end: Row):
    assert judged(asked(), *pieces(*WHOLE), {**end, "at": BUDGET_S + 0.9}) == []
    assert rules(asked(), *pieces(*WHOLE), {**end, "at": BUDGET_S + 1.1}) == [("late", 1)]


def test_whose_asker_died_may_end_in_nothing_and_who_is_asked_elsewhere_may_not():
    assert judged(asked(), killed(1.0, "ada")) == []
    assert judged(asked(), killed(1.0, "ada"), CUT) == []
    assert judged(killed(0.0, "ada"), asked(0.5), CUT) == []
    assert rules(asked(), killed(1.0, "bea"), CUT) == [("lost", 1)]
    revived: Row = {"at": 0.4, "what": "ready", "peer": "ada"}
    assert rules(killed(0.0, "ada"), revived, asked(0.5), CUT) == [("lost", 1)]


def test_who_leaves_waits_for_nothing_and_gets_nothing():
    assert judged(asked(), row(1.0, "left")) == []
    assert rules(asked(), row(1.0, "left"), *pieces("echo:")) == [("after its end", 1)]


def test_a_missing_token_is_a_gap_and_what_follows_is_not_one_more():
    assert rules(asked(), *pieces("echo:", " w0", " w2", " w3"), END) == [("gap", 1)]
    assert rules(asked(), *pieces("echo:", " w3"), END) == [("gap", 3)]


def test_an_end_before_the_last_token_is_a_gap():
    assert rules(asked(), *pieces(*WHOLE[:3]), END) == [("gap", 2)]


def test_an_end_that_counts_other_tokens_than_came_is_a_gap():
    assert judged(asked(), *pieces(*WHOLE), {**END, "tokens": 5}) == []
    assert rules(asked(), *pieces(*WHOLE), {**END, "tokens": 6}) == [("gap", 1)]


def test_a_token_that_comes_again_is_a_duplicate():
    assert rules(asked(), *pieces("echo:", " w0", " w0 w1", " w2", " w3"), END) == [("duplicate", 1)]
    assert rules(asked(), *pieces(*WHOLE, " w1", " w2"), END) == [("duplicate", 1), ("duplicate", 1)]


@pytest.mark.parametrize("word", [" w9", " q2.1", "w0", " echo:", " W0", " "])
def test_a_word_that_is_not_the_answers_is_wrong_text(word: str):
    assert rules(asked(), *pieces("echo:", word, *WHOLE[1:]), END) == [("wrong text", 1)]


def test_tokens_that_do_not_spell_their_text_are_wrong():
    right = {**pieces(WHOLE[0])[0], "tokens": [token_id("echo:")]}
    assert judged(asked(), right, *pieces(*WHOLE[1:]), END) == []
    for tokens in ([token_id(" w0")], [], [token_id("echo:")] * 2):
        assert rules(asked(), {**right, "tokens": tokens}, *pieces(*WHOLE[1:]), END) == [("wrong text", 1)]


@pytest.mark.parametrize("end", [END, FAILED])
def test_nothing_may_follow_an_end_or_an_error(end: Row):
    for late in (pieces("echo:")[0], END, FAILED, row(3.0, "placed", path=[])):
        assert rules(asked(), *pieces(*WHOLE), end, late) == [("after its end", 1)]


def test_nothing_is_said_of_what_nobody_asked():
    assert rules(*pieces("echo:")) == [("unasked", 1)]
    assert ("unasked", 1) in rules(asked(), asked())


def numbered(*places: tuple[int, int]) -> list[Row]:
    texts = zip(WHOLE, places, strict=True)
    return [row(1.0, "piece", text=text, attempt=a, index=i) for text, (a, i) in texts]


def test_attempts_rise_and_pieces_are_numbered_through():
    assert judged(asked(), *numbered((0, 0), (0, 1), (1, 2), (3, 3), (3, 4)), END) == []


def test_an_attempt_that_falls_is_one_that_was_fenced_off():
    assert rules(asked(), *numbered((0, 0), (1, 1), (0, 2), (1, 3), (1, 4)), END) == [("attempt", 1)]


def test_a_number_left_out_is_a_gap_and_one_that_comes_again_a_duplicate():
    assert rules(asked(), *numbered((0, 0), (0, 1), (0, 3), (0, 3), (0, 4)), END) == [("gap", 1)]
    assert rules(asked(), *numbered((0, 0), (0, 1), (0, 1), (0, 3), (0, 4)), END) == [("duplicate", 1)]


def test_two_queries_do_not_mix():
    other = {**pieces("echo:")[0], "query": "q2"}
    end = {**END, "query": "q2"}
    assert [v.query for v in judged(asked(), asked(query="q2"), *pieces(*WHOLE), other, END, end)] == ["q2"]


def test_tokens_are_words_with_the_blank_before_them():
    assert tokens_of("echo: a b") == ["echo:", " a", " b"]
    assert tokens_of(" a") == [" a"]
    assert tokens_of("") == []


# -- figures ------------------------------------------------------------------------------------------


def times(*at: float) -> list[Row]:
    return [row(t, "piece", text=text) for t, text in zip(at, WHOLE, strict=False)]


def placed(*path: str) -> Row:
    return row(0.5, "placed", path=list(path))


def test_the_pause_after_a_kill_is_the_longest_from_the_last_piece_before_it():
    story = [asked(), placed("ada", "rel", "bea"), *times(1.0, 1.1), killed(1.15, "bea")]
    story += [row(1.2, "piece", text=" w1"), row(2.0, "piece", text=" w2"), row(2.1, "piece", text=" w3")]
    found = streams_of(story)
    assert pauses(found.values()) == [pytest.approx(0.8)], "one under way hides nothing"


def test_a_stream_is_hit_by_who_is_on_its_way_and_after_its_first_piece_alone():
    story = [asked(), placed("ada", "rel", "bea"), killed(0.6, "bea")]
    assert not streams_of(story)["q1"].kills, "nothing had come yet"
    story = [asked(), placed("ada", "rel", "bea"), *times(1.0), killed(1.1, "cyn"), killed(1.2, "rel")]
    assert streams_of(story)["q1"].kills == [1.2]
    assert pauses(streams_of(story).values()) == [], "it never went on"
    story += [killed(1.3, "bea")]
    assert streams_of(story)["q1"].kills == [1.2], "it is elsewhere by now, nobody told where"


def test_figures_count_what_was_found_and_leave_out_whose_asker_died():
    story = [asked(), placed("ada", "bea"), *times(1.0), killed(1.1, "bea"), {**END, "resumed": ["cyn"]}]
    story += [asked(3.0, "q2", "dot"), {**FAILED, "query": "q2"}, asked(3.0, "q3", "eve"), killed(4.0, "eve")]
    told = counts(story, judged(*story))
    assert (told["streams"], told["whole"], told["failed"]) == (2, 1, {"peer_lost": 1})
    assert (told["hit"], told["hit_and_whole"], told["resumed"]) == (1, 1, 1)
    assert (told["gaps"], told["lost"], told["duplicated_tokens"], told["wrong_text"]) == (4, 0, 0, 0)


def test_a_history_is_appended_to_a_file_and_read_again(tmp_path: Path):
    file = tmp_path / "history"
    history = History(lambda: 1.23456, file)
    history.add("asked", query="q1")
    history.close()
    history = History(lambda: 2.0, file)
    history.add("left", query="q1")
    history.close()
    with file.open("a") as cut:
        cut.write('{"at": 3.0, "wh')
    assert read(file) == [
        {"at": 1.2346, "what": "asked", "query": "q1"},
        {"at": 2.0, "what": "left", "query": "q1"},
    ]
