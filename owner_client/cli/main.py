"""``elmgrove-owner``: the data owner's command line; a command's module is imported when it is called."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import click

from common.commands import CommandTable, LazyGroup
from common.console import run_cli
from owner_client.cli.options import examples

__all__ = ["COMMANDS", "cli", "main"]

PROGRAM: Final = "elmgrove-owner"

COMMANDS: Final[CommandTable] = {
    "join": ("owner_client.cli.join:join", "Join a consortium with the invitation its operator gave you."),
    "pull": ("owner_client.cli.pull:pull", "Download the public anchor model and verify it."),
    "train": ("owner_client.cli.train:train", "Train an expert on private files; nothing leaves this machine."),
    "compress": ("owner_client.cli.compress:compress", "Cut a full expert down to a smaller, low-rank one."),
    "proxies": ("owner_client.cli.proxies:proxies", "Name public documents that stand for your text, for tuning a router."),
    "review": ("owner_client.cli.review:review", "Show every file and byte of a package that would leave."),
    "push": ("owner_client.cli.push:push", "Sign a package, upload it and keep the log's receipt."),
    "status": ("owner_client.cli.status:status", "Show who you are, your anchors and your experts."),
    "renew": ("owner_client.cli.renew:renew", "Get new certificates before they end, or replace your keys."),
    "withdraw": ("owner_client.cli.withdraw:withdraw", "Take an expert out of every later model."),
}

_EXTRAS: Final[Mapping[str, str]] = {
    "grpc": "owner",
    "google": "owner",
    "torch": "train",
    "numpy": "train",
    "safetensors": "train",
    "tokenizers": "train",
}
"""Module to the extra of this distribution that installs it."""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    extras=_EXTRAS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "elmgrove-owner join elmgrove1-eyJ...",
        "elmgrove-owner pull",
        "elmgrove-owner train --data notes/ --name cardiology",
        "elmgrove-owner review cardiology",
        "elmgrove-owner push cardiology",
    ),
)
@click.version_option(package_name="elmgrove", prog_name=PROGRAM)
@click.option("-v", "--verbose", count=True, help="Say more on standard error; twice for everything.")
def cli(verbose: int) -> None:
    """Take part in a FlexOlmo consortium as a data owner.

    Your text never leaves this machine: an expert is trained here, shown to you byte for byte, signed with a key that stays
    here, and only then uploaded. You may withdraw it at any time.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Run the command line and end the process with the exit code of what happened."""
    run_cli(cli, name=PROGRAM)
