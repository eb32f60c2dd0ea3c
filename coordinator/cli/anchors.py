"""``elmgrove-coordinator anchors``: list published anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from common.console import emit, emit_json, format_bytes, table
from coordinator.cli.options import examples, home_option, json_option
from coordinator.config import Home

if TYPE_CHECKING:
    from common.ledger.state import AnchorState

__all__ = ["command"]


@click.command(name="anchors", epilog=examples("elmgrove-coordinator anchors", "elmgrove-coordinator anchors --json --home consortium"))
@home_option
@json_option
def command(home: Home, as_json: bool) -> None:
    """List the published anchors by the log, oldest first."""
    from coordinator.usecases.context import open_ledger

    rows = [_row(anchor) for anchor in open_ledger(home).state().anchors.values()]
    if as_json:
        emit_json(rows)
    elif rows:
        emit(table(["anchor", "digest", "shape", "size", "licence", "entry"], [_cells(row) for row in rows]))
    else:
        emit("No anchor was published yet. Run 'elmgrove-coordinator anchor publish CHECKPOINT --name NAME'.")


def _row(anchor: AnchorState) -> dict[str, Any]:
    from common.formats.fields import format_time

    return {
        "name": anchor.name,
        "digest": anchor.digest,
        "index": anchor.index,
        "published_at": format_time(anchor.published_at),
        "size": sum(entry.size for entry in anchor.manifest.files),
        "licence": anchor.manifest.licence,
        "provenance": anchor.manifest.provenance,
        "architecture": anchor.manifest.architecture.model_dump(mode="json"),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    shape = row["architecture"]
    form = f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}, {shape['dtype']}"
    return [row["name"], row["digest"][:12], form, format_bytes(row["size"]), row["licence"] or "-", str(row["index"])]
