"""The consortium's state as the coordinator works with it: the fold of its own log, kept up to date, and the ways to add to it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from common.errors import ElmgroveError, LogError, NotFoundError, UnavailableError
from common.formats.entries import EntryKind, LogEntry, encode_entry
from common.formats.fields import format_time, utc_now
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState
from common.translog.merkle import leaf_hash
from common.trust.certificates import TrustRoot
from coordinator.log.tree import TreeEdge
from coordinator.log.view import LogReceipt, LogView
from coordinator.log.writer import LogWriter

__all__ = ["Ledger", "LedgerSession", "Submission", "WritableLedger"]

_FOLDED_AT_ONCE: Final = 4096  # entries
_GROUP: Final = 1024  # submissions that share a commit


@dataclass(frozen=True, slots=True)
class _Folded:
    """The state, and the tree of the very entries it was folded from."""

    state: ConsortiumState
    edge: TreeEdge


class Ledger:
    """State of the consortium by its log. Safe to share between threads; nothing is folded twice."""

    def __init__(self, view: LogView, root: TrustRoot) -> None:
        self.view = view
        self.root = root
        self._lock = threading.RLock()
        self._folded: _Folded | None = None

    def state(self) -> ConsortiumState:
        """The state at the newest checkpoint on the disk. Waits for nobody unless there is something to fold.

        Raises:
            LogError: the log does not hold, or an entry breaks the rules.
            NotFoundError: the log is empty.
        """
        self.view.refresh()
        head, folded = self.view.head, self._folded
        if folded is not None and head is not None and head.checkpoint.size == folded.edge.size:
            return folded.state
        with self._lock:
            return self._fold_fresh()

    def _fold_fresh(self) -> ConsortiumState:
        head, folded = self.view.head, self._folded
        if head is None:
            raise NotFoundError("The log is empty: no consortium was founded here.")
        edge, state = (folded.edge.copy(), folded.state) if folded is not None else (TreeEdge(), None)
        while edge.size < head.checkpoint.size:
            fresh = self.view.entries(edge.size, min(edge.size + _FOLDED_AT_ONCE, head.checkpoint.size))
            state = fold(fresh, self.view.document, self.root, state=state)
            for entry in fresh:
                edge.add(leaf_hash(entry))
        if state is None or edge.root() != head.checkpoint.root:
            raise LogError("The log's entries on the disk do not have the root that its checkpoint signs.")
        self._folded = _Folded(state, edge)
        return state


@dataclass(frozen=True, slots=True)
class Submission:
    """One fact to log: ``document`` are the signed bytes it stands for, ``attachments`` the manifests they name."""

    kind: EntryKind
    subject: str
    document: bytes
    attachments: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class LedgerSession:
    """The state at this moment, with every other writer kept out; see :meth:`WritableLedger.exclusive`.

    Attributes:
        state: the consortium's state; None only while it is being founded.
        time: the time of the next entry, never before the newest entry's.
        append: ``append(kind, subject, document, attachments)`` logs one fact, see :class:`Submission`.
            Returns the receipt once it is durable. Raises ``LogError`` if the rules
            forbid the entry (then nothing was written) and ``StorageError`` if the disk does.
    """

    state: ConsortiumState | None
    time: datetime
    append: Callable[[EntryKind, str, bytes, Sequence[bytes]], LogReceipt]


Decision = Callable[[ConsortiumState, datetime], Submission | int]
"""From the state and the time of the next entry to what is logged, or to the index of the entry that says so already.

