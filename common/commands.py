"""Command groups whose commands are imported when they are called, so that ``--help`` is instant and light commands stay light."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from common.errors import MissingExtraError

__all__ = ["CommandTable", "LazyGroup"]

CommandTable = Mapping[str, tuple[str, str]]
"""Command name to ``(module:attribute, one-line help)``, in the order a newcomer needs them."""


class LazyGroup(click.Group):
    """A click group over a :data:`CommandTable`.

    Args:
        table: the commands.
        extras: module name to the extra of this distribution that installs it, for what a command may lack.
    """

    def __init__(self, *args: Any, table: CommandTable, extras: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table
        self._extras = extras

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands in their natural order."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import one command, or ``None`` if there is no such command."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
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
            extra = self._extras.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise MissingExtraError(f"This needs {error.name}, which is not installed. Run: pip install 'elmgrove[{extra}]'") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._table.items()])
