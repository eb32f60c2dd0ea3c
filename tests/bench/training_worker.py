"""One training step in a process of its own, so that each has its own memory: a line in is a step, the seconds come out."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import torch

from common.console import emit
from tests.bench.training import CONFIG, STEPS, timed

__all__ = ["Worker"]

BATCH, SEQ_LEN = 4, 512
_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that makes one step of ``STEPS[name]`` at a time."""

    def __init__(self, name: str, dtype: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.training_worker", name, dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT, env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )  # fmt: skip
        self.step()
        self.step()

    def _ask(self, what: str) -> float:
        if self._process.stdin is None or self._process.stdout is None:
            raise ChildProcessError("The worker has no pipes.")
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def step(self) -> float:
        """Seconds of one step of ``BATCH x SEQ_LEN`` tokens."""
        return self._ask("step")

    def close(self) -> float:
        """End the process; returns its largest resident size in MB."""
        peak = self._ask("peak")
        self._process.communicate()
        return peak


def main() -> None:
    """Serve steps until the input ends."""
    step = STEPS[sys.argv[1]](getattr(torch, sys.argv[2]))
    tokens = torch.randint(0, CONFIG.vocab_size, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    for line in sys.stdin:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        emit(str(peak if line.strip() == "peak" else timed(step, tokens)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
