"""Operational state in SQLite through SQLAlchemy Core: invitations, and uploads under way.

Nothing here is a fact of the consortium; those are in the log. Every commit is durable when it returns (WAL, full sync).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import DBAPIError

from common.errors import ConfigError, StorageError

__all__ = ["Database", "invitations", "log_head", "upload_chunks", "uploads"]

SCHEMA_VERSION: Final = 1
_BUSY_MS: Final = 30_000  # another process (an operator's command) may hold the write lock this long

metadata = MetaData()

invitations = Table(
    "invitations",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("owner", String(40), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
)
"""One row per invitation; the token itself is not kept. Times are Unix seconds."""

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(40), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("expert", String(40), nullable=False),
    Column("version", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("entry_index", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("touched_at", BigInteger, nullable=False),
    UniqueConstraint("owner", "manifest"),
)
"""One row per upload; ``state`` is ``open`` or ``accepted`` (then ``entry_index`` is set)."""

upload_chunks = Table(
    "upload_chunks",
    metadata,
    Column("upload", String(32), ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    Column("file", Integer, primary_key=True),
    Column("chunk", Integer, primary_key=True),
    Column("size", Integer, nullable=False),
)
"""One row per chunk that is durable and has its digest."""

log_head = Table(
    "log_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("root", String(64), nullable=False),
)
"""At most one row: size and root hash of the largest log that was ever signed here."""

Index("uploads_by_owner", uploads.c.owner, uploads.c.state)


class Database:
    """The database of one home. Safe to share between threads; several processes may have it open."""

    def __init__(self, path: Path) -> None:
        self._engine = _engine(path)
        with self.begin() as connection:
            version = int(connection.execute(text("PRAGMA user_version")).scalar_one())
            if version not in {0, SCHEMA_VERSION}:
                raise ConfigError(f"The database {path.name} was made by another version of Elmgrove (schema {version}).")
            metadata.create_all(connection)
            connection.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction, durable when the block ends well and undone when it does not.

        Raises:
            StorageError: the database cannot be read or written (disk full, locked for too long, damaged).
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise StorageError("The database cannot be written: is the disk full, or the folder read-only?") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_MS / 1000})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {_BUSY_MS}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
