"""``results.json`` and ``table.md``: every figure that is there, and tables of mean and spread over seeds."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.console import emit
from common.files import write_atomic
from tests.bench.experiment import recipes
from tests.bench.experiment.artefacts import Artefacts
from tests.bench.experiment.data import PUBLIC, Corpus
from tests.bench.experiment.presets import Sizes
from tests.bench.experiment.rows import Row
from tests.bench.experiment.store import Store

__all__ = ["markdown", "write_results"]

SCHEMA = "elmgrove.experiment/v1"


def write_results(store: Store, corpus: Corpus, sizes: Sizes, rows: Mapping[int, Sequence[Row]], *, command: str) -> None:
    """Write both files into the store's folder, of the rows that are finished, and print the main table."""
    results = {
        "schema": SCHEMA,
        "command": command,
        "commit": _commit(),
        "preset": sizes.name,
        "domains": list(corpus.domains),
        "sizes": asdict(sizes),
        "expert_settings": {seed: asdict(Artefacts(store, corpus, sizes, seed).settings({})) for seed in rows},
        "recipes": {name: asdict(getattr(recipes, name)) for name in ("DENSE", "MIXTURE", "BTX_ROUTER", "BTX_ALL")},
        "rows": [
            _entry(store, row, seed) for seed, those in rows.items() for row in those if store.done(row.task)
        ],
    }  # fmt: skip
    write_atomic(store.folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    text = markdown(results)
    write_atomic(store.folder / "table.md", text.encode())
    emit(text)


def _entry(store: Store, row: Row, seed: int) -> dict[str, Any]:
    found = store.result(row.task)
    return {
        "name": row.name,
        "group": row.group,
        "seed": seed,
        "scores": found["scores"],
        "temperature": found.get("temperature"),
        "training": row.training,
        "inference": row.inference,
        "note": row.note,
        "seconds": _seconds(store, row),
    }


def _seconds(store: Store, row: Row) -> float:
    """Of the evaluation and of all training that it needs, the anchor's left out."""
    seen: dict[str, float] = {}
    queue = [row.task]
    while queue:
        task = queue.pop()
        if task.kind != "anchor" and task.digest not in seen:
            seen[task.digest] = float(store.result(task)["seconds"])
            queue += task.needs
    return round(sum(seen.values()), 1)


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seed:
    """The rows of one seed, by name."""

    rows: Mapping[str, Mapping[str, Any]]
    domains: Sequence[str]

    def nats(self, name: str, domain: str) -> float:
        return float(self.rows[name]["scores"][domain]["nats"])

    def bits(self, name: str) -> float:
        return statistics.mean(float(self.rows[name]["scores"][domain]["bits_per_byte"]) for domain in self.domains)

    def mean(self, name: str) -> float:
        return statistics.mean(self.nats(name, domain) for domain in self.domains)

    def best_single(self, domain: str) -> float:
        """The lowest loss of any one dense model of a single domain."""
        return min(self.nats(name, domain) for name in self.rows if name == "anchor" or (name.startswith("dense ") and name != _ALL))

    def gap(self, name: str, domain: str) -> float:
        anchor = self.nats("anchor", domain)
        return (anchor - self.nats(name, domain)) / (anchor - self.best_single(domain))

    def mean_gap(self, name: str) -> float:
        return statistics.mean(self.gap(name, domain) for domain in self.domains)

    def cost(self, name: str) -> float:
        return self.nats(name, PUBLIC) - self.nats("anchor", PUBLIC)


_ALL = "dense on everything"


def _seeds(results: Mapping[str, Any]) -> dict[int, _Seed]:
    grouped: dict[int, dict[str, Mapping[str, Any]]] = {}
    for entry in results["rows"]:
        grouped.setdefault(entry["seed"], {})[entry["name"]] = entry
    return {seed: _Seed(rows, results["domains"]) for seed, rows in grouped.items() if "anchor" in rows}


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and sample standard deviation."""
    if not values:
        return "-"
    middle = format(statistics.mean(values), form)
    return middle if len(values) == 1 else f"{middle} ± {format(statistics.stdev(values), form.replace('+', ''))}"


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    seeds = _seeds(results)
    if not seeds:
        return "There is no table yet: the anchor's own row is not finished.\n"
    has_dense = {seed: all(f"dense {domain}" in those.rows for domain in results["domains"]) for seed, those in seeds.items()}
    full = {seed: those for seed, those in seeds.items() if has_dense[seed]}
    parts = [f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds; nats per token of the validation files.\n"]
    for title, groups in _TABLES.items():
        rows = _names(results, groups)
        if rows:
            parts += [f"### {title}\n", _table(results, rows, seeds, full)]
    return "\n".join(parts)


_TABLES = {
    "Comparison": ("reference", "baseline", "ours"),
    "One model or pair on every domain": ("single",),
    "Opt-out": ("opt-out",),
    "Ablations": ("ablation",),
}


def _names(results: Mapping[str, Any], groups: Sequence[str]) -> list[str]:
    """Row names in the order of groups, each once."""
    return list(dict.fromkeys(entry["name"] for group in groups for entry in results["rows"] if entry["group"] == group))


def _table(results: Mapping[str, Any], names: Sequence[str], seeds: Mapping[int, _Seed], full: Mapping[int, _Seed]) -> str:
    domains = list(results["domains"])
    header = ["model", *domains, "mean", "bits per byte", "gap closed", "public cost", "training", "inference"]
    lines = [_line(header), _line(["---", *["--:"] * (len(header) - 1)])]
    for name in names:
        lines.append(_line([name, *_cells(name, domains, seeds, full)]))
    return "\n".join(lines) + "\n\n" + _gaps(names, domains, full)


def _cells(name: str, domains: Sequence[str], seeds: Mapping[int, _Seed], full: Mapping[int, _Seed]) -> list[str]:
    there = [those for those in seeds.values() if name in those.rows]
    whole = [those for those in full.values() if name in those.rows]

    def over(of: Callable[[_Seed], float], form: str = ".3f", among: Sequence[_Seed] = there) -> str:
        return _spread([of(those) for those in among], form)

    entry = there[0].rows[name]
    return [
        *(_spread([those.nats(name, domain) for those in there], ".3f") for domain in domains),
        over(lambda those: those.mean(name)),
        over(lambda those: those.bits(name)),
        over(lambda those: those.mean_gap(name), ".1%", whole),
        over(lambda those: those.cost(name), "+.3f"),
        f"{entry['training']:.2f}x",
        f"{entry['inference']:.2f}x",
    ]


def _gaps(names: Sequence[str], domains: Sequence[str], full: Mapping[int, _Seed]) -> str:
    """The share of the gap that is closed, per domain."""
    if not full:
        return ""
    lines = [_line(["gap closed", *domains, "mean"]), _line(["---", *["--:"] * (len(domains) + 1)])]
    for name in names:
        there = [those for those in full.values() if name in those.rows]
        if there:
            cells = [_spread([those.gap(name, domain) for those in there], ".1%") for domain in domains]
            lines.append(_line([name, *cells, _spread([those.mean_gap(name) for those in there], ".1%")]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
