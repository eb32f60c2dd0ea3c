"""Choosing the baselines' learning rates and public share on documents held out of training files; prints one line per setting."""

from __future__ import annotations

from collections.abc import Sequence

from common.console import emit
from common.progress import ProgressSink
from tests.bench.experiment.artefacts import Artefacts
from tests.bench.experiment.data import PUBLIC
from tests.bench.experiment.evaluation import Evaluations
from tests.bench.experiment.recipes import DENSE, SWEEP
from tests.bench.experiment.store import Task, run_tasks

__all__ = ["sweep"]


def sweep(artefacts: Artefacts, *, progress: ProgressSink) -> None:
    """Train one dense expert of the first domain by every recipe, and by the chosen one with public text; then the mixture likewise."""
    scores, domain = Evaluations(artefacts), artefacts.domains[0]
    dense = {name: artefacts.dense(domain, recipe=recipe) for name, recipe in SWEEP.items()}
    dense["chosen, 30% public text"] = artefacts.dense(domain, recipe=DENSE, public_share=0.3)
    tasks = {f"dense {domain}, {name}": scores.dense(name, task, part="tune") for name, task in dense.items()}
    mixtures = {name: artefacts.unrestricted(0.25, recipe=recipe) for name, recipe in SWEEP.items()}
    tasks |= {f"MoE, {name}": scores.mixture(name, task, part="tune") for name, task in mixtures.items()}
    for title, task in tasks.items():
        run_tasks(artefacts.store, [task], progress=progress)
        _show(artefacts, title, task, artefacts.domains)


def _show(artefacts: Artefacts, title: str, task: Task, domains: Sequence[str]) -> None:
    found = artefacts.store.result(task)["scores"]
    mean = sum(found[name]["nats"] for name in domains) / len(domains)
    first = domains[0]
    emit(f"{title:32} {first} {found[first]['nats']:.3f}  mean {mean:.3f}  {PUBLIC} {found[PUBLIC]['nats']:.3f}")
