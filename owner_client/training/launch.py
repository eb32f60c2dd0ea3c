"""Starting the processes of one run on this machine, watching them, and ending all when one fails; reaches no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import ElmgroveError, LostProcessError, UsageError
from owner_client.training.stopping import StopRequest, stop_requests

__all__ = ["NamedWorld", "environment_world", "run_processes"]

_LOOK = 0.02  # seconds between looks at the processes
_GRACE = 5.0  # seconds to end by itself once another process has ended


@dataclass(frozen=True, slots=True)
class NamedWorld:
    """This process's place as ``torchrun`` puts it into the environment."""

    rank: int
    size: int
    local_rank: int


def environment_world() -> NamedWorld | None:
    """The place that the environment names; None when this process was started alone.

    Raises:
        UsageError: the environment names half a place.
    """
    size = os.environ.get("WORLD_SIZE")
    if size is None or size == "1":
        return None
    try:
        named = NamedWorld(int(os.environ["RANK"]), int(size), int(os.environ["LOCAL_RANK"]))
    except (KeyError, ValueError) as error:
        raise UsageError("WORLD_SIZE is set, but RANK and LOCAL_RANK are not: start the command with torchrun, or unset it.") from error
    return named


def run_processes(arguments: list[str], *, processes: int, variables: Mapping[str, str]) -> dict[str, Any]:
    """Run ``python ARGUMENTS`` as ranks ``0 .. processes - 1`` and return the JSON object that rank 0 printed last.

    The first failure ends all of them; Ctrl-C and SIGTERM are passed on, and a second one ends them at once. A process tells an
    expected failure as ``{"error": code, "message": text}``, and ends by itself when its standard input is closed.

    Args:
        arguments: of the Python interpreter.
        processes: how many.
        variables: added to the environment, besides each rank's place.

    Raises:
        ElmgroveError: of the class and with the message that a process told.
        LostProcessError: a process was killed or crashed.
    """
    workers: list[_Worker] = []
    try:
        with stop_requests() as stop:
            workers += (_start(arguments, rank, processes, variables) for rank in range(processes))
            _watch(workers, stop)
            told = [worker.told() for worker in workers]
    finally:
        for worker in workers:
            worker.end()
    failed = [worker for worker in workers if worker.process.returncode]
    if failed:
        raise _failure(failed, told, processes)
    return told[0]


@dataclass(slots=True)
class _Worker:
    rank: int
    process: subprocess.Popen[str]

    def told(self) -> dict[str, Any]:
        """The JSON object on its last line; empty when there is none. It is given a little time to end, and no more."""
        try:
            output, _ = self.process.communicate(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
        lines = output.splitlines()
        try:
            value = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def _start(arguments: list[str], rank: int, processes: int, variables: Mapping[str, str]) -> _Worker:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **variables, **place},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C at the terminal reaches this process alone, which passes it on once
    )
    return _Worker(rank, process)


def _watch(workers: list[_Worker], stop: StopRequest) -> None:
    """Wait until all have ended well or one has failed."""
    passed_on = False
    while True:
        codes = [worker.process.poll() for worker in workers]
        if any(codes) or all(code == 0 for code in codes):
            return
        if stop.asked and not passed_on:
            passed_on = True
            for worker in workers:
                worker.process.send_signal(signal.SIGINT)
        time.sleep(_LOOK)


def _failure(failed: list[_Worker], told: list[dict[str, Any]], processes: int) -> ElmgroveError:
    """The most telling failure: an expected one before a crash, and what the loss of a neighbour caused last."""
    classes = {cls.code: cls for cls in _error_classes(ElmgroveError)}
    for worker in failed:
        code, message = told[worker.rank].get("error"), told[worker.rank].get("message")
        if code in classes and code != LostProcessError.code:
            return classes[code](str(message))
    crashed = next((worker for worker in failed if told[worker.rank].get("error") is None), failed[0])
    code = crashed.process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return LostProcessError(
        f"Process {crashed.rank} of {processes} {how}, and the others were ended. "
        "Run the same command again to go on from the last checkpoint."
    )


def _error_classes(root: type[ElmgroveError]) -> Iterator[type[ElmgroveError]]:
    yield root
    for child in root.__subclasses__():
        yield from _error_classes(child)
