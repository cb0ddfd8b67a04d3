"""What the benchmarks work out, and what they ask: the parts that need no model and no clock."""

from __future__ import annotations

import itertools
import json

import pytest

from benchmarks import engine, prefix, sim, trust
from benchmarks.figures import Row, gaps, median_ratio, over, percentile, table
from benchmarks.prompts import Prompts
from benchmarks.sse import BadResponse, EventStream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENTS = [{"content": "Zwei"}, {"content": " Öfen\r\n"}, {"stop": True}]
BODY = b"".join(b"data: " + json.dumps(e, ensure_ascii=False).encode() + b"\n\n" for e in EVENTS)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.99, 1), (100, 0.99, 99), (44, 0.99, 44), (101, 0.5, 51), (4, 0.5, 2)],
)
def test_a_percentile_is_one_of_the_values(count: int, share: float, expected: int):
    assert percentile(range(count, 0, -1), share) == expected


def test_of_nothing_there_is_no_percentile_and_no_ratio():
    assert percentile([], 0.99) is None
    assert over(1.0, 0.0) is over(None, 1.0) is over(1.0, None) is None
    assert median_ratio([(None, 1.0), (1.0, 0.0)]) is None


def test_a_ratio_is_paired_by_round_and_not_one_of_medians():
    assert median_ratio([(10, 5), (1, 1), (90, 30)]) == 2.0
    assert median_ratio([(10, 5), (None, 1)]) == 2.0


def test_gaps_are_those_that_touch_the_time_asked_for():
    times = [0.0, 1.0, 3.0, 6.0, 10.0]
    assert gaps(times) == [1.0, 2.0, 3.0, 4.0]
    assert gaps(times, since=1.0) == [2.0, 3.0, 4.0]
    assert gaps(times, since=2.0, until=6.0) == [2.0, 3.0]
    assert gaps([1.0]) == []


def test_a_table_shows_what_is_missing():
    assert table([{"arm": "ours", "n": 1}, {"arm": "x", "n": None}]) == " arm  n\nours  1\n   x  -"


def row(round_: int, arm: str, n: int, speed: float) -> Row:
    return {
        "round": round_,
        "arm": arm,
        "n": n,
        "tokens_per_s": speed,
        "tokens_per_cpu_s": 2 * speed,
        "ttft_mean_s": 1 / speed,
        "ttft_cpu_mean_s": 1 / speed,
    }


def test_an_arm_that_is_left_out_has_null_ratios():
    rows = [row(i, arm, 8, speed) for i in range(3) for arm, speed in (("ours", 30.0), ("llama", 20.0))]
    found = engine.summary(rows, [8])
    assert found["vs_llama_8"] == found["vs_llama_8_cpu"] == 1.5
    assert [found[f"vs_server_{n}{kind}"] for n in (1, 2, 4, 8, 16) for kind in ("", "_cpu")] == [None] * 10
    assert found["ttft_vs_server_4"] is None
    assert found["ours_8_tokens_per_cpu_s"] == 60.0


def test_the_time_to_the_first_token_is_ours_over_the_servers():
    rows = [row(0, "ours", 4, 40.0), row(0, "server", 4, 20.0)]
    found = engine.summary(rows, [4])
    assert found["vs_server_4"] == 2.0
    assert found["ttft_vs_server_4"] == found["ttft_vs_server_4_cpu"] == 0.5
    assert found["vs_server_8"] is None


def test_a_speedup_is_cold_over_warm_within_a_sample():
    rows: list[Row] = [
        {"sample": i, "n": n, "kind": kind, "ttft_s": 2.0 if kind == "cold" else 0.5, "ttft_cpu_s": 1.0}
        for i in range(3)
        for n, kinds in prefix.KINDS.items()
        for kind in kinds
    ]
    found = prefix.summary(rows)
    assert found["speedup_1"] == found["speedup_4"] == found["speedup_4_together"] == 4.0
    assert found["speedup_1_cpu"] == 1.0


def test_no_two_prompts_begin_alike():
    prompts = Prompts()
    asked = [*prompts.stories(100), *(prompts.long(3) for _ in range(10))]
    rules = [prompts.rules(2) for _ in range(10)]
    opening = [*(conversation[0].content for conversation in asked), *rules]
    assert all(conversation[0].role == "system" for conversation in asked)
    assert len({text.split()[0] for text in opening}) == len(opening)
    assert Prompts().story() == Prompts().story()


def test_a_long_prompt_repeats_no_word():
    words = Prompts().long(400)[1].content.partition("? ")[2].split()
    assert len(set(words)) == len(words) == 400


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])


@pytest.mark.parametrize("size", [1, 3, 17, 4_096])
@pytest.mark.parametrize("step", [1, 2, 13, 4_096])
def test_events_are_whole_however_the_wire_cuts_them(size: int, step: int):
    raw = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY + b"data: [DONE]\n\n", size)
    stream = EventStream()
    found = [stream.feed(raw[at : at + step]) for at in range(0, len(raw), step)]
    assert list(itertools.chain(*found)) == EVENTS


def test_events_come_without_chunks_too():
    assert EventStream().feed(HEAD + b"\r\n" + BODY) == EVENTS


def test_a_refusal_is_told_in_the_servers_words():
    with pytest.raises(BadResponse, match=r"503 .*: loading"):
        EventStream().feed(b"HTTP/1.1 503 Service Unavailable\r\n\r\nloading")


def test_a_number_on_the_command_line_has_bounds(capsys: pytest.CaptureFixture[str]):
    assert engine._parse(["--concurrency", "1,4"]).concurrency == [1, 4]
    for wrong in (["--tokens", "0"], ["--concurrency", "1,"], ["--rounds", "x"], ["--concurrency", "4,4"]):
        with pytest.raises(SystemExit):
            engine._parse(wrong)
    assert "outside 1..1024" in capsys.readouterr().err


def test_what_is_measured_in_this_process_can_be_measured():
    """Two of them could not start any more, and nobody had noticed."""
    assert all(value > 0 for value in trust.sealing(2).values())
    assert sim.events_per_s(3, 2) > 0
