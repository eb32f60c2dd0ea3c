"""``elmgrove-coordinator init``: found a consortium."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from common.console import emit
from coordinator.cli.options import examples, find_passphrase, passphrase_option

__all__ = ["command"]


@click.command(
    name="init",
    epilog=examples(
        "elmgrove-coordinator init consortium --name rivers --host coordinator.example.org",
        "elmgrove-coordinator init trial --name trial --host 127.0.0.1",
        "ELMGROVE_PASSPHRASE=... elmgrove-coordinator init consortium --name rivers --host 10.0.0.5 --port 8420",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the consortium: lower-case letters, digits and hyphens.")
@click.option(
    "--host",
    default="localhost",
    show_default=True,
    help="Name or address under which owners reach this machine. It stands in the server's certificate and in every invitation.",
)
@click.option("--port", type=click.IntRange(1, 65_534), default=7420, show_default=True, help="Port for owners.")
@click.option("--enrol-port", type=click.IntRange(1, 65_535), help="Port for enrolment. [default: the port after --port]")
@passphrase_option
def command(folder: Path, name: str, host: str, port: int, enrol_port: int | None, passphrase_file: Path | None) -> None:
    """Make DIR the home of a new consortium.

    It will hold the keys, the certificates, the transparency log and everything owners send. With a passphrase the keys are encrypted;
    without one they are readable by you alone.
    """
    from coordinator.usecases.found import found_consortium

    passphrase = find_passphrase(passphrase_file)
    found_consortium(folder, name=name, host=host, port=port, enrol_port=enrol_port or port + 1, passphrase=passphrase)
    place = shlex.quote(str(folder))
    emit(f"Founded consortium {name} in {folder}.")
    emit(f"Auditors and owners trust {folder / 'certs' / 'root.pem'}; keep {folder / 'keys'} to yourself and back it up.")
    if passphrase is None:
        emit("The keys are not encrypted; set ELMGROVE_PASSPHRASE before init to encrypt them.")
    emit(f"Next: elmgrove-coordinator anchor publish CHECKPOINT --name NAME --home {place}")
    emit(f"      elmgrove-coordinator invite OWNER --home {place}")
    emit(f"      elmgrove-coordinator serve --home {place}")
