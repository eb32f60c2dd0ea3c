"""An evaluation as aligned text for a terminal, as JSON for a script, and as one self-contained HTML page."""

from __future__ import annotations

import json

from common.console import table
from coordinator.compute.evaluation import EvaluationReport, RouterLoad
from coordinator.compute.report_page import render_page

__all__ = ["to_html", "to_json", "to_table"]


def to_table(report: EvaluationReport) -> str:
    """Perplexity per model and domain (only when the models share a tokenizer) and bits per byte; the router of every larger mixture.

    A mixture is larger when it has more than two experts. The best figure of a column is marked with ``*``.
    """
    parts = []
    if report.same_tokenizer:
        parts.append(f"Perplexity (lower is better; windows of {report.seq_len} tokens)\n{_perplexities(report)}")
    parts.append(f"Bits per byte (lower is better)\n{_bits(report)}")
    if not report.same_tokenizer:
        parts.append("The models have different tokenizers, so their perplexities cannot be compared.")
    mixtures = dict.fromkeys(load.model for load in report.loads if len(load.experts) > 2)
    parts += [f"Router of {model}: mean probability per expert\n{_loads(report, model)}" for model in mixtures]
    return "\n\n".join(parts)


def _perplexities(report: EvaluationReport) -> str:
    columns = [[report.score(model, domain).perplexity for model in report.models] for domain in report.domains]
    columns.append([report.geometric_mean(model) for model in report.models])
    return _figures(report, "geometric mean", columns, 2)


def _bits(report: EvaluationReport) -> str:
    columns = [[report.score(model, domain).bits_per_byte for model in report.models] for domain in report.domains]
    columns.append([report.mean_bits(model) for model in report.models])
    return _figures(report, "mean", columns, 3)


def _figures(report: EvaluationReport, last: str, columns: list[list[float]], digits: int) -> str:
    """Models by domains; the mark stands in a place that other figures leave blank, so that digits stay aligned."""
    best = [min(column) for column in columns]
    rows = []
    for place, model in enumerate(report.models):
        cells = [f"{column[place]:,.{digits}f}{'*' if column[place] == low else ' '}" for column, low in zip(columns, best, strict=True)]
        rows.append([model, *cells])
    return _aligned(["model", *[f"{domain} " for domain in report.domains], f"{last} "], rows)


def _aligned(header: list[str], rows: list[list[str]]) -> str:
    """Like :func:`common.console.table` with every column but the first flush right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for name, *cells in [header, *rows]:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _loads(report: EvaluationReport, model: str) -> str:
    loads: list[RouterLoad] = [load for load in report.loads if load.model == model]
    shares = [(load.domain, load.mean_probability) for load in loads]
    if len(loads) > 1:
        shares.append(("mean", [sum(column) / len(loads) for column in zip(*(each for _, each in shares), strict=True)]))
    rows = [[domain, *[f"{100 * share:.1f}%" for share in each]] for domain, each in shares]
    return table(["domain", *loads[0].experts], rows)


def to_json(report: EvaluationReport) -> str:
    """The whole report as one JSON document (``elmgrove.evaluation/v1``)."""
    return json.dumps(report.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def to_html(report: EvaluationReport, *, title: str = "Evaluation") -> str:
    """The report as one page that needs nothing else: no script, no external file; light and dark."""
    return render_page(report, title)
