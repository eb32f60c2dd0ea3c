"""``elmgrove-owner status``: who you are, your anchors, your experts, and how far you followed the log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.console import emit, emit_json, format_bytes, table
from common.errors import UnauthenticatedError, UnavailableError, UnknownCertificateError
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

    The log's entries are read for certificates in your name. If there is one that this home did not ask for, it is named and the exit
    code is 71.
    """
    from owner_client.daemon.session import open_session  # gRPC, only when it is needed
    from owner_client.daemon.status import gather_status
    from owner_client.daemon.watch import watch_log

    session = open_session(home)
    remote, outage = None, None
    if not offline:
        try:
            with session.connect(open_passphrase(home, passphrase_file)) as coordinator:
                seen = session.follow_log(coordinator)
                watch_log(session, coordinator, seen.checkpoint)
                remote = coordinator.status()
        except UnavailableError as error:
            outage = error
        except UnauthenticatedError as error:
            raise UnauthenticatedError(
                f"{error} If you did not replace your keys from elsewhere, somebody who has them may have done so: tell the operator."
            ) from error
    found = gather_status(session, remote)
    if as_json:
        emit_json(found.as_json())
    else:
        _show(found)
    if found.unknown:
        raise UnknownCertificateError(
            f"The log lists {len(found.unknown)} certificates in your name that this home never asked for; they are named above. If you "
            "did not ask for them from elsewhere, somebody uses your keys or your name: tell the operator and the other owners, and "
            "replace your keys with 'elmgrove-owner renew --new-keys both'."
        )
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
    for each in found.unknown:
        emit(f"ALARM         {each.purpose} certificate that is not yours: serial {each.serial}, log entry {each.index} ({each.kind})")
        emit(f"              SHA-256 {each.fingerprint}")
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
