"""One process at a time: advisory locks on files of the home, freed by the kernel when a process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import UsageError
from common.files import storage_errors

__all__ = ["exclusive"]


@contextlib.contextmanager
def exclusive(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` for the block; its folder is made if it is missing.

    Args:
        path: the lock file; it stays and is never read.
        busy: what to say if another process holds it; ``None`` waits for that process instead.

    Raises:
        UsageError: another process holds it and ``busy`` was given.
        StorageError: the folder is not writable.
    """
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(busy) from error
        yield
    finally:
        os.close(descriptor)
