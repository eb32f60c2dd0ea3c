"""Uploads under way: one folder with the arriving package, one row, and one row per durable chunk."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Row

from common.errors import NotFoundError
from common.files import fsync_folder, fsync_tree, storage_errors
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry
from coordinator.store.database import Database, upload_chunks, uploads

__all__ = ["ChunkKey", "UploadRecord", "Uploads"]

ChunkKey = tuple[int, int]
"""Position of a file in the manifest, position of a chunk in that file."""


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One upload. ``entry_index`` is set once its package is in the log."""

    id: str
    owner: str
    manifest: str
    expert: str
    version: int
    size: int
    entry_index: int | None


class Uploads:
    """The uploads of one coordinator. Safe to share between threads."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def folder(self, upload_id: str) -> Path:
        """Where the package arrives; ``upload_id`` must come from a record."""
        return self._folder / upload_id

    def create(
        self,
        *,
        owner: str,
        manifest: str,
        expert: str,
        version: int,
        files: Sequence[FileEntry],
        documents: tuple[bytes, bytes],
        at: datetime,
    ) -> UploadRecord:
        """Begin an upload: reserve its space on the disk, then remember it.

        Args:
            owner: the owner's name.
            manifest: digest of the manifest.
            expert: the expert's name.
            version: its version.
            files: the manifest's files.
            documents: the bytes of manifest.json and model.sig.
            at: now.

        Raises:
            StorageError: the disk has no room for the whole package; nothing is left behind.
        """
        record = UploadRecord(secrets.token_hex(16), owner, manifest, expert, version, sum(entry.size for entry in files), None)
        try:
            self._reserve(record.id, files, documents)
            moment = int(at.timestamp())
            row = {"id": record.id, "owner": owner, "manifest": manifest, "expert": expert, "version": version, "size": record.size}
            with self._database.begin() as connection:
                connection.execute(insert(uploads).values(**row, state="open", created_at=moment, touched_at=moment))
        except BaseException:
            shutil.rmtree(self.folder(record.id), ignore_errors=True)
            raise
        return record

    def _reserve(self, upload_id: str, files: Sequence[FileEntry], documents: tuple[bytes, bytes]) -> None:
        folder = self.folder(upload_id)
        with storage_errors("an upload"):
            folder.mkdir(mode=0o700)
            for name, content in zip((MANIFEST_NAME, SIGNATURE_NAME), documents, strict=True):
                (folder / name).write_bytes(content)
            for entry in files:
                with (folder / entry.name).open("xb") as stream:
                    if entry.size:
                        os.posix_fallocate(stream.fileno(), 0, entry.size)
            fsync_tree(folder)
            fsync_folder(self._folder)

    def replace_bundle(self, record: UploadRecord, bundle: bytes) -> None:
        """Keep the newest signature over the same manifest."""
        with storage_errors("an upload"):
            aside = self.folder(record.id) / f".{SIGNATURE_NAME}.tmp"
            aside.write_bytes(bundle)
            aside.replace(self.folder(record.id) / SIGNATURE_NAME)
            fsync_tree(self.folder(record.id))

    def get(self, upload_id: str, owner: str) -> UploadRecord:
        """An upload of ``owner``; another owner's looks as if it did not exist.

        Raises:
            NotFoundError: no such upload of this owner.
        """
        record = self._one((uploads.c.id == upload_id) & (uploads.c.owner == owner))
        if record is None:
            raise NotFoundError("There is no such upload. Offer the package again.")
        return record

    def find(self, owner: str, manifest: str) -> UploadRecord | None:
        """The upload of one manifest by one owner, if there is one."""
        return self._one((uploads.c.owner == owner) & (uploads.c.manifest == manifest))

    def _one(self, condition: Any) -> UploadRecord | None:
        with self._database.begin() as connection:
            row = connection.execute(select(uploads).where(condition)).one_or_none()
        return _record(row) if row is not None else None

    def open_of(self, owner: str) -> list[tuple[UploadRecord, int]]:
        """The owner's uncommitted uploads, each with the bytes that are durable."""
        received = select(func.coalesce(func.sum(upload_chunks.c.size), 0)).where(upload_chunks.c.upload == uploads.c.id).scalar_subquery()
        condition = (uploads.c.owner == owner) & (uploads.c.state == "open")
        with self._database.begin() as connection:
            rows = connection.execute(select(uploads, received.label("received")).where(condition).order_by(uploads.c.created_at)).all()
        return [(_record(row), int(row.received)) for row in rows]

    def all(self) -> list[UploadRecord]:
        """Every upload, open or accepted, oldest first."""
        with self._database.begin() as connection:
            rows = connection.execute(select(uploads).order_by(uploads.c.created_at)).all()
        return [_record(row) for row in rows]

    def chunks(self, upload_id: str) -> set[ChunkKey]:
        """The chunks that are durable."""
        with self._database.begin() as connection:
            rows = connection.execute(select(upload_chunks.c.file, upload_chunks.c.chunk).where(upload_chunks.c.upload == upload_id)).all()
        return {(row.file, row.chunk) for row in rows}

    def has_chunk(self, upload_id: str, key: ChunkKey) -> bool:
        """Whether one chunk is durable."""
        table = upload_chunks.c
        wanted = (table.upload == upload_id) & (table.file == key[0]) & (table.chunk == key[1])
        with self._database.begin() as connection:
            return connection.execute(select(table.upload).where(wanted)).one_or_none() is not None

    def add_chunk(self, upload_id: str, key: ChunkKey, size: int, *, at: datetime) -> None:
        """Remember that a chunk has its digest and is durable."""
        with self._database.begin() as connection:
            connection.execute(
                insert(upload_chunks).prefix_with("OR IGNORE").values(upload=upload_id, file=key[0], chunk=key[1], size=size)
            )
            connection.execute(update(uploads).where(uploads.c.id == upload_id).values(touched_at=int(at.timestamp())))

    def accept(self, record: UploadRecord, entry_index: int) -> None:
        """Note the entry an upload became, so that a repeated commit finds it, and free what it held."""
        with self._database.begin() as connection:
            connection.execute(update(uploads).where(uploads.c.id == record.id).values(state="accepted", entry_index=entry_index))
            connection.execute(delete(upload_chunks).where(upload_chunks.c.upload == record.id))
        shutil.rmtree(self.folder(record.id), ignore_errors=True)

    def remove(self, upload_id: str) -> None:
        """Forget an upload and free what it held."""
        with self._database.begin() as connection:
            connection.execute(delete(uploads).where(uploads.c.id == upload_id))
        shutil.rmtree(self.folder(upload_id), ignore_errors=True)

    def clear(self, *, untouched_since: datetime) -> int:
        """Remove uploads without news since a moment, and folders that no row knows (left by a crash); returns how many.

        To be called before uploads are served: a folder that is just being made has no row yet.
        """
        condition = uploads.c.touched_at < int(untouched_since.timestamp())
        with self._database.begin() as connection:
            stale = [str(row.id) for row in connection.execute(select(uploads.c.id).where(condition)).all()]
            known = {str(row.id) for row in connection.execute(select(uploads.c.id).where(uploads.c.state == "open")).all()}
        for upload_id in stale:
            self.remove(upload_id)
        strays = [path for path in self._folder.iterdir() if path.name not in known]
        for path in strays:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale) + len(strays)


def _record(row: Row[Any]) -> UploadRecord:
    return UploadRecord(row.id, row.owner, row.manifest, row.expert, row.version, row.size, row.entry_index)
