"""Peers as a library: real links on loopback, echoes for models. What is asked, what fails, who leaves."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from p2pmesh import (
    Answer,
    AnswerInterrupted,
    BudgetSpent,
    Config,
    ConfigError,
    Message,
    ModelConfig,
    NoRoute,
    Options,
    Peer,
    QueryError,
    Reason,
    Refused,
    SkillConfig,
    open_peer,
)
from p2pmesh.config import Engine, Http, Limits, Net, Relay
from p2pmesh.errors import EngineError, ListenError, StateLocked
from p2pmesh.net.host import Host, LinkDown, LinkUp, Priority, open_host
from p2pmesh.net.identity import Identity
from p2pmesh.peer import meeting
from p2pmesh.peer.driver import BAD_FRAMES_MAX
from p2pmesh.peer.models import DEFAULT_SYSTEM_PROMPT
from p2pmesh.protocol import events as e
from p2pmesh.query import Query, QueryId
from p2pmesh.testing import open_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.wire
HANG_S = 60
ASKER = Config(name="asker", embedder="hash")


def server(name: str = "server", tokens_per_s: float = 1_000.0, **fields: Any) -> Config:
    echo = ModelConfig(model="echo", engine="echo", tokens_per_s=tokens_per_s)
    return Config(**{"name": name, "models": (echo,), "embedder": "hash", **fields})


@asynccontextmanager
async def cluster(*configs: Config) -> AsyncIterator[tuple[Peer, ...]]:
    with trio.fail_after(2 * HANG_S):
        async with open_cluster(configs) as peers:
            yield peers


async def until(true: Any) -> None:
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.01)


def busy(peer: Peer) -> bool:
    own = peer.members()[0]
    assert own.load is not None
    slots = sum(model.slots for model in own.capability.models)
    return bool(peer.status()["flights"]) or own.load.free_slots != slots


# -------------------------------------------------------------------- asking


async def test_an_answer_is_whole_and_says_where_it_came_from():
    async with cluster(ASKER, server()) as (asker, answerer):
        answer = await asker.ask("one two three")
        assert answer.text == "echo: one two three"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
        assert (answer.finish_reason, answer.model, answer.served_by) == ("stop", "echo", answerer.id)
        assert [hop.name for hop in answer.path] == ["asker", "server"]
        assert answer.path[0].why.startswith("to server: general quality 0.45")
        assert answer.path[1].why.startswith("serve: general quality 0.45")
        assert answer.ttft_s >= 0
        talk = (Message("system", "be brief"), Message("user", "a"), Message("assistant", "b"))
        answer = await asker.ask([*talk, Message("user", "c d")], options=Options(max_tokens=2))
        assert (answer.text, answer.finish_reason) == ("echo: c", "length")
        await until(lambda: not busy(asker) and not busy(answerer))


async def test_a_stream_comes_piece_by_piece_without_gap_or_repetition():
    async with cluster(ASKER, server(tokens_per_s=20.0)) as (asker, _):
        async with asker.stream("one two three four five") as answer:
            assert (answer.text, answer.served_by) == ("", None)
            pieces = [piece async for piece in answer]
            assert [piece async for piece in answer] == []
        assert [piece.index for piece in pieces] == list(range(len(pieces)))
        assert len(pieces) >= 4
        assert "".join(piece.text for piece in pieces) == answer.text == "echo: one two three four five"
        assert answer.tokens_per_s > 0


async def test_leaving_the_block_frees_every_hop():
    async with cluster(ASKER, server(tokens_per_s=20.0)) as peers:
        asker, answerer = peers
        async with asker.stream("word " * 100) as answer:
            async for _ in answer:
                break
            assert busy(answerer)
        await until(lambda: not any(map(busy, peers)))
        with trio.move_on_after(0.01):
            await asker.ask("word " * 100)
        await until(lambda: not any(map(busy, peers)))
        assert answerer.status()["engines"][0]["restarts"] == 0
        assert (await asker.ask("x", options=Options(max_tokens=1))).text == "echo:"


async def test_many_at_once_get_each_its_own():
    async with cluster(ASKER, server("a"), server("b")) as (asker, *_):
        texts: dict[int, str] = {}

        async def ask(number: int) -> None:
            texts[number] = (await asker.ask(f"number {number}")).text

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, number)
        assert texts == {number: f"echo: number {number}" for number in range(40)}


async def test_skills_decide_who_answers():
    art = SkillConfig(name="art", examples=("who painted the mona lisa", "what is a watercolour painting"))
    code = SkillConfig(name="code", examples=("fix this python function", "what does this rust error mean"))
    painter, coder = server("painter", skills=(art,)), server("coder", skills=(code,))
    async with cluster(ASKER, painter, coder) as (asker, *_):
        answer = await asker.ask("who painted the mona lisa")
        assert [hop.name for hop in answer.path] == ["asker", "painter"]
        answer = await asker.ask("fix this python function")
        assert [hop.name for hop in answer.path] == ["asker", "coder"]


async def test_explain_asks_nobody():
    async with cluster(ASKER, server()) as (asker, answerer):
        decision = await asker.explain("one two")
        assert (decision.kind.value, decision.chosen and decision.chosen.name) == ("forward", "server")
        assert (await answerer.explain("")).kind.value == "serve"
        refused = await asker.explain("x", model="nope")
        assert (refused.reason, len(refused.table)) == (Reason.MODEL_NOT_FOUND, 1)
        assert answerer.members()[0].load == replace(answerer.members()[0].load, queued=0, remaining_s=0.0)


async def test_members_are_this_peer_and_those_it_knows():
    async with cluster(ASKER, server("a"), server("b")) as (asker, a, b):
        members = asker.members()
        assert (members[0].id, members[0].distance, members[0].linked) == (asker.id, 0, False)
        others = {member.name: member for member in members[1:]}
        assert {name: member.id for name, member in others.items()} == {"a": a.id, "b": b.id}
        assert all(member.alive and member.distance == 1 and member.linked for member in others.values())
        assert others["a"].capability.models[0].name == "echo"
        await until(lambda: all(m.rtt_s is not None and m.load is not None for m in asker.members()[1:]))


# -------------------------------------------------------------------- what fails


async def fails(kind: type[QueryError], peer: Peer, prompt: Any = "one two", **how: Any) -> QueryError:
    with pytest.raises(kind) as caught:
        await peer.ask(prompt, **how)
    assert type(caught.value) is kind
    await until(lambda: not busy(peer))
    return caught.value


async def test_each_failure_has_its_kind_and_its_reason():
    async with cluster(ASKER, server(tokens_per_s=20.0)) as (asker, answerer):
        missing = await fails(NoRoute, asker, model="nope")
        assert (missing.reason, str(missing)) == (
            Reason.MODEL_NOT_FOUND,
            "no peer within reach serves the model 'nope'",
        )
        spent = await fails(BudgetSpent, asker, "word " * 100, budget_s=1.0)
        assert (spent.reason, spent.path) == (Reason.DEADLINE, ("asker", "server"))
        at_once = await fails(BudgetSpent, asker, budget_s=0.0)
        assert at_once.partial == ""
        for wrong in (
            {"options": Options(max_tokens=0)},
            {"options": Options(temperature=-1.0)},
            {"prompt": [Message("root", "x")]},
            {"prompt": "\ud800"},
            {"prompt": "x" * 131_073},
            {"model": "x" * 65},
        ):
            refused = await fails(Refused, asker, **wrong)
            assert refused.reason is Reason.BAD_REQUEST, wrong
        await until(lambda: not busy(answerer))
        assert (await asker.ask("x", options=Options(max_tokens=1))).text == "echo:"


async def test_a_budget_that_ends_in_mid_answer_keeps_what_came():
    async with cluster(server(tokens_per_s=20.0)) as (peer,):
        async with peer.stream("word " * 30, budget_s=1.0) as answer:
            with pytest.raises(BudgetSpent) as caught:
                await answer.whole()
        assert caught.value.partial == answer.text
        assert answer.text.startswith("echo: word")
        await until(lambda: not busy(peer))


async def test_a_prompt_longer_than_every_context_is_told_both_lengths():
    small = server(engine=Engine(context_tokens=64))
    async with cluster(ASKER, small) as (asker, answerer):
        measured = await fails(Refused, asker, "a " * 100)
        assert measured.reason is Reason.TOO_LONG
        assert re.fullmatch(r"the prompt is 100 tokens, the .*context.* 64", str(measured))
        unsent = await fails(Refused, asker, "abcdefg " * 100)
        assert unsent.reason is Reason.TOO_LONG
        assert "800 bytes" in str(unsent)
        assert "64" in str(unsent)
        own = await fails(Refused, answerer, "a " * 100)
        assert (own.reason, str(own)) == (Reason.TOO_LONG, "the prompt is 100 tokens, the context 64")
        assert answerer.status()["engines"][0]["restarts"] == 0


async def test_nobody_to_answer_is_said_at_once():
    async with cluster(ASKER) as (asker,):
        alone = await fails(NoRoute, asker)
        assert (alone.reason, str(alone)) == (Reason.NO_ROUTE, "no peer within reach serves any model")


async def test_a_zone_that_nobody_is_in_stays_unasked():
    async with cluster(ASKER, server()) as (asker, answerer):
        outcomes: list[Any] = []
        query = Query(QueryId("0" * 32), asker.id, (Message("user", "x"),), zone="ward 7")
        asker._driver.ask(e.Asked(query), outcomes.append)
        await until(lambda: outcomes)
        assert outcomes[0].reason is Reason.NO_ROUTE
        assert outcomes[0].detail == "no peer within reach may see the zone 'ward 7' and has a model for it"
        assert not busy(answerer)


async def test_a_full_queue_says_when_to_come_back():
    tight = server(tokens_per_s=20.0, engine=Engine(slots=1), relay=replace(Config().relay, waiting_max=1))
    async with cluster(tight) as (peer,), peer.stream("word " * 200), peer.stream("word " * 200):
        with pytest.raises(Refused) as caught:
            await peer.ask("x")
        assert caught.value.reason is Reason.OVERLOADED
        assert (caught.value.retry_after_s or 0) >= 1


# -------------------------------------------------------------------- what dies


def engine_pid(peer: Peer) -> int:
    (pid,) = (row["pid"] for row in peer.status()["engines"] if row["name"] == "echo")
    assert isinstance(pid, int)
    return pid


@pytest.mark.parametrize("remote", [False, True])
async def test_a_model_killed_in_mid_answer_comes_back_and_goes_on_with_it(remote: bool):
    words = " ".join(map(str, range(50)))
    peers = (ASKER, server(tokens_per_s=20.0)) if remote else (server(tokens_per_s=20.0),)
    async with cluster(*peers) as opened:
        asker, answerer = opened[0], opened[-1]
        async with asker.stream(words) as answer:
            async for _ in answer:
                break
            os.kill(engine_pid(answerer), signal.SIGKILL)
            await answer.whole()
        assert answer.text == f"echo: {words}"
        assert [hop.peer for hop in answer.resumed] == [answerer.id]
        assert answerer.status()["engines"][0]["restarts"] == 1


async def test_an_answer_over_which_models_crash_again_and_again_ends():
    killed: set[int] = set()
    async with cluster(server(tokens_per_s=20.0)) as (peer,):

        async def read_and_kill(answer: Answer) -> None:
            async for _ in answer:
                if (pid := engine_pid(peer)) not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)

        async with peer.stream("word " * 50) as answer:
            with pytest.raises(AnswerInterrupted) as caught:
                await read_and_kill(answer)
    assert len(killed) == peer.config.relay.crashes_max
    assert caught.value.reason is Reason.ENGINE_FAILED
    assert "killed by signal 9" in str(caught.value)
    assert caught.value.partial == answer.text != ""


async def test_when_the_answering_model_is_killed_another_peer_goes_on():
    words = " ".join(map(str, range(60)))
    slow = (server(name, tokens_per_s=40.0) for name in "ab")
    async with cluster(ASKER, *slow) as (asker, a, b):
        async with asker.stream(words) as answer:
            async for _ in answer:
                break
            first = a if busy(a) else b
            os.kill(engine_pid(first), signal.SIGKILL)
            await answer.whole()
        assert answer.text == f"echo: {words}"
        assert answer.path[-1].name == ("b" if first is a else "a")
        assert [hop.name for hop in answer.resumed] == [answer.path[-1].name]


@pytest.mark.parametrize("resume", [None, "any"])
async def test_whose_peer_wants_no_other_writer_gets_an_error_unless_it_asks_for_one(resume: str | None):
    words = " ".join(map(str, range(60)))
    slow = (server(name, tokens_per_s=40.0) for name in "ab")
    async with (
        cluster(replace(ASKER, relay=Relay(resume="never")), *slow) as (asker, a, b),
        asker.stream(words, resume=resume) as answer,
    ):
        async for _ in answer:
            break
        first = a if busy(a) else b
        (pid,) = (row["pid"] for row in first.status()["engines"] if row["name"] == "echo")
        os.kill(pid, signal.SIGKILL)
        if resume is not None:
            assert (await answer.whole()).text == f"echo: {words}"
            return
        with pytest.raises(AnswerInterrupted) as caught:
            await answer.whole()
        assert caught.value.partial == answer.text
        assert f"echo: {words}".startswith(answer.text)


async def test_to_drain_waits_for_what_has_begun_and_for_who_still_reads_it():
    async with cluster(server(tokens_per_s=100.0)) as (peer,):
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await peer.drain())

        async with trio.open_nursery() as nursery:
            async with peer.stream("a b c") as answer:
                nursery.start_soon(drain)
                assert (await answer.whole()).text == "echo: a b c"
                await trio.sleep(0.2)
                assert drained == []
            await until(lambda: drained)
        assert drained == [True]
        assert peer.draining
        with pytest.raises(Refused, match="about to go"):
            await peer.ask("d")


async def test_to_drain_has_an_end():
    async with cluster(server(tokens_per_s=1.0)) as (peer,), peer.stream("a b c " * 20) as answer:
        await answer.begun()
        assert await peer.drain(0.2) is False


async def test_an_unknown_way_to_resume_is_refused_before_anything_is_asked():
    async with cluster(server()) as (peer,):
        with pytest.raises(ValueError, match="sometimes"):
            await peer.ask("x", resume="sometimes")


async def test_a_killed_embedder_costs_no_answer():
    async with cluster(server()) as (peer,):
        (pid,) = (row["pid"] for row in peer.status()["engines"] if row["name"] == "embedder")
        os.kill(pid, signal.SIGKILL)
        assert (await peer.ask("x y")).text == "echo: x y"
        await until(lambda: peer.status()["embedding_space"] == "hash-384")
        assert (await peer.ask("x y")).text == "echo: x y"


async def test_a_peer_that_ends_is_dropped_by_all():
    async with cluster(ASKER, server("a")) as (asker, a):
        config = server("b", net=Net(join=asker.addresses))
        async with open_cluster([config]) as (b,):
            await until(lambda: sum(m.alive for m in asker.members()) == 3)
            await until(lambda: sum(m.alive for m in a.members()) == 3)
        for peer in (asker, a):
            await until(lambda peer=peer: not any(m.alive for m in peer.members() if m.id == b.id))
        assert (await asker.ask("x")).served_by == a.id


async def test_a_peer_that_has_left_does_not_come_back_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meeting, "RETRY_MAX_S", 0.1)
    dialled: list[object] = []
    dial = Host.dial
    async with cluster(replace(ASKER, net=Net(dial_discovered=False))) as (asker,):
        config = server("b", net=Net(join=asker.addresses))
        async with open_cluster([config]) as (b,):
            await until(lambda: sum(m.alive for m in asker.members()) == 2)
            await b.leave()
            # Told by its goodbye, not by suspicion, which would take longer than this.
            await until(lambda: not any(m.alive for m in asker.members() if m.id == b.id))
            monkeypatch.setattr(Host, "dial", lambda *told: (dialled.append(told), dial(*told)))
            await trio.sleep(meeting.RETRY_S + 0.5)  # when it would dial again
            assert dialled == []
            assert (asker.status()["links"], b.status()["links"]) == (0, 0)


async def test_an_answer_of_a_peer_that_leaves_breaks_off_and_says_so():
    async with cluster(ASKER, server("a")) as (asker, _):
        slow = server("b", tokens_per_s=20.0, net=Net(join=asker.addresses))
        slow = replace(slow, models=(replace(slow.models[0], name="slow"),))
        async with open_cluster([slow]) as (b,):
            await until(lambda: any(m.id == b.id and m.capability.models for m in asker.members()))
            async with asker.stream("word " * 50, model="slow") as answer:
                async for _ in answer:
                    break
                await b.leave()
                with pytest.raises(AnswerInterrupted) as caught:
                    await answer.whole()
                assert caught.value.reason is Reason.PEER_LOST


async def test_who_still_waits_when_the_peer_ends_is_told():
    errors: list[QueryError] = []

    async def ask(peer: Peer) -> None:
        with pytest.raises(QueryError) as caught:
            await peer.ask("word " * 50)
        errors.append(caught.value)

    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            async with cluster(server(tokens_per_s=20.0)) as (peer,):
                nursery.start_soon(ask, peer)
                await until(lambda: busy(peer))
            await until(lambda: errors)
            await ask(peer)
    assert [(e.reason, str(e)) for e in errors] == 2 * [(Reason.PEER_LOST, "this peer has left the mesh")]


async def test_bad_frames_end_the_link_and_nothing_else(caplog: pytest.LogCaptureFixture):
    async with cluster(server()) as (peer,), open_host(Identity.generate(), Net(), 1_000) as stranger:
        stranger.dial(peer.id, [peer.addresses[0]])
        assert isinstance(await stranger.receive(), LinkUp)
        for _ in range(BAD_FRAMES_MAX):
            stranger.send(peer.id, b"garbage", Priority.BULK)
        while not isinstance(await stranger.receive(), LinkDown):
            pass
        assert peer.status()["counters"]["bad_frames"] == BAD_FRAMES_MAX
        assert sum("sent a bad frame" in r.getMessage() for r in caplog.records) == 1, "logged once, counted"
        assert (await peer.ask("x")).text == "echo: x"


# -------------------------------------------------------------------- starting


async def test_what_cannot_start_leaves_nothing_behind(tmp_path: Path):
    async def refused(kind: type[Exception], said: str, **fields: Any) -> None:
        with pytest.raises(kind, match=said):
            async with open_peer(Config(**{"state": str(tmp_path / "s"), "embedder": "hash", **fields})):
                raise AssertionError("it started")

    with trio.fail_after(HANG_S):
        echo = ModelConfig(model="echo", engine="echo")
        await refused(ConfigError, "two models are called 'echo'", models=(echo, echo))
        await refused(ConfigError, "longer than 64 bytes", models=(replace(echo, name="x" * 65),))
        await refused(ConfigError, "engine must be", models=(replace(echo, engine="gpt"),))
        await refused(ConfigError, "embedder must be auto, hash or none", embedder="best")
        skill = SkillConfig(name="art", examples=("x",))
        await refused(ConfigError, "learnt without an embedder", skills=(skill,), embedder="none")
        other = replace(skill, model="nope")
        await refused(
            ConfigError, "names the model 'nope'; this peer serves echo", skills=(other,), models=(echo,)
        )
        hr = tuple(f"{i:064}" for i in range(15))
        long = tuple(replace(echo, name=f"m{i}", zones=hr) for i in range(9))
        await refused(ConfigError, "others cannot be told", models=long)
        await refused(ConfigError, "models.zones of 'echo'", models=(replace(echo, zones=("h r",)),))
        await refused(ConfigError, "net.join", net=Net(join=("nowhere",)))
        outside = "/ip4/192.0.2.1/tcp/0"
        for net in (Net(listen=(outside,)), Net(announce=(outside,))):
            await refused(ConfigError, "not on this machine alone", net=net)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            where = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
            await refused(ListenError, "cannot listen on", net=Net(listen=(where,)))
        state = str(tmp_path / "s")
        async with open_peer(Config(state=state, embedder="hash", models=(echo,))) as peer:
            await refused(StateLocked, "another peer uses")
            with pytest.raises(ConfigError, match="not on this machine alone"):
                peer.join("/ip4/192.0.2.1/tcp/1")
            assert (await peer.ask("x")).text == "echo: x"
            again = peer.id
        async with open_peer(Config(state=state, embedder="none", http=Http(bind=""))) as peer:
            assert peer.id == again, "the key is kept"


async def test_without_an_embedder_there_is_still_an_answer():
    async with cluster(replace(server(), embedder="none")) as (peer,):
        assert peer.status()["embedding_space"] == ""
        assert (await peer.ask("x")).text == "echo: x"
        assert (await peer.explain("x")).kind.value == "serve"


async def test_explain_tells_of_an_embedder_that_fails():
    async with cluster(server(limits=Limits())) as (peer,):
        with pytest.raises(EngineError, match="the embedder failed"):
            await peer.explain("\ud800")


async def test_a_system_prompt_is_the_serving_peers_and_only_where_there_is_none():
    prompted = ModelConfig(model="echo", engine="echo", tokens_per_s=1_000.0, system_prompt="a b c")
    async with cluster(ASKER, server(models=(prompted,))) as (asker, _):
        assert (await asker.ask("x")).usage.prompt_tokens == 4
        own = [Message("system", "one"), Message("user", "x")]
        assert (await asker.ask(own)).usage.prompt_tokens == 2
    assert DEFAULT_SYSTEM_PROMPT
