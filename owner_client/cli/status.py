"""``elmgrove-owner status``: who you are, your anchors, your experts, and how far you followed the log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.console import emit, emit_json, format_bytes, table
from common.errors import UnavailableError
from owner_client.cli.options import examples, home_option, json_option, open_passphrase, passphrase_option
from owner_client.config import Home

if TYPE_CHECKING:
    from owner_client.daemon.status import OwnerStatus

__all__ = ["status"]


@click.command(epilog=examples("elmgrove-owner status", "elmgrove-owner status --offline --json"))
@click.option("--offline", is_flag=True, help="Do not ask the coordinator; show what this home knows.")
@home_option
@passphrase_option
@json_option
def status(offline: bool, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Show who you are, when your certificates end, your anchors, and every expert with its state.

    The coordinator is asked, and its log must extend what it showed before. If it does not answer, what this home knows is
    shown and the exit code is 41.
    """
    from owner_client.daemon.session import open_session  # gRPC, only when it is needed
    from owner_client.daemon.status import gather_status

    session = open_session(home)
    remote, outage = None, None
    if not offline:
        try:
            with session.connect(open_passphrase(home, passphrase_file)) as coordinator:
                session.follow_log(coordinator)
                remote = coordinator.status()
        except UnavailableError as error:
            outage = error
    found = gather_status(session, remote)
    if as_json:
        emit_json(found.as_json())
    else:
        _show(found)
    if outage is not None:
        raise outage


def _show(found: OwnerStatus) -> None:
    config = found.session.config
    answers = "answers" if found.remote is not None else "was not asked or does not answer"
    emit(f"Identity      {config.uri}")
    emit(f"Home          {found.session.home.path}")
    emit(f"Coordinator   {config.coordinator.host}, port {config.coordinator.port}: {answers}")
    emit(f"Certificates  {', '.join(f'{purpose} until {end:%Y-%m-%d}' for purpose, end in found.certificates.items())}")
    emit(f"Log           followed to size {found.log_size}, no contradiction")
    emit()
    _show_anchors(found)
    emit()
    rows = [(e.name, str(e.version), e.state, "-" if e.index is None else str(e.index), e.detail) for e in found.experts]
    emit(table(("expert", "version", "state", "log entry", ""), rows) if rows else "No experts yet. Next: elmgrove-owner train")
    for use in found.remote.models if found.remote is not None else ():
        emit(f"In model {use.manifest[:16]}... (log entry {use.index}): {', '.join(use.experts)}")
    for warning in found.warnings:
        emit(f"Warning: {warning}", error=True)


def _show_anchors(found: OwnerStatus) -> None:
    pulled = {anchor.digest for anchor in found.anchors}
    rows = [(anchor.name, anchor.digest[:16] + "...", str(anchor.index), "pulled") for anchor in found.anchors]
    published = found.remote.anchors if found.remote is not None else ()
    rows += [(a.name, a.digest[:16] + "...", str(a.index), f"to pull, {format_bytes(a.size)}") for a in published if a.digest not in pulled]
    emit(table(("anchor", "digest", "log entry", ""), rows) if rows else "No anchor yet. Next: elmgrove-owner pull")
