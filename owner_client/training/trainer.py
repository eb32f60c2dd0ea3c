"""The training loop of one expert pair: gradients summed over pieces and processes, checkpoints, held-out losses, early stopping."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DataError, InterruptedByUserError, NonFiniteError, VerificationError
from common.modeling.model import CausalLM
from common.progress import ProgressSink
from owner_client.data.mixing import MixedSequences
from owner_client.training.checkpoints import Checkpoints
from owner_client.training.distributed import World, gather_expert, local, reshard
from owner_client.training.early_stopping import EarlyStopping
from owner_client.training.hardware import peak_flops
from owner_client.training.metrics import Cost, Metrics, StepFigures
from owner_client.training.optimizer import ExpertOptimizer
from owner_client.training.prefetch import MicroBatch, Prefetcher, StepBatch
from owner_client.training.settings import TrainSettings
from owner_client.training.stopping import StopRequest, stop_requests

__all__ = ["HeldOutLosses", "Trainer", "frozen_digest"]

HeldOutLosses = Callable[[CausalLM], dict[str, float]]
"""Measures a model: nats per token by text, ``"private"`` and ``"public"`` where there are any."""


def frozen_digest(model: CausalLM) -> str:
    """sha256 in hex over the bytes of every parameter that requires no gradient, in the model's order.

    Of a sharded model each process takes its own part.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(local(parameter.detach()).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Step:
    loss: float
    norm: float
    wait_seconds: float
    stop: bool
    """Whether any process was asked to stop."""


class Trainer:
    """One run over ``sequences``; its folder holds the checkpoints and ``metrics.jsonl``.

    Args:
        model: a model of pairs, sharded if there are several processes, whose expert (and rows, if trained) require gradients.
        sequences: of the whole run.
        settings: of the run, with everything decided.
        total_steps: length of the run.
        run_dir: for checkpoints and metrics.
        progress: hears of every few steps.
        heldout: measures the model; every process calls it at the same steps.
        world: the run's processes.
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
        heldout: HeldOutLosses,
        world: World,
    ) -> None:
        self._model = model
        self._sequences = sequences
        self._settings = settings
        self._total = total_steps
        self._run_dir = run_dir
        self._progress = progress
        self._heldout = heldout
        self._world = world
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._optimizer = ExpertOptimizer(self._parameters, settings)
        self._early = EarlyStopping(settings.patience)
        self._checkpoints = Checkpoints(run_dir / "checkpoints", self._parameters, self._optimizer, self._early, world)

    def run(self) -> Cost | None:
        """Train from the newest checkpoint, if there is one, to the end; then the model holds the expert to be kept.

        Returns:
            What the steps of this call cost; None when there was nothing left to do.

        Raises:
            InterruptedByUserError: Ctrl-C or SIGTERM; a checkpoint of the finished steps was written.
            LostProcessError: another process of the run went away.
            NonFiniteError: the loss became infinite or not a number.
            StorageError: a checkpoint could not be written.
            VerificationError: a frozen tensor changed, which would be a bug or bad memory.
        """
        before = frozen_digest(self._model)
        step = self._checkpoints.resume()
        if step > self._total:
            raise DataError("The run folder holds a checkpoint beyond the end of this run; start it afresh.")
        self._model.train()
        with stop_requests() as stop, self._metrics(step) as metrics:
            self._loop(step, metrics, stop)
            metrics.write_cost(self._run_dir / "cost.json")
        if self._early.best_step:
            self._checkpoints.load_best()
        self._model.eval()
        reshard(self._model)
        if frozen_digest(self._model) != before:
            raise VerificationError(
                "A frozen tensor of the anchor changed during training; nothing was written. Check this machine's memory."
            )
        return metrics.cost()

    def gather(self) -> None:
        """Put the whole expert into the first process's model, which computes no more afterwards."""
        gather_expert(self._model, self._parameters, self._world)

    def _metrics(self, step: int) -> Metrics:
        dtype = self._model.embed_tokens.weight.dtype
        [peak] = self._world.total([peak_flops(self._world.device, dtype)])
        return Metrics(
            self._run_dir / "metrics.jsonl",
            step=step,
            total=self._total,
            step_tokens=self._settings.batch_tokens,
            flops_per_token=self._model.config.pair_training_flops_per_token(),
            peak_flops=peak,
            world=self._world,
            progress=self._progress,
        )

    def _batches(self, first: int) -> Prefetcher:
        micro_tokens = self._settings.micro_tokens or self._settings.batch_tokens
        return Prefetcher.of(
            self._sequences,
            size=self._settings.batch_size,
            first=first,
            last=self._total,
            rank=self._world.rank,
            ranks=self._world.size,
            micro_size=max(1, micro_tokens // self._settings.seq_len),
            pin=self._world.device.type == "cuda",
        )

    def _loop(self, step: int, metrics: Metrics, stop: StopRequest) -> None:
        with self._batches(step) as batches:
            while step < self._total and not self._early.stopped:
                started = time.perf_counter()
                done = self._step(step, batches, stop)
                seconds = time.perf_counter() - started
                step += 1
                losses = self._measured(step)
                lr = self._settings.lr_at(step - 1, self._total)
                metrics.record(StepFigures(step, done.loss, done.norm, lr, seconds, done.wait_seconds, losses))
                ended = step == self._total or self._early.stopped
                if done.stop or ended or step % self._settings.checkpoint_every == 0:
                    metrics.flush()
                    self._checkpoints.save(step)
                if done.stop and not ended:
                    raise InterruptedByUserError(f"Stopped after {step} of {self._total} steps; run the same command again to go on.")

    def _step(self, step: int, batches: Prefetcher, stop: StopRequest) -> _Step:
        batch, waited = batches.next()
        loss = self._accumulate(batch)
        total, asked, waiting = self._world.total([float(loss), float(stop.asked), waited])
        norm = self._clip()
        if not math.isfinite(total) or not math.isfinite(norm):
            raise NonFiniteError(f"The loss is no longer finite at step {step + 1}; run again with a smaller learning rate.")
        self._optimizer.step(self._settings.lr_at(step, self._total))
        return _Step(total, norm, waiting / self._world.size, asked > 0)

    def _accumulate(self, batch: StepBatch) -> Tensor:
        """Gradients of the whole step; returns this process's share of the loss."""
        share = torch.zeros((), device=self._world.device)
        for micro in batch.micro:
            loss = self._loss(micro, float(batch.scored))
            # FSDP2 averages over the processes; the losses are to be summed.
            (loss * self._world.size).backward()
            share += loss.detach()
        return share

    def _loss(self, micro: MicroBatch, scored: float) -> Tensor:
        return self._model.loss(
            self._put(micro.tokens),
            self._put(micro.targets),
            None if micro.segments is None else self._put(micro.segments),
            z_loss=self._settings.z_loss,
            router_z_loss=self._settings.router_z_loss,
            normaliser=scored,
        )

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._world.device, non_blocking=True)

    @torch.no_grad()
    def _clip(self) -> float:
        """Scale all gradients so that their common norm is at most the setting's; returns the norm before."""
        gradients = [local(parameter.grad) for parameter in self._parameters.values() if parameter.grad is not None]
        squares = torch.stack([gradient.square().sum(dtype=torch.float64) for gradient in gradients]).sum()
        [total] = self._world.total([float(squares)])
        norm = math.sqrt(total) if total >= 0 else math.nan
        if norm > self._settings.clip:
            torch._foreach_mul_(gradients, self._settings.clip / (norm + 1e-6))
        return norm

    def _measured(self, step: int) -> dict[str, float]:
        """Held-out losses, when they are due after this step; a better private one than before is kept."""
        every = self._settings.eval_every
        if not every or (step % every and not (step == self._total and self._settings.patience)):
            return {}
        self._model.eval()
        losses = self._heldout(self._model)
        self._model.train()
        if "private" in losses and self._early.note(step, losses["private"]):
            self._checkpoints.save_best(step)
        return losses
