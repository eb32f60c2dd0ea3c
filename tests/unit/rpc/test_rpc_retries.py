"""Retries: what is repeated, for how long, and with which pauses."""

from __future__ import annotations

from itertools import islice

import pytest

from common.errors import QuotaError, UnavailableError
from common.rpc.retries import backoff_delays, retrying


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def test_pauses_double_with_jitter_up_to_a_ceiling() -> None:
    pauses = list(islice(backoff_delays(first=1.0, last=8.0), 200))
    assert 0.5 <= pauses[0] <= 1.0
    assert 1.0 <= pauses[1] <= 2.0
    assert all(4.0 <= pause <= 8.0 for pause in pauses[3:])
    assert len({round(pause, 6) for pause in pauses}) > 100


def test_an_absent_coordinator_is_called_again_until_it_answers() -> None:
    clock, tries = _Clock(), []

    def action() -> str:
        tries.append(clock.now)
        if len(tries) < 4:
            raise UnavailableError
        return "here"

    waits: list[float] = []
    assert retrying(action, patience=60, on_wait=lambda _, pause: waits.append(pause), sleep=clock.sleep, clock=clock) == "here"
    assert waits == clock.pauses
    assert len(waits) == 3


def test_patience_ends_with_the_last_failure() -> None:
    clock, tries = _Clock(), []

    def action() -> None:
        tries.append(1)
        raise UnavailableError(f"try {len(tries)}")

    with pytest.raises(UnavailableError, match=r"try \d+"):
        retrying(action, patience=30, sleep=clock.sleep, clock=clock)
    assert clock.now <= 30
    assert len(tries) > 3


@pytest.mark.parametrize("error", [QuotaError(), ValueError("bug")])
def test_what_will_not_get_better_is_not_repeated(error: Exception) -> None:
    clock = _Clock()

    def action() -> None:
        raise error

    with pytest.raises(type(error)):
        retrying(action, patience=60, sleep=clock.sleep, clock=clock)
    assert clock.pauses == []
