"""``elmgrove-owner push``: sign what was reviewed, upload it, keep the receipt."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import TerminalProgress, emit, emit_json, format_bytes
from owner_client.cli.options import (
    ask_yes,
    examples,
    home_option,
    json_option,
    notice,
    open_passphrase,
    passphrase_option,
    quiet_option,
    yes_option,
)
from owner_client.cli.review import show_review
from owner_client.config import Home
from owner_client.daemon.review import find_package, review_package

__all__ = ["push"]


@click.command(epilog=examples("elmgrove-owner push cardiology", "elmgrove-owner push ./outbox/cardiology-v2 --yes"))
@click.argument("package")
@yes_option
@home_option
@passphrase_option
@quiet_option
@json_option
def push(package: str, yes: bool, home: Home, passphrase_file: Path | None, quiet: bool, as_json: bool) -> None:
    """Sign PACKAGE and upload it; this is the only command that sends one.

    You see what 'review' shows and are asked once. Exactly that is signed: if a file changes afterwards, the upload fails. An
    upload that is cut off goes on with the missing chunks when you run the command again. The answer is a receipt from the
    consortium's log, which is checked and kept under receipts/.
    """
    from owner_client.daemon.patience import Patience  # gRPC, only when something is to be sent
    from owner_client.daemon.push import check_pushable, push_package, sign_reviewed
    from owner_client.daemon.session import open_session

    session = open_session(home)
    review = review_package(find_package(home, package), progress=TerminalProgress(quiet=quiet or as_json))
    check_pushable(session, review)
    if not yes:
        show_review(review)
        ask_yes("\nSign and send all this?")
    passphrase = open_passphrase(home, passphrase_file)
    bundle = sign_reviewed(session, review, passphrase)
    patience = Patience(session.config.transfer.patience_seconds, notice=notice)
    with session.connect(passphrase) as coordinator:
        done = push_package(session, coordinator, review, bundle, patience, TerminalProgress(quiet=quiet or as_json))
    manifest = review.manifest
    receipt = home.expert_receipt(manifest.name, manifest.version)
    if as_json:
        emit_json(
            {
                "expert": manifest.name,
                "version": manifest.version,
                "digest": review.package.digest,
                "log_index": done.receipt.index,
                "sent_bytes": done.sent_bytes,
                "accepted_before": done.was_accepted_before,
                "receipt": str(receipt),
            }
        )
        return
    said = "had been accepted before" if done.was_accepted_before else f"was accepted ({format_bytes(done.sent_bytes)} sent now)"
    emit(f"Expert {manifest.name}, version {manifest.version}, {said}: log entry {done.receipt.index}.")
    emit(f"Receipt  {receipt}")
    emit(f"To take it out of every later model: elmgrove-owner withdraw {manifest.name}")
