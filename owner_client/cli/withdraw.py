"""``elmgrove-owner withdraw``: take an expert out of every later model."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import emit, emit_json
from common.errors import UsageError
from common.formats.limits import MAX_TEXT
from owner_client.cli.options import ask_yes, examples, home_option, json_option, notice, open_passphrase, passphrase_option, yes_option
from owner_client.config import Home

__all__ = ["withdraw"]


@click.command(epilog=examples("elmgrove-owner withdraw cardiology", 'elmgrove-owner withdraw cardiology --reason "consent ended" --yes'))
@click.argument("expert")
@click.option("--reason", default="", metavar="TEXT", help="A reason for the log; everyone in the consortium can read it.")
@yes_option
@home_option
@passphrase_option
@json_option
def withdraw(expert: str, reason: str, yes: bool, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Withdraw EXPERT, all its versions, for good.

    The statement is signed here and logged at once: from then on the expert is in no model that is assembled. Models assembled
    before, and copies of them, keep it until they are assembled again. The name cannot be used again.
    """
    from owner_client.daemon.patience import Patience  # gRPC, only when something is to be sent
    from owner_client.daemon.session import open_session
    from owner_client.daemon.withdraw import plan_withdrawal, withdraw_expert

    if len(reason) > MAX_TEXT or not all(char.isprintable() or char in "\t\n" for char in reason):
        raise UsageError(f"The reason must be printable text of at most {MAX_TEXT} characters.")
    session = open_session(home)
    passphrase = open_passphrase(home, passphrase_file)
    patience = Patience(session.config.transfer.patience_seconds, notice=notice)
    with session.connect(passphrase) as coordinator:
        plan = plan_withdrawal(session, coordinator, expert, patience)
        if not yes:
            _explain(expert, plan.version, plan.models, reason)
            ask_yes("\nWithdraw it for good?")
        receipt = withdraw_expert(session, coordinator, plan, reason, passphrase, patience)
    kept = home.withdrawal_receipt(expert)
    if as_json:
        emit_json(
            {"expert": expert, "version": plan.version, "log_index": receipt.index, "models": list(plan.models), "receipt": str(kept)}
        )
        return
    emit(f"Expert {expert} is withdrawn: log entry {receipt.index}. No model assembled from now on holds it.")
    emit(f"Receipt  {kept}")
    for model in plan.models:
        emit(f"Assembled before, holds it until it is assembled again: model {model}")


def _explain(expert: str, version: int, models: tuple[str, ...], reason: str) -> None:
    emit(f"Expert {expert}: all its versions (the newest is {version}) leave every later model, and the name is never used again.")
    emit(f"Reason for the log: {reason or 'none'}")
    emit(f"Models assembled with it so far: {len(models)}")
