"""How an engine does: counts and moving averages of its real work.

Pure: it is handed tokens and seconds. It knows nothing of jobs and models.
"""

from __future__ import annotations

from p2pmesh.engine.base import Metrics
from p2pmesh.engine.calibrate import Ewma, Speed

READ_TOKENS_MIN = 16
"""Fewest tokens read in a step that teach how fast prompts are read: fewer are read as slowly as they are
written."""
_STEPS_REMEMBERED = 8.0
"""Steps after which an older one weighs less than 1/e in how long they take. A guess."""
UNSEEN_GAP_S = 0.06
"""Seconds between two tokens that nobody minds: 16 tokens a second are more than people read. A guess."""
_BESIDE_REMEMBERED = 64.0
"""Tokens of a prompt read beside others after which an older one weighs less than 1/e in how fast that goes:
it slows as the prompt grows, and the pieces must follow. A guess."""
_JOBS_REMEMBERED = 16.0
"""Answers after which an older one weighs less than 1/e in the time to the first token. A guess."""


class Meter:
    """The figures of one engine, from its calibration on."""

    def __init__(self, speed: Speed) -> None:
        self._read = Ewma(speed.prefill_tps)
        self._read_cpu = Ewma(speed.prefill_tps)
        self._wrote = Ewma(speed.decode_tps)
        self._wrote_cpu = Ewma(speed.decode_tps)
        self._beside = Ewma(speed.prefill_tps, memory_tokens=_BESIDE_REMEMBERED)
        """How fast a prompt is read beside what is written: in pieces so small, slower than alone."""
        self._step_s = 1.0 / speed.decode_tps
        """Seconds of a step that only writes, a moving average."""
        self._ttft_s = self._gap_s = 0.0
        self._answers = self._gaps = 0.0
        self.prompt_tokens = self.reused_tokens = self.answer_tokens = 0

    def stepped(self, read: int, wrote: int, wall_s: float, cpu_s: float) -> None:
        """A step read so many tokens of prompts and wrote so many of answers. Where it did both, what it took
        beyond a step that only writes is what the reading cost, and teaches no other speed."""
        self.prompt_tokens += read
        self.answer_tokens += wrote
        if not wrote and read < READ_TOKENS_MIN:
            return
        if not wrote:
            self._read.add(read, wall_s)
            self._read_cpu.add(read, cpu_s)
        elif not read:
            self._wrote.add(wrote, wall_s)
            self._wrote_cpu.add(wrote, cpu_s)
            self._step_s += (wall_s - self._step_s) / _STEPS_REMEMBERED
        else:
            self._beside.add(read, wall_s - self._step_s)
        if wrote:
            self._gaps = min(self._gaps + 1, 8 * _JOBS_REMEMBERED)
            self._gap_s += (wall_s - self._gap_s) / self._gaps

    def tokens_beside(self, share: float) -> int:
        """Return how many tokens of a prompt are read in `share` of the time of a step that only writes; of a
        quick step in more, as long as the gap it makes is none that is seen."""
        return round(max(share * self._step_s, UNSEEN_GAP_S - self._step_s) * self._beside.tokens_per_s)

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
