"""A mesh in the hands of Hypothesis: ask, wait, crash, restart, stop, go on, slow, cut, heal, leave, join."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from p2pmesh.record import PeerId
from p2pmesh.sim.judge import Asking
from p2pmesh.sim.report import report
from p2pmesh.sim.world import Spec, World

picks = st.integers(0, 99)


class Mesh(RuleBasedStateMachine):
    """The judge watches every event; at the end all faults stop and everything must come right."""

    @initialize(
        seed=st.integers(0, 1_000),
        count=st.integers(3, 6),
        loss=st.sampled_from([0.0, 0.05]),
        twice=st.sampled_from([0.0, 0.05]),
    )
    def begin(self, seed: int, count: int, loss: float, twice: float) -> None:
        specs = [Spec((i,) if i % 2 else ()) for i in range(count)]
        self.world = World(seed, specs, loss=loss, duplicate=twice, reorder=twice)
        self.crashed: dict[PeerId, tuple[Spec, int]] = {}
        self.paused: list[PeerId] = []
        self.askings: list[Asking] = []
        self.world.run(3.0)

    def pick(self, number: int) -> PeerId:
        awake = self.world.awake()
        return awake[number % len(awake)]

    def can_lose_one(self) -> bool:
        return len(self.world.awake()) >= 3

    @rule(number=picks, topic=st.none() | st.integers(0, 5), tokens=st.integers(1, 40))
    def ask(self, number: int, topic: int | None, tokens: int) -> None:
        self.askings.append(self.world.ask(self.pick(number), topic, tokens=tokens, budget_s=15.0))

    @rule(number=picks)
    @precondition(lambda self: self.askings)
    def cancel(self, number: int) -> None:
        asking = self.askings.pop(number % len(self.askings))
        if asking.over_at is None and asking.query.origin in self.world.awake():
            self.world.cancel(asking)

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(number=picks, silent=st.booleans())
    @precondition(can_lose_one)
    def crash(self, number: int, silent: bool) -> None:
        ident = self.pick(number)
        node = self.world.nodes[ident]
        self.crashed[ident] = (node.spec, node.epoch)
        self.world.crash(ident, silent)

    @rule(number=picks, forgetful=st.booleans())
    @precondition(lambda self: self.crashed)
    def restart(self, number: int, forgetful: bool) -> None:
        ident = sorted(self.crashed)[number % len(self.crashed)]
        spec, epoch = self.crashed.pop(ident)
        self.world.restart(ident, spec, self.pick(number), 1 if forgetful else epoch + 1)

    @rule(number=picks)
    @precondition(can_lose_one)
    def leave(self, number: int) -> None:
        self.world.leave(self.pick(number))

    @rule(number=picks)
    @precondition(can_lose_one)
    def pause(self, number: int) -> None:
        self.paused.append(self.pick(number))
        self.world.pause(self.paused[-1])

    @rule()
    @precondition(lambda self: self.paused)
    def resume(self) -> None:
        self.world.resume(self.paused.pop(0))

    @rule(number=picks, speed=st.sampled_from([0.05, 0.5, 1.0]))
    def slow(self, number: int, speed: float) -> None:
        self.world.slow(self.pick(number), speed)

    @rule(number=picks, other=picks, loss=st.sampled_from([0.1, 0.9]), late=st.sampled_from([0.0, 0.4]))
    def worsen(self, number: int, other: int, loss: float, late: float) -> None:
        self.world.wire.worsen(self.pick(number), self.pick(other), loss=loss, latency_s=(late / 2, late))

    @rule(number=picks)
    @precondition(lambda self: len(self.world.nodes) < 8)
    def join(self, number: int) -> None:
        contact = self.pick(number)
        self.world.introduce(self.world.add(Spec()), contact)

    @rule(halves=st.integers(1, 62), one_way=st.booleans())
    def cut(self, halves: int, one_way: bool) -> None:
        def side(peer: PeerId) -> int:
            return halves >> (int(peer[1:]) % 6) & 1

        self.world.partition(lambda a, b: side(a) > side(b) if one_way else side(a) != side(b))

    @rule()
    def heal(self) -> None:
        self.world.heal()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.heal()
        self.world.wire.calm()
        while self.paused:
            self.resume()
        while self.crashed:
            self.restart(0, False)
        # Whoever was told of one who left before they met knows nobody, and must be told of another.
        first, *others = self.world.awake()
        for other in others:
            self.world.introduce(other, first)
        self.world.run(90.0)
        for ident in self.world.awake():
            self.world.slow(ident, 1.0)
        self.world.run(30.0)
        self.world.judge.over(self.world.nodes, self.world.now)
        result = report(self.world, self.world.now)
        assert (result.view_share, result.ghosts) == (1.0, 0)


TestMesh = Mesh.TestCase
TestMesh.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a shrink of whole worlds takes minutes
)
