"""Figures of a run for the owner's eyes: ``metrics.jsonl`` with a line per step, the progress line, and what training cost."""

from __future__ import annotations

import json
import math
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from common.files import storage_errors
from common.progress import ProgressSink
from owner_client.training.distributed import World

__all__ = ["Cost", "Metrics", "StepFigures"]

_REPORT_SECONDS = 0.2  # between progress reports
_SMOOTHING = 0.95  # of the shown loss
_SPEED_SHARE = 0.1  # weight of the newest step in the shown speed


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one step measured."""

    step: int
    """Finished steps, this one included."""
    loss: float
    """Nats per scored token, auxiliary losses included."""
    grad_norm: float
    """Before clipping."""
    lr: float
    seconds: float
    wait_seconds: float
    """Of ``seconds``, spent waiting for the batch."""
    heldout: dict[str, float]
    """Held-out losses by text, when they were measured after this step; the measuring itself is not in ``seconds``."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the steps of this call cost."""

    tokens_per_s: float
    """Over all processes."""
    mfu: float
    """Model FLOPs utilisation: needed matrix-product FLOPs per second, as a share of the device's peak."""
    wait_share: float
    """Share of the time that was spent waiting for data."""
    peak_memory_bytes: int
    """Of the device on CUDA, of the process elsewhere; the largest of all processes."""
    steps: int


class Metrics:
    """The metrics file of a run; only the first process writes it and reports progress.

    Args:
        path: the file; lines after the first ``step`` are from a run that was killed, and are dropped.
        step: finished steps.
        total: steps of the whole run.
        step_tokens: tokens in one step.
        flops_per_token: needed for training.
        peak_flops: per second, of all processes' devices together.
        world: the run's processes.
        progress: hears of every few steps.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: int,
        total: int,
        step_tokens: int,
        flops_per_token: float,
        peak_flops: float,
        world: World,
        progress: ProgressSink,
    ) -> None:
        self._path = path
        self._first = step
        self._total = total
        self._step_tokens = step_tokens
        self._flops_share = flops_per_token / peak_flops
        self._world = world
        self._progress = progress
        self._stream: IO[str] | None = None
        self._loss = math.nan
        self._pace = math.nan
        self._shown = -math.inf
        self._done, self._seconds, self._waited = 0, 0.0, 0.0

    def __enter__(self) -> Metrics:
        if self._world.first:
            with storage_errors("the metrics"):
                lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
                self._stream = self._path.open("w", encoding="utf-8")
                self._stream.writelines(lines[: self._first])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            with storage_errors("the metrics"):
                self._stream.close()

    def flush(self) -> None:
        """Hand the lines so far to the operating system, before a checkpoint that counts on them."""
        if self._stream is not None:
            with storage_errors("the metrics"):
                self._stream.flush()

    def record(self, figures: StepFigures) -> None:
        """Write and show one step."""
        self._done += 1
        self._seconds += figures.seconds
        self._waited += figures.wait_seconds
        self._loss = _smooth(self._loss, figures.loss, _SMOOTHING)
        self._pace = _smooth(self._pace, figures.seconds, 1 - _SPEED_SHARE)
        if self._stream is None:
            return
        speed = self._step_tokens / max(figures.seconds, 1e-9)
        line = {
            "step": figures.step,
            "loss": figures.loss,
            "grad_norm": figures.grad_norm,
            "lr": figures.lr,
            "tokens_per_s": round(speed),
            "mfu": round(speed * self._flops_share, 4),
            "step_ms": round(1000 * figures.seconds, 2),
            "wait_ms": round(1000 * figures.wait_seconds, 3),
            **{f"heldout_{text}": loss for text, loss in figures.heldout.items()},
        }
        with storage_errors("the metrics"):
            self._stream.write(json.dumps(line) + "\n")
        self._show(figures)

    def _show(self, figures: StepFigures) -> None:
        now = time.monotonic()
        if now - self._shown < _REPORT_SECONDS and figures.step != self._total:
            return
        self._shown = now
        speed = self._step_tokens / max(self._pace, 1e-9)
        shown = {"loss": f"{self._loss:.3f}", "tok/s": f"{speed / 1000:.1f}k", "MFU": f"{100 * speed * self._flops_share:.0f}%"}
        self._progress("Training", figures.step, self._total, "steps", shown)

    def cost(self) -> Cost | None:
        """What was measured so far, the same on every process; None before any step."""
        [memory] = self._world.largest([float(_peak_memory(self._world.device))])
        if not self._done:
            return None
        speed = self._done * self._step_tokens / max(self._seconds, 1e-9)
        return Cost(speed, speed * self._flops_share, self._waited / max(self._seconds, 1e-9), int(memory), self._done)

    def write_cost(self, path: Path) -> None:
        """Keep the figures of the call that trained last, for the owner's eyes."""
        cost = self.cost()
        if cost is not None and self._world.first:
            with storage_errors("the metrics"):
                path.write_text(json.dumps(asdict(cost), indent=2) + "\n", encoding="utf-8")


def _smooth(old: float, new: float, keep: float) -> float:
    return new if math.isnan(old) else keep * old + (1 - keep) * new


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
