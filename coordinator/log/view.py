"""Reading the log's own folder: entries, proofs and documents up to the newest signed checkpoint (C2SP tlog-tiles).

Reading takes no lock: the checkpoint is written after everything it commits to, so what it names is there. Nothing is kept in memory
but the newest checkpoint, the right edge of its tree and the tiles that were read last, so opening a log costs the same however long it is.
What is read is checked where it is used: the edge against the signed root, an entry that is given out against its proof, entries that
are folded against the root (``ledger.py``).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from common.errors import FormatError, LogError, LogInconsistentError, NotFoundError, UsageError
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.merkle import (
    HASH_BYTES,
    NodeLookup,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    subtree_hash,
    verify_consistency,
    verify_inclusion,
)
from common.translog.proof import encode_receipt
from common.translog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, entries_path, parse_entries, tile_path
from coordinator.log.tree import TreeEdge

__all__ = ["CHECKPOINT_NAME", "DOCUMENTS_NAME", "LogHead", "LogReceipt", "LogView"]

CHECKPOINT_NAME: Final = "checkpoint"
DOCUMENTS_NAME: Final = "documents"
_CACHED_TILES: Final = 512  # with their inner hashes about 40 KiB each
_CACHED_BUNDLES: Final = 16


K = TypeVar("K")
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """The values that were used last, at most ``limit`` of them. Safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
            return found

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._limit:
                self._values.popitem(last=False)


@dataclass(frozen=True, slots=True)
class LogReceipt:
    """What a submission is answered with: the entry's place, its bytes, and the proof that a signed checkpoint includes it."""

    index: int
    entry: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class LogHead:
    """A checkpoint that holds, the signed note it was read from, and the right edge of its tree, which nobody changes."""

    checkpoint: Checkpoint
    note: bytes
    edge: TreeEdge


