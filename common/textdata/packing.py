"""Training sequences cut from a shuffled token stream: seeded, reshuffled every epoch, and found by number, so a run can resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.textdata.tokens import TokenFile

__all__ = ["IGNORED", "Batch", "PackedSequences", "Window", "make_batch"]

IGNORED = -100  # target of a position that is not scored


@dataclass(frozen=True, slots=True)
class Window:
    """``T + 1`` tokens of the stream and the document that each belongs to."""

    tokens: NDArray[np.int64]
    """``[T + 1]``."""
    segments: NDArray[np.int64]
    """``[T + 1]``, counted from 0 within the window."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one training step, all ``[B, T]`` int64."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    """The token after each input; ``IGNORED`` where that is another document's first."""
    segments: NDArray[np.int64] | None
    """Documents within each row; None when every row is of a single document."""


class PackedSequences:
    """Endless sequences of ``seq_len`` tokens: each epoch is all documents in a new order, cut without gaps; the last part is left out.

    Args:
        source: the documents.
        seq_len: tokens that are inputs; a window has one more for the last target.
        seed: of the order; the same seed gives the same sequences.
        shuffle: False keeps the documents' order in every epoch.

    Raises:
        DataError: the stream has fewer than two tokens.
    """

    def __init__(self, source: TokenFile, *, seq_len: int, seed: int, shuffle: bool = True) -> None:
        if source.num_tokens < 2:
            raise DataError("There is too little text: not even two tokens.")
        self._source = source
        self._seq_len = seq_len
        self._seed = seed
        self._shuffle = shuffle
        self._lengths = np.diff(source.starts).astype(np.int64)
        # A stream shorter than one window is repeated until it fills one.
        self._repeats = -(-(seq_len + 1) // source.num_tokens)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._ends: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def per_epoch(self) -> int:
        """Sequences in one pass over the documents, at least 1."""
        return (self._source.num_tokens * self._repeats - 1) // self._seq_len

    def window(self, number: int) -> Window:
        """Sequence ``number``, counted from 0 through all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        self._enter(epoch)
        start, end = place * self._seq_len, (place + 1) * self._seq_len + 1
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, end, side="left"))
        tokens, segments = np.empty(end - start, dtype=np.int64), np.empty(end - start, dtype=np.int64)
        filled = 0
        for segment, position in enumerate(range(first, last + 1)):
            document = self._source.document(int(self._order[position]))
            skip = start + filled - (int(self._ends[position]) - len(document))
            piece = document[skip : skip + len(tokens) - filled]
            tokens[filled : filled + len(piece)] = piece
            segments[filled : filled + len(piece)] = segment
            filled += len(piece)
        return Window(tokens, segments)

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        count = self._source.num_documents
        passes = []
        for repeat in range(self._repeats):
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch, repeat]))
            passes.append(generator.permutation(count) if self._shuffle else np.arange(count))
        self._order = np.concatenate(passes).astype(np.int64)
        self._ends = np.cumsum(self._lengths[self._order])
        self._epoch = epoch


def make_batch(windows: Sequence[Window]) -> Batch:
    """Stack windows into inputs and targets."""
    tokens = np.stack([window.tokens for window in windows])
    segments = np.stack([window.segments for window in windows])
    targets = np.where(segments[:, 1:] == segments[:, :-1], tokens[:, 1:], IGNORED)
    inputs = segments[:, :-1]
    single = bool((inputs == inputs[:, :1]).all())
    return Batch(tokens[:, :-1].copy(), targets, None if single else inputs.copy())
