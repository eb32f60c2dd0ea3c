"""Receiving the pieces of one upload stream: in order within a chunk, one chunk after the other."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from common.errors import ProtocolError
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import ExpertManifest
from common.ledger.state import OwnerState
from common.rpc.limits import PIECE_BYTES
from coordinator.store.arrivals import ChunkWriter
from coordinator.store.uploads import ChunkKey, UploadRecord
from coordinator.usecases.context import Coordinator
from coordinator.usecases.uploads import open_upload

__all__ = ["ChunkReceiver"]


class ChunkReceiver:
    """The receiving end of one stream. Use as a context manager; a chunk that is not whole when it is left is dropped.

    Args:
        coordinator: who receives.
        owner: who sends.
        upload_id: of which upload.

    Raises:
        NotFoundError: this owner has no such open upload.
    """

    def __init__(self, coordinator: Coordinator, owner: OwnerState, upload_id: str) -> None:
        self._coordinator = coordinator
        self._record: UploadRecord
        self._manifest: ExpertManifest
        self._record, self._manifest = open_upload(coordinator, owner, upload_id)
        self._current: ChunkKey | None = None
        self._writer: ChunkWriter | None = None
        self._stack = ExitStack()
        self._skipped = 0

    def feed(self, key: ChunkKey, offset: int, data: bytes) -> bool:
        """Take one piece.

        Args:
            key: position of the file in the manifest, position of the chunk in the file.
            offset: where in the chunk the piece begins.
            data: its bytes, at most ``PIECE_BYTES``.

        Returns:
            Whether the chunk is now durable and has its digest; it is then to be acknowledged.

        Raises:
            ProtocolError: out of order or out of bounds.
            DigestError: the chunk is whole and not the one the manifest names.
            StorageError: the disk is full or failing.
        """
        if len(data) > PIECE_BYTES:
            raise ProtocolError(f"A piece has {len(data)} bytes; at most {PIECE_BYTES} are allowed.")
        if self._current is None:
            self._begin(key)
        elif key != self._current:
            raise ProtocolError("A chunk began before the one before it was whole.")
        if self._writer is None:
            return self._skip(key, offset, data)
        self._writer.write(offset, data)
        if not self._writer.complete:
            return False
        self._writer.finish()
        self._end()
        return True

    def _begin(self, key: ChunkKey) -> None:
        self._current, self._skipped = key, 0
        writer = self._coordinator.arrivals.begin(self._record, self._manifest.files, key)
        if writer is not None:
            self._writer = self._stack.enter_context(writer)

    def _skip(self, key: ChunkKey, offset: int, data: bytes) -> bool:
        """A chunk that is here already is read past and acknowledged again."""
        size = min(CHUNK_BYTES, self._manifest.files[key[0]].size - key[1] * CHUNK_BYTES)
        if offset != self._skipped or not data or offset + len(data) > size:
            raise ProtocolError("A piece does not follow the one before it.")
        self._skipped += len(data)
        if self._skipped < size:
            return False
        self._end()
        return True

    def _end(self) -> None:
        self._stack.close()
        self._current, self._writer = None, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
