"""Paired timing: ours and the alternative in turn in one run, ratio pair by pair, medians and spread (machines are noisy)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

__all__ = ["Result", "paired", "paired_rates"]


@dataclass(frozen=True)
class Result:
    """One benchmark's line in ``bench.json``. ``ratio`` is ours over the other's, both as rates: above 1 means ours is faster."""

    ours: float
    other: float
    other_name: str
    unit: str
    ratio: float
    runs: int
    spread: tuple[float, float]

    def as_json(self) -> dict[str, object]:
        """The fields, for ``bench.json``."""
        return asdict(self)


def paired(ours: Callable[[], float], other: Callable[[], float], *, work: float, unit: str, other_name: str, runs: int = 5) -> Result:
    """Time two functions in turn, A B B A ..., after one warm-up of each.

    Args:
        ours: does the work once and returns the seconds it took.
        other: the alternative or the physical limit, likewise.
        work: units of work in one call (bytes, tokens); rates are ``work / seconds``.
        unit: of the rate, for example ``"tokens/s"``.
        other_name: what ``other`` is.
        runs: counted pairs.
    """
    return paired_rates(lambda: work / ours(), lambda: work / other(), unit=unit, other_name=other_name, runs=runs)


def paired_rates(ours: Callable[[], float], other: Callable[[], float], *, unit: str, other_name: str, runs: int = 5) -> Result:
    """As :func:`paired`, for functions that return rates."""
    ours(), other()
    pairs: list[tuple[float, float]] = []
    for number in range(runs):
        if number % 2:
            second = other()
            pairs.append((ours(), second))
        else:
            first = ours()
            pairs.append((first, other()))
    ratios = [mine / theirs for mine, theirs in pairs]
    return Result(
        ours=round(statistics.median(mine for mine, _ in pairs), 3),
        other=round(statistics.median(theirs for _, theirs in pairs), 3),
        other_name=other_name,
        unit=unit,
        ratio=round(statistics.median(ratios), 3),
        runs=runs,
        spread=(round(min(ratios), 3), round(max(ratios), 3)),
    )