May be called by another thread than the one that submitted it, once. Raises what its submission is to be refused with.
"""


@dataclass(slots=True)
class _Request:
    """A submission that waits to be committed. ``index`` is set once its entry is durable, ``error`` once it is refused."""

    decide: Decision
    index: int | None = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.index is not None or self.error is not None


class WritableLedger(Ledger):
    """A ledger whose log this process may write."""

    def __init__(self, writer: LogWriter, root: TrustRoot) -> None:
        super().__init__(writer, root)
        self._writer = writer
        self._waiting: list[_Request] = []
        self._waiting_lock = threading.Lock()

    @contextmanager
    def exclusive(self) -> Iterator[LedgerSession]:
        """Decide and append with nobody in between: what was checked against ``state`` still holds when it is logged."""
        with self._lock, self._writer.exclusive():
            state = self.state() if self._writer.size else None
            time = _next_time(state)

            def append(kind: EntryKind, subject: str, document: bytes, attachments: Sequence[bytes]) -> LogReceipt:
                batch = _Batch(self, self._folded.state if self._folded is not None else None)
                index = batch.add(Submission(kind, subject, document, attachments), time)
                self._commit(batch)
                return self._writer.receipt(index)

            yield LedgerSession(state, time, append)

    def submit(self, decide: Decision) -> LogReceipt:
        """Decide and append as :meth:`exclusive` does, sharing the commit with all that are submitted meanwhile.

        While one thread waits for the disk, others queue; the first of them then decides and commits for all. Each is decided on the
        state that the ones before it make, and refused alone; if the commit fails, it fails for all of the group.

        Raises:
            LogError: the rules forbid the entry.
            StorageError: the disk is full or failing.
            ElmgroveError: what ``decide`` raised.
        """
        request = _Request(decide)
        with self._waiting_lock:
            self._waiting.append(request)
        with self._lock:
            while not request.is_done:
                with self._waiting_lock:
                    group, self._waiting = self._waiting[:_GROUP], self._waiting[_GROUP:]
                self._serve(group)
        if request.index is None:
            raise request.error or LogError()
        return self._writer.receipt(request.index)

    def _serve(self, group: Sequence[_Request]) -> None:
        try:
            with self._writer.exclusive():
                batch = _Batch(self, self.state())
                indices = [self._decide(batch, request) for request in group]
                self._commit(batch)
            for request, index in zip(group, indices, strict=True):
                request.index = index
        except BaseException as error:
            shown = error if isinstance(error, Exception) else UnavailableError()
            for request in group:
                request.error = request.error or shown
            raise

    @staticmethod
    def _decide(batch: _Batch, request: _Request) -> int | None:
        """The index of the request's entry; None if it was refused."""
        try:
            state, time = batch.state, _next_time(batch.state)
            if state is None:
                raise NotFoundError("The log is empty: no consortium was founded here.")
            decision = request.decide(state, time)
            return decision if isinstance(decision, int) else batch.add(decision, time)
        except (ElmgroveError, OSError) as error:
            request.error = error
            return None

    def _commit(self, batch: _Batch) -> None:
        if not batch.entries or batch.state is None:
            return
        self._writer.append(batch.entries, list(batch.documents.values()))
        head = self._writer.head
        if head is not None:
            self._folded = _Folded(batch.state, head.edge)

    def cosign(self, size: int, line: str, vkey: str) -> bool:
        """Put a witness's line under the published checkpoint; see :meth:`LogWriter.cosign`."""
        with self._writer.exclusive():
            return self._writer.cosign(size, line, vkey)


class _Batch:
    """Entries that will be committed together. Folded first, written then: one that breaks a rule never reaches the log."""

    def __init__(self, ledger: Ledger, state: ConsortiumState | None) -> None:
        self._ledger = ledger
        self.state = state
        self.entries: list[bytes] = []
        self.documents: dict[str, bytes] = {}

    def add(self, submission: Submission, time: datetime) -> int:
        """Fold one more entry and return its index. If it breaks a rule, the batch is as it was."""
        fresh = {hashlib.sha256(raw).hexdigest(): raw for raw in (submission.document, *submission.attachments)}
        fields = {
            "schema": "elmgrove.entry/v1",
            "kind": submission.kind,
            "subject": submission.subject,
            "document": next(iter(fresh)),
            "time": format_time(time),
        }
        entry = encode_entry(LogEntry.model_validate(fields))
        index = self.state.size if self.state is not None else 0
        self.state = fold([entry], self._lookup(fresh), self._ledger.root, state=self.state)
        self.entries.append(entry)
        self.documents |= fresh
        return index

    def _lookup(self, fresh: Mapping[str, bytes]) -> Callable[[str], bytes]:
        def documents(digest: str) -> bytes:
            found = fresh.get(digest) or self.documents.get(digest)
            return found if found is not None else self._ledger.view.document(digest)

        return documents


def _next_time(state: ConsortiumState | None) -> datetime:
    now = utc_now()
    return max(now, state.time) if state is not None else now