class LogView:
    """The log as its newest checkpoint signs it, brought up to date from the disk. Safe to share between threads.

    Args:
        folder: the log's folder.
        vkey: the log's verifier key; a checkpoint that it did not sign is refused.
    """

    def __init__(self, folder: Path, vkey: str) -> None:
        self.folder = folder
        self._vkey = vkey
        self._lock = threading.RLock()
        self._head: LogHead | None = None
        self._tiles: _Recent[Tile, list[list[bytes]]] = _Recent(_CACHED_TILES)
        self._bundles: _Recent[tuple[int, int], list[bytes]] = _Recent(_CACHED_BUNDLES)

    def refresh(self) -> None:
        """Move to the newest checkpoint, whoever wrote it: its tree must have the signed root, and continue the one seen before.

        Raises:
            LogError: the log's files are damaged, or an older state was restored under a running process.
        """
        with self._lock:
            try:
                note = (self.folder / CHECKPOINT_NAME).read_bytes()
            except FileNotFoundError as error:
                if self._head is not None:
                    raise LogError("The log's checkpoint has vanished from the disk.") from error
                return
            if self._head is None or note != self._head.note:
                self._catch_up(note, verify_checkpoint(note, self._vkey))

    def _catch_up(self, note: bytes, checkpoint: Checkpoint) -> None:
        before, size = self._head, checkpoint.size
        if before is not None and size < before.checkpoint.size:
            raise LogError(
                f"The log on the disk has {size} entries, but {before.checkpoint.size} were seen before: an old copy was put back."
            )
        edge = self._read_edge(size)
        if edge.root() != checkpoint.root:
            raise LogError("The log's hash tiles on the disk do not have the root that its checkpoint signs.")
        if before is not None:
            old = before.checkpoint
            proof = consistency_proof(old.size, size, self._nodes(size))
            try:
                verify_consistency(old.size, size, proof, old.root, checkpoint.root)
            except LogInconsistentError as error:
                raise LogError("The log on the disk was replaced by another one.") from error
        self._head = LogHead(checkpoint, note, edge)

    def _read_edge(self, size: int) -> TreeEdge:
        rows: list[list[bytes]] = []
        while (count := size >> TILE_HEIGHT * len(rows)) or not rows:
            width = count % TILE_WIDTH
            rows.append(self._tile(len(rows), count // TILE_WIDTH, width)[0][:width] if width else [])
        return TreeEdge(rows, size)

    def _nodes(self, size: int) -> NodeLookup:
        return lambda level, index: self._node(level, index, size)

    def _tile(self, level: int, index: int, width: int) -> list[list[bytes]]:
        """A tile's hashes and those of the complete subtrees above them, row by row; a tile that has grown meanwhile does as well."""
        place = (level, index, width)
        found = self._tiles.get(place)
        if found is None:
            raw = self._read(tile_path(level, index, width), tile_path(level, index))
            row = [raw[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]
            if len(raw) % HASH_BYTES or len(row[-1]) != HASH_BYTES:
                raise LogError(f"The log's file {tile_path(level, index, width)} is too short.")
            found = [row]
            while len(found[-1]) > 1:
                row = found[-1]
                found.append([node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)])
            self._tiles.put(place, found)
        return found

    def _node(self, level: int, index: int, size: int) -> bytes:
        """Hash of a complete subtree of the tree of ``size`` leaves, from the tile it lies in."""
        tile_level, inner = divmod(level, TILE_HEIGHT)
        tile, at = divmod(index << inner, TILE_WIDTH)
        width = min(TILE_WIDTH, (size >> TILE_HEIGHT * tile_level) - tile * TILE_WIDTH)
        return self._tile(tile_level, tile, width)[inner][at >> inner]

    def _bundle(self, index: int, width: int) -> list[bytes]:
        """At least ``width`` entries of a bundle, compared with the hash tile beside it."""
        found = self._bundles.get((index, width))
        if found is None:
            path = entries_path(index, width)
            try:
                found = parse_entries(self._read(path, entries_path(index)))[:width]
            except FormatError as error:
                raise LogError(f"The log's file {path} is malformed.") from error
            if [leaf_hash(entry) for entry in found] != self._tile(0, index, width)[0]:
                raise LogError(f"The log's file {path} does not hold the entries of its hash tile.")
            self._bundles.put((index, width), found)
        return found

    def _read(self, *paths: str) -> bytes:
        """The first of these files that is there: a partial one, or the full one that replaced it."""
        for path in paths:
            try:
                return (self.folder / path).read_bytes()
            except FileNotFoundError:
                continue
        raise LogError(f"The log's file {paths[0]} is missing.")

    @property
    def head(self) -> LogHead | None:
        """The newest checkpoint that was read; None for an empty log."""
        return self._head

    @property
    def size(self) -> int:
        """Number of entries under the newest checkpoint that was read."""
        head = self._head
        return head.checkpoint.size if head is not None else 0

    @property
    def checkpoint(self) -> bytes:
        """The newest checkpoint that was read, a signed note."""
        head = self._head
        return head.note if head is not None else b""

    def entries(self, start: int, end: int) -> list[bytes]:
        """Entries from ``start`` up to but not including ``end``, as far as there are.

        Raises:
            LogError: the log's files are damaged.
        """
        size = self.size
        end, found = min(end, size), list[bytes]()
        for bundle in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
            first = bundle * TILE_WIDTH
            found += self._bundle(bundle, min(TILE_WIDTH, size - first))[max(0, start - first) : end - first]
        return found

    def receipt(self, index: int) -> LogReceipt:
        """The proof of one entry under the newest checkpoint.

        Raises:
            NotFoundError: no such entry.
            LogError: the log's files are damaged.
        """
        head = self._head
        if head is None or not 0 <= index < head.checkpoint.size:
            raise NotFoundError(f"The log has {self.size} entries; there is none with index {index}.")
        size = head.checkpoint.size
        bundle, at = divmod(index, TILE_WIDTH)
        entry = self._bundle(bundle, min(TILE_WIDTH, size - bundle * TILE_WIDTH))[at]
        proof = inclusion_proof(index, size, self._nodes(size))
        verify_inclusion(leaf_hash(entry), index, size, proof, head.checkpoint.root)
        return LogReceipt(index, entry, encode_receipt(index, proof, head.note))

    def consistency(self, old_size: int) -> tuple[list[bytes], bytes]:
        """The proof from a tree of ``old_size`` entries to the newest checkpoint, and that checkpoint.

        Raises:
            UsageError: the log never had that size.
            LogError: the log's files are damaged.
        """
        head = self._head
        if head is None or not 1 <= old_size <= head.checkpoint.size:
            raise UsageError(f"The log has {self.size} entries; nothing leads there from {old_size}.")
        size, nodes = head.checkpoint.size, self._nodes(head.checkpoint.size)
        proof = consistency_proof(old_size, size, nodes)
        try:  # a damaged tile must not look like a fork to whoever asks
            verify_consistency(old_size, size, proof, subtree_hash(0, old_size, nodes), head.checkpoint.root)
        except LogInconsistentError as error:
            raise LogError("The log's hash tiles on the disk are damaged.") from error
        return proof, head.note

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
