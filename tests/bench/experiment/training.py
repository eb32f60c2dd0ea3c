"""Continued training of a dense model or a mixture with all (or some) of its weights: the baselines' trainer, resumable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import InterruptedByUserError
from common.modeling.kernels import IGNORED, linear_cross_entropy
from common.modeling.model import CausalLM, Taps
from common.progress import ProgressSink
from common.textdata.packing import PackedSequences, Window, make_batch
from coordinator.compute.optimizer import Optimizer
from coordinator.compute.presets import AnchorSettings
from owner_client.training.stopping import stop_requests

__all__ = ["Blend", "Recipe", "continue_training"]

_CHECKPOINT_EVERY = 200  # steps


class Blend:
    """Sequences drawn from several texts with fixed chances; which comes when follows from the seed alone."""

    def __init__(self, sources: Sequence[PackedSequences], shares: Sequence[float], *, seed: int, total: int) -> None:
        self._sources = list(sources)
        draws = np.random.Generator(np.random.PCG64([seed, 0x626C656E])).choice(len(sources), size=total, p=np.asarray(shares))
        self._draws = draws
        self._before = np.stack([np.cumsum(draws == number) - (draws == number) for number in range(len(sources))])

    def window(self, number: int) -> Window:
        """Sequence ``number`` of the run."""
        source = int(self._draws[number])
        return self._sources[source].window(int(self._before[source, number]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a baseline is trained; chosen by ``sweep.py`` on documents held out of training files."""

    lr: float
    """Peak rate of AdamW, for embeddings, head, norms and router rows, and for everything without ``matrix_lr``."""
    matrix_lr: float
    """Peak rate of Muon for the matrices of the layers; 0 leaves them to AdamW."""
    final: float = 0.1
    """Where the cosine ends, as a share of the peak."""
    warmup: int = 20
    """Steps of linear warm-up, at most a tenth of the run."""
    balance: float = 0.01
    """Factor of a mixture's load-balance loss (Switch Transformer, arXiv 2101.03961, equation 4)."""

    def share_at(self, step: int, total: int) -> float:
        """Share of the peak rates at ``step``."""
        warmup = min(self.warmup, total // 10)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class _Trained(nn.Module):
    """The model's trainable parameters under names by which the optimizer takes router rows for no inner matrix."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self._model = model

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """All that require gradients."""
        for name, parameter in self._model.named_parameters(prefix, recurse, remove_duplicate):
            if parameter.requires_grad:
                yield (f"rows.{name}" if name.endswith(".mlp.rows") else name), parameter


def continue_training(
    model: CausalLM,
    sequences: Blend,
    *,
    steps: int,
    batch_size: int,
    seq_len: int,
    recipe: Recipe,
    work: Path,
    progress: ProgressSink,
    label: str,
) -> float:
    """Train the parameters that require gradients for ``steps``; returns the mean loss of the last tenth.

    Raises:
        InterruptedByUserError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    settings = AnchorSettings(
        tokens=steps * batch_size * seq_len,
        seq_len=seq_len,
        batch_tokens=batch_size * seq_len,
        lr=recipe.lr,
        matrix_lr=recipe.matrix_lr,
        weight_decay=0.0,
        dtype="float32",
    )
    optimizer = Optimizer(_Trained(model), settings)
    checkpoint = work / "checkpoint.safetensors"
    step, losses = _resume(checkpoint, optimizer)
    model.train()
    with stop_requests() as stop:
        while step < steps:
            batch = make_batch([sequences.window(number) for number in range(step * batch_size, (step + 1) * batch_size)])
            segments = None if batch.segments is None else torch.from_numpy(batch.segments)
            loss, auxiliary = _loss(model, torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets), segments)
            torch.autograd.backward(loss + recipe.balance * auxiliary)
            _fill_gradients(model)
            optimizer.step(recipe.share_at(step, steps))
            step += 1
            losses.append(float(loss.detach()))
            progress(label, step, steps, "steps", {"loss": f"{np.mean(losses[-20:]):.3f}"})
            if stop.asked or (step % _CHECKPOINT_EVERY == 0 and step < steps):
                _save(checkpoint, optimizer, step, losses)
            if stop.asked:
                raise InterruptedByUserError(f"Interrupted after step {step} of {steps}; run the same command to go on.")
    model.eval().requires_grad_(False)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _loss(model: CausalLM, tokens: Tensor, targets: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats per token, and a mixture's load-balance loss (1 when the load is even, averaged over layers)."""
    if model.kind != "mixture":
        return model.loss(tokens, targets, segments), torch.zeros(())
    loads: list[Tensor] = []

    def note(_layer: int, probabilities: Tensor, picks: Tensor) -> None:
        experts = probabilities.shape[1]
        chosen = torch.bincount(picks.flatten(), minlength=experts).to(probabilities.dtype) / picks.numel()
        loads.append(experts * (chosen * probabilities.mean(0)).sum())

    x = model.hidden(tokens, segments_BT=segments, taps=Taps(routing=note)).flatten(0, 1)
    flat = targets.flatten()
    scored = max(1, int((flat != IGNORED).sum()))
    return linear_cross_entropy(x, model.head_weight, flat) / scored, torch.stack(loads).mean()


def _fill_gradients(model: CausalLM) -> None:
    """An expert that no token of the batch chose has a gradient of zero."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _save(path: Path, optimizer: Optimizer, step: int, losses: Sequence[float]) -> None:
    aside = path.with_suffix(".tmp")
    tensors = {name: tensor.contiguous() for name, tensor in optimizer.state().items()}
    save_file({**tensors, "losses": torch.tensor(losses, dtype=torch.float64)}, aside, metadata={"step": str(step)})
    aside.replace(path)


def _resume(path: Path, optimizer: Optimizer) -> tuple[int, list[float]]:
    if not path.exists():
        return 0, []
    with safe_open(path, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - safe_open is no mapping
        step = int(stream.metadata()["step"])
    losses: list[float] = tensors.pop("losses").tolist()
    optimizer.restore(tensors)
    return step, losses
