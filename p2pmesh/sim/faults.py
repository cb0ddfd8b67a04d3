"""What goes wrong, when: a schedule of everything that can, drawn from one seed.

Peers crash, loudly or in silence, and come back with or without their memory; they are stopped and go on,
slow down, leave and join; the mesh is cut, one way or both, and single links get bad. It acts on a world
through its public verbs alone, and can undo all that can be undone.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from p2pmesh.record import PeerId
from p2pmesh.sim.world import Spec, World

_LIVING_MIN = 3
"""So many peers are left to answer."""
_SLOWED = (0.1, 0.5)
"""Speeds of a slowed model, of what it says."""


class Faults:
    """Draws one fault at a time, and can undo them all."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._crashed: dict[PeerId, tuple[Spec, int]] = {}
        self._paused: list[PeerId] = []
        self._slowed: list[PeerId] = []
        self._left = 0
        self._count = len(world.nodes)

    def strike(self) -> str:
        """Do one thing that goes wrong, or comes right. Returns what, for people."""
        verbs: tuple[Callable[[], str], ...] = (
            self._crash,
            self._restart,
            self._pause,
            self._resume,
            self._cut,
            self._heal,
            self._slow,
            self._worsen,
            self._leave,
            self._join,
        )
        return self._rng.choice(verbs)()

    def settle(self) -> None:
        """End every fault: what is left must now come right by itself."""
        self._heal()
        self._world.wire.calm()
        while self._paused:
            self._resume()
        while self._crashed:
            self._restart()
        for ident in self._slowed:
            if ident in self._world.nodes:
                self._world.slow(ident, 1.0)
        self._slowed.clear()
        # Whoever was told of one who left before they met knows nobody, and must be told of another.
        for ident in self._world.awake():
            if not self._world.nodes[ident].machine.membership.members:
                others = [peer for peer in self._world.awake() if peer != ident]
                self._world.introduce(ident, self._rng.choice(others))

    def _crash(self) -> str:
        running = self._world.awake()
        if len(running) <= _LIVING_MIN:
            return "nothing"
        ident, silent = self._rng.choice(running), self._rng.random() < 0.3
        node = self._world.nodes[ident]
        self._crashed[ident] = (node.spec, node.epoch)
        self._world.crash(ident, silent)
        return f"{ident} crashes{' in silence' if silent else ''}"

    def _restart(self) -> str:
        running = self._world.awake()
        if not self._crashed or not running:
            return "nothing"
        ident = self._rng.choice(sorted(self._crashed))
        spec, epoch = self._crashed.pop(ident)
        forgetful = self._rng.random() < 0.3
        self._world.restart(ident, spec, self._rng.choice(running), 1 if forgetful else epoch + 1)
        return f"{ident} restarts{' without its memory' if forgetful else ''}"

    def _pause(self) -> str:
        running = self._world.awake()
        if len(running) <= _LIVING_MIN:
            return "nothing"
        ident = self._rng.choice(running)
        self._paused.append(ident)
        self._world.pause(ident)
        return f"{ident} is stopped"

    def _resume(self) -> str:
        if not self._paused:
            return "nothing"
        ident = self._paused.pop(0)
        self._world.resume(ident)
        return f"{ident} goes on"

    def _cut(self) -> str:
        half = {i for i in sorted(self._world.nodes) if self._rng.random() < 0.5}
        one_way = self._rng.random() < 0.3
        self._world.partition(
            lambda a, b: (a in half and b not in half) or (not one_way and b in half and a not in half)
        )
        return f"{sorted(half)} {'cannot be heard by' if one_way else 'is cut from'} the others"

    def _heal(self) -> str:
        self._world.heal()
        return "the cut heals"

    def _slow(self) -> str:
        ident, speed = self._rng.choice(sorted(self._world.nodes)), self._rng.uniform(*_SLOWED)
        self._slowed.append(ident)
        self._world.slow(ident, speed)
        return f"{ident} falls to {speed:.0%} of its speed"

    def _worsen(self) -> str:
        a, b = self._rng.sample(sorted(self._world.nodes), 2)
        loss, late = self._rng.uniform(0.1, 0.6), self._rng.uniform(0.0, 0.3)
        self._world.wire.worsen(a, b, loss=loss, latency_s=(late / 2, late))
        return f"{a} is heard by {b} {late:.2f} s late, less {loss:.0%}"

    def _leave(self) -> str:
        running = self._world.awake()
        if len(running) <= _LIVING_MIN or self._left >= self._count // 4:
            return "nothing"
        self._left += 1
        ident = self._rng.choice(running)
        self._world.leave(ident)
        return f"{ident} leaves"

    def _join(self) -> str:
        running = self._world.awake()
        if not running or len(self._world.nodes) >= self._count:
            return "nothing"
        spec = self._world.nodes[running[0]].spec
        contact = self._rng.choice(running)
        ident = self._world.add(spec)
        self._world.introduce(ident, contact)
        return f"{ident} joins by {contact}"
