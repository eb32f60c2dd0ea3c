"""Trying again while the coordinator restarts, for a bounded time since the last progress (pauses as in ``common/rpc/retries.py``)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from common.errors import UnavailableError
from common.rpc.retries import backoff_delays

__all__ = ["Patience"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Patience:
    """How long one command keeps trying. Threads may share one; any progress starts the time again."""

    def __init__(self, seconds: float, *, notice: Callable[[str], None] | None = None) -> None:
        """Wait at most ``seconds`` after the last progress; ``notice`` is told once per outage."""
        self._seconds = seconds
        self._notice = notice
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._delays = backoff_delays()
        self._waiting = False

    def progressed(self) -> None:
        """Something arrived, so the time starts again."""
        with self._lock:
            self._since = time.monotonic()
            if self._waiting:
                self._waiting, self._delays = False, backoff_delays()

    def wait(self, error: UnavailableError, stop: threading.Event | None = None) -> None:
        """Sleep before the next attempt; ``stop`` ends the sleep early.

        Raises:
            UnavailableError: the time is up.
        """
        with self._lock:
            left = self._since + self._seconds - time.monotonic()
            first, self._waiting = not self._waiting, True
            pause = min(next(self._delays), left)
        if left <= 0:
            raise UnavailableError(self._exhausted(error)) from error
        if first and self._notice is not None:
            self._notice(f"The coordinator does not answer; trying again for up to {self._seconds:.0f} seconds.")
        logger.info("%s; next attempt in %.1f s", error, pause)
        (stop or threading.Event()).wait(pause)

    def _exhausted(self, error: UnavailableError) -> str:
        if not self._seconds:
            return str(error)
        return f"{error} Tried for {self._seconds:.0f} seconds. Finished work is kept; run the command again to go on."

    def persist(self, action: Callable[[], ResultT]) -> ResultT:
        """Call ``action``, which must be safe to repeat, until it does not fail for want of a coordinator.

        Raises:
            UnavailableError: the time is up.
        """
        while True:
            try:
                result = action()
            except UnavailableError as error:
                self.wait(error)
            else:
                self.progressed()
                return result
