"""``elmgrove-coordinator lm-eval``: the lm-evaluation-harness on a model folder, offline."""

from __future__ import annotations

import json
from pathlib import Path

import click

from common.console import emit, emit_json, table
from common.errors import NotFoundError
from common.files import write_atomic
from coordinator.cli.options import examples, json_option, quiet_option

__all__ = ["command"]


@click.command(
    name="lm-eval",
    epilog=examples(
        "elmgrove-coordinator lm-eval models/all --tasks clinic-quiz,clinic-notes --include-path tasks/",
        "elmgrove-coordinator lm-eval models/all --tasks clinic-quiz --include-path tasks/ --limit 50 --json-out quiz.json",
    ),
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.option("--tasks", required=True, multiple=True, metavar="NAMES", help="Tasks, comma-separated.")
@click.option(
    "--include-path",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of task files (YAML). They may name Python code, which is run: use only ones you trust. [default: the harness's own "
    "tasks, whose data must be in the local cache]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Documents per task, at most.")
@click.option("--num-fewshot", type=click.IntRange(min=0), metavar="N", help="Examples before each question. [default: what the task says]")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Documents computed at once.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True, help="Type of the model's weights."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--json-out", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures as JSON.")
@quiet_option
@json_option
def command(
    model: Path,
    tasks: tuple[str, ...],
    include_path: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
    device: str,
    dtype: str,
    seed: int,
    json_out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run tasks of the lm-evaluation-harness on MODEL, any folder that stock transformers loads. Nothing is fetched from a network.

    This needs the extra 'eval'. Paths in task files are taken from the current folder.
    """
    if json_out is not None and not json_out.absolute().parent.is_dir():
        raise NotFoundError(f"There is no folder {json_out.parent} to write {json_out.name} into.")
    from coordinator.compute.harness import run_harness

    report = run_harness(
        model,
        list(dict.fromkeys(name.strip() for value in tasks for name in value.split(",") if name.strip())),
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        seed=seed,
        quiet=quiet or as_json,
    )
    if json_out is not None:
        write_atomic(json_out, (json.dumps(report.to_dict(), indent=2, sort_keys=True) + "\n").encode())
    if as_json:
        emit_json(report.to_dict())
        return
    rows = [
        [score.task, score.metric, score.filter, _shown(score.value), _shown(score.stderr), str(score.samples)] for score in report.scores
    ]
    emit(table(["task", "metric", "filter", "value", "stderr", "documents"], rows))
    emit(f"\n{report.model}, lm-eval {report.harness}{f', at most {limit} documents per task' if limit else ''}.")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
