"""Waiting for a coordinator that restarts: bounded, told once, and started again by progress."""

from __future__ import annotations

import threading
import time

import pytest

from common.errors import AdmissionError, UnavailableError
from owner_client.daemon.patience import Patience


class Flaky:
    """Fails ``failures`` times, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise UnavailableError("away")
        return "back"


def test_it_tries_again_until_the_answer_comes_and_says_so_once() -> None:
    said: list[str] = []
    flaky = Flaky(3)
    assert Patience(30, notice=said.append).persist(flaky) == "back"
    assert flaky.calls == 4
    assert len(said) == 1


def test_it_gives_up_when_the_time_is_over() -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="run the command again"):
        Patience(0.3).persist(Flaky(1000))
    assert 0.3 <= time.monotonic() - started < 3


def test_without_patience_the_first_failure_counts() -> None:
    flaky = Flaky(1)
    with pytest.raises(UnavailableError, match=r"^away$"):
        Patience(0).persist(flaky)
    assert flaky.calls == 1


def test_a_refusal_is_not_tried_again() -> None:
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise AdmissionError

    with pytest.raises(AdmissionError):
        Patience(30).persist(refuse)
    assert len(calls) == 1


def test_progress_starts_the_time_again_and_stop_ends_the_sleep() -> None:
    patience = Patience(0.5)
    time.sleep(0.4)
    patience.progressed()
    time.sleep(0.3)
    stop = threading.Event()
    stop.set()
    patience.wait(UnavailableError("away"), stop)
