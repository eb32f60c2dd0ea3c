"""Results on disk, each a folder named by the digest of everything it depends on; several processes may fill one store together."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from common.console import emit, format_seconds
from common.errors import ElmgroveError
from common.progress import ProgressSink

__all__ = ["Desk", "Store", "Task", "run_tasks"]

_RESULT = "result.json"
_POLL_SECONDS = 2.0  # while other processes make what is needed


@dataclass(frozen=True, slots=True)
class Desk:
    """What a task works with."""

    out: Path
    """Empty; becomes the task's folder when it is finished."""
    work: Path
    """Kept when the task is interrupted, removed when it is finished."""
    progress: ProgressSink


@dataclass(frozen=True, eq=False)
class Task:
    """One result to be made from others.

    ``identity`` names all settings that it depends on, ``needs`` the results. ``cost`` is in FLOPs or the like, for the estimate of
    time alone.
    """

    kind: str
    title: str
    identity: Mapping[str, Any]
    make: Callable[[Desk], Mapping[str, Any]] = field(repr=False)
    needs: Sequence[Task] = ()
    cost: float = 0.0
    stage: Literal["baselines", "ours"] = "baselines"

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the kind, the settings and the digests of what it needs."""
        whole = {"kind": self.kind, "identity": self.identity, "needs": [task.digest for task in self.needs]}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.kind}-{self.digest[:16]}"


class Store:
    """The folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("results", "work", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def path(self, task: Task) -> Path:
        """Where the task's result is or will be."""
        return self.folder / "results" / task.name

    def done(self, task: Task) -> bool:
        """Whether the result is there."""
        return (self.path(task) / _RESULT).exists()

    def result(self, task: Task) -> dict[str, Any]:
        """What a finished task returned, with its ``seconds`` and ``cost``."""
        value: dict[str, Any] = json.loads((self.path(task) / _RESULT).read_bytes())
        return value

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock that ends with the process; gives False when another process holds it."""
        descriptor = os.open(self.folder / "locks" / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        try:
            yield True
        finally:
            os.close(descriptor)

    def build(self, task: Task, progress: ProgressSink) -> None:
        """Make the result; an interrupted one goes on from what it left in its work folder."""
        work = self.folder / "work" / task.name
        work.mkdir(exist_ok=True)
        spent, started = _seconds(work), time.monotonic()
        try:
            aside = work / "result"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            figures = task.make(Desk(aside, work, progress))
            seconds = spent + time.monotonic() - started
            whole = {"title": task.title, "identity": task.identity, "seconds": round(seconds, 2), "cost": task.cost, **figures}
            (aside / _RESULT).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            # Not synced to the disk: a power cut costs results that can be made again, and hundreds of syncs cost minutes.
            aside.rename(self.path(task))
        except BaseException:
            (work / "seconds.txt").write_text(str(spent + time.monotonic() - started))
            raise
        shutil.rmtree(work)


def _seconds(work: Path) -> float:
    path = work / "seconds.txt"
    return float(path.read_text()) if path.exists() else 0.0


def run_tasks(store: Store, tasks: Sequence[Task], *, progress: ProgressSink, workers: int = 1) -> None:
    """Make every task and what it needs, sharing the work with other processes that run the same list.

    Raises:
        ElmgroveError: something can be made neither here nor, as it seems, elsewhere.
    """
    order = _in_order(tasks)
    while left := [task for task in order if not store.done(task)]:
        if not _advance(store, order, left, progress, workers):
            if not _someone_works(store, left):
                raise ElmgroveError("Some results cannot be made: what they need has failed.")
            time.sleep(_POLL_SECONDS)


def _advance(store: Store, order: Sequence[Task], left: Sequence[Task], progress: ProgressSink, workers: int) -> bool:
    """Make the first result that is possible and that nobody else is making."""
    for task in left:
        if not all(store.done(need) for need in task.needs):
            continue
        with store.lock(task.name, wait=False) as mine:
            if not mine:
                continue
            if store.done(task):
                return True
            started = time.monotonic()
            store.build(task, progress)
            finished = sum(store.done(each) for each in order)
            emit(
                f"[{finished}/{len(order)}] {task.title}: {format_seconds(time.monotonic() - started)}; "
                f"about {format_seconds(estimate(store, order) / workers)} left",
                error=True,
            )
            return True
    return False


def _someone_works(store: Store, left: Sequence[Task]) -> bool:
    for task in left:
        with store.lock(task.name, wait=False) as mine:
            if not mine:
                return True
            if store.done(task):
                return True
    return False


def _in_order(tasks: Sequence[Task]) -> list[Task]:
    """Every task after what it needs, each digest once."""
    found: dict[str, Task] = {}

    def visit(task: Task) -> None:
        if task.digest not in found:
            for need in task.needs:
                visit(need)
            found[task.digest] = task

    for task in tasks:
        visit(task)
    return list(found.values())


def estimate(store: Store, tasks: Sequence[Task]) -> float:
    """Seconds of one process for what is left, from the speed of what is done; of a kind that was not seen yet, from all kinds."""
    order = _in_order(tasks)
    costs: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for task in order:
        if store.done(task):
            costs[task.kind] = costs.get(task.kind, 0.0) + task.cost
            seconds[task.kind] = seconds.get(task.kind, 0.0) + float(store.result(task)["seconds"])
    pace = sum(seconds.values()) / max(1.0, sum(costs.values())) or 1 / _USUAL_PACE
    paces = {kind: seconds[kind] / costs[kind] for kind in costs if costs[kind]}
    return sum(task.cost * paces.get(task.kind, pace) for task in order if not store.done(task))


_USUAL_PACE = 3e10  # FLOP/s of one core in fp32 at the experiment's sizes, until something was measured
