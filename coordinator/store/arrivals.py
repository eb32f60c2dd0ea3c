"""Chunks as they arrive: hashed while written, durable before they are acknowledged, in memory bounded by one piece per stream.

Of two streams that send the same chunk the later one takes it over, so that a client whose connection broke need not wait until the
coordinator notices; the earlier stream can write nothing more.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import DigestError, NotFoundError, ProtocolError, UnavailableError
from common.files import storage_errors
from common.formats.fields import utc_now
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import FileEntry
from coordinator.store.uploads import ChunkKey, UploadRecord, Uploads

__all__ = ["Arrivals", "ChunkWriter"]


@dataclass(slots=True)
class _Claim:
    lock: threading.Lock = field(default_factory=threading.Lock)
    holder: object = None
    users: int = 0


class Arrivals:
    """Who writes which chunk at this moment. Safe to share between threads."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._lock = threading.Lock()
        self._claims: dict[tuple[str, ChunkKey], _Claim] = {}
        self._sealed: set[str] = set()

    def begin(self, record: UploadRecord, files: Sequence[FileEntry], key: ChunkKey) -> ChunkWriter | None:
        """Take over a chunk.

        Returns:
            Its writer, or None if the chunk is durable already; nobody may write to it again.

        Raises:
            ProtocolError: no such chunk in the manifest, or the upload is being committed.
        """
        file, chunk = key
        if file >= len(files) or chunk >= len(files[file].chunks):
            raise ProtocolError(f"The manifest has no file {file} with a chunk {chunk}.")
        with self._lock:
            self._check_open(record.id)
            claim = self._claims.setdefault((record.id, key), _Claim())
            claim.users += 1
            writer = ChunkWriter(self, record, files[file], key, claim)
        with claim.lock:
            claim.holder = writer
            durable = self._uploads.has_chunk(record.id, key)
        if durable:
            self._done(writer)
            return None
        return writer

    def _check_open(self, upload_id: str) -> None:
        if upload_id in self._sealed:
            raise ProtocolError("The upload is being committed.")

    def seal(self, upload_id: str) -> None:
        """Let nobody write to an upload any more; returns when no write is under way.

        Raises:
            UnavailableError: it is being committed already; whoever asks again later gets that commit's result.
        """
        with self._lock:
            if upload_id in self._sealed:
                raise UnavailableError("The upload is being committed at this moment.")
            self._sealed.add(upload_id)
            claims = [claim for (upload, _), claim in self._claims.items() if upload == upload_id]
        for claim in claims:
            with claim.lock:
                claim.holder = None

    def unseal(self, upload_id: str) -> None:
        """Let writes go on, or forget the upload after it ended."""
        with self._lock:
            self._sealed.discard(upload_id)

    def _done(self, writer: ChunkWriter) -> None:
        with self._lock:
            writer.claim.users -= 1
            if not writer.claim.users:
                self._claims.pop((writer.record.id, writer.key), None)

    def _keep(self, writer: ChunkWriter) -> None:
        self._uploads.add_chunk(writer.record.id, writer.key, writer.size, at=utc_now())

    def _open(self, writer: ChunkWriter) -> int:
        try:
            return os.open(self._uploads.folder(writer.record.id) / writer.entry.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError("The upload has ended.") from error


class ChunkWriter:
    """One chunk on its way to the disk. Use as a context manager: leaving it without :meth:`finish` drops the chunk."""

    def __init__(self, arrivals: Arrivals, record: UploadRecord, entry: FileEntry, key: ChunkKey, claim: _Claim) -> None:
        self._arrivals = arrivals
        self._hasher = hashlib.sha256()
        self._written = 0
        self._descriptor = -1
        self.record, self.entry, self.key, self.claim = record, entry, key, claim
        self._start = key[1] * CHUNK_BYTES
        self.size = min(CHUNK_BYTES, entry.size - self._start)

    @property
    def complete(self) -> bool:
        """Whether every byte of the chunk was written."""
        return self._written == self.size

    def write(self, offset: int, data: bytes) -> None:
        """Write the next bytes of the chunk.

        Raises:
            ProtocolError: not the next bytes, more than the chunk has, or another stream has taken the chunk over.
            StorageError: the disk is full or failing.
        """
        if offset != self._written or not data or offset + len(data) > self.size:
            raise ProtocolError(f"Chunk {self.key[1]} of {self.entry.name}: a piece does not follow the {self._written} bytes before it.")
        self._hasher.update(data)
        with self.claim.lock, storage_errors("an upload"):
            self._check_holder()
            view = memoryview(data)
            position = self._start + offset
            while view:
                count = os.pwrite(self._descriptor, view, position)
                view, position = view[count:], position + count
        self._written += len(data)

    def finish(self) -> None:
        """Check the chunk's digest and make it durable.

        Raises:
            DigestError: the bytes are not those the manifest names; the chunk must be sent again.
            ProtocolError: another stream has taken the chunk over.
            StorageError: the disk is full or failing.
        """
        if self._hasher.hexdigest() != self.entry.chunks[self.key[1]]:
            raise DigestError(f"Chunk {self.key[1]} of {self.entry.name} does not have the digest the manifest gives it.")
        with self.claim.lock, storage_errors("an upload"):
            self._check_holder()
            os.fdatasync(self._descriptor)
            self._arrivals._keep(self)

    def _check_holder(self) -> None:
        if self.claim.holder is not self:
            raise ProtocolError("Another stream has taken this chunk over, or the upload has ended.")

    def __enter__(self) -> ChunkWriter:
        try:
            with storage_errors("an upload"):
                self._descriptor = self._arrivals._open(self)
        except BaseException:
            self._arrivals._done(self)
            raise
        return self

    def __exit__(self, *ignored: object) -> None:
        os.close(self._descriptor)
        self._arrivals._done(self)
