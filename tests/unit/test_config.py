"""The knobs: sane by default, and every relation between them raised by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest

from p2pmesh import config as c
from p2pmesh.errors import ConfigError

SECTIONS = [c.Limits, c.Membership, c.Gossip, c.Relay]


def test_the_defaults_hold_together() -> None:
    assert c.Config().limits.frame_bytes_max > c.Config().limits.prompt_bytes_max


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, f.name) for kind in SECTIONS for f in fields(kind)], ids=str
)
def test_no_bound_may_be_zero(kind: type[object], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.__name__.lower()}\.{name}"):
        kind(**{name: 0})


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: c.Limits(prompt_bytes_max=200_000), ["prompt_bytes_max", "frame_bytes_max"]),
        (lambda: c.Membership(probe_timeout_s=0.25), ["probe_timeout_s", "probe_interval_s"]),
        (lambda: c.Membership(redial_min_s=60.0), ["redial_min_s", "redial_max_s"]),
        (lambda: c.Gossip(load_interval_min_s=9.0), ["load_interval_min_s", "load_keepalive_s"]),
        (lambda: c.Routing(far=0.5), ["routing.far", "routing.near"]),
        (lambda: c.Routing(near=0.0, far=-0.5), ["routing.near"]),
        (lambda: c.Routing(general_quality=1.5), ["general_quality"]),
        (lambda: c.Limits(records_per_frame_max=64), ["records_per_frame_max", "frame_bytes_max"]),
        (lambda: c.Routing(lambda_s=-1.0), ["lambda_s"]),
        (lambda: c.ModelConfig(model="m", tokens_per_s=0.0), ["tokens_per_s"]),
        (lambda: c.Relay(attempts_max=256), ["attempts_max", "255"]),
        (lambda: c.Relay(drain_s=float("inf")), ["relay.drain_s", "finite", "inf"]),
        (lambda: c.Relay(resume="Any"), ["relay.resume", "any, same-model or never", "'Any'"]),
        (lambda: c.Relay(keepalive_s=3.0), ["keepalive_s", "silence_max_s"]),
        (lambda: c.Net(dial_timeout_s=0.0), ["dial_timeout_s"]),
        (lambda: c.Engine(slots=0), ["slots"]),
        (lambda: c.Http(body_bytes_max=0), ["body_bytes_max"]),
        (lambda: c.SkillConfig(name="s", examples=("x",), quality=2.0), ["quality", "'s'"]),
        (lambda: c.SkillConfig(name="s"), ["'s'", "example"]),
        (lambda: c.Config(models=(c.ModelConfig(model="m"),) * 17), ["17", "models_max"]),
        (lambda: c.Config(skills=(c.SkillConfig(name="s", examples=("x",)),) * 17), ["17", "skills_max"]),
        (lambda: c.Config(net=c.Net(outbox_frames_max=8)), ["outbox_frames_max", "waiting_max"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_broken_relation_names_the_knobs(make: Callable[[], object], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert all(name in str(caught.value) for name in named)


def test_layers_of_a_gpu_may_be_all_of_them() -> None:
    assert c.Engine(gpu_layers=-1).gpu_layers == -1


@pytest.mark.parametrize("digest", ["abc", "0f" * 31, "x" * 64])
def test_what_can_be_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ConfigError, match="64 hex digits"):
        c.ModelConfig(model="m", digest=digest)


@pytest.mark.parametrize("name", ["a\x1b[2J", "two\nlines", "nul\0"])
def test_a_name_that_would_steer_a_terminal_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be printed"):
        c.Config(name=name)
