"""``elmgrove-owner pull``: fetch and verify the anchor."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import TerminalProgress, emit, emit_json, format_bytes
from owner_client.cli.options import examples, home_option, json_option, notice, open_passphrase, passphrase_option, quiet_option
from owner_client.config import Home

__all__ = ["pull"]


@click.command(epilog=examples("elmgrove-owner pull", "elmgrove-owner pull --anchor base-2026"))
@click.option("--anchor", metavar="NAME|DIGEST", help="Which anchor. [default: the newest]")
@home_option
@passphrase_option
@quiet_option
@json_option
def pull(anchor: str | None, home: Home, passphrase_file: Path | None, quiet: bool, as_json: bool) -> None:
    """Download the public anchor model and verify it.

    A download that is cut off goes on where it stopped when you run the command again. The anchor appears in your home only
    after the operator's signature, every file's digest and its entry in the consortium's log were checked.
    """
    from owner_client.daemon.anchors import pull_anchor  # gRPC, only when something is to be fetched
    from owner_client.daemon.patience import Patience
    from owner_client.daemon.session import open_session

    session = open_session(home)
    patience = Patience(session.config.transfer.patience_seconds, notice=notice)
    with session.connect(open_passphrase(home, passphrase_file)) as coordinator:
        pulled = pull_anchor(session, coordinator, anchor, patience, TerminalProgress(quiet=quiet or as_json))
    manifest = pulled.signed.manifest
    if as_json:
        emit_json(
            {
                "name": manifest.name,
                "digest": pulled.signed.digest,
                "folder": str(pulled.folder),
                "log_index": pulled.index,
                "fetched_bytes": pulled.fetched_bytes,
                "licence": manifest.licence,
            }
        )
        return
    size = format_bytes(sum(entry.size for entry in manifest.files))
    fetched = "was here already" if not pulled.fetched_bytes else f"{format_bytes(pulled.fetched_bytes)} fetched"
    emit(f"Anchor {manifest.name}, {size}, {fetched}. Verified: the operator's signature, every file, log entry {pulled.index}.")
    emit(f"Digest   {pulled.signed.digest}")
    emit(f"Folder   {pulled.folder}")
    emit(f"Licence  {manifest.licence or 'none stated'}")
    emit("Next: elmgrove-owner train --data FILES --name EXPERT")
