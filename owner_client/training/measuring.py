"""Perplexity on packed held-out text, enough to tell whether the expert learned; the consortium's comparison is the coordinator's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from common.modeling.model import CausalLM
from common.textdata.packing import PackedSequences, make_batch
from common.textdata.tokens import TokenFile

__all__ = ["Perplexity", "measure"]

_BATCH = 8  # sequences


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Cross-entropy of a text under a model."""

    nats: float
    """Mean per scored token."""
    tokens: int
    """Scored tokens."""

    @property
    def value(self) -> float:
        """``exp(nats)``."""
        return math.exp(min(self.nats, 700.0))


def measure(model: CausalLM, source: TokenFile, *, seq_len: int, tokens: int) -> Perplexity:
    """Score about ``tokens`` tokens of ``source``, from its start, in sequences of ``seq_len`` that stop attending at document ends.

    Every token is scored once, but for the first of each document.
    """
    sequences = PackedSequences(source, seq_len=seq_len, seed=0, shuffle=False)
    device = model.embed_tokens.weight.device
    total, scored = 0.0, 0
    count = min(max(1, tokens // seq_len), sequences.per_epoch)
    for first in range(0, count, _BATCH):
        batch = make_batch([sequences.window(number) for number in range(first, min(count, first + _BATCH))])
        segments = None if batch.segments is None else torch.from_numpy(batch.segments).to(device)
        targets = torch.from_numpy(batch.targets)
        losses = model.token_losses(torch.from_numpy(batch.tokens).to(device), targets.to(device), segments)
        total += float(losses.double().sum())
        scored += int((targets >= 0).sum())
    return Perplexity(total / max(1, scored), scored)
