"""The settings of one expert's training; ``docs/experiments.md`` says how the defaults were chosen."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Literal

from common.errors import UsageError

__all__ = ["RouterKind", "TrainSettings"]

RouterKind = Literal["discriminant", "hidden-mean", "random"]
_CHOICES = {
    "optimizer": ("adamw", "muon"),
    "router": ("discriminant", "hidden-mean", "random"),
    "schedule": ("cosine", "constant"),
    "dtype": ("auto", "float32", "bfloat16"),
    "device": ("auto", "cpu", "cuda"),
}
_POSITIVE = ("batch_tokens", "seq_len", "clip", "eval_tokens", "router_tokens", "checkpoint_every")
_NOT_NEGATIVE = ("eval_every", "patience", "warmup", "weight_decay", "z_loss", "router_z_loss", "seed", "min_lr_ratio")
_DEFAULT_EPOCHS = 2.0
_LR, _LR_WIDTH = {"adamw": 5e-3, "muon": 1e-2}, 128
_UNMEASURED = ("checkpoint_every", "checkpoint_layers")  # changes nothing that a resumed run could notice


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How an expert is trained. At most one of ``steps``, ``tokens`` and ``epochs`` says how long; without any it is two epochs.

    Raises:
        UsageError: a value out of its range.
    """

    rank: int | None = None
    """Train a low-rank expert: the public FFN plus a product of two factors of this rank. None trains every weight of a full one."""
    router: RouterKind = "discriminant"
    """How the row of every layer starts."""
    router_train: bool = True
    """Train the rows with the expert; False keeps them as they start."""
    router_refit: bool = True
    """Fit the rows of a ``discriminant`` router once more to the trained pair's own router inputs."""
    router_tokens: int = 32_768
    """Router inputs per side that the rows are fitted to."""
    public_share: float = 0.1
    """Share of public sequences in training."""
    steps: int | None = None
    tokens: int | None = None
    """Tokens of training, public ones included."""
    epochs: float | None = None
    """Passes over the private tokens."""
    batch_tokens: int = 4096
    """Tokens in one step, over all processes."""
    micro_tokens: int | None = None
    """Tokens that one process computes at once; a step is the sum of several. By default what the device takes."""
    seq_len: int = 256
    optimizer: Literal["adamw", "muon"] = "muon"
    """``muon`` trains the expert's matrices by Muon and its rows by AdamW, both at ``lr``."""
    lr: float | None = None
    """Peak learning rate; by default 5e-3 (Muon: 1e-2) at a hidden size of 128, falling with its square root.

    At a hidden size of 4,096 that is 9e-4, the paper's.
    """
    min_lr_ratio: float = 0.1
    """Where the cosine ends, as a share of ``lr``."""
    warmup: int = 20
    """Steps of linear warm-up, at most a tenth of the run."""
    schedule: Literal["cosine", "constant"] = "cosine"
    beta1: float = 0.9
    """Of AdamW, as is the next."""
    beta2: float = 0.95
    momentum: float = 0.95
    """Of Muon."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of the gradient."""
    z_loss: float = 0.0
    """Factor of the head's squared log-sum-exp; the paper uses 1e-5."""
    router_z_loss: float = 0.0
    """Factor of the router's squared log-sum-exp; the paper uses 1e-3."""
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool | None = None
    """Compile with ``torch.compile``; by default on CUDA, and on a CPU in runs of some minutes and more, where a compiler is installed."""
    checkpoint_layers: bool = False
    """Keep only every layer's input for the backward pass and run the layer again there: far less memory, about a third more work."""
    heldout: float = 0.02
    """Share of documents that are only measured on."""
    eval_tokens: int = 32_768
    """Tokens per text that perplexity is measured on."""
    eval_every: int = 0
    """Steps between measurements on held-out text; 0 measures at the end only."""
    patience: int = 0
    """Stop after so many measurements without a better private loss and keep the best step's expert; 0 never stops early."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}.")
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name in _POSITIVE and value == 0):
                raise UsageError(f"{name} must be a number {'above 0' if name in _POSITIVE else 'of at least 0'}.")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError("lr must be a number above 0.")
        if sum(value is not None for value in (self.steps, self.tokens, self.epochs)) > 1:
            raise UsageError("Give only one of steps, tokens and epochs.")
        for name in ("steps", "tokens", "epochs", "rank"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be above 0.")
        if not 0 <= self.public_share < 1 or not 0 <= self.heldout < 1:
            raise UsageError("The public share and the held-out share must be at least 0 and below 1.")
        if not all(0 <= value < 1 for value in (self.beta1, self.beta2, self.momentum)):
            raise UsageError("The betas and the momentum must be at least 0 and below 1.")
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self.patience and not (self.eval_every and self.heldout):
            raise UsageError("Stopping early needs measurements on held-out text: give eval_every, and a held-out share above 0.")
        if self.micro_tokens is not None and self.micro_tokens < self.seq_len:
            raise UsageError(f"{self.micro_tokens} tokens at once do not hold one sequence of {self.seq_len}.")
        if self.batch_tokens % self.seq_len:
            raise UsageError(f"A batch of {self.batch_tokens} tokens is not a whole number of sequences of {self.seq_len}.")

    @property
    def batch_size(self) -> int:
        """Sequences per step."""
        return self.batch_tokens // self.seq_len

    def total_steps(self, private_tokens: int) -> int:
        """Length of the run in steps, at least 1, for an owner with ``private_tokens`` tokens."""
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return max(1, round(self.tokens / self.batch_tokens))
        epochs = _DEFAULT_EPOCHS if self.epochs is None else self.epochs
        return max(1, math.ceil(epochs * private_tokens / ((1 - self.public_share) * self.batch_tokens)))

    def for_width(self, hidden_size: int) -> TrainSettings:
        """These settings with the learning rate decided for a model of that width.

        Raises:
            UsageError: the rank is more than the width.
        """
        if self.rank is not None and self.rank > hidden_size:
            raise UsageError(f"The rank is {self.rank}; matrices of the anchor are of rank {hidden_size} at most.")
        return self if self.lr is not None else replace(self, lr=_LR[self.optimizer] * math.sqrt(_LR_WIDTH / hidden_size))

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` (from 0) of ``total``.

        Raises:
            UsageError: it is not decided yet; see :meth:`for_width`.
        """
        if self.lr is None:
            raise UsageError("The learning rate is not decided.")
        warmup = min(self.warmup, total // 10)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "constant":
            return self.lr
        done = (step - warmup) / max(1, total - warmup)
        floor = self.lr * self.min_lr_ratio
        return floor + (self.lr - floor) * 0.5 * (1 + math.cos(math.pi * done))

    def digest(self) -> str:
        """sha256 in hex of everything that the result depends on; equal digests may continue each other's runs."""
        relevant = {name: value for name, value in asdict(self).items() if name not in _UNMEASURED}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
