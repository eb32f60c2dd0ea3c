"""``elmgrove-coordinator gc``: delete the bytes of experts that left."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import emit, emit_json, format_bytes, table
from coordinator.cli.options import examples, home_option, json_option, opened, passphrase_option
from coordinator.config import Home

__all__ = ["command"]


@click.command(
    name="gc",
    epilog=examples("elmgrove-coordinator gc --dry-run", "elmgrove-coordinator gc --home consortium", "elmgrove-coordinator gc --json"),
)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@home_option
@passphrase_option
@json_option
def command(dry_run: bool, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Delete the weights of withdrawn and revoked experts whose retention time is over; 'serve' does the same every few hours.

    The times are in coordinator.toml under [retention]. Manifests, signatures and digests stay in the log for ever. What an expert in
    force, an anchor or an expert within its time also uses is kept. Blobs that a crash left unnamed are deleted after a day.
    """
    from common.formats.fields import format_time
    from coordinator.usecases.collect_garbage import collect_garbage

    with opened(home, passphrase_file) as coordinator:
        garbage = collect_garbage(coordinator, dry_run=dry_run)
    rows = [
        {
            "name": each.expert.name,
            "version": each.expert.version,
            "owner": each.expert.owner,
            "status": each.expert.status,
            "ended_at": format_time(each.ended_at),
            "files": len(each.files),
            "bytes": each.size,
        }
        for each in garbage.deletions
    ]
    if as_json:
        emit_json({"dry_run": dry_run, "experts": rows, "strays": list(garbage.strays)})
        return
    verb = "Would delete" if dry_run else "Deleted"
    if not rows and not garbage.strays:
        emit("Nothing to delete: every expert that left is within its retention time, or its bytes are gone already.")
    if rows:
        emit(f"{verb} {format_bytes(sum(each.size for each in garbage.deletions))}:")
        cells = [
            [each.expert.name, str(each.expert.version), each.expert.status, f"{each.ended_at:%Y-%m-%d}", format_bytes(each.size)]
            for each in garbage.deletions
        ]
        emit(table(["expert", "version", "status", "ended", "size"], cells))
    if garbage.strays:
        emit(f"{verb} {len(garbage.strays)} blobs that no manifest names.")
