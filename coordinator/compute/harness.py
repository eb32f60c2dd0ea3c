"""Running EleutherAI's lm-evaluation-harness (``lm_eval``) on a model folder, without a network, through stock transformers.

The harness loads the folder with transformers' own ``FlexOlmoForCausalLM``, so what is measured is what anyone else would load.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import DataError, MissingExtraError, NotFoundError, UsageError
from common.modeling.loading import read_config

__all__ = ["HarnessReport", "HarnessScore", "run_harness"]

SCHEMA = "elmgrove.lm-eval/v1"
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
_SHOWN = 20  # names in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessScore:
    """One metric of one task."""

    task: str
    metric: str
    filter: str
    value: float | None
    """None when the harness has no finite number for it."""
    stderr: float | None
    samples: int
    """Documents that were scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessReport:
    """All scores of one model."""

    model: str
    scores: list[HarnessScore]
    versions: dict[str, str]
    """Of the tasks."""
    limit: int | None
    harness: str
    """Version of ``lm_eval``."""

    def to_dict(self) -> dict[str, object]:
        """Everything, for a script."""
        return {"schema": SCHEMA, **asdict(self)}


def run_harness(
    folder: Path,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> HarnessReport:
    """Evaluate the model in ``folder`` on ``tasks``.

    Args:
        folder: a model that stock transformers loads.
        tasks: names of tasks.
        include_path: folder of task files (YAML); with it the harness's own tasks are not looked at.
        limit: documents per task at most.
        num_fewshot: examples before each question; by default what the task says.
        batch_size: documents computed at once.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: of the weights: ``auto`` (bfloat16 on a GPU), ``float32`` or ``bfloat16``.
        seed: of everything random.
        quiet: show no progress.

    Raises:
        MissingExtraError: the harness is not installed.
        NotFoundError: no such folder of tasks, or no such task in it.
        UsageError: no task, or no such device.
        DataError: a task file or its data cannot be used.
        ArchitectureError, LayoutError: ``folder`` holds no model.
    """
    if not tasks:
        raise UsageError("Give at least one task to evaluate on.")
    if include_path is not None and not include_path.is_dir():
        raise NotFoundError(f"There is no folder {include_path} of task files.")
    read_config(folder)
    where = _device(device)
    os.environ.update(dict.fromkeys(_OFFLINE, "1") | {"TOKENIZERS_PARALLELISM": "false"} | ({"TQDM_DISABLE": "1"} if quiet else {}))
    evaluator, manager = _import()
    wide = dtype == "float32" or (dtype == "auto" and where == "cpu")
    with contextlib.redirect_stdout(sys.stderr):  # the harness prints; standard output is for the result
        known = _load(manager, tasks, include_path)
        results = evaluator.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "float32" if wide else "bfloat16"},
            tasks=list(tasks),
            task_manager=known,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            device=where,
            limit=limit,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return _report(folder, results, limit)


def _device(wanted: str) -> str:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("There is no CUDA device that torch can use; choose the device cpu or auto.")
    return "cuda" if available and wanted != "cpu" else "cpu"


def _import() -> tuple[Any, Any]:
    """The harness's evaluator and its class of task managers."""
    try:
        return importlib.import_module("lm_eval.evaluator"), importlib.import_module("lm_eval.tasks").TaskManager
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Running the harness needs {error.name}, which is not installed. Run: pip install 'elmgrove[eval]'"
        ) from error


def _load(manager: Any, tasks: Sequence[str], include_path: Path | None) -> Any:
    """A manager that knows ``tasks`` and could load every one of them with its data.

    Raises:
        NotFoundError: it does not know one.
        DataError: one cannot be loaded.
    """
    try:
        known = manager(include_path=None if include_path is None else str(include_path), include_defaults=include_path is None)
        missing = [name for name in tasks if not known.match_tasks([name])]
        if missing:
            names = sorted(known.all_tasks)
            shown = f"{', '.join(names[:_SHOWN])}{' and more' if len(names) > _SHOWN else ''}" if names else "none"
            raise NotFoundError(f"There is no task {missing[0]}. The tasks are: {shown}.")
        known.load(list(tasks))
    except _loading_errors() as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"The task files cannot be used: {reason}. Nothing is fetched from a network; data must lie on this machine."
        ) from error
    return known


def _loading_errors() -> tuple[type[Exception], ...]:
    """What reading task files and their data can raise: Python's own errors and those of the libraries that read them."""
    yaml, datasets = importlib.import_module("yaml"), importlib.import_module("datasets.exceptions")
    own: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
    return (*own, yaml.YAMLError, datasets.DatasetsError)


def _report(folder: Path, results: Mapping[str, Any], limit: int | None) -> HarnessReport:
    scores = []
    for task, row in results["results"].items():
        samples = int(results.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in row.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = row.get(f"{metric}_stderr,{chosen}")
                scores.append(
                    HarnessScore(task=task, metric=metric, filter=chosen, value=_number(value), stderr=_number(error), samples=samples)
                )
    versions = {str(task): str(version) for task, version in results.get("versions", {}).items()}
    harness = str(importlib.import_module("lm_eval").__version__)
    return HarnessReport(model=folder.resolve().name, scores=scores, versions=versions, limit=limit, harness=harness)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
