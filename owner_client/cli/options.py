"""The options and small dialogues that several owner commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from common.console import emit
from common.errors import InterruptedByUserError, UsageError
from owner_client.config import HOME_VARIABLE, Home
from owner_client.keys.keystore import KeyStore
from owner_client.keys.passphrase import PASSPHRASE_VARIABLE, find_passphrase

__all__ = [
    "GroupedCommand",
    "GroupedOption",
    "ask_yes",
    "examples",
    "home_option",
    "json_option",
    "notice",
    "open_passphrase",
    "passphrase_option",
    "quiet_option",
    "yes_option",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def examples(*lines: str) -> str:
    """The end of a command's help: ``lines`` to try, each on its own line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class GroupedOption(click.Option):
    """An option that ``--help`` lists under a heading.

    Args:
        group: the heading.
    """

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose ``--help`` lists its :class:`GroupedOption` under their headings, after the other options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, heading by heading."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(parameter.group if isinstance(parameter, GroupedOption) else "Options", []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _to_home(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Home:
    return Home.resolve(value)


def home_option(command: CommandT) -> CommandT:
    """``--home DIR`` as a :class:`Home`."""
    help_text = f"Your folder of keys, anchors and packages. [default: ${HOME_VARIABLE} or ~/.elmgrove/owner]"
    return click.option("--home", metavar="DIR", callback=_to_home, help=help_text)(command)


def passphrase_option(command: CommandT) -> CommandT:
    """``--passphrase-file FILE``."""
    help_text = f"File whose first line is the passphrase of your keys. [default: ${PASSPHRASE_VARIABLE}, or asked for on a terminal]"
    option = click.option("--passphrase-file", metavar="FILE", type=click.Path(path_type=Path), help=help_text)
    return option(command)


def json_option(command: CommandT) -> CommandT:
    """``--json`` as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON for a script.")(command)


def quiet_option(command: CommandT) -> CommandT:
    """``--quiet`` as ``quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress.")(command)


def yes_option(command: CommandT) -> CommandT:
    """``--yes`` as ``yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def open_passphrase(home: Home, file: Path | None) -> bytes | None:
    """The passphrase from file or environment; asked for when the keys need one and a person sits at the terminal.

    Raises:
        KeyStoreError: the file cannot be read, or the keys are missing or open to others.
    """
    passphrase = find_passphrase(file)
    if passphrase is None and KeyStore(home.keys).is_encrypted() and sys.stdin.isatty():
        passphrase = os.fsencode(click.prompt("Passphrase of your keys", hide_input=True, err=True))
    return passphrase


def notice(text: str) -> None:
    """Tell the person who waits something that is not the result."""
    emit(text, error=True)


def ask_yes(question: str) -> None:
    """Let the person at the terminal confirm.

    Raises:
        UsageError: nobody sits at a terminal, so ``--yes`` is needed.
        InterruptedByUserError: the answer was no.
    """
    if not sys.stdin.isatty():
        raise UsageError("This needs a confirmation and there is no terminal to ask on; add --yes if you are sure.")
    if not click.confirm(question, err=True):
        emit("Nothing was sent.", error=True)
        raise InterruptedByUserError("Stopped as you asked.")
