"""Router tuning: training a mixture's router rows, and nothing else, on public text (FlexOlmo, arXiv 2507.07024, section 3.4).

Every expert stays as its owner signed it. The public row stays as it is too unless asked otherwise: a softmax is the same when one
vector is added to all its rows, so holding one row fixed costs nothing. At least two experts are active while tuning, since behind
the norm that follows an FFN the share of a single active expert changes nothing and its row would learn nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import ArchitectureError, NonFiniteError, UsageError
from common.modeling.feedforward import Mixture
from common.modeling.model import CausalLM
from common.progress import ProgressSink, silent
from common.textdata.packing import IGNORED, Window, make_batch

__all__ = ["Sequences", "TunedRows", "TuningSettings", "UniformMix", "mixture_rows", "set_rows", "tune_rows"]

_SMOOTHING = 0.9  # of the losses that are shown and returned
_STREAM = 0x74756E65  # keeps the order of sources apart from the packing's draws, which use the same seed
_LR, _LR_WIDTH = 5e-3, 128


class Sequences(Protocol):
    """Training windows found by number, such as :class:`common.textdata.packing.PackedSequences`."""

    def window(self, number: int) -> Window:
        """Window ``number``, counted from 0 without end."""


class UniformMix:
    """Windows of several texts, each text equally often whatever its size: every round takes one of each, in an order drawn anew.

    Args:
        sources: the texts.
        seed: of the order.

    Raises:
        UsageError: there is no text.
    """

    def __init__(self, sources: Sequence[Sequences], *, seed: int) -> None:
        if not sources:
            raise UsageError("There is no text to tune the router on.")
        self._sources = list(sources)
        self._seed = seed

    def window(self, number: int) -> Window:
        """Window ``number``, counted from 0 without end."""
        turn, place = divmod(number, len(self._sources))
        order = np.random.Generator(np.random.PCG64([self._seed, _STREAM, turn])).permutation(len(self._sources))
        return self._sources[int(order[place])].window(turn)


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningSettings:
    """How rows are tuned.

    Raises:
        UsageError: a value out of its range.
    """

    steps: int = 200
    batch_tokens: int = 8192
    """Tokens of one step, a multiple of ``seq_len``."""
    seq_len: int = 256
    micro_tokens: int = 16_384
    """Tokens computed at once; larger steps are made of several of these."""
    lr: float | None = None
    """Peak learning rate; by default 5e-3 at a hidden size of 128, falling with its square root."""
    min_lr_ratio: float = 0.1
    """Where the cosine ends, as a share of ``lr``."""
    warmup: int = 20
    """Steps of linear warm-up, at most a tenth of the run."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of the gradient."""
    top_k: int | None = None
    """Experts active while tuning; by default the model's own number, but at least 2."""
    tune_public: bool = False
    """Tune the public row too."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "clip": self.clip, "lr": 1.0 if self.lr is None else self.lr}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be above 0.")
        if self.seq_len < 2 or self.batch_tokens < self.seq_len or self.batch_tokens % self.seq_len:
            raise UsageError(f"A step of {self.batch_tokens} tokens is not a whole number of sequences of {self.seq_len}.")
        if min(self.warmup, self.weight_decay, self.seed) < 0 or not 0 <= self.min_lr_ratio <= 1:
            raise UsageError("Warm-up, weight decay and seed must be at least 0, and the last share of the learning rate between 0 and 1.")
        if self.top_k is not None and self.top_k < 2:
            raise UsageError("At least 2 experts must be active while tuning: with one active the rows get no gradient.")

    @property
    def batch_size(self) -> int:
        """Sequences per step."""
        return self.batch_tokens // self.seq_len

    def for_width(self, hidden_size: int) -> TuningSettings:
        """These settings with the learning rate decided for a model of that width."""
        return self if self.lr is not None else replace(self, lr=_LR * math.sqrt(_LR_WIDTH / hidden_size))

    def share_at(self, step: int) -> float:
        """Share of the peak learning rate at step ``step``, from 0."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True)
class TunedRows:
    """What tuning gave."""

    rows: Tensor
    """Every layer's router, ``[L, N, H]`` fp32 on the CPU."""
    first_loss: float
    """Loss of the first step, before any change, in nats per token."""
    last_loss: float
    """Smoothed loss at the end."""
    top_k: int
    """Experts that were active while tuning."""


def mixture_rows(model: CausalLM) -> Tensor:
    """A copy of a mixture's router rows, ``[L, N, H]`` fp32 on the CPU.

    Raises:
        ArchitectureError: the model is not a mixture.
    """
    return torch.stack([mixture.rows.detach().float().cpu() for mixture in _mixtures(model)])


def set_rows(model: CausalLM, rows_LNH: Tensor) -> None:
    """Give a mixture these router rows, in the dtype and on the device that its own have.

    Raises:
        ArchitectureError: the model is not a mixture, or has another number of layers or experts or another width.
    """
    mixtures = _mixtures(model)
    if tuple(rows_LNH.shape) != (len(mixtures), *mixtures[0].rows.shape):
        raise ArchitectureError(f"Rows of shape {list(rows_LNH.shape)} do not fit the model.")
    with torch.no_grad():
        for mixture, rows in zip(mixtures, rows_LNH, strict=True):
            mixture.rows.copy_(rows)


