"""Scores of every token, by the rule of ``coordinator/compute/evaluation.py``, kept apart so that models can be mixed afterwards.

A text's windows are independent inputs: no model sees anything before a window's start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.modeling.model import CausalLM
from common.progress import ProgressSink, silent
from common.textdata.readers import read_texts
from common.textdata.tokens import Tokenizer
from coordinator.compute.windows import IGNORED, document_windows

__all__ = ["Score", "ScoredText", "choose_text", "score_text", "split_windows"]

BATCH_TOKENS = 8192  # computed at once


@dataclass(frozen=True, slots=True)
class ScoredText:
    """One domain's windows, ``[t + 1]`` tokens each, and the bytes of all scored tokens."""

    windows: list[NDArray[np.int64]]
    bytes: int

    @property
    def lengths(self) -> list[int]:
        """Scored tokens of each window."""
        return [len(window) - 1 for window in self.windows]


@dataclass(frozen=True, slots=True)
class Score:
    """A model's losses on one text."""

    nats: float
    """Per token."""
    bits_per_byte: float

    @classmethod
    def of(cls, losses: NDArray[np.floating], text: ScoredText) -> Score:
        """From the loss of every token."""
        total = float(losses.sum(dtype=np.float64))
        return cls(total / len(losses), total / text.bytes / float(np.log(2)))


def choose_text(path: Path, tokenizer: Tokenizer, *, max_tokens: int, seq_len: int) -> ScoredText:
    """The first documents of a file, each cut to four windows, up to ``max_tokens``; the cut is made in the text."""
    windows: list[NDArray[np.int64]] = []
    size, left = 0, max_tokens
    for text in read_texts([path]):
        ids = tokenizer.encode(text)
        room = min(4 * seq_len, left)
        if room < 2:
            break
        cut = text if len(ids) <= room else tokenizer.decode(ids[:room]).rstrip("\ufffd")
        if len(ids) < 2 or not cut:
            continue
        left -= min(len(ids), room)
        kept = tokenizer.encode(cut)
        windows += document_windows(kept, seq_len)
        size += max(1, len(cut.encode()) - (len(tokenizer.decode(kept[:1]).encode()) if kept else 0))
    return ScoredText(windows, size)


@torch.inference_mode()
def score_text(
    model: CausalLM,
    text: ScoredText,
    *,
    allowed: Tensor | None = None,
    label: str = "Scoring",
    progress: ProgressSink = silent,
) -> NDArray[np.float32]:
    """The loss of every scored token in nats, windows one after the other."""

    def losses(tokens: Tensor, targets: Tensor, _numbers: Sequence[int]) -> Tensor:
        return model.token_losses(tokens, targets, allowed=allowed)

    return score_batches(losses, text, batch_tokens=BATCH_TOKENS, label=label, progress=progress)


def score_batches(
    losses: Callable[[Tensor, Tensor, Sequence[int]], Tensor],
    text: ScoredText,
    *,
    batch_tokens: int,
    label: str = "Scoring",
    progress: ProgressSink = silent,
) -> NDArray[np.float32]:
    """As :func:`score_text` for any function of inputs, targets and window numbers; windows of nearly one length go together."""
    order = sorted(range(len(text.windows)), key=lambda number: -len(text.windows[number]))
    starts = np.concatenate(([0], np.cumsum(text.lengths)))
    out = np.empty(int(starts[-1]), dtype=np.float32)
    place = 0
    while place < len(order):
        length = len(text.windows[order[place]]) - 1
        numbers = order[place : place + max(1, batch_tokens // length)]
        place += len(numbers)
        tokens, targets = _padded([text.windows[number] for number in numbers], length)
        result = losses(tokens, targets, numbers).numpy()
        for row, number in enumerate(numbers):
            out[starts[number] : starts[number + 1]] = result[row, : starts[number + 1] - starts[number]]
        progress(label, place, len(order), "windows")
    return out


def _padded(windows: Sequence[NDArray[np.int64]], length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(len(windows), length, dtype=torch.int64)
    targets = torch.full((len(windows), length), IGNORED, dtype=torch.int64)
    for row, window in enumerate(windows):
        tokens[row, : len(window) - 1] = torch.from_numpy(window[:-1])
        targets[row, : len(window) - 1] = torch.from_numpy(window[1:])
    return tokens, targets


def split_windows(losses: NDArray[np.floating], text: ScoredText) -> list[NDArray[np.floating]]:
    """Losses ``[..., tokens]`` cut into windows ``[..., t]``."""
    return np.split(losses, np.cumsum(text.lengths)[:-1], axis=-1)
