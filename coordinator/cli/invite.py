"""``elmgrove-coordinator invite``: print one invitation."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import emit
from coordinator.cli.options import examples, home_option, opened, parse_duration, passphrase_option
from coordinator.config import Home

__all__ = ["command"]


@click.command(
    name="invite",
    epilog=examples("elmgrove-coordinator invite clinic", "elmgrove-coordinator invite clinic --expires 12h --home consortium"),
)
@click.argument("owner")
@click.option("--expires", default="7d", show_default=True, help="How long the invitation is valid: 30m, 12h, 7d.")
@home_option
@passphrase_option
def command(owner: str, expires: str, home: Home, passphrase_file: Path | None) -> None:
    """Print the invitation for OWNER: one string, valid once.

    Hand it over by a way you trust: whoever has it first becomes OWNER. The owner runs 'elmgrove-owner join INVITATION'.
    """
    from coordinator.usecases.invite import invite

    with opened(home, passphrase_file) as coordinator:
        emit(invite(coordinator, owner, valid_for=parse_duration(expires)))
