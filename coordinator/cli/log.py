"""``elmgrove-coordinator log``: list the log's entries."""

from __future__ import annotations

import click

from common.console import emit, emit_json, table
from coordinator.cli.options import examples, home_option, json_option
from coordinator.config import Home

__all__ = ["command"]


@click.command(
    name="log",
    epilog=examples(
        "elmgrove-coordinator log",
        "elmgrove-coordinator log --last 5 --home consortium",
        "elmgrove-audit log consortium/log --root consortium/certs/root.pem",
    ),
)
@click.option("--last", type=click.IntRange(min=1), help="Show the newest entries only.")
@home_option
@json_option
def command(last: int | None, home: Home, as_json: bool) -> None:
    """List the transparency log: every fact the consortium agrees on, oldest first.

    The entries are checked on the way: signatures, rules and the signed checkpoint.
    """
    from common.formats.entries import parse_entry
    from coordinator.usecases.context import open_ledger

    ledger = open_ledger(home)
    size = ledger.state().size
    first = max(0, size - last) if last else 0
    entries = [(index, parse_entry(raw)) for index, raw in enumerate(ledger.view.entries(first, size), first)]
    if as_json:
        rows = [{"index": index, **entry.model_dump(mode="json")} for index, entry in entries]
        emit_json({"size": size, "checkpoint": ledger.view.checkpoint.decode("utf-8"), "entries": rows})
        return
    cells = [[str(index), entry.time, entry.kind, entry.subject, entry.document[:16]] for index, entry in entries]
    emit(table(["entry", "time", "kind", "subject", "document"], cells))
    emit(f"\n{size} entries; every signature and rule holds.")
