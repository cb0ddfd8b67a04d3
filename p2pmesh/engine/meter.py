"""How an engine does: counts and moving averages of its real work.

Pure: it is handed tokens and seconds. It knows nothing of jobs and models.
"""

from __future__ import annotations

from p2pmesh.engine.base import Metrics
from p2pmesh.engine.calibrate import Ewma, Speed

_JOBS_REMEMBERED = 16.0
"""Answers after which an older one weighs less than 1/e in the time to the first token. A guess."""


class Meter:
    """The figures of one engine, from its calibration on."""

    def __init__(self, speed: Speed) -> None:
        self._read = Ewma(speed.prefill_tps)
        self._read_cpu = Ewma(speed.prefill_tps)
        self._wrote = Ewma(speed.decode_tps)
        self._wrote_cpu = Ewma(speed.decode_tps)
        self._ttft_s = self._gap_s = 0.0
        self._answers = self._gaps = 0.0
        self.prompt_tokens = self.reused_tokens = self.answer_tokens = 0

    def stepped(self, read: int, wrote: int, wall_s: float, cpu_s: float) -> None:
        """A step read so many tokens of prompts and wrote so many of answers. Where it did both, nobody can
        say what took how long, and no speed is learnt."""
        self.prompt_tokens += read
        self.answer_tokens += wrote
        if not wrote:
            self._read.add(read, wall_s)
            self._read_cpu.add(read, cpu_s)
        elif not read:
            self._wrote.add(wrote, wall_s)
            self._wrote_cpu.add(wrote, cpu_s)
        if wrote:
            self._gaps = min(self._gaps + 1, 8 * _JOBS_REMEMBERED)
            self._gap_s += (wall_s - self._gap_s) / self._gaps

    def began(self, waited_s: float) -> None:
        """An answer got its first token, so long after it was asked for."""
        self._answers = min(self._answers + 1, _JOBS_REMEMBERED)
        self._ttft_s += (waited_s - self._ttft_s) / self._answers

    def metrics(self, waiting: int, running: int) -> Metrics:
        """Return the figures as they are."""
        return Metrics(
            waiting=waiting,
            running=running,
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            answer_tokens=self.answer_tokens,
            prefill_tps=self._read.tokens_per_s,
            prefill_cpu_tps=self._read_cpu.tokens_per_s,
            decode_tps=self._wrote.tokens_per_s,
            decode_cpu_tps=self._wrote_cpu.tokens_per_s,
            ttft_s=self._ttft_s,
            gap_s=self._gap_s,
        )
