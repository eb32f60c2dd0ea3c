"""``elmgrove-coordinator owners``: list owners, or revoke one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.console import emit, emit_json, table
from common.errors import InterruptedByUserError, UsageError
from coordinator.cli.options import examples, home_option, json_option, opened, passphrase_option
from coordinator.config import Home

if TYPE_CHECKING:
    from common.ledger.state import ConsortiumState, OwnerState

__all__ = ["group"]


@click.group(
    name="owners",
    invoke_without_command=True,
    epilog=examples("elmgrove-coordinator owners", "elmgrove-coordinator owners --json", "elmgrove-coordinator owners revoke clinic"),
)
@home_option
@json_option
@click.pass_context
def group(context: click.Context, home: Home, as_json: bool) -> None:
    """List the owners by the log; with 'revoke', take one out."""
    if context.invoked_subcommand is not None:
        context.obj = home
        return
    from coordinator.usecases.context import open_ledger

    state = open_ledger(home).state()
    rows = [_row(state, owner) for owner in state.owners.values()]
    if as_json:
        emit_json(rows)
    elif rows:
        emit(table(["owner", "status", "admitted", "experts in force"], [_cells(row) for row in rows]))
    else:
        emit("No owner has joined yet. Run 'elmgrove-coordinator invite OWNER'.")


def _row(state: ConsortiumState, owner: OwnerState) -> dict[str, Any]:
    return {
        "owner": owner.name,
        "uri": owner.uri,
        "status": "admitted" if owner.revoked_index is None else "revoked",
        "admitted_index": owner.admitted_index,
        "revoked_index": owner.revoked_index,
        "experts": [expert.name for expert in state.experts_in_force() if expert.owner == owner.uri],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [row["owner"], row["status"], f"entry {row['admitted_index']}", ", ".join(row["experts"]) or "-"]


@group.command(name="revoke", epilog=examples('elmgrove-coordinator owners revoke clinic --reason "key lost" --yes'))
@click.argument("owner")
@click.option("--reason", default="", help="Why, for the log; everyone can read it.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@home_option
@passphrase_option
@click.pass_context
def revoke(context: click.Context, owner: str, reason: str, yes: bool, home: Home, passphrase_file: Path | None) -> None:
    """Revoke OWNER: its certificates open nothing any more, and its experts enter no later assembly. This cannot be undone."""
    from coordinator.usecases.revoke import revoke_owner

    chosen = home if home.config.exists() else context.obj
    if not yes:
        _confirm(owner)
    with opened(chosen, passphrase_file) as coordinator:
        receipt = revoke_owner(coordinator, owner, reason=reason)
    emit(f"Owner {owner} is revoked, by log entry {receipt.index}.")


def _confirm(owner: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("This needs a confirmation and there is no terminal to ask on; add --yes if you are sure.")
    if not click.confirm(f"Revoke {owner} for good?", err=True):
        raise InterruptedByUserError("Stopped as you asked.")
