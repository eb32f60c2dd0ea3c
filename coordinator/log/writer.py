"""Appending to the log: one writer at a time over all processes, and an answer only once everything is durable.

Order on the disk: documents, entry bundles, hash tiles, then the checkpoint, which alone makes them part of
the log. A crash before the checkpoint leaves files that the next append overwrites or clears away; a crash after it loses nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import LogError
from common.files import fsync_folder, storage_errors, write_atomic
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.translog.tiles import encode_entries, entries_path, tile_path
from coordinator.log.view import CHECKPOINT_NAME, DOCUMENTS_NAME, ENTRIES_PER_BUNDLE, LogView

__all__ = ["LogWriter"]

_LOCK_NAME: Final = "lock"
_TILE_WIDTH: Final = 256  # hashes in a full tile, fixed by tlog-tiles
_TILE_LEVELS: Final = 8  # binary levels from one tile level to the next


class LogWriter(LogView):
    """A :class:`LogView` that may also append. Only inside :meth:`exclusive`.

    Args:
        folder: the log's folder.
        vkey: the log's verifier key.
        key: the matching private key.
        origin: the log's name, first line of its checkpoints.
    """

    def __init__(self, folder: Path, vkey: str, key: Ed25519PrivateKey, origin: str) -> None:
        super().__init__(folder, vkey)
        self._key, self._origin = key, origin

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other writer, thread or process, out; the view is up to date inside.

        Raises:
            LogError: the log on the disk does not hold.
            StorageError: the folder cannot be written.
        """
        with self._lock, storage_errors("the log"):
            descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self.refresh()
                yield
            finally:
                os.close(descriptor)

    def append(self, entries: Sequence[bytes], documents: Sequence[bytes]) -> int:
        """Append ``entries``; to be called inside :meth:`exclusive`.

        Args:
            entries: encoded entries, in order.
            documents: every document they stand for, and what those name.

        Returns:
            Index of the first of them. They are in the log, durably, under a signed checkpoint.

        Raises:
            StorageError: the disk is full or failing. The log is as it was, unless the very last step failed, which the next
                :meth:`refresh` finds out.
        """
        first = len(self._entries)
        try:
            with storage_errors("the log"):
                for document in documents:
                    self._write(f"{DOCUMENTS_NAME}/{hashlib.sha256(document).hexdigest()}", document, keep=True)
                for entry in entries:
                    self._tree.add(entry)
                self._entries += entries
                self._write_bundles(first)
                self._write_tiles(first)
                self._commit()
        except BaseException:
            self._tree.cut(first)
            del self._entries[first:]
            raise
        self._clear(first)
        return first

    def _write_bundles(self, first: int) -> None:
        size = len(self._entries)
        for bundle in range(first // ENTRIES_PER_BUNDLE, -(-size // ENTRIES_PER_BUNDLE)):
            start = bundle * ENTRIES_PER_BUNDLE
            inside = self._entries[start : start + ENTRIES_PER_BUNDLE]
            self._write(entries_path(bundle, len(inside)), encode_entries(inside))

    def _write_tiles(self, first: int) -> None:
        size = len(self._entries)
        for level in range(_tile_levels(size)):
            shift = level * _TILE_LEVELS
            old, new = first >> shift, size >> shift
            for tile in range(old // _TILE_WIDTH, -(-new // _TILE_WIDTH)):
                start, end = tile * _TILE_WIDTH, min(new, (tile + 1) * _TILE_WIDTH)
                if end > old:
                    hashes = b"".join(self._tree.node(shift, index) for index in range(start, end))
                    self._write(tile_path(level, tile, end - start), hashes)

    def _commit(self) -> None:
        """Compare the checkpoint on the disk with the one this append builds on, then replace it."""
        path = self.folder / CHECKPOINT_NAME
        found = path.read_bytes() if path.exists() else b""
        if found != self._note:
            raise LogError("The log's checkpoint changed under its lock; another program writes to this folder.")
        note = sign_checkpoint(Checkpoint(self._origin, len(self._entries), self._tree.root()), self._key)
        write_atomic(path, note)
        self._note = note

    def _write(self, name: str, content: bytes, *, keep: bool = False) -> None:
        path = self.folder / name
        if keep and path.is_file() and path.read_bytes() == content:
            return
        _make_folder(path.parent, self.folder)
        write_atomic(path, content)

    def _clear(self, first: int) -> None:
        """Remove partial files that a full one replaces, and those a crashed append left beyond the checkpoint. Failing is harmless."""
        size = len(self._entries)
        for level in range(_tile_levels(size)):
            count = size >> (level * _TILE_LEVELS)
            for tile in range((first >> (level * _TILE_LEVELS)) // _TILE_WIDTH, count // _TILE_WIDTH + 1):
                self._clear_partial(tile_path(level, tile), count - tile * _TILE_WIDTH)
        for bundle in range(first // ENTRIES_PER_BUNDLE, size // ENTRIES_PER_BUNDLE + 1):
            self._clear_partial(entries_path(bundle, ENTRIES_PER_BUNDLE), size - bundle * ENTRIES_PER_BUNDLE)

    def _clear_partial(self, full_name: str, width: int) -> None:
        full = self.folder / full_name
        partial = full.with_name(full.name + ".p")
        try:
            if width < _TILE_WIDTH:
                full.unlink(missing_ok=True)
            for path in partial.iterdir() if partial.is_dir() else ():
                if width >= _TILE_WIDTH or not path.name.isdigit() or int(path.name) > width:
                    path.unlink()
            if width >= _TILE_WIDTH or width == 0:
                partial.rmdir()
        except OSError:
            return


def _tile_levels(size: int) -> int:
    """How many tile levels a tree of ``size`` leaves has."""
    levels = 0
    while size >> (levels * _TILE_LEVELS):
        levels += 1
    return levels


def _make_folder(folder: Path, top: Path) -> None:
    """Make ``folder`` and its parents up to ``top``, each name durable."""
    missing = [folder, *folder.parents]
    missing = [path for path in missing[: missing.index(top)] if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)
