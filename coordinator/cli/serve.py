"""``elmgrove-coordinator serve``: answer owners."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import Final

import click

from common.console import emit
from coordinator.cli.options import examples, home_option, opened, passphrase_option
from coordinator.config import Home

__all__ = ["command"]

_NOTICE: Final = timedelta(days=60)  # time enough to renew certificates in


@click.command(
    name="serve",
    epilog=examples("elmgrove-coordinator serve --home consortium", "elmgrove-coordinator serve --listen 0.0.0.0 --port 8420"),
)
@click.option("--listen", "--host", "listen", metavar="ADDRESS", help="Local address to listen on. [default: as in coordinator.toml]")
@click.option("--port", type=click.IntRange(1, 65_535), help="Port for owners. [default: as in coordinator.toml]")
@click.option("--enrol-port", type=click.IntRange(1, 65_535), help="Port for enrolment. [default: as in coordinator.toml]")
@click.option("--web-port", type=click.IntRange(1, 65_535), help="Port for the log over plain HTTP. [default: as in coordinator.toml]")
@home_option
@passphrase_option
def command(
    listen: str | None,
    port: int | None,
    enrol_port: int | None,
    web_port: int | None,
    home: Home,
    passphrase_file: Path | None,
) -> None:
    """Answer owners until Ctrl-C or SIGTERM.

    It can be stopped and started at any time: what an owner was told is durable, and uploads go on where they were.
    """
    from coordinator.service.housekeeping import Housekeeper
    from coordinator.service.server import CoordinatorServer
    from coordinator.usecases.operator_keys import ending_certificates
    from coordinator.web.server import WebServer

    if logging.getLogger().level > logging.INFO:
        logging.getLogger("coordinator").setLevel(logging.INFO)
    with opened(home, passphrase_file) as coordinator:
        state = coordinator.ledger.state()
        for name, end in ending_certificates(coordinator, within=_NOTICE).items():
            emit(f"The {name} certificate ends on {end:%Y-%m-%d}. Run 'elmgrove-coordinator keys renew' and start again.", error=True)
        server = CoordinatorServer(coordinator, listen=listen, port=port, enrol_port=enrol_port)
        housekeeper = Housekeeper(coordinator)
        wanted = web_port or coordinator.config.web_port
        web = WebServer(coordinator, listen=listen or coordinator.config.listen, port=wanted) if wanted else None
        try:
            server.start()
            housekeeper.start()
            if web is not None:
                web.start()
                emit(f"The log is at http://HOST:{wanted}/log/, health at /healthz.")
            emit(
                f"Consortium {coordinator.consortium}: {len(state.owners)} owners, {len(state.experts)} experts, {state.size} log entries."
            )
            emit(f"Owners call {server.address}; enrolment at {server.enrol_address}. Stop with Ctrl-C.")
            threading.Event().wait()
        except KeyboardInterrupt:
            emit("Stopping ...", error=True)
        finally:
            housekeeper.stop()
            server.stop()
            if web is not None:
                web.stop()
