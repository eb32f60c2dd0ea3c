"""Byte work on several threads: hashlib and the kernel's copies release the interpreter lock, so threads use all cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final, TypeVar

from common.errors import InterruptedByUserError
from common.progress import ProgressSink, silent

__all__ = ["Meter", "map_threads"]

_MAX_THREADS: Final = 16  # more readers than this fight over one disk

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Meter:
    """Counts bytes over several threads, tells a progress sink, and ends every thread within one block when cancelled."""

    def __init__(self, label: str = "", total: int = 0, sink: ProgressSink = silent) -> None:
        self._label = label
        self._total = total
        self._sink = sink
        self._done = 0
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def add(self, count: int) -> None:
        """Count ``count`` finished bytes.

        Raises:
            InterruptedByUserError: the work was cancelled; the thread should unwind.
        """
        if self._cancelled.is_set():
            raise InterruptedByUserError
        with self._lock:
            self._done += count
            self._sink(self._label, self._done, self._total, "bytes")

    def cancel(self) -> None:
        """Make every later :meth:`add` raise."""
        self._cancelled.set()


def map_threads(work: Callable[[ItemT], ResultT], items: Iterable[ItemT], meter: Meter) -> list[ResultT]:
    """Apply ``work`` to every item on as many threads as there are cores; results keep the order of ``items``.

    The first exception, Ctrl-C included, cancels ``meter`` and the items not yet begun, waits for the running ones and is raised.
    """
    threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in futures if future.done() and future.exception() is not None), None)
            if failed is not None:
                failed.result()
            return [future.result() for future in futures]
        except BaseException:
            meter.cancel()
            for future in futures:
                future.cancel()
            raise
