"""``audit.jsonl``: one line for everything that was admitted, refused or done, for the operator's eyes; it is not part of the log."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from common.errors import ElmgroveError, StorageError
from common.files import storage_errors
from common.formats.fields import format_time, utc_now

__all__ = ["AuditTrail"]

logger = logging.getLogger(__name__)

Value = str | int | None


class AuditTrail:
    """Appends lines; safe to share between threads and processes, since each line is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def record(self, event: str, **fields: Value) -> None:
        """Write one line, durably.

        Raises:
            StorageError: the disk is full or not writable.
        """
        line = {"time": format_time(utc_now()), "event": event, **{key: value for key, value in fields.items() if value is not None}}
        raw = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        with self._lock, storage_errors("the audit trail"):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, raw)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def refused(self, event: str, error: ElmgroveError, **fields: Value) -> None:
        """Write the line of a refusal: what was refused, and why. A disk that cannot take it does not hide the refusal itself."""
        try:
            self.record(event, refused=error.code, reason=str(error), **fields)
        except StorageError as trouble:
            logger.warning("the audit trail could not be written: %s", trouble)
