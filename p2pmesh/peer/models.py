"""A peer's models: the engines it runs, the embedder, and the capability that follows from both.

It knows engines and skills, and nothing of queries' ways. Whatever an engine says becomes an event for
`feed`; whenever one comes or goes the capability is told anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import trio

from p2pmesh.config import Config, ModelConfig, SkillConfig
from p2pmesh.engine import base, catalog, embedder
from p2pmesh.errors import ConfigError, EngineError, LocalProtocolError, ModelLoadError
from p2pmesh.peer.engines import EngineDown, EngineHandle, EngineUp, open_engine
from p2pmesh.protocol import events as e
from p2pmesh.protocol.codec import Codec
from p2pmesh.query import AUTO, Message, Query, QueryId
from p2pmesh.record import GENERAL, Capability, Device, PeerRecord, Skill, Vector, quantise

_log = logging.getLogger("p2pmesh.peer")

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant. Answer in one short sentence."
"""For the embedded default model, chosen by test: with it the answers of the demo are right."""
_VECTOR_S = 10.0
"""Seconds to wait for one embedding that is not part of a query."""


@dataclass
class _Served:
    """One model and its engine."""

    config: ModelConfig
    engine: EngineHandle
    up: bool = False


def threads_each(config: Config, cores: int) -> int:
    """Return how many threads each model gets, so that all together have no more than there are cores beside
    the embedder's one. Each has one at least, however many there are."""
    spare = cores - (config.embedder == "auto")
    wanted, most = config.engine.threads, max(1, spare // max(1, len(config.models)))
    if wanted > most or len(config.models) > spare:
        _log.warning(
            "each of %d models gets %d threads, of %d wanted: there are %d cores, one for the embedder",
            len(config.models),
            min(wanted, most),
            wanted,
            cores,
        )
    return min(wanted, most)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_told(codec: Codec, record: PeerRecord) -> None:
    """Raise ConfigError where others could not be told what this peer has: it would be asked for nothing."""
    try:
        codec.encode_record(record)
    except LocalProtocolError as exc:
        raise ConfigError(
            f"others cannot be told of the models and skills of this peer ({exc}): take fewer of them, or "
            "shorter names, or let a model be for fewer zones"
        ) from None


class Models:
    """What this peer answers with. Made by `open_models`."""

    def __init__(self, config: Config, feed: Callable[[e.Event], None]) -> None:
        self._config = config
        self._feed = feed
        self._served: dict[str, _Served] = {}
        self._embedder: EngineHandle | None = None
        self._embeds = 0
        self._waiting: dict[str, trio.MemorySendChannel[base.Embedded | base.Failed]] = {}
        self._skills: tuple[Skill, ...] = ()
        self._devices: tuple[Device, ...] = ()
        """The GPUs, as the model that was loaded last saw them: the others had taken theirs."""
        self._describe: Callable[[], None] = lambda: None
        self._started = False

    # -- the boundary to the driver -------------------------------------------------------------------

    def on_change(self, describe: Callable[[], None]) -> None:
        """Call `describe` whenever `capability` has changed."""
        self._describe = describe

    def capability(self) -> Capability:
        """Return what this peer can do at this moment. A model that is being restarted has no slots; one
        that is quarantined is left out."""
        infos = [
            replace(s.engine.info, zones=s.config.zones, slots=s.engine.info.slots if s.up else 0)
            for s in self._served.values()
            if s.engine.info is not None and s.engine.state != "quarantined"
        ]
        skills = self._skills or (Skill(GENERAL, None, self._config.routing.general_quality),)
        return Capability(self.space, skills if infos else (), tuple(infos), devices=self._devices)

    @property
    def space(self) -> str:
        """The embedding space of this peer; empty: it cannot embed."""
        embeds = self._embedder is not None and self._embedder.state in ("ready", "asleep")
        return self._embedder.space if self._embedder is not None and embeds else ""

    def generate(self, query: Query, model: str) -> None:
        """Start an answer; its end comes as an event in any case."""
        served = self._served[model]
        job, messages = _job(query.id, query.attempt), _prompted(query.messages, served.config)
        accepted = query.accepted
        if accepted is None:
            served.engine.generate(job, messages, query.options)
        elif served.engine.info is not None and accepted.digest == served.engine.info.digest:
            served.engine.generate(job, messages, query.options, accepted.tokens)
        else:
            served.engine.generate(job, messages, query.options, (), accepted.text)

    def abort(self, query_id: QueryId, attempt: int) -> None:
        """Stop an answer."""
        for served in self._served.values():
            served.engine.abort(_job(query_id, attempt))

    def embed(self, query_id: QueryId, text: str) -> None:
        """Start turning a query into its vector; `Embedded` follows in any case."""
        if self._embedder is None:
            self._feed(e.Embedded(query_id, None))
            return
        self._embeds += 1  # the same query may come by again in another attempt
        self._embedder.embed(f"query/{query_id}/{self._embeds}", (text,))

    async def vector(self, text: str) -> Vector | None:
        """Return the vector of `text`, or None where this peer cannot embed or the text says nothing. Raises
        EngineError."""
        if self._embedder is None:
            return None
        with suppress(ValueError):
            return quantise((await self._vectors((text,)))[0])
        return None

    def status(self) -> list[dict[str, object]]:
        """Return one plain row for each engine, for people."""
        rows = [(name, served.engine) for name, served in self._served.items()]
        if self._embedder is not None:
            rows.append(("embedder", self._embedder))
        return [
            {
                "name": name,
                "state": engine.state,
                "detail": engine.detail,
                "pid": engine.pid,
                "restarts": engine.restarts,
                "memory_bytes": engine.memory_bytes,
                "metrics": None if engine.metrics is None else asdict(engine.metrics),
            }
            for name, engine in rows
        ]

    # -- engines' events ------------------------------------------------------------------------------

    def _on_engine(self, name: str, engine: EngineHandle, event: base.Event | EngineUp | EngineDown) -> None:
        served = self._served.get(name)
        match event:
            case EngineUp():
                if served is not None:
                    served.up = True
                    self._devices = engine.devices or self._devices
                self._describe()
            case EngineDown():
                if served is not None:
                    served.up = False
                # While it starts, the one who starts it is told by an error: once is enough.
                level = logging.WARNING if self._started else logging.INFO
                _log.log(level, "the model %s is down: %s", name or "of the embedder", event.detail)
                self._describe()
            case base.Generated():
                self._feed(e.Generated(*_of_job(event.job), event.tokens, event.text, event.logprobs))
            case base.Finished():
                self._feed(e.Finished(*_of_job(event.job), event.usage, event.finish_reason))
            case base.Failed():
                if served is None:
                    self._not_embedded(event)
                else:
                    ident = _of_job(event.job)
                    self._feed(e.Failed(*ident, event.reason, event.detail, event.tokens or 0))
            case base.Embedded():
                self._embedded(event)
            case _:
                pass

    def _embedded(self, event: base.Embedded) -> None:
        channel = self._waiting.pop(event.job, None)
        if channel is not None:
            channel.send_nowait(event)
            return
        try:
            vector = quantise(event.vectors[0])
        except ValueError:
            self._feed(e.Embedded(_query_of(event.job), None))
            return
        self._feed(e.Embedded(_query_of(event.job), vector))

    def _not_embedded(self, event: base.Failed) -> None:
        channel = self._waiting.pop(event.job, None)
        if channel is not None:
            channel.send_nowait(event)
        else:
            self._feed(e.Embedded(_query_of(event.job), None))

    # -- start ----------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> None:
        """Start the engines, wait for all, and learn what the skills mean."""
        shared = replace(self._config.engine, threads=threads_each(self._config, _cores()))
        specs = [(model, self._named(catalog.model_load(model, shared))) for model in self._config.models]
        self._check_names([spec.name for _, spec in specs])
        embed = self._embedder_load()
        if embed is not None:
            opened = open_engine(embed, self._config.engine, self._listener(""))
            self._embedder = await stack.enter_async_context(opened)
        for model, spec in specs:  # one after the other: each takes its memory of what the last one left
            opened = open_engine(spec, self._config.engine, self._listener(spec.name))
            engine = await stack.enter_async_context(opened)
            self._served[spec.name] = _Served(model, engine)
            await _ready(f"the model {spec.name}", engine)
        if self._embedder is not None:
            await _ready("the embedder", self._embedder)
        for skill in self._config.skills:
            self._skills = (*self._skills, await self._learn(skill))
        self._started = True

    def _check_names(self, names: list[str]) -> None:
        """Raise ConfigError, before anything is loaded, for what cannot be told apart or is not there."""
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"two models are called {twice!r}: give one of them another name")
        for skill in self._config.skills:
            if skill.model and skill.model not in names:
                known = ", ".join(names) or "none"
                raise ConfigError(
                    f"skill {skill.name!r} names the model {skill.model!r}; this peer serves {known}"
                )

    def _listener(self, name: str) -> Callable[[EngineHandle, base.Event | EngineUp | EngineDown], None]:
        return lambda engine, event: self._on_engine(name, engine, event)

    def _named(self, spec: base.Load) -> base.Load:
        most = self._config.limits.name_bytes_max
        spec = spec if spec.name else replace(spec, name=Path(spec.path).stem)
        if spec.name == AUTO:
            raise ConfigError(f"no model can be called {AUTO!r}, which lets the mesh choose: give it a name")
        if len(spec.name.encode()) > most:
            raise ConfigError(
                f"the model name {spec.name!r} is longer than {most} bytes: give it a shorter one"
            )
        return spec

    def _embedder_load(self) -> base.Load | None:
        match self._config.embedder:
            case "none":
                return None
            case "hash":
                return base.Load(kind="echo", name=embedder.HASH_SPACE, tokens_per_s=1.0)
            case "auto":
                return catalog.embedder_load(replace(self._config.engine, threads=1))
            case other:
                raise ConfigError(f"embedder must be auto, hash or none, not {other!r}")

    async def _learn(self, skill: SkillConfig) -> Skill:
        if self._embedder is None:
            raise ConfigError(
                f"skill {skill.name!r} cannot be learnt without an embedder: run `make setup`, "
                "or `python -m p2pmesh.engine.embedder`"
            )
        rows = await self._vectors(skill.examples)
        try:
            direction = quantise(rows.mean(axis=0))
        except ValueError:
            raise ConfigError(f"the examples of skill {skill.name!r} say nothing: write other ones") from None
        return Skill(skill.name, direction, skill.quality, 0, skill.model)

    async def _vectors(self, texts: tuple[str, ...]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        assert self._embedder is not None
        self._embeds += 1
        job = f"own/{self._embeds}"
        send, receive = trio.open_memory_channel[base.Embedded | base.Failed](1)
        self._waiting[job] = send
        try:
            self._embedder.embed(job, texts)
            with trio.fail_after(_VECTOR_S):
                answer = await receive.receive()
        except trio.TooSlowError:
            raise EngineError("the embedder does not answer") from None
        finally:
            self._waiting.pop(job, None)
        if isinstance(answer, base.Failed):
            raise EngineError(f"the embedder failed: {answer.detail}")
        return answer.vectors


@asynccontextmanager
async def open_models(config: Config, feed: Callable[[e.Event], None]) -> AsyncIterator[Models]:
    """Start the models of `config` and yield them ready. Raises ConfigError or EngineError."""
    async with AsyncExitStack() as stack:
        models = Models(config, feed)
        await models._start(stack)
        yield models


async def _ready(what: str, engine: EngineHandle) -> None:
    """Wait until `engine` takes jobs. Raises ModelLoadError, saying which, when it never will."""
    try:
        await engine.wait_ready()
    except ModelLoadError as exc:
        raise ModelLoadError(f"{what} does not start: {exc}") from None


def _prompted(messages: tuple[Message, ...], model: ModelConfig) -> tuple[Message, ...]:
    system = model.system_prompt
    if system is None:
        system = DEFAULT_SYSTEM_PROMPT if model.model == catalog.DEFAULT else ""
    if not system or any(message.role == "system" for message in messages):
        return messages
    return (Message("system", system), *messages)


def _job(query_id: QueryId, attempt: int) -> str:
    return f"{query_id}/{attempt}"


def _of_job(job: str) -> tuple[QueryId, int]:
    query_id, _, attempt = job.rpartition("/")
    return QueryId(query_id), int(attempt)


def _query_of(job: str) -> QueryId:
    return QueryId(job.split("/")[1])
