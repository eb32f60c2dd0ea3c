"""Reading the log's own folder: entries, proofs and documents up to the newest signed checkpoint (C2SP tlog-tiles).

Reading takes no lock: the checkpoint is written after everything it commits to, so what it names is there.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import LogError, NotFoundError, UsageError
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.proof import encode_receipt
from common.translog.tiles import entries_path, parse_entries
from coordinator.log.tree import Tree

__all__ = ["CHECKPOINT_NAME", "DOCUMENTS_NAME", "ENTRIES_PER_BUNDLE", "LogReceipt", "LogView"]

CHECKPOINT_NAME: Final = "checkpoint"
DOCUMENTS_NAME: Final = "documents"
ENTRIES_PER_BUNDLE: Final = 256  # fixed by tlog-tiles


@dataclass(frozen=True, slots=True)
class LogReceipt:
    """What a submission is answered with: the entry's place, its bytes, and the proof that a signed checkpoint includes it."""

    index: int
    entry: bytes
    proof: bytes


class LogView:
    """The log as its newest checkpoint signs it, kept in memory and brought up to date from the disk. Safe to share between threads.

    Args:
        folder: the log's folder.
        vkey: the log's verifier key; a checkpoint that it did not sign is refused.
    """

    def __init__(self, folder: Path, vkey: str) -> None:
        self.folder = folder
        self._vkey = vkey
        self._lock = threading.RLock()
        self._tree = Tree()
        self._entries: list[bytes] = []
        self._note = b""

    def refresh(self) -> None:
        """Read what was appended since the last time, by this process or another, and check it against its checkpoint.

        Raises:
            LogError: the log's files are damaged, or an older state was restored under a running process.
        """
        with self._lock:
            try:
                note = (self.folder / CHECKPOINT_NAME).read_bytes()
            except FileNotFoundError as error:
                if self._note:
                    raise LogError("The log's checkpoint has vanished from the disk.") from error
                return
            if note != self._note:
                self._catch_up(note, verify_checkpoint(note, self._vkey))

    def _catch_up(self, note: bytes, checkpoint: Checkpoint) -> None:
        known = len(self._entries)
        if checkpoint.size < known:
            raise LogError(f"The log on the disk has {checkpoint.size} entries, but {known} were seen before: an old copy was put back.")
        fresh = self._read_entries(known, checkpoint.size)
        for entry in fresh:
            self._tree.add(entry)
        if self._tree.root() != checkpoint.root:
            self._tree.cut(known)
            raise LogError("The log's entries on the disk do not have the root that its checkpoint signs.")
        self._entries += fresh
        self._note = note

    def _read_entries(self, start: int, end: int) -> list[bytes]:
        found: list[bytes] = []
        for bundle in range(start // ENTRIES_PER_BUNDLE, -(-end // ENTRIES_PER_BUNDLE)):
            first = bundle * ENTRIES_PER_BUNDLE
            entries = parse_entries(self._bundle(bundle, min(ENTRIES_PER_BUNDLE, end - first)))
            found += entries[max(0, start - first) : end - first]
        if len(found) != end - start:
            raise LogError("The log's entry files hold fewer entries than its checkpoint signs.")
        return found

    def _bundle(self, bundle: int, width: int) -> bytes:
        for path in (entries_path(bundle, width), entries_path(bundle, ENTRIES_PER_BUNDLE)):
            try:
                return (self.folder / path).read_bytes()
            except FileNotFoundError:
                continue
        raise LogError(f"The log's entry file {entries_path(bundle, width)} is missing.")

    @property
    def size(self) -> int:
        """Number of entries under the newest checkpoint that was read."""
        return len(self._entries)

    @property
    def checkpoint(self) -> bytes:
        """The newest checkpoint that was read, a signed note."""
        with self._lock:
            return self._note

    def entries(self, start: int, end: int) -> list[bytes]:
        """Entries from ``start`` up to but not including ``end``."""
        with self._lock:
            return self._entries[start:end]

    def receipt(self, index: int) -> LogReceipt:
        """The proof of one entry under the newest checkpoint.

        Raises:
            NotFoundError: no such entry.
        """
        with self._lock:
            if not 0 <= index < len(self._entries):
                raise NotFoundError(f"The log has {len(self._entries)} entries; there is none with index {index}.")
            proof = self._tree.inclusion(index, len(self._entries))
            return LogReceipt(index, self._entries[index], encode_receipt(index, proof, self._note))

    def consistency(self, old_size: int) -> tuple[list[bytes], bytes]:
        """The proof from a tree of ``old_size`` entries to the newest checkpoint, and that checkpoint.

        Raises:
            UsageError: the log never had that size.
        """
        with self._lock:
            if not 1 <= old_size <= len(self._entries):
                raise UsageError(f"The log has {len(self._entries)} entries; nothing leads there from {old_size}.")
            return self._tree.consistency(old_size, len(self._entries)), self._note

    def document(self, digest: str) -> bytes:
        """A signed document, or a manifest one names, by its SHA-256.

        Raises:
            NotFoundError: no such document.
            LogError: it is damaged on the disk.
        """
        if len(digest) != 64 or not digest.isalnum():
            raise NotFoundError("That is not a digest.")
        try:
            raw = (self.folder / DOCUMENTS_NAME / digest).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError("The log has no such document.") from error
        if hashlib.sha256(raw).hexdigest() != digest:
            raise LogError(f"The document {digest} is damaged on the disk.")
        return raw
