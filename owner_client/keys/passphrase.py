"""Where the passphrase of the keys comes from: a file, the environment, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from common.errors import KeyStoreError

__all__ = ["PASSPHRASE_VARIABLE", "find_passphrase"]

PASSPHRASE_VARIABLE: Final = "ELMGROVE_PASSPHRASE"  # noqa: S105 - the name of a variable
_MAX_PASSPHRASE_BYTES: Final = 1023  # bytes; the key format's own limit


def find_passphrase(file: Path | None) -> bytes | None:
    """The passphrase in ``file`` (its first line), else in ``ELMGROVE_PASSPHRASE``, else ``None``.

    Raises:
        KeyStoreError: the file cannot be read, or the passphrase is empty or too long.
    """
    if file is not None:
        return _checked(_first_line(file), f"The passphrase file {file}")
    text = os.environ.get(PASSPHRASE_VARIABLE)
    return None if text is None else _checked(os.fsencode(text), PASSPHRASE_VARIABLE)


def _first_line(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.readline(_MAX_PASSPHRASE_BYTES + 3).rstrip(b"\r\n")
    except OSError as error:
        raise KeyStoreError(f"The passphrase file {file} cannot be read: {os.strerror(error.errno or 0)}.") from error


def _checked(passphrase: bytes, place: str) -> bytes:
    if not passphrase:
        raise KeyStoreError(f"{place} is empty.")
    if len(passphrase) > _MAX_PASSPHRASE_BYTES:
        raise KeyStoreError(f"{place} holds more than {_MAX_PASSPHRASE_BYTES} bytes.")
    return passphrase
