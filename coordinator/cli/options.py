"""The options and openings that several operator commands share."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from common.errors import KeyStoreError, UsageError
from coordinator.config import HOME_VARIABLE, Home

if TYPE_CHECKING:
    from coordinator.usecases.context import Coordinator

__all__ = [
    "PASSPHRASE_VARIABLE",
    "examples",
    "find_passphrase",
    "home_option",
    "json_option",
    "named_values",
    "opened",
    "parse_duration",
    "passphrase_option",
    "quiet_option",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

PASSPHRASE_VARIABLE: Final = "ELMGROVE_PASSPHRASE"  # noqa: S105 - the name of a variable
_MAX_PASSPHRASE_BYTES: Final = 1023  # bytes; the key format's own limit
_DURATION = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def examples(*lines: str) -> str:
    """The end of a command's help: ``lines`` to try, each on its own line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _to_home(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Home:
    return Home.resolve(value)


def home_option(command: CommandT) -> CommandT:
    """``--home DIR`` as a :class:`Home`."""
    help_text = f"The coordinator's folder. [default: ${HOME_VARIABLE} or the current folder]"
    return click.option("--home", metavar="DIR", callback=_to_home, help=help_text)(command)


def passphrase_option(command: CommandT) -> CommandT:
    """``--passphrase-file FILE``."""
    help_text = f"File whose first line is the passphrase of the keys. [default: ${PASSPHRASE_VARIABLE}, or asked for on a terminal]"
    return click.option("--passphrase-file", metavar="FILE", type=click.Path(path_type=Path), help=help_text)(command)


def json_option(command: CommandT) -> CommandT:
    """``--json`` as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON for a script.")(command)


def quiet_option(command: CommandT) -> CommandT:
    """``--quiet`` as ``quiet``."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress.")(command)


def find_passphrase(file: Path | None) -> bytes | None:
    """The passphrase in ``file`` (its first line), else in ``ELMGROVE_PASSPHRASE``, else ``None``.

    Raises:
        KeyStoreError: the file cannot be read, or the passphrase is empty or too long.
    """
    if file is None:
        text = os.environ.get(PASSPHRASE_VARIABLE)
        return None if text is None else _checked(os.fsencode(text), PASSPHRASE_VARIABLE)
    try:
        with file.open("rb") as stream:
            return _checked(stream.readline(_MAX_PASSPHRASE_BYTES + 3).rstrip(b"\r\n"), f"The passphrase file {file}")
    except OSError as error:
        raise KeyStoreError(f"The passphrase file {file} cannot be read: {os.strerror(error.errno or 0)}.") from error


def _checked(passphrase: bytes, place: str) -> bytes:
    if not 0 < len(passphrase) <= _MAX_PASSPHRASE_BYTES:
        raise KeyStoreError(f"{place} must hold between 1 and {_MAX_PASSPHRASE_BYTES} bytes.")
    return passphrase


@contextmanager
def opened(home: Home, passphrase_file: Path | None) -> Iterator[Coordinator]:
    """The coordinator of a home, closed at the end of the block; a passphrase is asked for when needed and a person sits there.

    Raises:
        NotFoundError, ConfigError, KeyStoreError: as :func:`coordinator.usecases.context.open_coordinator`.
    """
    from coordinator.usecases.context import open_coordinator

    passphrase = find_passphrase(passphrase_file)
    if passphrase is None and _is_encrypted(home) and sys.stdin.isatty():
        passphrase = os.fsencode(click.prompt("Passphrase of the coordinator's keys", hide_input=True, err=True))
    coordinator = open_coordinator(home, passphrase)
    try:
        yield coordinator
    finally:
        coordinator.close()


def _is_encrypted(home: Home) -> bool:
    try:
        return b"ENCRYPTED" in (home.keys / "log.pem").read_bytes()
    except OSError:
        return False


def parse_duration(text: str) -> timedelta:
    """``30m``, ``12h`` or ``7d``.

    Raises:
        UsageError: another spelling.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text[:40]!r} is not a duration; write 30m, 12h or 7d.")
    return timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})


def named_values(items: tuple[str, ...], what: str) -> list[tuple[str, str]]:
    """Split each ``NAME=VALUE``.

    Raises:
        UsageError: one has no name or no value; ``what`` says what they are.
    """
    pairs: list[tuple[str, str]] = []
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"{item[:80]!r}: write {what}.")
        pairs.append((name, value))
    return pairs
