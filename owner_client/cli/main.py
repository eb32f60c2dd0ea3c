"""``elmgrove-owner``: the data owner's command line; a command's module is imported when it is called."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any, Final

import click

from common.console import run_cli
from common.errors import MissingExtraError
from owner_client.cli.options import examples

__all__ = ["COMMANDS", "LazyGroup", "cli", "main"]

PROGRAM: Final = "elmgrove-owner"

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "join": ("owner_client.cli.join:join", "Join a consortium with the invitation its operator gave you."),
    "pull": ("owner_client.cli.pull:pull", "Download the public anchor model and verify it."),
    "train": ("owner_client.cli.train:train", "Train an expert on private files; nothing leaves this machine."),
    "review": ("owner_client.cli.review:review", "Show every file and byte of a package that would leave."),
    "push": ("owner_client.cli.push:push", "Sign a package, upload it and keep the log's receipt."),
    "status": ("owner_client.cli.status:status", "Show who you are, your anchors and your experts."),
    "withdraw": ("owner_client.cli.withdraw:withdraw", "Take an expert out of every later model."),
}
"""Command name to ``(module:attribute, one-line help)``, in the order a newcomer needs them."""


_EXTRAS: Final[Mapping[str, str]] = {
    "grpc": "owner",
    "google": "owner",
    "torch": "train",
    "numpy": "train",
    "safetensors": "train",
    "tokenizers": "train",
}
"""Module to the extra of this distribution that installs it."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that ``--help`` is instant and ``review`` never loads gRPC."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands in their natural order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one command, or ``None`` if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what is not installed is named with the extra that brings it.

        Raises:
            MissingExtraError: an optional dependency is missing.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise MissingExtraError(f"This needs {error.name}, which is not installed. Run: pip install 'elmgrove[{extra}]'") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
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
