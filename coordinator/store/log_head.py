"""The newest log that this coordinator has ever signed, kept apart from the log's own files: so an old copy of those is noticed."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from common.translog.checkpoint import Checkpoint
from coordinator.store.database import Database, log_head

__all__ = ["LogHead"]


class LogHead:
    """Size and root hash of that log. Safe to share between threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def recall(self) -> tuple[int, bytes] | None:
        """Size and root hash of the largest log remembered; None before the first."""
        with self._database.begin() as connection:
            row = connection.execute(select(log_head.c.size, log_head.c.root)).one_or_none()
        return None if row is None else (int(row.size), bytes.fromhex(row.root))

    def remember(self, checkpoint: Checkpoint) -> None:
        """Keep ``checkpoint`` unless a larger log is remembered already.

        Raises:
            StorageError: the disk is full or not writable.
        """
        with self._database.begin() as connection:
            removed = connection.execute(delete(log_head).where(log_head.c.size <= checkpoint.size)).rowcount
            if removed or connection.execute(select(log_head.c.size)).one_or_none() is None:
                connection.execute(insert(log_head).values(id=1, size=checkpoint.size, root=checkpoint.root.hex()))
