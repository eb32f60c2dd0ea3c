"""Copying byte ranges between files inside the kernel: ``copy_file_range``, else ``sendfile``, else read and write."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from common.errors import DigestError
from common.weights.parallel import Meter

__all__ = ["COPY_METHODS", "copy_range", "write_all"]

_STEP_BYTES: Final = 64 * 1024 * 1024  # bytes per call, so that progress and Ctrl-C are served between calls
_PLAIN_STEP_BYTES: Final = 1024 * 1024  # bytes held in memory by the last resort
_CANNOT: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}

CopyMethod = Callable[[int, int, int, int], int]
"""``(source, target, offset in the source, count)`` to the number of bytes appended at the target's position; 0 at the source's end."""


def _copy_file_range(source: int, target: int, offset: int, count: int) -> int:
    return os.copy_file_range(source, target, count, offset_src=offset)


def _sendfile(source: int, target: int, offset: int, count: int) -> int:
    return os.sendfile(target, source, offset, count)


def _read_and_write(source: int, target: int, offset: int, count: int) -> int:
    block = os.pread(source, min(count, _PLAIN_STEP_BYTES), offset)
    write_all(target, block)
    return len(block)


COPY_METHODS: Final[Sequence[CopyMethod]] = (_copy_file_range, _sendfile, _read_and_write)
"""From the fastest, which shares blocks where the file system can, to the one that works everywhere."""


def write_all(target: int, content: bytes) -> None:
    """Write all of ``content`` at the target's position."""
    view = memoryview(content)
    while view:
        view = view[os.write(target, view) :]


def copy_range(source: int, target: int, offset: int, count: int, *, meter: Meter, methods: Sequence[CopyMethod] = COPY_METHODS) -> None:
    """Append ``count`` bytes from ``offset`` of ``source`` at the position of ``target``, in constant memory.

    Args:
        source: descriptor open for reading.
        target: descriptor open for writing.
        offset: first byte in the source.
        count: number of bytes.
        meter: told of every step.
        methods: tried in order; one that the file systems or the kernel refuse before its first byte gives way to the next.

    Raises:
        DigestError: the source ends early.
        OSError: a disk is full or failing.
    """
    remaining = list(methods)
    while count:
        try:
            copied = remaining[0](source, target, offset, min(count, _STEP_BYTES))
        except OSError as error:
            if error.errno not in _CANNOT or len(remaining) == 1:
                raise
            remaining.pop(0)
            continue
        if not copied:
            raise DigestError("A source file is shorter than its header says.")
        offset += copied
        count -= copied
        meter.add(copied)
