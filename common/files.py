"""Writing files so that a crash leaves the old content or the new, never a part: write aside, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from common.errors import AlreadyExistsError, StorageError, UsageError

__all__ = ["atomic_folder", "fsync_folder", "fsync_tree", "scratch_folder", "storage_errors", "write_all", "write_atomic"]

_FEW_FILES = 8
_WRITING_THREADS = 16
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IMPOSSIBLE = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``what`` into :class:`StorageError`.

    Raises:
        StorageError: the disk is full, read-only, forbidden or failing. A missing input stays ``FileNotFoundError``.
        UsageError: the path cannot be: a file is where a folder must be, or a name is too long.
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
        if error.errno in _IMPOSSIBLE:
            raise UsageError(f"Cannot write {what[:200]}: {os.strerror(error.errno or 0).lower()}. Choose another place.") from error
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
            _write_durably(descriptor, content, mode)
            _publish(aside, path, exclusive=exclusive)
        finally:
            aside.unlink(missing_ok=True)
        fsync_folder(path.parent)


def write_all(files: Mapping[Path, bytes], *, mode: int = 0o644) -> None:
    """Write many files, each whole or not at all, and flush each folder once; all are durable when this returns.

    A crash or failure in between leaves any of them written and any not: something written afterwards must make them count.

    Args:
        files: target to content; their folders must exist. They appear in this order.
        mode: permission bits of the new files.

    Raises:
        StorageError: the disk is full or not writable.
    """
    asides: dict[Path, Path] = {}
    with storage_errors(f"{len(files)} files"):
        try:
            _write_asides(files, asides, mode)
            for path in files:
                asides[path].replace(path)
                del asides[path]
        finally:
            for aside in asides.values():
                aside.unlink(missing_ok=True)
        for folder in dict.fromkeys(path.parent for path in files):
            fsync_folder(folder)


def _write_asides(files: Mapping[Path, bytes], asides: dict[Path, Path], mode: int) -> None:
    """Write every file aside, noting where before the first byte; many at once, because a disk flushes many nearly as fast as one."""

    def write(paths: Sequence[Path]) -> None:
        for path in paths:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            asides[path] = Path(name)
            _write_durably(descriptor, files[path], mode)

    paths = list(files)
    if len(paths) <= _FEW_FILES:
        write(paths)
        return
    with ThreadPoolExecutor(_WRITING_THREADS) as pool:
        for part in [pool.submit(write, paths[first::_WRITING_THREADS]) for first in range(_WRITING_THREADS)]:
            part.result()


def _write_durably(descriptor: int, content: bytes, mode: int) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _publish(aside: Path, path: Path, *, exclusive: bool) -> None:
    if not exclusive:
        aside.replace(path)
        return
    try:
        os.link(aside, path)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path.name} exists already.") from error


def scratch_folder(parent: Path, prefix: str) -> AbstractContextManager[Path]:
    """Give an empty folder in ``parent`` that vanishes with the block, however it ends.

    Raises:
        StorageError: the disk is full or not writable, also when the block itself runs into that.
    """
    return _ScratchFolder(parent / f"{prefix}{secrets.token_hex(8)}")


class _ScratchFolder(AbstractContextManager[Path]):
    """A class for the reason that :class:`_AtomicFolder` is one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        try:
            with storage_errors(str(self._path)):
                self._path.mkdir(mode=0o700)
            return self._path
        except BaseException:
            shutil.rmtree(self._path, ignore_errors=True)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        if error is not None:
            with storage_errors(str(self._path)):
                raise error


def atomic_folder(target: Path) -> AbstractContextManager[Path]:
    """Give an empty folder beside ``target`` that becomes ``target`` when the block ends well, and vanishes when it does not.

    Raises:
        AlreadyExistsError: ``target`` exists (checked at the start and again at the rename).
        StorageError: the disk is full or not writable, also when the block itself runs into that.
    """
    return _AtomicFolder(target)


class _AtomicFolder(AbstractContextManager[Path]):
    """A class and not a generator: an interrupt that arrives as the block is entered would leave a generator's folder behind."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._aside = target.parent / f".{target.name}.{secrets.token_hex(8)}.partial"

    def __enter__(self) -> Path:
        try:
            with storage_errors(str(self._target)):
                if self._target.exists() or self._target.is_symlink():
                    raise AlreadyExistsError(f"{self._target} exists already; choose another name or remove it.")
                self._target.parent.mkdir(parents=True, exist_ok=True)
                self._aside.mkdir()
            return self._aside
        except BaseException:
            shutil.rmtree(self._aside, ignore_errors=True)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with storage_errors(str(self._target)):
                if error is not None:
                    raise error
                fsync_tree(self._aside)
                self._publish()
        except BaseException:
            shutil.rmtree(self._aside, ignore_errors=True)
            raise
        fsync_folder(self._target.parent)

    def _publish(self) -> None:
        try:
            self._aside.rename(self._target)
        except OSError as error:
            if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                raise AlreadyExistsError(f"{self._target} appeared while it was being written.") from error
            raise
