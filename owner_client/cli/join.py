"""``elmgrove-owner join``: enrol with an invitation."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import emit, emit_json
from common.formats.fields import format_time
from common.formats.invitation import decode_invitation
from owner_client.cli.options import examples, home_option, json_option, passphrase_option
from owner_client.config import Home
from owner_client.keys.passphrase import find_passphrase

__all__ = ["join"]


@click.command(
    epilog=examples(
        "elmgrove-owner join elmgrove1-eyJ...",
        "elmgrove-owner join elmgrove1-eyJ... --home /srv/elmgrove --passphrase-file /run/secrets/owner",
    )
)
@click.argument("invitation")
@home_option
@passphrase_option
@json_option
def join(invitation: str, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Join a consortium with the INVITATION that its operator gave you.

    Two keys are made on this machine and never leave it; the coordinator certifies them and writes your admission into the
    consortium's log. With a passphrase (file or environment) the keys are stored encrypted. If anything is refused, nothing is kept.
    """
    from owner_client.daemon.enrol import join_consortium  # gRPC, only when something is to be sent

    parsed = decode_invitation(invitation)
    passphrase = find_passphrase(passphrase_file)
    done = join_consortium(home, parsed, passphrase)
    if as_json:
        emit_json(
            {
                "home": str(home.path),
                "consortium": done.config.consortium,
                "owner": done.config.owner,
                "identity": done.config.uri,
                "signing_certificate_expires": format_time(done.signing_expires),
                "transport_certificate_expires": format_time(done.transport_expires),
                "log_index": done.receipt.index,
                "keys_encrypted": passphrase is not None,
            }
        )
        return
    emit(f"You are {done.config.owner} in consortium {done.config.consortium}, log entry {done.receipt.index}.")
    protection = "encrypted under your passphrase" if passphrase is not None else "not encrypted (no passphrase was given)"
    emit(f"Your keys are in {home.keys}, readable by you alone, {protection}. Keep a backup.")
    emit(f"Your certificates end on {done.signing_expires:%Y-%m-%d}.")
    emit("Next: elmgrove-owner pull")
