"""Perplexity on packed held-out text, enough to tell whether the expert learned; the consortium's comparison is the coordinator's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.modeling.model import CausalLM
from common.textdata.packing import PackedSequences, Window, make_batch
from common.textdata.tokens import TokenFile
from owner_client.training.distributed import World

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


def measure(model: CausalLM, source: TokenFile, *, seq_len: int, tokens: int, world: World | None = None) -> Perplexity:
    """Score about ``tokens`` tokens of ``source``, from its start, in sequences of ``seq_len`` that stop attending at document ends.

    Every token is scored once, but for the first of each document. Several processes share the work, and all get the result.
    """
    rank, ranks = (0, 1) if world is None else (world.rank, world.size)
    sequences = PackedSequences(source, seq_len=seq_len, seed=0, shuffle=False)
    count = min(max(1, tokens // seq_len), sequences.per_epoch)
    firsts = range(0, count, _BATCH)
    total, scored = 0.0, 0
    # A sharded model computes on all processes or none, so each computes equally often and counts its own batches only.
    for turn in range(-(-len(firsts) // ranks)):
        mine = turn * ranks + rank
        first = firsts[min(mine, len(firsts) - 1)]
        losses, targets = _score(model, [sequences.window(number) for number in range(first, min(count, first + _BATCH))])
        if mine < len(firsts):
            total += float(losses.double().sum())
            scored += int((targets >= 0).sum())
    if world is not None:
        total, everywhere = world.total([total, float(scored)])
        scored = int(everywhere)
    return Perplexity(total / max(1, scored), scored)


def _score(model: CausalLM, windows: list[Window]) -> tuple[Tensor, Tensor]:
    """Losses and targets, ``[B, T]`` each."""
    batch = make_batch(windows)
    device = model.embed_tokens.weight.device
    segments = None if batch.segments is None else torch.from_numpy(batch.segments).to(device)
    targets = torch.from_numpy(batch.targets).to(device)
    return model.token_losses(torch.from_numpy(batch.tokens).to(device), targets, segments), targets
