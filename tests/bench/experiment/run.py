"""``make experiment``: the paper's comparison at small scale, from a folder of corpora to ``results.json`` and ``table.md``.

Everything is kept by the digest of what it depends on, so the command goes on where it was stopped, and only what changed is made again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from common.console import TerminalProgress, emit, format_seconds
from common.errors import ElmgroveError, InterruptedByUserError, UsageError
from tests.bench.experiment.artefacts import Artefacts
from tests.bench.experiment.data import Corpus, prepare_corpus
from tests.bench.experiment.presets import PRESETS
from tests.bench.experiment.rows import GROUPS, Row, all_rows
from tests.bench.experiment.store import Store, Task, estimate, run_tasks
from tests.bench.experiment.sweep import sweep
from tests.bench.experiment.table import write_results

_LINE_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; gives the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return _run(options, given)
    except InterruptedByUserError as error:
        emit(f"experiment: {error}", error=True)
        return error.exit_code
    except KeyboardInterrupt:
        emit("experiment: interrupted; the same command goes on from here.", error=True)
        return InterruptedByUserError.exit_code
    except ElmgroveError as error:
        emit(f"experiment: {error}", error=True)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of NAME.{train,valid}.jsonl.gz, one NAME being public")
    parser.add_argument("--out", type=Path, default=Path("experiment-run"), help="folder of the results (default: experiment-run)")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="sizes (default: small)")
    parser.add_argument("--domains", help="comma-separated owners; by default every private domain of the folder")
    parser.add_argument("--seeds", help="comma-separated; by default the preset's")
    parser.add_argument("--stage", choices=("all", "baselines", "ours", "table", "sweep"), default="all", help="what to do (default: all)")
    parser.add_argument("--ablations", default="1", help="seeds of the ablation rows, comma-separated or empty (default: 1)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW",
        help="only rows with this in =NAME=; may be repeated",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the rows and an estimate of the time, and do nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(options: argparse.Namespace, given: Sequence[str]) -> int:
    torch.set_num_threads(options.threads)
    sizes = PRESETS[options.preset]
    store = Store(options.out.resolve())
    with store.lock("corpus", wait=True):
        corpus = prepare_corpus(options.data.resolve(), store.folder, public_slice=sizes.public_slice, tune_share=sizes.tune_share)
    corpus = _owners(corpus, options.domains)
    seeds = _numbers(options.seeds) or list(sizes.seeds)
    if options.stage == "sweep":
        sweep(Artefacts(store, corpus, sizes, seeds[0]), progress=TerminalProgress())
        return 0
    every = {seed: all_rows(Artefacts(store, corpus, sizes, seed)) for seed in seeds}
    chosen = {seed: _chosen(rows, options, seed) for seed, rows in every.items()}
    tasks = _in_turns(chosen)
    if options.list:
        _list(store, chosen, tasks, options.jobs)
        return 0
    if options.stage != "table":
        _make(store, tasks, options, given)
    if not options.worker:
        write_results(store, corpus, sizes, every, command=_command(options))
    return 0


class _Calm:
    """A ``ProgressSink`` of one line a minute, for runs of hours and several processes at one terminal."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS and done < total:
            self._shown = now
            shown = "".join(f", {name} {text}" for name, text in (figures or {}).items())
            emit(f"    {label}: {done:,} of {total:,} {unit}{shown}", error=True)


def _owners(corpus: Corpus, text: str | None) -> Corpus:
    """The corpus with some of its domains as owners; the anchor has seen a slice of all of them."""
    if text is None:
        return corpus
    named = tuple(sorted(set(text.split(","))))
    if not set(named) <= set(corpus.domains):
        raise UsageError(f"Owners are among {', '.join(corpus.domains)}, not {text}.")
    return replace(corpus, domains=named)


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(part) for part in (text or "").split(",") if part]
    except ValueError as error:
        raise UsageError(f"Seeds are numbers with commas between them, not {text}.") from error


def _chosen(rows: Sequence[Row], options: argparse.Namespace, seed: int) -> list[Row]:
    """The rows that the options ask for; the table shows all that are finished."""
    kept = [row for row in rows if row.group != "ablation" or seed in _numbers(options.ablations)]
    if options.stage in ("baselines", "ours"):
        ours = options.stage == "ours"
        kept = [row for row in kept if ours == (row.task.stage == "ours") or row.name == "anchor"]
    if options.only:
        kept = [row for row in kept if any(part in f"={row.name}=" for part in options.only)]
    if not kept:
        raise UsageError("No row is left to do; --list shows them.")
    return kept


def _in_turns(rows: dict[int, list[Row]]) -> list[Task]:
    """Seed by seed and within it group by group, so that a first table is there early; ablations last."""
    seeded = [row.task for seed in rows for group in GROUPS if group != "ablation" for row in rows[seed] if row.group == group]
    return seeded + [row.task for those in rows.values() for row in those if row.group == "ablation"]


def _list(store: Store, rows: dict[int, list[Row]], tasks: Sequence[Task], jobs: int) -> None:
    for seed, those in rows.items():
        for row in those:
            emit(f"seed {seed}  {row.group:9}  {'done' if store.done(row.task) else '    '}  {row.name}")
    emit(f"about {format_seconds(estimate(store, tasks) / jobs)} left with {jobs} processes")


def _make(store: Store, tasks: Sequence[Task], options: argparse.Namespace, given: Sequence[str]) -> None:
    if options.jobs <= 1 or options.worker:
        run_tasks(store, tasks, progress=_Calm(), workers=options.jobs)
        return
    emit(f"About {format_seconds(estimate(store, tasks) / options.jobs)} with {options.jobs} processes.", error=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, *given, "--worker"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(options.jobs)]
    try:
        _wait(workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait()


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended well.

    Raises:
        InterruptedByUserError, ElmgroveError: one has not.
    """
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.5)
        for worker in workers:
            if worker.poll() == InterruptedByUserError.exit_code:
                raise InterruptedByUserError("Interrupted; the same command goes on from here.")
            if worker.poll():
                raise ElmgroveError("A process of the experiment failed; its message is above.")


def _command(options: argparse.Namespace) -> str:
    return f"make experiment PRESET={options.preset} DATA=DIR"


if __name__ == "__main__":
    sys.exit(main())
