"""SHA-256 of files and of their 16 MiB chunks in one pass over an opened descriptor (``docs/formats.md``, section 4)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from common.errors import DigestError, LayoutError, LimitError, NotFoundError, StorageError
from common.formats.limits import CHUNK_BYTES
from common.weights.parallel import Meter

__all__ = ["BLOCK_BYTES", "FileDigest", "HashingReader", "digest_file", "open_regular", "read_exactly", "read_small"]

BLOCK_BYTES: Final = 1024 * 1024  # bytes read at a time; stays in the core's cache while several hashes pass over it


class Hasher(Protocol):
    """What :mod:`hashlib` returns."""

    def update(self, data: memoryview, /) -> None:
        """Take in more bytes."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes, SHA-256 of the whole, and SHA-256 of every chunk of ``CHUNK_BYTES`` (empty if they were not asked for)."""

    size: int
    sha256: str
    chunks: tuple[str, ...]


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open a regular file for reading without following a link in its last component; yields the descriptor.

    Raises:
        NotFoundError: there is no such file.
        LayoutError: it is a link, folder, FIFO, socket or device.
        StorageError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file {path.name}.") from error
    except OSError as error:
        if path.is_symlink():
            raise LayoutError(f"{path.name} is a link; only regular files are read.") from error
        raise StorageError(f"{path.name} cannot be opened: {os.strerror(error.errno or 0)}.") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LayoutError(f"{path.name} is not a regular file.")
        yield descriptor
    finally:
        os.close(descriptor)


def read_small(path: Path, max_bytes: int) -> bytes:
    """All bytes of a small regular file.

    Raises:
        LimitError: it is larger than ``max_bytes``.
        NotFoundError, LayoutError, StorageError: as :func:`open_regular`.
    """
    with open_regular(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as stream:
        raw = stream.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise LimitError(f"{path.name} exceeds the limit of {max_bytes} bytes.")
    return raw


def read_exactly(descriptor: int, name: str, count: int, offset: int) -> bytes:
    """``count`` bytes from ``offset`` of an opened file called ``name``.

    Raises:
        DigestError: the file ends earlier.
        StorageError: it cannot be read.
    """
    try:
        raw = os.pread(descriptor, count, offset)
    except OSError as error:
        raise StorageError(f"{name} cannot be read: {os.strerror(error.errno or 0)}.") from error
    if len(raw) != count:
        raise DigestError(f"{name} is shorter than its header says.")
    return raw


class HashingReader:
    """Reads an opened file once from its beginning and hashes whatever passes: the whole, its chunks, and what the caller adds."""

    def __init__(self, descriptor: int, name: str, *, chunks: bool = True, meter: Meter | None = None) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._name = name
        self._meter = meter
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._chunked = chunks and self.size > CHUNK_BYTES  # one chunk has the digest of the whole
        self._want_chunks = chunks
        self._chunks: list[str] = []
        self._position = 0
        self._buffer = memoryview(bytearray(min(BLOCK_BYTES, max(1, self.size))))

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self.size - self._position

    def take(self, count: int) -> bytes:
        """Read, hash and return exactly ``count`` bytes (or as many as remain); for headers."""
        parts = [bytes(block) for block in self._blocks(min(count, self.remaining))]
        return b"".join(parts)

    def feed(self, count: int, *hashers: Hasher) -> None:
        """Read exactly ``count`` bytes through the file's own hashes and ``hashers``.

        Raises:
            DigestError: the file became shorter while it was read.
        """
        for block in self._blocks(count):
            for hasher in hashers:
                hasher.update(block)

    def finish(self) -> FileDigest:
        """Read to the end and return the digests.

        Raises:
            DigestError: the file changed its size while it was read.
        """
        self.feed(self.remaining)
        if os.fstat(self._descriptor).st_size != self.size:
            raise DigestError(f"{self._name} changed while it was read.")
        whole = self._whole.hexdigest()
        if self._want_chunks and not self._chunked and self.size:
            self._chunks.append(whole)
        return FileDigest(size=self.size, sha256=whole, chunks=tuple(self._chunks))

    def _blocks(self, count: int) -> Iterator[memoryview]:
        while count:
            to_boundary = CHUNK_BYTES - self._position % CHUNK_BYTES
            block = self._read(min(count, to_boundary, len(self._buffer)))
            count -= len(block)
            self._whole.update(block)
            if self._chunked:
                self._chunk.update(block)
                if len(block) == to_boundary or self._position == self.size:
                    self._chunks.append(self._chunk.hexdigest())
                    self._chunk = hashlib.sha256()
            yield block
            if self._meter is not None:
                self._meter.add(len(block))

    def _read(self, count: int) -> memoryview:
        try:
            got = os.preadv(self._descriptor, [self._buffer[:count]], self._position)
        except OSError as error:
            raise StorageError(f"{self._name} cannot be read: {os.strerror(error.errno or 0)}.") from error
        if not got:
            raise DigestError(f"{self._name} became shorter while it was read.")
        self._position += got
        return self._buffer[:got]


def digest_file(path: Path, *, chunks: bool = True, meter: Meter | None = None) -> FileDigest:
    """Digests of one regular file, in one pass and constant memory.

    Raises:
        NotFoundError, LayoutError, StorageError: as :func:`open_regular`.
        DigestError: the file changed while it was read.
    """
    with open_regular(path) as descriptor:
        return HashingReader(descriptor, path.name, chunks=chunks, meter=meter).finish()
