"""``elmgrove-coordinator evaluate``: models side by side on the same text."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import TerminalProgress, emit
from common.errors import NotFoundError
from common.files import write_atomic
from coordinator.cli.options import examples, json_option, named_values, quiet_option

__all__ = ["command"]


@click.command(
    name="evaluate",
    epilog=examples(
        "elmgrove-coordinator evaluate anchor=anchor all=models/all --data public=public.valid.jsonl.gz --data code=code.valid.jsonl.gz",
        "elmgrove-coordinator evaluate models/all --data law=law/ --report report.html --json-out report.json",
    ),
)
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]DIR...")
@click.option("--data", multiple=True, required=True, metavar="NAME=FILES", help="A domain's name and its files; repeat a name for more.")
@click.option("--report", type=click.Path(path_type=Path), help="Write one self-contained HTML page with plots.")
@click.option("--json-out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=100_000, show_default=True, help="Tokens per domain.")
@click.option("--text-field", default="text", show_default=True, help="Field or column that holds the text.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu or cuda.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the confidence intervals.")
@quiet_option
@json_option
def command(
    models: tuple[str, ...],
    data: tuple[str, ...],
    report: Path | None,
    json_out: Path | None,
    max_tokens: int,
    text_field: str,
    device: str,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure perplexity and bits per byte of each model on each domain; all models see the same text.

    Differences and confidence intervals are to the first model.
    """
    for out in (report, json_out):
        if out is not None and not out.absolute().parent.is_dir():
            raise NotFoundError(f"There is no folder {out.parent} to write {out.name} into.")
    from coordinator.compute.evaluation import evaluate
    from coordinator.compute.report import to_html, to_json, to_table

    result = evaluate(
        [_model(item) for item in models],
        _domains(data),
        max_tokens=max_tokens,
        text_field=text_field,
        device=device,
        seed=seed,
        progress=TerminalProgress(quiet=quiet or as_json),
    )
    if report is not None:
        write_atomic(report, to_html(result).encode("utf-8"))
    if json_out is not None:
        write_atomic(json_out, to_json(result).encode("utf-8"))
    emit(to_json(result).rstrip() if as_json else to_table(result))
    if report is not None and not as_json:
        emit(f"\nReport: {report}")


def _model(item: str) -> tuple[str, Path]:
    """``NAME=DIR``, or ``DIR``, which is named after the folder."""
    name, equals, folder = item.partition("=")
    return (name, Path(folder)) if equals and not Path(item).exists() else (Path(item).resolve().name, Path(item))


def _domains(data: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    domains: dict[str, list[str]] = {}
    for name, files in named_values(data, "NAME=FILES, for example --data law=law.valid.jsonl.gz"):
        domains.setdefault(name, []).append(files)
    return list(domains.items())
