"""Trying again while the coordinator does not answer: exponential backoff with full jitter, bounded by the caller's patience."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from common.errors import UnavailableError

__all__ = ["backoff_delays", "retrying"]

T = TypeVar("T")

_FIRST_SECONDS: Final = 0.25  # ceiling of the first pause
_LAST_SECONDS: Final = 15.0  # ceiling of every later pause
_JITTER = random.SystemRandom()


def backoff_delays(*, first: float = _FIRST_SECONDS, last: float = _LAST_SECONDS) -> Iterator[float]:
    """Pauses in seconds, without end: uniform between half of a ceiling and the ceiling, which doubles from ``first`` to ``last``."""
    ceiling = first
    while True:
        yield _JITTER.uniform(ceiling / 2, ceiling)
        ceiling = min(last, ceiling * 2)


def retrying(
    action: Callable[[], T],
    *,
    patience: float,
    on_wait: Callable[[UnavailableError, float], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Run ``action`` until it succeeds, fails otherwise than by :class:`UnavailableError`, or ``patience`` seconds have passed.

    Args:
        action: must be safe to repeat.
        patience: seconds from now; 0 tries once.
        on_wait: told the failure and the pause in seconds before each new try.
        sleep: pauses the thread.
        clock: monotonic seconds.

    Raises:
        UnavailableError: the last failure, once patience has run out.
    """
    deadline = clock() + patience
    for delay in backoff_delays():
        try:
            return action()
        except UnavailableError as error:
            if clock() + delay > deadline:
                raise
            if on_wait is not None:
                on_wait(error, delay)
        sleep(delay)
    raise UnavailableError
