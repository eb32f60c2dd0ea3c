"""Appending to the log: one writer at a time over all processes, and an answer only once everything is durable.

Order on the disk: documents, entry bundles and hash tiles, all flushed, then the checkpoint, which alone makes them part of the log. A
crash before the checkpoint leaves files that the next append overwrites or clears away; a crash after it loses nothing. A witness's
cosignature replaces the checkpoint by the same note with one more line; the next append begins without cosignatures.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import LogError
from common.files import fsync_folder, storage_errors, write_all, write_atomic
from common.translog.checkpoint import Checkpoint, sign_checkpoint
from common.translog.cosignature import with_cosignature
from common.translog.merkle import leaf_hash
from common.translog.tiles import TILE_HEIGHT, TILE_WIDTH, encode_entries, entries_path, tile_path
from coordinator.log.tree import TreeEdge
from coordinator.log.view import CHECKPOINT_NAME, DOCUMENTS_NAME, LogHead, LogView

__all__ = ["LogWriter"]

_LOCK_NAME: Final = "lock"


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
        self._writing = threading.RLock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep every other writer, thread or process, out; the view is up to date inside. Readers go on.

        Raises:
            LogError: the log on the disk does not hold.
            StorageError: the folder cannot be written.
        """
        with self._writing, storage_errors("the log"):
            descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self.refresh()
                yield
            finally:
                os.close(descriptor)

    def append(self, entries: Sequence[bytes], documents: Sequence[bytes]) -> int:
        """Append ``entries`` under one new checkpoint; to be called inside :meth:`exclusive`.

        Args:
            entries: encoded entries, in order.
            documents: every document they stand for, and what those name.

        Returns:
            Index of the first of them. They are in the log, durably, under a signed checkpoint.

        Raises:
            StorageError: the disk is full or failing. The log is as it was, unless the very last step failed, which the next
                :meth:`refresh` finds out.
            LogError: the log on the disk is damaged.
        """
        head = self._head
        edge = head.edge.copy() if head is not None else TreeEdge()
        first = edge.size
        with storage_errors("the log"):
            files = self._bundle_files(first, entries)
            for entry in entries:
                files |= {tile_path(*tile): raw for tile, raw in edge.add(leaf_hash(entry))}
            for (level, index, width), raw in edge.partial():
                if first >> TILE_HEIGHT * level != edge.size >> TILE_HEIGHT * level:
                    files[tile_path(level, index, width)] = raw
            self._write({**self._document_files(documents), **files})
            self._commit(edge)
        self._clear(first)
        return first

    def cosign(self, size: int, line: str, vkey: str) -> bool:
        """Put a witness's line under the published checkpoint, in the place of an earlier one of the same key; inside :meth:`exclusive`.

        Args:
            size: of the tree that the witness saw.
            line: its signature line.
            vkey: its verifier key.

        Returns:
            Whether it is there. It is not if the log has another size by now, or its checkpoint has no room for one more line.

        Raises:
            SignatureError, FormatError: the line is not this key's over this checkpoint.
            StorageError: the disk is full or failing; the checkpoint is as it was.
        """
        head = self._head
        if head is None or head.checkpoint.size != size:
            return False
        note = with_cosignature(head.note, line, vkey)
        if note is None:
            return False
        if note != head.note:
            self._publish(LogHead(head.checkpoint, note, head.edge))
        return True

    def _document_files(self, documents: Sequence[bytes]) -> dict[str, bytes]:
        named = {f"{DOCUMENTS_NAME}/{hashlib.sha256(document).hexdigest()}": document for document in documents}
        return {name: content for name, content in named.items() if not self._holds(name, content)}

    def _holds(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        return path.is_file() and path.read_bytes() == content

    def _bundle_files(self, first: int, entries: Sequence[bytes]) -> dict[str, bytes]:
        bundle, width = divmod(first, TILE_WIDTH)
        waiting = [*(self._bundle(bundle, width) if width else []), *entries]
        files: dict[str, bytes] = {}
        for at in range(0, len(waiting), TILE_WIDTH):
            inside = waiting[at : at + TILE_WIDTH]
            files[entries_path(bundle + at // TILE_WIDTH, len(inside))] = encode_entries(inside)
        return files

    def _write(self, files: dict[str, bytes]) -> None:
        paths = {self.folder / name: content for name, content in files.items()}
        for folder in dict.fromkeys(path.parent for path in paths):
            _make_folder(folder, self.folder)
        write_all(paths)
        fsync_folder(self.folder / DOCUMENTS_NAME)  # a document that was kept may stem from an append that was killed

    def _commit(self, edge: TreeEdge) -> None:
        checkpoint = Checkpoint(self._origin, edge.size, edge.root())
        self._publish(LogHead(checkpoint, sign_checkpoint(checkpoint, self._key), edge))

    def _publish(self, head: LogHead) -> None:
        """Compare the checkpoint on the disk with the one this step builds on, then replace it."""
        path = self.folder / CHECKPOINT_NAME
        with self._lock:
            found = path.read_bytes() if path.exists() else b""
            if found != self.checkpoint:
                raise LogError("The log's checkpoint changed under its lock; another program writes to this folder.")
            write_atomic(path, head.note)
            self._head = head

    def _clear(self, first: int) -> None:
        """Remove partial files that a full one replaces, and those a crashed append left beyond the checkpoint. Failing is harmless."""
        size, level = self.size, 0
        while count := size >> TILE_HEIGHT * level:
            for tile in range((first >> TILE_HEIGHT * level) // TILE_WIDTH, count // TILE_WIDTH + 1):
                self._clear_partial(tile_path(level, tile), count - tile * TILE_WIDTH)
            level += 1
        for bundle in range(first // TILE_WIDTH, size // TILE_WIDTH + 1):
            self._clear_partial(entries_path(bundle), size - bundle * TILE_WIDTH)

    def _clear_partial(self, full_name: str, width: int) -> None:
        full = self.folder / full_name
        partial = full.with_name(full.name + ".p")
        try:
            if width < TILE_WIDTH:
                full.unlink(missing_ok=True)
            for path in partial.iterdir() if partial.is_dir() else ():
                if width >= TILE_WIDTH or not path.name.isdigit() or int(path.name) > width:
                    path.unlink()
            if width >= TILE_WIDTH or width == 0:
                partial.rmdir()
        except OSError:
            return


def _make_folder(folder: Path, top: Path) -> None:
    """Make ``folder`` and its parents up to ``top``, each name durable."""
    missing = [folder, *folder.parents]
    missing = [path for path in missing[: missing.index(top)] if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)
