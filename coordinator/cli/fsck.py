"""``elmgrove-coordinator fsck``: check everything that lies in the home."""

from __future__ import annotations

import click

from common.console import TerminalProgress, emit, emit_json
from coordinator.cli.options import examples, home_option, json_option, quiet_option
from coordinator.config import Home

__all__ = ["command"]


@click.command(
    name="fsck",
    epilog=examples("elmgrove-coordinator fsck", "elmgrove-coordinator fsck --quick --json", "elmgrove-coordinator fsck --rebuild"),
)
@click.option("--quick", is_flag=True, help="Look at the sizes of the stored files and not at their bytes.")
@click.option("--rebuild", is_flag=True, help="Make what the database holds of the log again, then check.")
@home_option
@quiet_option
@json_option
def command(quick: bool, rebuild: bool, home: Home, quiet: bool, as_json: bool) -> None:
    """Check the log (hashes, signatures, rules), every stored file against its digest, and the database against the log.

    The exit code is that of the first finding: 17 a file is missing, 64 a file was changed, 65 the log is damaged, 66 an old copy of the
    log was put back, 72 the database does not agree with the log. It opens no key, and may run while 'serve' does.
    """
    from coordinator.usecases.fsck import check_home, rebuild_database

    changed = rebuild_database(home) if rebuild else {}
    report = check_home(home, quick=quick, progress=TerminalProgress(quiet=quiet or as_json))
    if as_json:
        emit_json(report.as_json() | ({"rebuilt": dict(changed)} if rebuild else {}))
    else:
        if rebuild:
            emit(f"Rebuilt from the log: {', '.join(f'{count} {what}' for what, count in changed.items())} changed.")
        emit(report.as_text())
    report.raise_first()
