"""What a peer puts before a conversation, and how its jobs are named."""

from __future__ import annotations

import pytest

from p2pmesh.config import Config, Engine, ModelConfig
from p2pmesh.engine import catalog
from p2pmesh.engine.base import Load
from p2pmesh.peer import models
from p2pmesh.peer.engines import EngineHandle
from p2pmesh.query import Message, QueryId
from p2pmesh.record import Capability, Device

USER = Message("user", "x")
OWN = Message("system", "be brief")


def test_the_default_model_gets_a_system_prompt_and_others_do_not():
    default, other = ModelConfig(model=catalog.DEFAULT), ModelConfig(model="/m.gguf")
    assert models._prompted((USER,), default) == (Message("system", models.DEFAULT_SYSTEM_PROMPT), USER)
    assert models._prompted((USER,), other) == (USER,)


def test_a_configured_system_prompt_is_put_before_unless_the_asker_has_one():
    given = ModelConfig(model="/m.gguf", system_prompt="be kind")
    assert models._prompted((USER,), given) == (Message("system", "be kind"), USER)
    assert models._prompted((OWN, USER), given) == (OWN, USER)
    assert models._prompted((USER, OWN), given) == (USER, OWN)


def test_an_empty_system_prompt_turns_the_default_off():
    assert models._prompted((USER,), ModelConfig(model=catalog.DEFAULT, system_prompt="")) == (USER,)


def test_a_job_names_its_query_and_attempt():
    job = models._job(QueryId("ab"), 3)
    assert models._of_job(job) == ("ab", 3)
    assert models._query_of("query/ab/7") == "ab"


def test_a_peer_without_models_claims_nothing():
    assert models.Models(Config(), lambda _: None).capability() == Capability()


def test_the_gpus_of_a_peer_are_told_as_its_last_model_left_them():
    found = models.Models(Config(), lambda _: None)
    spec, before, after = Load(kind="echo"), Device("H100", 60, 80), Device("H100", 20, 80)
    for name, devices in (("a", (before, before)), ("b", (after, before)), ("none", ())):
        engine = EngineHandle(spec, Engine(), lambda *_: None)
        engine.devices = devices
        found._served[name] = models._Served(ModelConfig(model=name), engine)
    assert found.capability().devices == (after, before)


@pytest.mark.parametrize(
    ("threads", "count", "cores", "each"),
    [(1, 3, 2, 1), (4, 1, 8, 4), (4, 2, 8, 4), (4, 3, 8, 2), (8, 1, 2, 2), (2, 0, 8, 2)],
)
def test_all_models_together_have_no_more_threads_than_there_are_cores(threads, count, cores, each):
    served = tuple(ModelConfig(model=f"m{i}", engine="echo") for i in range(count))
    given = Config(models=served, engine=Engine(threads=threads))
    assert models.threads_each(given, cores) == each
