"""The consortium's state as the coordinator works with it: the fold of its own log, kept up to date, and the one way to add to it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from common.errors import NotFoundError
from common.formats.entries import EntryKind, LogEntry, encode_entry
from common.formats.fields import format_time, utc_now
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState
from common.trust.certificates import TrustRoot
from coordinator.log.view import LogReceipt, LogView
from coordinator.log.writer import LogWriter

__all__ = ["Ledger", "LedgerSession", "WritableLedger"]


class Ledger:
    """State of the consortium by its log. Safe to share between threads; nothing is folded twice."""

    def __init__(self, view: LogView, root: TrustRoot) -> None:
        self.view = view
        self.root = root
        self._lock = threading.RLock()
        self._state: ConsortiumState | None = None
        self._folded = 0

    def state(self) -> ConsortiumState:
        """The state at the newest checkpoint on the disk.

        Raises:
            LogError: the log does not hold, or an entry breaks the rules.
            NotFoundError: the log is empty.
        """
        with self._lock:
            self.view.refresh()
            fresh = self.view.entries(self._folded, self.view.size)
            if fresh:
                self._state = fold(fresh, self.view.document, self.root, state=self._state)
                self._folded += len(fresh)
            if self._state is None:
                raise NotFoundError("The log is empty: no consortium was founded here.")
            return self._state


@dataclass(frozen=True, slots=True)
class LedgerSession:
    """The state at this moment, with every other writer kept out; see :meth:`WritableLedger.exclusive`.

    Attributes:
        state: the consortium's state; None only while it is being founded.
        time: the time of the next entry, never before the newest entry's.
        append: ``append(kind, subject, document, attachments)`` logs one fact. ``document`` are the signed bytes it stands for,
            ``attachments`` the manifests they name. Returns the receipt once it is durable. Raises ``LogError`` if the rules
            forbid the entry (then nothing was written) and ``StorageError`` if the disk does.
    """

    state: ConsortiumState | None
    time: datetime
    append: Callable[[EntryKind, str, bytes, Sequence[bytes]], LogReceipt]


class WritableLedger(Ledger):
    """A ledger whose log this process may write."""

    def __init__(self, writer: LogWriter, root: TrustRoot) -> None:
        super().__init__(writer, root)
        self._writer = writer

    @contextmanager
    def exclusive(self) -> Iterator[LedgerSession]:
        """Decide and append with nobody in between: what was checked against ``state`` still holds when it is logged."""
        with self._lock, self._writer.exclusive():
            state = self.state() if self._writer.size else None
            now = utc_now()
            time = max(now, state.time) if state is not None else now

            def append(kind: EntryKind, subject: str, document: bytes, attachments: Sequence[bytes]) -> LogReceipt:
                digest = hashlib.sha256(document).hexdigest()
                fields = {"schema": "elmgrove.entry/v1", "kind": kind, "subject": subject, "document": digest, "time": format_time(time)}
                return self._append(encode_entry(LogEntry.model_validate(fields)), (document, *attachments))

            yield LedgerSession(state, time, append)

    def _append(self, entry: bytes, documents: Sequence[bytes]) -> LogReceipt:
        """Fold first, write then: an entry that breaks a rule never reaches the log."""
        pending = {hashlib.sha256(document).hexdigest(): document for document in documents}
        before = self._state
        after = fold([entry], self._lookup(pending), self.root, state=before)
        index = self._writer.append([entry], documents)
        self._state, self._folded = after, index + 1
        return self._writer.receipt(index)

    def _lookup(self, pending: Mapping[str, bytes]) -> Callable[[str], bytes]:
        def documents(digest: str) -> bytes:
            found = pending.get(digest)
            return found if found is not None else self.view.document(digest)

        return documents