def tune_rows(model: CausalLM, sequences: Sequences, settings: TuningSettings, *, progress: ProgressSink = silent) -> TunedRows:
    """Train the router rows of a mixture by language modelling with everything else frozen: AdamW, linear warm-up, cosine.

    Args:
        model: a mixture; as it was, also when this is interrupted. :func:`set_rows` gives it the result.
        sequences: windows of ``settings.seq_len`` tokens; step ``s`` of batch size ``b`` takes numbers ``s b`` to ``s b + b - 1``.
        settings: of the run.
        progress: hears of every step.

    Returns:
        The rows, in fp32 whatever the model's dtype.

    Raises:
        ArchitectureError: the model is not a mixture.
        UsageError: it has a single expert, or fewer than are to be active, or reads only shorter sequences.
        NonFiniteError: the loss became infinite or not a number.
    """
    settings = settings.for_width(model.config.hidden_size)
    mixtures = _mixtures(model)
    top_k = _top_k(mixtures[0], settings)
    if settings.seq_len > model.config.max_position_embeddings:
        raise UsageError(f"Sequences of {settings.seq_len} tokens are longer than the model's {model.config.max_position_embeddings}.")
    with _tunable(model, mixtures, top_k) as live:
        tuning = _Tuning(model, live, settings)
        for step in range(settings.steps):
            tuning.step(sequences, step)
            progress("Tuning the router", step + 1, settings.steps, "steps", tuning.figures(step + 1))
        rows = torch.stack([rows.detach().cpu() for rows in live]).clone()
    return TunedRows(rows, tuning.first_loss, tuning.loss, top_k)


def _mixtures(model: CausalLM) -> list[Mixture]:
    found = [block.mlp for block in model.layers if isinstance(block.mlp, Mixture)]
    if not found:
        raise ArchitectureError("The model is not a mixture; it has no router to tune.")
    return found


def _top_k(mixture: Mixture, settings: TuningSettings) -> int:
    experts = mixture.rows.shape[0]
    if experts < 2:
        raise UsageError("The model has a single expert; there is nothing to route.")
    wanted = max(2, mixture.top_k) if settings.top_k is None else settings.top_k
    if wanted > experts:
        raise UsageError(f"{wanted} experts cannot be active; the model has {experts}.")
    return wanted


@contextmanager
def _tunable(model: CausalLM, mixtures: Sequence[Mixture], top_k: int) -> Iterator[list[nn.Parameter]]:
    """Within the block the rows are fp32 and alone require gradients; afterwards the model is as it was."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = [(mixture.rows, mixture.top_k) for mixture in mixtures]
    training = model.training
    try:
        model.requires_grad_(False).eval()
        live = []
        for mixture in mixtures:
            mixture.rows = nn.Parameter(mixture.rows.detach().float().clone())
            mixture.top_k = top_k
            live.append(mixture.rows)
        yield live
    finally:
        for mixture, (rows, own) in zip(mixtures, before, strict=True):
            mixture.rows, mixture.top_k = rows, own
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
        model.train(training)


class _Tuning:
    """The optimizer over those rows that may change, and the running loss.

    The optimizer holds masters of its own, so that a row which is to stay is not in it at all.
    """

    def __init__(self, model: CausalLM, live: Sequence[nn.Parameter], settings: TuningSettings) -> None:
        self._model, self._live, self._settings = model, live, settings
        self._first = 0 if settings.tune_public else 1
        self._masters = [rows.detach()[self._first :].clone().requires_grad_(True) for rows in live]
        self._peak = settings.lr or 0.0
        self._optimizer = torch.optim.AdamW(self._masters, lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
        self._started = time.monotonic()
        self.first_loss = math.nan
        self.loss = math.nan

    def step(self, sequences: Sequences, step: int) -> None:
        """One optimizer step.

        Raises:
            NonFiniteError: loss or gradient is not finite.
        """
        settings = self._settings
        windows = [sequences.window(number) for number in range(step * settings.batch_size, (step + 1) * settings.batch_size)]
        loss = self._accumulate(windows)
        for master, rows in zip(self._masters, self._live, strict=True):
            master.grad = None if rows.grad is None else rows.grad[self._first :]
            rows.grad = None
        norm = float(nn.utils.clip_grad_norm_(self._masters, settings.clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteError(f"The loss is no longer finite at step {step + 1} of tuning; use a smaller learning rate.")
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * settings.share_at(step)
        self._optimizer.step()
        with torch.no_grad():
            for master, rows in zip(self._masters, self._live, strict=True):
                rows[self._first :].copy_(master)
        self.first_loss = loss if math.isnan(self.first_loss) else self.first_loss
        self.loss = loss if math.isnan(self.loss) else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss

    def _accumulate(self, windows: Sequence[Window]) -> float:
        """Gradients of the mean loss over all scored tokens of ``windows``; returns that loss."""
        device = self._model.embed_tokens.weight.device
        size = max(1, self._settings.micro_tokens // self._settings.seq_len)
        batches = [make_batch(windows[start : start + size]) for start in range(0, len(windows), size)]
        scored = float(sum((batch.targets != IGNORED).sum() for batch in batches))
        total = 0.0
        for batch in batches:
            tokens, targets = torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.targets).to(device)
            segments = None if batch.segments is None else torch.from_numpy(batch.segments).to(device)
            loss = self._model.loss(tokens, targets, segments, normaliser=scored)
            loss.backward()
            total += float(loss.detach())
        return total

    def figures(self, steps: int) -> dict[str, str]:
        """What the progress line shows after ``steps`` steps."""
        speed = steps * self._settings.batch_tokens / max(1e-9, time.monotonic() - self._started)
        return {"loss": f"{self.loss:.3f}", "tok/s": f"{speed:,.0f}"}
