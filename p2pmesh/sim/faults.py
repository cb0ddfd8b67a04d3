"""What goes wrong, when: a schedule of crashes, restarts, pauses and cuts, drawn from one seed.

It acts on a world through its public verbs alone.
"""

from __future__ import annotations

from random import Random

from p2pmesh.record import PeerId
from p2pmesh.sim.world import Spec, World


class Faults:
    """Draws one fault at a time, and can undo them all."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._crashed: dict[PeerId, tuple[Spec, int]] = {}
        self._paused: list[PeerId] = []

    def strike(self) -> str:
        """Do one thing that goes wrong, or comes right. Returns what, for people."""
        verbs = (self._crash, self._restart, self._pause, self._resume, self._cut, self._heal)
        return self._rng.choice(verbs)()

    def settle(self) -> None:
        """End every fault: what is left must now come right by itself."""
        self._heal()
        while self._paused:
            self._resume()
        while self._crashed:
            self._restart()

    def _crash(self) -> str:
        running = self._world.awake()
        if len(running) < 3:
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
        self._world.restart(ident, spec, self._rng.choice(running), epoch + 1)
        return f"{ident} restarts"

    def _pause(self) -> str:
        running = self._world.awake()
        if len(running) < 3:
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
