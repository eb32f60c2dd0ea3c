"""``elmgrove-owner renew``: new certificates, and new keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from common.console import emit, emit_json
from common.formats.fields import format_time
from owner_client.cli.options import examples, home_option, json_option, notice, open_passphrase, passphrase_option
from owner_client.config import Home

if TYPE_CHECKING:
    from owner_client.keys.keystore import KeyName

__all__ = ["renew"]

_CHOICES: Final[dict[str, tuple[KeyName, ...]]] = {
    "signing": ("signing",),
    "transport": ("transport",),
    "both": ("signing", "transport"),
}


@click.command(
    epilog=examples("elmgrove-owner renew", "elmgrove-owner renew --new-keys both", "elmgrove-owner renew --new-keys signing --json")
)
@click.option("--new-keys", type=click.Choice(list(_CHOICES)), help="Make new keys and replace these. [default: keep the keys]")
@home_option
@passphrase_option
@json_option
def renew(new_keys: str | None, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Get new certificates before the present ones end, or replace your keys.

    New keys are made on this machine; your present signing key signs that they are yours, and from the log's entry on the old ones
    open and sign nothing any more. What they signed before stays valid. Every certificate is listed in the log. A renewal that is
    cut off is finished by running the command again.
    """
    from owner_client.daemon.patience import Patience  # gRPC, only when something is to be sent
    from owner_client.daemon.renew import renew_certificates
    from owner_client.daemon.session import open_session

    session = open_session(home)
    patience = Patience(session.config.transfer.patience_seconds, notice=notice)
    done = renew_certificates(session, open_passphrase(home, passphrase_file), _CHOICES[new_keys] if new_keys else (), patience)
    if as_json:
        emit_json(
            {
                "expires": {name: format_time(end) for name, end in done.expires.items()},
                "new_keys": list(done.new_keys),
                "log_index": done.receipt.index,
                "resumed": done.resumed,
                "receipt": str(home.renewal_receipt(done.receipt.index)),
            }
        )
        return
    if done.resumed:
        emit("An earlier renewal had been cut off; it is finished now.")
    if done.new_keys:
        emit(f"New keys: {', '.join(done.new_keys)}. The old ones are of no use any more; make a new backup of {home.keys}.")
    for name, end in done.expires.items():
        emit(f"Your {name} certificate ends on {end:%Y-%m-%d}.")
    emit(f"Log entry {done.receipt.index}, receipt {home.renewal_receipt(done.receipt.index)}")
