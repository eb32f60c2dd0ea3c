"""Reading a whole log from static files and recomputing every hash of it (C2SP tlog-tiles; ``docs/formats.md``, section 8)."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from common.errors import FormatError, LogError, NotFoundError, StorageError
from common.formats.limits import MAX_BUNDLE_BYTES, MAX_ENTRY_BYTES
from common.translog.checkpoint import Checkpoint, parse_checkpoint, verify_checkpoint
from common.translog.merkle import HASH_BYTES, NodeLookup, leaf_hash, nodes_of, root_hash
from common.translog.note import parse_note
from common.translog.tiles import TILE_HEIGHT, TILE_WIDTH, encode_entries, entries_path, parse_entries, tile_path, tiles_for

__all__ = ["FolderReader", "LogReader", "VerifiedLog", "load_document", "read_first_entry", "read_log"]

CHECKPOINT_PATH: Final = "checkpoint"
_MAX_FILE_BYTES: Final = max(MAX_BUNDLE_BYTES, TILE_WIDTH * (MAX_ENTRY_BYTES + 2))


class LogReader(Protocol):
    """Where a log's files come from."""

    def fetch(self, path: str) -> bytes:
        """The bytes at a path of the layout. Raises ``NotFoundError`` if there is none."""


@dataclass(frozen=True, slots=True)
class FolderReader:
    """A log in a folder."""

    folder: Path

    def fetch(self, path: str) -> bytes:
        """See :class:`LogReader`. Links are not followed, and a file larger than any of a log's is refused.

        Raises:
            NotFoundError: no such file.
            StorageError: it cannot be read.
            LogError: it is no regular file or too large.
        """
        try:
            descriptor = os.open(self.folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"The log has no file {path}.") from error
        except OSError as error:
            raise StorageError(f"The log's file {path} cannot be read: {error.strerror}.") from error
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_FILE_BYTES:
            os.close(descriptor)
            raise LogError(f"The log's file {path} is not a regular file of a sensible size.")
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read()

    def partial_widths(self, path: str) -> list[int]:
        """Widths of the partial files that are kept beside a full file's path, in ascending order."""
        try:
            names = [file.name for file in (self.folder / f"{path}.p").iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """Entries that have exactly the tree that a checkpoint signed by the log's key describes; made by :func:`read_log` alone."""

    checkpoint: Checkpoint
    note: bytes
    entries: tuple[bytes, ...]


def read_first_entry(reader: LogReader) -> bytes:
    """The entry that founds the log, without knowing the log's key and so without verifying anything.

    For an auditor who has the root certificate alone: this entry names the key, after which :func:`read_log` verifies.

    Raises:
        LogError: a file is missing or malformed, or the log is empty.
    """
    note = _fetch(reader, CHECKPOINT_PATH)
    try:
        checkpoint = parse_checkpoint(parse_note(note)[0])
    except FormatError as error:
        raise LogError(f"The log's checkpoint is malformed: {error}") from error
    first = _entries(reader, min(checkpoint.size, TILE_WIDTH))[:1]
    if not first:
        raise LogError("The log has no entries; no consortium was founded.")
    return first[0]


def read_log(reader: LogReader, vkey: str) -> VerifiedLog:
    """Read and verify a whole log.

    (1) the checkpoint is signed by the log's key; (2) every entry it counts is there; (3) the entries have its root; (4) every hash tile
    of a tree of this size is there and holds what the entries give; (5) in a folder, partial files that smaller trees left are
    beginnings of those.

    Raises:
        LogError: a step failed; the message names the file.
    """
    try:
        checkpoint = verify_checkpoint(note := _fetch(reader, CHECKPOINT_PATH), vkey)  # (1)
    except FormatError as error:
        raise LogError(f"The log's checkpoint is malformed: {error}") from error
    entries = _entries(reader, checkpoint.size)  # (2)
    hashes = [leaf_hash(entry) for entry in entries]
    if root_hash(hashes) != checkpoint.root:  # (3)
        raise LogError("The log's entries do not have the root that its checkpoint signs.")
    node = nodes_of(hashes)
    for level, index, width in tiles_for(checkpoint.size):  # (4)
        _check_tile(reader, level, index, width, node)
    if isinstance(reader, FolderReader):
        _check_earlier(reader, entries, node)  # (5)
    return VerifiedLog(checkpoint, note, entries)


def _fetch(reader: LogReader, path: str) -> bytes:
    try:
        return reader.fetch(path)
    except NotFoundError as error:
        raise LogError(f"The log lacks its file {path}.") from error


def _fetch_wide(reader: LogReader, full: str, partial: str) -> tuple[bytes, bool]:
    """A partial file, or the full one that may have replaced it, and whether it was the full one."""
    try:
        return reader.fetch(partial), partial == full
    except NotFoundError:
        return _fetch(reader, full), True


def _entries(reader: LogReader, size: int) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for index in range(-(-size // TILE_WIDTH)):
        width = min(TILE_WIDTH, size - len(found))
        path = entries_path(index, width)
        raw, is_full = _fetch_wide(reader, entries_path(index), path)
        try:
            bundle = parse_entries(raw)
        except FormatError as error:
            raise LogError(f"The log's file {path} is malformed.") from error
        if len(bundle) != (TILE_WIDTH if is_full else width):
            raise LogError(f"The log's file {path} holds {len(bundle)} entries, which is not their number.")
        found += bundle[:width]
    return tuple(found)


def _check_tile(reader: LogReader, level: int, index: int, width: int, node: NodeLookup) -> None:
    first = index * TILE_WIDTH
    expected = b"".join(node(level * TILE_HEIGHT, first + position) for position in range(width))
    path = tile_path(level, index, width)
    raw, is_full = _fetch_wide(reader, tile_path(level, index), path)
    if len(raw) != (TILE_WIDTH if is_full else width) * HASH_BYTES or raw[: len(expected)] != expected:
        raise LogError(f"The log's file {path} does not hold the hashes of its entries.")


def _check_earlier(reader: FolderReader, entries: tuple[bytes, ...], node: NodeLookup) -> None:
    """Partial files of smaller trees, which readers of earlier checkpoints may still be served."""
    for level, index, width in tiles_for(len(entries)):
        for earlier in reader.partial_widths(tile_path(level, index)):
            if 0 < earlier < width:
                _check_tile(reader, level, index, earlier, node)
        for earlier in reader.partial_widths(entries_path(index)) if level == 0 else ():
            first = index * TILE_WIDTH
            if 0 < earlier < width and _fetch(reader, entries_path(index, earlier)) != encode_entries(entries[first : first + earlier]):
                raise LogError(f"The log's file {entries_path(index, earlier)} is not the beginning of its entries.")


def load_document(reader: LogReader, digest: str) -> bytes:
    """A signed document or manifest that lies beside the log, by its SHA-256.

    Raises:
        LogError: it is missing, or its bytes do not have that digest.
    """
    raw = _fetch(reader, f"documents/{digest}")
    if hashlib.sha256(raw).hexdigest() != digest:
        raise LogError(f"The log's document {digest[:16]} does not have its digest.")
    return raw
