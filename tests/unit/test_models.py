"""What a peer puts before a conversation, and how its jobs are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pmesh.config import Config, Engine, Limits, ModelConfig
from p2pmesh.engine import catalog
from p2pmesh.engine.base import Load
from p2pmesh.errors import ConfigError
from p2pmesh.peer import models
from p2pmesh.peer.engines import EngineHandle, EngineUp
from p2pmesh.protocol.codec import Codec
from p2pmesh.query import Message, QueryId
from p2pmesh.record import Capability, Device, ModelInfo, PeerId, PeerRecord, Version

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
    for name, free in (("a", 60), ("b", 20), ("a", 30)):  # a was loaded again
        engine = EngineHandle(Load(kind="echo"), Engine(), lambda *_: None)
        engine.devices = (Device("H100", free, 80),) * 2
        found._served[name] = models._Served(ModelConfig(model=name), engine)
        found._on_engine(name, engine, EngineUp(ModelInfo(name, "", 1, 1.0, 1.0, 1)))
        assert found.capability().devices == engine.devices


def test_a_model_is_told_of_with_its_zones_whether_it_is_up_or_not():
    found = models.Models(Config(), lambda _: None)
    engine = EngineHandle(Load(kind="echo"), Engine(), lambda *_: None)
    engine.info = ModelInfo("a", "", 1, 1.0, 1.0, 4)
    found._served["a"] = models._Served(ModelConfig(model="a", zones=("hr",)), engine)
    assert [(m.zones, m.slots) for m in found.capability().models] == [(("hr",), 0)]
    found._on_engine("a", engine, EngineUp(engine.info))
    assert [(m.zones, m.slots) for m in found.capability().models] == [(("hr",), 4)]


def test_what_others_could_not_be_told_of_is_said_before_it_is_asked_for_in_vain():
    able = Capability(models=(ModelInfo("m", "", 1, 1.0, 1.0, 1, zones=tuple("ab")),))
    models.check_told(Codec(Limits()), PeerRecord(PeerId("me"), Version(1, 1), capability=able))
    long = tuple(f"{i:064}" for i in range(15))
    many = Capability(models=tuple(replace(able.models[0], name=f"m{i}", zones=long) for i in range(9)))
    with pytest.raises(ConfigError, match=r"cannot be told .*at most 7700.*let a model be for fewer zones"):
        models.check_told(Codec(Limits()), PeerRecord(PeerId("me"), Version(1, 1), capability=many))


@pytest.mark.parametrize(
    ("threads", "count", "cores", "each"),
    [(1, 1, 2, 1), (2, 1, 2, 1), (4, 1, 8, 4), (4, 2, 8, 3), (4, 3, 8, 2), (8, 1, 2, 1), (2, 0, 8, 2)],
)
def test_all_engines_together_have_no_more_threads_than_there_are_cores(threads, count, cores, each):
    served = tuple(ModelConfig(model=f"m{i}", engine="echo") for i in range(count))
    given = Config(models=served, engine=Engine(threads=threads))
    assert models.threads_each(given, cores) == each
    assert count * each + 1 <= cores
    without = replace(given, embedder="none")
    assert models.threads_each(without, cores) == min(threads, max(1, cores // max(1, count)))


def test_more_engines_than_cores_have_one_thread_each_and_that_is_said(caplog):
    given = Config(models=tuple(ModelConfig(model=f"m{i}", engine="echo") for i in range(3)))
    assert models.threads_each(given, 2) == 1
    assert "each of 3 models gets 1 threads, of 1 wanted: there are 2 cores" in caplog.text
