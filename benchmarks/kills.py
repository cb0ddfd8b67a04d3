"""kill -9 to an engine's child, again and again, at any moment: does anything hang, or stay behind?

`python -m benchmarks.kills --json`. Each run sends jobs to an engine and kills its child while it loads,
reads a prompt, writes, or rests; the moment within that is drawn. Then every job must have ended exactly once
and the engine must come back (`back_s`: from the kill to ready again). At the end no process of ours may be
left, and no file may be open that was not before.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
from collections import Counter
from pathlib import Path
from random import Random

import click
import trio

from p2pmesh import config
from p2pmesh.engine import base, catalog
from p2pmesh.peer.engines import EngineDown, EngineHandle, EngineUp, open_engine
from p2pmesh.query import Message, Options

HANG_S = 60.0
"""Seconds after which something that should have happened counts as a hang."""
STAGES = ("loading", "prefill", "decode", "idle")
_LONG = "Tell me about " + ", ".join(f"the number {i}" for i in range(150))


class Patient:
    """The engine, and how its jobs ended."""

    def __init__(self) -> None:
        self.handle: EngineHandle
        self.ends: Counter[str] = Counter()
        self.begun: set[str] = set()
        self._news = trio.Event()

    def on_event(self, _: EngineHandle, event: base.Event | EngineUp | EngineDown) -> None:
        """Take what the engine says."""
        if isinstance(event, base.Finished | base.Failed):
            self.ends[event.job] += 1
        elif isinstance(event, base.Generated):
            self.begun.add(event.job)
        self._news.set()
        self._news = trio.Event()

    async def until_begun(self, job: str) -> None:
        """Wait for a job's first token, or its end."""
        while job not in self.begun and not self.ends[job]:
            await self._news.wait()

    async def until_ended(self, jobs: list[str]) -> None:
        """Wait for the end of each."""
        while not all(self.ends[job] for job in jobs):
            await self._news.wait()


async def one_kill(patient: Patient, number: int, stage: str, random: Random) -> float:
    """Kill the child once. Returns the seconds until it was ready again. Raises TooSlowError for a hang."""
    handle = patient.handle
    jobs = [f"{number}/{i}" for i in range(3)]
    with trio.fail_after(HANG_S):
        if stage != "idle":
            for job in jobs:
                text = f"{number} {_LONG}" if stage == "prefill" else f"{number} Write a long story."
                handle.generate(job, (Message("user", text),), Options(max_tokens=200))
        if stage == "decode":
            await patient.until_begun(jobs[0])
        await trio.sleep(random.uniform(0.0, 0.3))
        if stage == "loading":
            _kill(handle)
            while handle.state == "ready" or handle.pid is None:  # noqa: ASYNC110  # a pid is no event
                await trio.sleep(0.005)
            await trio.sleep(random.uniform(0.0, 0.5))
        killed = trio.current_time()
        _kill(handle)
        if stage != "idle":
            await patient.until_ended(jobs)
        while handle.state == "ready":  # noqa: ASYNC110  # nor is a state
            await trio.sleep(0.005)
        await handle.wait_ready()
        return trio.current_time() - killed


def _kill(handle: EngineHandle) -> None:
    if handle.pid is not None:
        os.kill(handle.pid, signal.SIGKILL)


async def measure(load: base.Load, runs: int, seed: int) -> dict[str, object]:
    """Do all the runs."""
    random, patient = Random(seed), Patient()
    files, children = len(os.listdir("/proc/self/fd")), _children()
    back: dict[str, list[float]] = {stage: [] for stage in STAGES}
    hangs = 0
    settings = config.Engine(restart_min_s=0.05, restart_max_s=0.5)
    async with open_engine(load, settings, patient.on_event) as patient.handle:
        await patient.handle.wait_ready()
        for number in range(runs):
            stage = STAGES[number % len(STAGES)]
            try:
                back[stage].append(await one_kill(patient, number, stage, random))
            except trio.TooSlowError:
                hangs += 1
    return {
        "runs": runs,
        "hangs": hangs,
        "jobs": sum(patient.ends.values()),
        "ended_twice": sum(count - 1 for count in patient.ends.values()),
        "leaked_processes": len(_children() - children),
        "leaked_files": len(os.listdir("/proc/self/fd")) - files,
        "back_s_median": statistics.median(s for times in back.values() for s in times),
        "back_s_max": max(s for times in back.values() for s in times),
        "back_s_by_stage": {stage: round(statistics.median(t), 3) for stage, t in back.items() if t},
    }


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@click.command()
@click.option("--model", default=catalog.DEFAULT, show_default=True, help="A model, by name or by path.")
@click.option("--runs", default=200, show_default=True, type=click.IntRange(len(STAGES)))
@click.option("--seed", default=1, show_default=True, help="Draws the moments.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(model: str, runs: int, seed: int, as_json: bool) -> None:
    """Kill an engine's child at random moments."""
    load = base.Load(path=str(catalog.find(model)), slots=4, context_tokens=2_048)
    result = trio.run(measure, load, runs, seed)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:18} {value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
