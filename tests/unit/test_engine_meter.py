"""Counts and moving averages of real work."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from p2pmesh.engine import base, frames
from p2pmesh.engine.calibrate import Speed
from p2pmesh.engine.meter import Meter
from p2pmesh.errors import EngineError


def test_speeds_begin_with_the_calibration_and_follow_what_really_happens():
    meter = Meter(Speed(200.0, 50.0))
    fresh = meter.metrics(0, 0)
    assert (fresh.prefill_tps, fresh.decode_tps, fresh.decode_cpu_tps) == (200.0, 50.0, 50.0)
    for _ in range(400):
        meter.stepped(100, 0, 2.0, 1.0)
        meter.stepped(0, 8, 0.4, 0.1)
    told = meter.metrics(3, 8)
    assert told.prefill_tps == pytest.approx(50.0, rel=0.01)
    assert told.prefill_cpu_tps == pytest.approx(100.0, rel=0.01)
    assert told.decode_tps == pytest.approx(20.0, rel=0.05)
    assert told.decode_cpu_tps == pytest.approx(80.0, rel=0.05)
    assert told.gap_s == pytest.approx(0.4)
    assert (told.waiting, told.running, told.prompt_tokens, told.answer_tokens) == (3, 8, 40_000, 3_200)


def test_a_step_that_did_both_is_counted_and_teaches_only_what_reading_beside_others_costs():
    meter = Meter(Speed(200.0, 50.0))
    meter.stepped(90, 4, 60.0, 60.0)
    told = meter.metrics(0, 4)
    assert (told.prefill_tps, told.decode_tps) == (200.0, 50.0)
    assert (told.prompt_tokens, told.answer_tokens, told.gap_s) == (90, 4, 60.0)


def test_pieces_shrink_to_what_reading_beside_others_really_takes():
    meter = Meter(Speed(200.0, 5.0))
    assert meter.tokens_beside(0.5) == 20, "half of 0.2 s, at 200 a second"
    for _ in range(40):
        meter.stepped(10, 4, 0.4, 0.4)  # 10 tokens took as long as the writing
    assert meter.tokens_beside(0.5) == 5
    meter.stepped(10, 4, 0.1, 0.1)  # sooner than without: the clock is at fault
    assert meter.tokens_beside(0.5) == 5


def test_the_first_token_is_the_mean_of_the_last_ones():
    meter = Meter(Speed(1.0, 1.0))
    meter.began(3.0)
    assert meter.metrics(0, 0).ttft_s == 3.0
    meter.began(1.0)
    assert meter.metrics(0, 0).ttft_s == 2.0
    for _ in range(200):
        meter.began(7.0)
    assert meter.metrics(0, 0).ttft_s == pytest.approx(7.0, abs=0.01)


def test_where_tokens_come_so_quickly_that_nobody_sees_it_pieces_take_longer_than_their_share():
    assert Meter(Speed(200.0, 100.0)).tokens_beside(0.5) == 10, "0.05 s are left of 0.06, not 0.005"
    assert Meter(Speed(200.0, 25.0)).tokens_beside(0.5) == 4, "0.02 s either way"
    assert Meter(Speed(200.0, 10.0)).tokens_beside(0.5) == 10, "half of 0.1 s"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_a_child_cannot_tell_figures_that_are_none(wrong: float):
    told = Meter(Speed(1.0, 1.0)).metrics(1, 2)
    assert frames.EventReader().feed(frames.encode(told)) == [told]
    for name in ("decode_tps", "gap_s"):
        with pytest.raises(EngineError):
            frames.EventReader().feed(frames.encode(replace(told, **{name: wrong})))
    assert isinstance(told, base.Metrics)


def test_tokens_read_one_by_one_do_not_teach_how_fast_prompts_are_read():
    meter = Meter(Speed(300.0, 50.0))
    for _ in range(600):
        meter.stepped(1, 0, 0.02, 0.02)  # as an answer that goes on is read
    assert meter.metrics(0, 0).prefill_tps == 300.0
    assert meter.metrics(0, 0).prompt_tokens == 600
