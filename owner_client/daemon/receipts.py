"""Receipts: what the log promised us, checked under the pinned log key and kept as plain files (``docs/formats.md``, section 8).

A receipt is a folder of three files: the entry, the C2SP ``tlog-proof`` of its inclusion, and the signed document it stands for.
Whoever has the log's key can check them without us and without the coordinator.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import LogError, NotLoggedError
from common.files import atomic_folder
from common.formats.entries import EntryKind, LogEntry, parse_entry
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.translog.checkpoint import Checkpoint
from common.translog.proof import verify_receipt

__all__ = ["CheckedReceipt", "Claim", "check_receipt", "load_receipt", "receipt_kind", "store_receipt"]

_ENTRY: Final = "entry.json"
_PROOF: Final = "receipt.tlog-proof"
_DOCUMENT: Final = "document.json"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a receipt must be about: the kind and subject of the entry and the signed document it names."""

    kind: EntryKind
    subject: str
    document: bytes


@dataclass(frozen=True, slots=True)
class CheckedReceipt:
    """A receipt that holds: only :func:`check_receipt` makes it."""

    index: int
    entry: LogEntry
    checkpoint: Checkpoint
    raw_entry: bytes
    proof: bytes
    document: bytes


def check_receipt(raw_entry: bytes, proof: bytes, claim: Claim, log_key: str) -> CheckedReceipt:
    """Check that the log whose key is ``log_key`` took in what we ``claim``.

    1. the entry is well-formed and about this kind and subject; 2. it names our document; 3. its inclusion proof holds under a
    checkpoint signed by the log. The caller must compare that checkpoint with the ones seen before (``daemon/sync.py``).

    Raises:
        NotLoggedError: the entry is about something else.
        FormatError: the entry or proof is malformed.
        LogError: the proof or the checkpoint's signature does not hold.
    """
    entry = parse_entry(raw_entry)
    # (1) kind and subject
    if entry.kind != claim.kind or entry.subject != claim.subject:
        raise NotLoggedError(f"The receipt is for {entry.kind} of {entry.subject}, not for {claim.kind} of {claim.subject}.")
    # (2) the document
    if entry.document != hashlib.sha256(claim.document).hexdigest():
        raise NotLoggedError(f"The receipt for {claim.subject} names another document than the one that was sent.")
    # (3) the proof
    verified = verify_receipt(proof, raw_entry, log_key)
    return CheckedReceipt(verified.index, entry, verified.checkpoint, raw_entry, proof, claim.document)


def store_receipt(folder: Path, receipt: CheckedReceipt) -> None:
    """Keep a checked receipt as ``folder``; one that is there already stays.

    Raises:
        StorageError: the disk is full or not writable.
    """
    if folder.is_dir():
        return
    with atomic_folder(folder) as aside:
        (aside / _ENTRY).write_bytes(receipt.raw_entry)
        (aside / _PROOF).write_bytes(receipt.proof)
        (aside / _DOCUMENT).write_bytes(receipt.document)


def receipt_kind(folder: Path) -> EntryKind:
    """The kind of entry a kept receipt says it is about; :func:`load_receipt` checks it.

    Raises:
        LogError: the receipt is incomplete.
        FormatError: it is malformed.
    """
    try:
        return parse_entry(_read(folder / _ENTRY)).kind
    except OSError as error:
        raise LogError(f"The receipt {folder} is incomplete: {error.strerror}.") from error


def load_receipt(folder: Path, kind: EntryKind, subject: str, log_key: str) -> CheckedReceipt | None:
    """Read a kept receipt and check it again, or return ``None`` if there is none.

    Raises:
        LogError: it does not hold any more, so the files were changed.
        FormatError: it is malformed.
    """
    if not folder.is_dir():
        return None
    try:
        raw_entry, proof, document = (_read(folder / name) for name in (_ENTRY, _PROOF, _DOCUMENT))
    except OSError as error:
        raise LogError(f"The receipt {folder} is incomplete: {error.strerror}.") from error
    return check_receipt(raw_entry, proof, Claim(kind, subject, document), log_key)


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_DOCUMENT_BYTES)
