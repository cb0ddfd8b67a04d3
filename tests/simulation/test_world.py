"""Whole meshes in virtual time: seeds and faults, and what must come right by itself afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from p2pmesh.config import Config, Net
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.record import PeerId
from p2pmesh.sim.__main__ import story
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.report import report
from p2pmesh.sim.world import Spec, World

SOAK = int(os.environ.get("P2PMESH_SOAK", "0"))
"""How many heavy seeds to run: `make soak` sets it."""


def mesh(count: int, *, seed: int = 1, **more: object) -> World:
    """`count` general peers that have met."""
    world = World(seed, [Spec() for _ in range(count)], **more)  # type: ignore[arg-type]
    world.run(8.0)
    return world


def answered(asking: Asking) -> bool:
    return asking.ended is not None


def whole(world: World) -> None:
    """Everybody knows everybody who lives, and nobody else."""
    result = report(world, world.now)
    assert (result.view_share, result.ghosts) == (1.0, 0)


# -- seeds and faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_after_any_faults_every_query_has_ended_and_the_views_converge(seed: int) -> None:
    world, result, _ = story(
        seed, peers=4 + seed % 6, seconds=12.0, rate=2.0, loss=(0.0, 0.02, 0.1)[seed % 3], fault_s=1.5
    )
    assert result.asked == result.served + sum(result.failed.values()) + unended(world)
    assert (result.view_share, result.ghosts) == (1.0, 0)


def unended(world: World) -> int:
    """Queries whose own peer died before they ended."""
    return sum(1 for a in world.judge.askings.values() if a.over_at is None)


@pytest.mark.parametrize("seed", range(4))
def test_in_peace_every_query_is_served(seed: int) -> None:
    _, result, _ = story(seed, peers=6, seconds=10.0, rate=2.0, loss=0.0, fault_s=0.0)
    assert result.served == result.asked > 5
    assert result.failed == {}


@pytest.mark.skipif(not SOAK, reason="P2PMESH_SOAK sets how many seeds")
@pytest.mark.parametrize("seed", range(max(1, SOAK)))
def test_soak(seed: int) -> None:
    _, result, told = story(
        10_000 + seed,
        peers=6 + seed % 20,
        seconds=60.0,
        rate=4.0,
        loss=(0.0, 0.02, 0.2)[seed % 3],
        fault_s=(0.7, 2.0, 5.0)[seed % 3],
    )
    assert (result.view_share, result.ghosts) == (1.0, 0), told


# -- determinism ----------------------------------------------------------------------------------------


def trace(seed: int, hash_seed: str) -> str:
    code = f"from p2pmesh.sim.__main__ import story; print(story({seed}, 5, 6.0, 2.0, 0.05, 1.0)[1].trace)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_the_same_seed_tells_the_same_story_whatever_the_hash_seed() -> None:
    traces = [trace(7, hash_seed) for hash_seed in ("0", "1", "42")]
    assert traces[0] == traces[1] == traces[2]
    assert trace(8, "0") != traces[0]


# -- topologies -----------------------------------------------------------------------------------------


def line(count: int, last: Spec) -> World:
    """A row of peers without a model, each linked to the next alone, and `last` at the end."""
    specs = [Spec(model="") for _ in range(count - 1)] + [last]
    links = [(i, i + 1) for i in range(count - 1)]
    return World(3, specs, config=Config(net=Net(dial_discovered=False)), links=links)


def test_along_a_line_a_query_goes_hop_by_hop_and_its_answer_comes_back() -> None:
    world = line(4, Spec())
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=12)
    world.run(10.0)
    assert answered(asking)
    assert [hop.peer for hop in asking.path] == [world.peer(i) for i in range(4)]
    assert len(asking.chunks) == 12
    assert all(len(n.machine.membership.links) <= 2 for n in world.nodes.values())


def test_a_broken_line_is_noticed_all_the_way() -> None:
    world = line(4, Spec())
    world.run(8.0)
    world.crash(world.peer(2))
    world.run(20.0)
    asking = world.ask(world.peer(0))
    world.run(5.0)
    assert asking.failed is Reason.NO_ROUTE
    assert world.nodes[world.peer(0)].machine.membership.route(world.peer(3)) is None


def test_cancelling_at_one_end_of_a_line_frees_the_slot_at_the_other() -> None:
    world = line(4, Spec())
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=500)
    world.run(2.0)
    assert world.nodes[world.peer(3)].runs
    world.cancel(asking)
    world.run(0.1)
    assert not world.nodes[world.peer(3)].runs
    assert not any(node.machine.relay.flights for node in world.nodes.values())


# -- losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [False, True], ids=["killed", "powered off"])
@pytest.mark.parametrize("victim", range(3))
def test_of_three_any_one_may_die_and_the_others_answer_the_next_query(victim: int, silent: bool) -> None:
    world = mesh(3)
    world.crash(world.peer(victim), silent)
    askings = [world.ask(ident) for ident in world.awake()]
    world.run(30.0)
    assert all(map(answered, askings))
    whole(world)


@pytest.mark.parametrize("silent", [False, True], ids=["killed", "powered off"])
def test_who_dies_before_the_first_token_is_replaced_in_time(silent: bool) -> None:
    world = World(2, [Spec(model=""), Spec(), Spec()])
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=50)
    while asking.served_by is None:
        world.run(0.001)
    assert not asking.chunks
    first = asking.served_by
    world.crash(first, silent)
    world.run(20.0)
    assert answered(asking)
    assert asking.served_by not in (None, first)
    assert asking.ended is not None
    assert asking.ended.usage.completion_tokens == len(asking.chunks) == 50


@pytest.mark.parametrize("silent", [False, True], ids=["killed", "powered off"])
def test_who_dies_amid_the_answer_is_replaced_and_nothing_is_missing(silent: bool) -> None:
    world = World(2, [Spec(model=""), Spec(), Spec()])
    world.run(8.0)
    asking = world.ask(world.peer(0), tokens=200)
    world.run(1.0)
    assert 0 < len(asking.chunks) < 200
    assert asking.served_by is not None
    world.crash(asking.served_by, silent)
    world.run(20.0)
    assert answered(asking)  # the judge has counted the pieces
    assert {chunk.attempt for chunk in asking.chunks} == {0, 1}


def test_a_stopped_peer_is_passed_over_and_taken_back_when_it_goes_on() -> None:
    world = mesh(3)
    stopped = world.peer(1)
    world.pause(stopped)
    world.run(10.0)
    asking = world.ask(world.peer(0))
    world.run(10.0)
    assert answered(asking)
    assert not world.nodes[world.peer(0)].machine.membership.is_alive(stopped)
    world.resume(stopped)
    world.run(60.0)
    whole(world)


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_leaves_two_meshes_that_work_and_heals_into_one(seed: int) -> None:
    world = mesh(6, seed=seed)
    half = {world.peer(i) for i in range(3)}
    world.partition(lambda a, b: (a in half) != (b in half))
    world.run(30.0)
    askings = [world.ask(ident) for ident in world.awake()]
    world.run(20.0)
    assert all(map(answered, askings))
    assert all((a.served_by in half) == (a.query.origin in half) for a in askings)
    world.heal()
    world.run(60.0)
    whole(world)


@pytest.mark.parametrize("how", ["leave", "crash", "silence"])
def test_the_departed_do_not_come_back(how: str) -> None:
    world = mesh(5)
    gone = world.peer(2)
    if how == "leave":
        world.leave(gone)
    else:
        world.crash(gone, how == "silence")
    world.run(20.0)
    whole(world)
    late = world.add(Spec())
    world.introduce(late, world.peer(0))
    world.run(60.0)
    whole(world)


def test_who_leaves_is_known_to_have_left_at_once() -> None:
    world = mesh(3)
    world.leave(world.peer(2))
    world.run(0.5)
    statuses = [world.nodes[world.peer(i)].machine.membership.members[world.peer(2)].status for i in (0, 1)]
    assert [s.name for s in statuses] == ["LEFT", "LEFT"]


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("pause_s", [0.1, 2.0, 40.0])
def test_a_peer_that_comes_back_with_a_lower_epoch_is_accepted_again(silent: bool, pause_s: float) -> None:
    world = mesh(4)
    back = world.peer(1)
    world.crash(back)
    world.restart(back, Spec(), world.peer(0), epoch=9)
    world.run(10.0)
    world.crash(back, silent)
    world.run(pause_s)
    world.restart(back, Spec(topics=(3,)), world.peer(2), epoch=1)
    world.run(40.0)
    whole(world)
    own = world.nodes[back].machine.gossip.me.record
    held = [world.nodes[i].machine.gossip.records[back].record for i in world.awake() if i != back]
    assert [r.version for r in held] == [own.version] * 3
    assert all(r.capability.skills[0].name == "topic 3" for r in held)


# -- the harness itself ---------------------------------------------------------------------------------


def test_a_peer_restarted_at_once_has_lost_its_old_links() -> None:
    world = mesh(4)
    world.crash(world.peer(0))
    world.restart(world.peer(0), Spec(), world.peer(2))
    world.leave(world.peer(2))  # the only one it was told of
    world.run(60.0)
    whole(world)


def test_a_new_peer_never_takes_the_name_of_another() -> None:
    world = mesh(3)
    world.crash(world.peer(0))
    assert world.add(Spec()) == PeerId("p3")


def test_what_was_sent_before_a_link_ends_is_heard_before_its_end() -> None:
    world = mesh(2)
    heard: list[str] = []
    machine = world.nodes[world.peer(1)].machine
    handle = machine.handle

    def listen(event: e.Event, now: float) -> list[e.Effect]:
        heard.append(type(getattr(event, "message", event)).__name__)
        return handle(event, now)

    machine.handle = listen  # type: ignore[method-assign]
    world.leave(world.peer(0))
    world.run(0.1)
    assert heard.index("Leave") < heard.index("Disconnected")
