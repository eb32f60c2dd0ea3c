"""The training loop of one expert pair: AdamW over the expert and its rows alone, checkpoints, resumption bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from common.errors import DataError, InterruptedByUserError, NonFiniteError, VerificationError
from common.files import storage_errors
from common.modeling.model import CausalLM
from common.progress import ProgressSink
from owner_client.data.mixing import MixedSequences
from owner_client.training.checkpoints import latest, load_checkpoint, save_checkpoint
from owner_client.training.settings import TrainSettings
from owner_client.training.stopping import StopRequest, stop_requests

__all__ = ["Trainer", "frozen_digest"]

_CHECKPOINTS = "checkpoints"
_METRICS = "metrics.jsonl"
_REPORT_SECONDS = 0.2  # between progress reports
_SMOOTHING = 0.95  # of the shown loss


def frozen_digest(model: CausalLM) -> str:
    """sha256 in hex over the bytes of every parameter that requires no gradient, in the model's order."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(slots=True)
class _Pace:
    """What the progress line shows."""

    started: float
    first_step: int
    shown: float = 0.0
    loss: float = math.nan

    def note(self, loss: float) -> None:
        self.loss = loss if math.isnan(self.loss) else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss


class Trainer:
    """One run over ``sequences``; its folder holds the checkpoints and ``metrics.jsonl``.

    Args:
        model: a model of pairs whose expert (and rows, if they are trained) require gradients.
        sequences: of the whole run.
        settings: of the run.
        total_steps: length of the run.
        run_dir: for checkpoints and metrics.
        progress: hears of every few steps.
    """

    def __init__(
        self,
        model: CausalLM,
        sequences: MixedSequences,
        settings: TrainSettings,
        *,
        total_steps: int,
        run_dir: Path,
        progress: ProgressSink,
    ) -> None:
        self._model = model
        self._sequences = sequences
        self._settings = settings
        self._total = total_steps
        self._run_dir = run_dir
        self._progress = progress
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.lr_at(0, total_steps),
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._device = model.embed_tokens.weight.device
        if settings.compile:
            model.compile_for_training()

    def run(self) -> int:
        """Train to the last step, from the newest checkpoint if there is one; returns the number of steps.

        Raises:
            InterruptedByUserError: Ctrl-C or SIGTERM; a checkpoint of the finished steps was written.
            NonFiniteError: the loss became infinite or not a number.
            StorageError: a checkpoint could not be written.
            VerificationError: a frozen tensor changed, which would be a bug or bad memory.
        """
        before = frozen_digest(self._model)
        step = self._resume()
        self._model.train()
        with stop_requests() as stop, storage_errors("the metrics"), self._open_metrics(step) as metrics:
            step = self._loop(step, metrics, stop)
        self._model.eval()
        if frozen_digest(self._model) != before:
            raise VerificationError(
                "A frozen tensor of the anchor changed during training; nothing was written. Check this machine's memory."
            )
        return step

    def _resume(self) -> int:
        checkpoint = latest(self._run_dir / _CHECKPOINTS)
        step = 0 if checkpoint is None else load_checkpoint(checkpoint, self._parameters, self._optimizer)
        if step > self._total:
            raise DataError("The run folder holds a checkpoint beyond the end of this run; start it afresh.")
        return step

    def _open_metrics(self, step: int) -> IO[str]:
        """The metrics file, open to append after the lines of the first ``step`` steps."""
        path = self._run_dir / _METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        stream = path.open("w", encoding="utf-8")
        stream.writelines(lines[:step])
        return stream

    def _loop(self, step: int, metrics: IO[str], stop: StopRequest) -> int:
        pace = _Pace(time.monotonic(), step)
        while step < self._total:
            loss, norm = self._step(step)
            step += 1
            self._record(metrics, step, loss, norm, pace)
            if stop.asked:
                self._save(step, metrics)
                raise InterruptedByUserError(f"Stopped after {step} of {self._total} steps; run the same command again to go on.")
            if step % self._settings.checkpoint_every == 0 or step == self._total:
                self._save(step, metrics)
        return step

    def _step(self, step: int) -> tuple[float, float]:
        """One optimizer step; returns loss and gradient norm."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr_at(step, self._total)
        batch = self._sequences.batch(step, self._settings.batch_size)
        loss = self._model.loss(
            self._put(batch.tokens),
            self._put(batch.targets),
            None if batch.segments is None else self._put(batch.segments),
            z_loss=self._settings.z_loss,
            router_z_loss=self._settings.router_z_loss,
        )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.clip)
        value = float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(float(norm)):
            raise NonFiniteError(f"The loss is no longer finite at step {step + 1}; run again with a smaller learning rate.")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return value, float(norm)

    def _put(self, array: object) -> Tensor:
        return torch.as_tensor(array).to(self._device, non_blocking=True)

    def _record(self, metrics: IO[str], step: int, loss: float, norm: float, pace: _Pace) -> None:
        now = time.monotonic()
        pace.note(loss)
        speed = (step - pace.first_step) * self._settings.batch_tokens / max(now - pace.started, 1e-9)
        lr = self._settings.lr_at(step - 1, self._total)
        line = {"step": step, "loss": loss, "grad_norm": norm, "lr": lr, "tokens_per_s": round(speed)}
        metrics.write(json.dumps(line) + "\n")
        if now - pace.shown >= _REPORT_SECONDS or step == self._total:
            pace.shown = now
            self._progress("Training", step, self._total, "steps", {"loss": f"{pace.loss:.3f}", "tok/s": f"{speed / 1000:.1f}k"})

    def _save(self, step: int, metrics: IO[str]) -> None:
        metrics.flush()
        save_checkpoint(self._run_dir / _CHECKPOINTS, step, self._parameters, self._optimizer)
