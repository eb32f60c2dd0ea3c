"""Writing files so that a crash leaves the old content or the new, never a part: write aside, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import AlreadyExistsError, StorageError

__all__ = ["atomic_folder", "fsync_folder", "fsync_tree", "storage_errors", "write_atomic"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``what`` into :class:`StorageError`.

    Raises:
        StorageError: the disk is full, read-only, forbidden or failing. A missing input stays ``FileNotFoundError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(f"No space is left on the disk while writing {what}. Free some and run the command again.") from error
        if error.errno in _DENIED:
            raise StorageError(f"Not allowed to write {what}: {os.strerror(error.errno or 0)}.") from error
        if error.errno == errno.EIO:
            raise StorageError(f"The disk failed while writing {what} (input/output error).") from error
        raise


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every regular file below ``folder``, and every folder itself, durable."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(root))


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644, exclusive: bool = False) -> None:
    """Write ``content`` to ``path`` so that readers and crashes see the old file or the whole new one.

    Args:
        path: target; its folder must exist.
        content: all the bytes.
        mode: permission bits of the new file; set before the first byte is written, so a secret is never readable in between.
        exclusive: fail if ``path`` exists.

    Raises:
        AlreadyExistsError: ``exclusive`` and the file exists.
        StorageError: the disk is full or not writable.
    """
    with storage_errors(path.name):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        aside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            _publish(aside, path, exclusive=exclusive)
        finally:
            aside.unlink(missing_ok=True)
        fsync_folder(path.parent)


def _publish(aside: Path, path: Path, *, exclusive: bool) -> None:
    if not exclusive:
        aside.replace(path)
        return
    try:
        os.link(aside, path)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path.name} exists already.") from error


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes ``target`` when the block ends well, and vanishes when it does not.

    Raises:
        AlreadyExistsError: ``target`` exists (checked at the start and again at the rename).
        StorageError: the disk is full or not writable.
    """
    if target.exists() or target.is_symlink():
        raise AlreadyExistsError(f"{target} exists already; choose another name or remove it.")
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
        try:
            aside.chmod(0o755)
            yield aside
            fsync_tree(aside)
            try:
                aside.rename(target)
            except OSError as error:
                if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                    raise AlreadyExistsError(f"{target} appeared while it was being written.") from error
                raise
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        fsync_folder(target.parent)
