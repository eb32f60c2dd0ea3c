"""``elmgrove-coordinator experts``: list experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from common.console import emit, emit_json, format_bytes, table
from coordinator.cli.options import examples, home_option, json_option
from coordinator.config import Home

if TYPE_CHECKING:
    from common.ledger.state import ExpertState

__all__ = ["command"]


@click.command(
    name="experts",
    epilog=examples("elmgrove-coordinator experts", "elmgrove-coordinator experts --all --json --home consortium"),
)
@click.option("--all", "every", is_flag=True, help="Show every version, not the newest alone.")
@home_option
@json_option
def command(every: bool, home: Home, as_json: bool) -> None:
    """List the experts by the log, in the order in which they fill a model's slots."""
    from coordinator.usecases.context import open_ledger
    from coordinator.usecases.status import terms

    state = open_ledger(home).state()
    experts = [expert for versions in state.experts.values() for expert in (versions if every else versions[-1:])]
    experts.sort(key=lambda expert: (expert.first_index, expert.version))
    if as_json:
        emit_json([_row(expert) for expert in experts])
    elif experts:
        emit(
            table(
                ["expert", "version", "owner", "status", "kind", "size", "anchor", "digest", "entry"],
                [_cells(expert) for expert in experts],
            )
        )
        for expert in experts:
            if said := terms(expert.manifest):
                emit(f"{expert.name} version {expert.version}: {said}")
    else:
        emit("No expert was accepted yet.")


def _row(expert: ExpertState) -> dict[str, Any]:
    from common.formats.fields import format_time, utc_now
    from coordinator.usecases.status import standing

    return {
        "name": expert.name,
        "version": expert.version,
        "owner": expert.owner,
        "status": standing(expert, utc_now()),
        "kind": expert.manifest.kind.model_dump(mode="json", exclude={"materialised"}),
        "size": sum(entry.size for entry in expert.manifest.files),
        "anchor": expert.manifest.anchor,
        "digest": expert.digest,
        "index": expert.index,
        "accepted_at": format_time(expert.accepted_at),
        "licence": expert.manifest.licence,
        "permitted_uses": list(expert.manifest.permitted_uses),
        "not_after": expert.manifest.not_after,
        "training": dict(expert.manifest.training),
    }


def _cells(expert: ExpertState) -> list[str]:
    row = _row(expert)
    kind = row["kind"]["type"] if row["kind"]["type"] == "full" else f"rank {row['kind']['rank']}"
    short = (row["anchor"][:12], row["digest"][:12], str(row["index"]))
    return [row["name"], str(row["version"]), row["owner"].rsplit("/", 1)[-1], row["status"], kind, format_bytes(row["size"]), *short]
