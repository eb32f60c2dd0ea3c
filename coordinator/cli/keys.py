"""``elmgrove-coordinator keys``: the operator's and the server's own certificates and keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from common.console import emit, emit_json, table
from coordinator.cli.options import examples, home_option, json_option, opened, passphrase_option
from coordinator.config import Home

if TYPE_CHECKING:
    from common.formats.statements import CertificateRecord
    from coordinator.usecases.operator_keys import OwnKeys
    from coordinator.usecases.staged_keys import HolderName

__all__ = ["group"]

_CHOICES: Final[dict[str, tuple[HolderName, ...]]] = {
    "operator": ("operator",),
    "server": ("server",),
    "both": ("operator", "server"),
}


@click.group(
    name="keys",
    invoke_without_command=True,
    epilog=examples("elmgrove-coordinator keys", "elmgrove-coordinator keys renew", "elmgrove-coordinator keys rotate operator"),
)
@home_option
@json_option
@click.pass_context
def group(context: click.Context, home: Home, as_json: bool) -> None:
    """List the consortium's own certificates by the log; renew them, or replace keys."""
    if context.invoked_subcommand is not None:
        context.obj = home
        return
    from coordinator.usecases.context import open_ledger

    rows = [_row(record) for record in open_ledger(home).state().certificates]
    if as_json:
        emit_json(rows)
        return
    emit(
        table(
            ["purpose", "holder", "ends", "SHA-256"], [[row["purpose"], row["uri"], row["ends"], row["fingerprint"][:16]] for row in rows]
        )
    )


def _row(record: CertificateRecord) -> dict[str, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from common.formats.fields import format_time
    from common.formats.strictjson import b64decode_canonical

    certificate = x509.load_der_x509_certificate(b64decode_canonical(record.der))
    return {
        "purpose": record.purpose,
        "uri": record.uri,
        "ends": format_time(certificate.not_valid_after_utc),
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }


@group.command(name="renew", epilog=examples("elmgrove-coordinator keys renew --home consortium"))
@home_option
@passphrase_option
@json_option
@click.pass_context
def renew(context: click.Context, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Issue new certificates for the operator's and the server's present keys, before the old ones end. Restart 'serve' afterwards."""
    from coordinator.usecases.operator_keys import renew_own_certificates

    with opened(_chosen(context, home), passphrase_file) as coordinator:
        _report(renew_own_certificates(coordinator), as_json)


@group.command(name="rotate", epilog=examples("elmgrove-coordinator keys rotate operator", "elmgrove-coordinator keys rotate both"))
@click.argument("which", type=click.Choice(list(_CHOICES)))
@home_option
@passphrase_option
@json_option
@click.pass_context
def rotate(context: click.Context, which: str, home: Home, passphrase_file: Path | None, as_json: bool) -> None:
    """Make new keys for the operator, the server, or both. The old operator key signs that the new ones are right.

    What the old operator key signed stays valid; from the log's entry on it says nothing more. Back up the new keys, and restart 'serve'.
    """
    from coordinator.usecases.operator_keys import rotate_own_keys

    with opened(_chosen(context, home), passphrase_file) as coordinator:
        _report(rotate_own_keys(coordinator, _CHOICES[which]), as_json)


def _chosen(context: click.Context, home: Home) -> Home:
    """``--home`` may stand before or after the subcommand."""
    outer: Home = context.obj
    return home if home.config.exists() else outer


def _report(done: OwnKeys, as_json: bool) -> None:
    from common.formats.fields import format_time

    if as_json:
        emit_json({"expires": {name: format_time(end) for name, end in done.expires.items()}, "index": done.receipt.index})
        return
    for name, end in done.expires.items():
        emit(f"The {name} certificate ends on {end:%Y-%m-%d}.")
    emit(f"Log entry {done.receipt.index}. A 'serve' that is running keeps its old server certificate until you restart it.")
