"""Batches prepared ahead of the device by one background thread, so that reading and packing cost the training loop nothing."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from common.textdata.packing import IGNORED, Batch
from owner_client.data.mixing import MixedSequences

__all__ = ["MicroBatch", "Prefetcher", "StepBatch", "step_batch"]

_DEPTH = 2  # steps prepared ahead
_LOOK = 0.1  # seconds between looks whether the reader has gone


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one process computes at once, each ``[b, T]`` int64."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One process's part of one step."""

    micro: list[MicroBatch]
    scored: int
    """Scored positions of the whole step, over all processes."""


def step_batch(batch: Batch, *, rank: int, ranks: int, micro_size: int, pin: bool) -> StepBatch:
    """Process ``rank``'s share of a step, in pieces of at most ``micro_size`` sequences.

    Args:
        batch: the whole step; its sequences are a multiple of ``ranks``.
        rank: of this process.
        ranks: number of processes.
        micro_size: sequences computed at once.
        pin: lay the tensors into page-locked memory, from which a GPU copies without waiting.
    """
    share = len(batch.tokens) // ranks
    first = rank * share
    pieces = [slice(start, min(start + micro_size, first + share)) for start in range(first, first + share, micro_size)]

    def tensor(array: np.ndarray | None, piece: slice) -> Tensor | None:
        if array is None:
            return None
        made = torch.from_numpy(array[piece])
        return made.pin_memory() if pin else made

    micro = []
    for piece in pieces:
        tokens, targets = tensor(batch.tokens, piece), tensor(batch.targets, piece)
        if tokens is not None and targets is not None:
            micro.append(MicroBatch(tokens, targets, tensor(batch.segments, piece)))
    return StepBatch(micro, int((batch.targets != IGNORED).sum()))


class Prefetcher:
    """Steps ``first`` to ``last - 1`` in order, at most two of them ahead; a context manager that ends its thread.

    Args:
        make: prepares one step; called in the background thread only.
        first: number of the first step.
        last: number after the last step.
    """

    def __init__(self, make: Callable[[int], StepBatch], *, first: int, last: int) -> None:
        self._make = make
        self._range = range(first, last)
        self._ready: queue.Queue[StepBatch | BaseException] = queue.Queue(maxsize=_DEPTH)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    @classmethod
    def of(
        cls, sequences: MixedSequences, *, size: int, first: int, last: int, rank: int, ranks: int, micro_size: int, pin: bool
    ) -> Prefetcher:
        """Steps of ``size`` sequences each; the other arguments as :func:`step_batch`."""

        def make(step: int) -> StepBatch:
            return step_batch(sequences.batch(step, size), rank=rank, ranks=ranks, micro_size=micro_size, pin=pin)

        return cls(make, first=first, last=last)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()

    def next(self) -> tuple[StepBatch, float]:
        """The next step and the seconds that were waited for it; an exception of the background thread is raised here."""
        started = time.perf_counter()
        item = self._ready.get()
        waited = time.perf_counter() - started
        if isinstance(item, BaseException):
            raise item
        return item, waited

    def _work(self) -> None:
        for step in self._range:
            try:
                item: StepBatch | BaseException = self._make(step)
            except Exception as error:  # noqa: BLE001 - handed to the caller of next(), whatever it is
                item = error
            if not self._hand_over(item) or isinstance(item, BaseException):
                return

    def _hand_over(self, item: StepBatch | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_LOOK)
            except queue.Full:
                continue
            return True
        return False
