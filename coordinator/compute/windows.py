"""Cuts texts into windows for scoring: from a document's start, without overlap, without context across windows or documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORED", "ScoringBatch", "document_windows", "scoring_batches"]

IGNORED = -100  # target of a position that is not scored


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Windows of nearly one length, padded to the longest."""

    tokens: NDArray[np.int64]
    """Inputs ``[B, T]``; 0 where padded, which no earlier position attends to."""
    targets: NDArray[np.int64]
    """The token after each input, ``[B, T]``; ``IGNORED`` where padded."""
    documents: NDArray[np.int64]
    """The document of each row, ``[B]``."""

    @property
    def is_token(self) -> NDArray[np.bool_]:
        """True where there is a token and not padding, ``[B, T]``."""
        return self.targets != IGNORED


def document_windows(ids: Sequence[int], seq_len: int) -> list[NDArray[np.int64]]:
    """Windows of at most ``seq_len`` inputs and as many targets: ``[t + 1]`` each, the last token of one is the first of the next.

    Every token but the document's first is a target exactly once.
    """
    tokens = np.asarray(ids, dtype=np.int64)
    return [tokens[start : start + seq_len + 1] for start in range(0, len(tokens) - 1, seq_len)]


def scoring_batches(documents: Sequence[Sequence[int]], *, seq_len: int, batch_tokens: int) -> Iterator[ScoringBatch]:
    """All windows of ``documents``, the longest first, in batches of about ``batch_tokens`` tokens.

    Args:
        documents: token numbers of each.
        seq_len: inputs of a window.
        batch_tokens: padded tokens computed at once.
    """
    windows = [(number, window) for number, ids in enumerate(documents) for window in document_windows(ids, seq_len)]
    windows.sort(key=lambda pair: -len(pair[1]))
    start = 0
    while start < len(windows):
        length = len(windows[start][1]) - 1
        chosen = windows[start : start + max(1, batch_tokens // length)]
        start += len(chosen)
        tokens = np.zeros((len(chosen), length), dtype=np.int64)
        targets = np.full((len(chosen), length), IGNORED, dtype=np.int64)
        for row, (_, window) in enumerate(chosen):
            tokens[row, : len(window) - 1] = window[:-1]
            targets[row, : len(window) - 1] = window[1:]
        yield ScoringBatch(tokens, targets, np.asarray([number for number, _ in chosen], dtype=np.int64))
