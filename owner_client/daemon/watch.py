"""Watching the log for certificates in our name (RFC 6962, section 5.3, "Monitor"): every entry is read once, under the log's own root.

How far we read, and the hashes that prove the next entries continue it, are kept in ``log/watch.json``. Which certificates we asked
for is known from our receipts alone. The coordinator's word is not taken for anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography import x509
from pydantic import ConfigDict, Field

from common.errors import FormatError, LogError, ProtocolError
from common.files import write_atomic
from common.formats.entries import EntryKind, LogEntry, parse_entry
from common.formats.fields import Digest, parse_time
from common.formats.statements import CertificateRecord, CertificatesRenewed, KeyRotated, OwnerAdmitted
from common.formats.strictjson import Document, b64decode_canonical, canonical_bytes, parse_document
from common.rpc.limits import MAX_ENTRIES
from common.translog.checkpoint import Checkpoint
from common.translog.merkle import leaf_hash, node_hash
from owner_client.config import Home
from owner_client.daemon.client import Coordinator
from owner_client.daemon.enrol import operator_says
from owner_client.daemon.pending import load_renewal
from owner_client.daemon.receipts import load_receipt, receipt_kind
from owner_client.daemon.session import Session

__all__ = ["LoggedCertificate", "certificates_in_log", "unknown_certificates", "watch_log"]

_ISSUING: Final[frozenset[EntryKind]] = frozenset({"owner-admitted", "certificates-renewed", "key-rotated"})
_Issuing = OwnerAdmitted | CertificatesRenewed | KeyRotated


class LoggedCertificate(Document):
    """A certificate in our name that a log entry lists."""

    index: Annotated[int, Field(ge=0)]
    kind: EntryKind
    purpose: Literal["signing", "transport", "server"]
    fingerprint: Digest
    """SHA-256 of the DER."""
    serial: str
    """Hexadecimal."""
    request: Digest | None


class _Watched(Document):
    """Everything read so far: the roots of the complete subtrees (largest first), and what was found."""

    schema_: Literal["elmgrove.watch/v1"] = Field(alias="schema")
    size: Annotated[int, Field(ge=0)]
    peaks: tuple[Digest, ...]
    certificates: tuple[LoggedCertificate, ...]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class _Frontier:
    """The hashes of a growing tree's complete subtrees, largest first."""

    def __init__(self, size: int, peaks: list[bytes]) -> None:
        self.size, self.peaks = size, peaks

    def add(self, entry: bytes) -> None:
        carried, rest = leaf_hash(entry), self.size
        while rest & 1:
            carried, rest = node_hash(self.peaks.pop(), carried), rest >> 1
        self.peaks.append(carried)
        self.size += 1

    def root(self) -> bytes:
        joined = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            joined = node_hash(peak, joined)
        return joined


def watch_log(session: Session, coordinator: Coordinator, checkpoint: Checkpoint) -> None:
    """Read the log's entries up to a verified ``checkpoint`` and note the certificates they list in our name.

    Raises:
        LogError: the entries are not those that the checkpoint signs, or one in our name does not hold.
        ProtocolError: the coordinator shows fewer entries than the checkpoint signs.
        VerificationError: a document in our name does not hold.
    """
    watched = _load(session.home)
    if watched.size > checkpoint.size:
        watched = _nothing()
    frontier = _Frontier(watched.size, [bytes.fromhex(peak) for peak in watched.peaks])
    issuing: list[tuple[int, LogEntry]] = []
    for index, raw in _entries(coordinator, frontier.size, checkpoint.size):
        frontier.add(raw)
        entry = parse_entry(raw)
        if entry.kind in _ISSUING and entry.subject == f"owner/{session.config.owner}":
            issuing.append((index, entry))
    if frontier.root() != checkpoint.root:
        raise LogError("The entries that the coordinator shows are not those that the log's checkpoint signs.")
    found = [each for index, entry in issuing for each in _listed(session, coordinator, index, entry)]
    fields = {"schema": "elmgrove.watch/v1", "size": frontier.size, "peaks": tuple(peak.hex() for peak in frontier.peaks)}
    after = _Watched.model_validate(fields | {"certificates": (*watched.certificates, *found)})
    write_atomic(session.home.watch, canonical_bytes(after))


def _entries(coordinator: Coordinator, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    while start < end:
        batch = coordinator.entries(start, min(MAX_ENTRIES, end - start))
        if not batch:
            raise ProtocolError("The coordinator shows fewer log entries than its checkpoint signs.")
        yield from enumerate(batch, start)
        start += len(batch)


def _listed(session: Session, coordinator: Coordinator, index: int, entry: LogEntry) -> list[LoggedCertificate]:
    document = coordinator.document(entry.document)
    statement = operator_says(document, session.root, session.config, parse_time(entry.time))
    if not isinstance(statement, _Issuing):
        raise LogError(f"Log entry {index} is about us and holds something else than it says.")
    request = None if isinstance(statement, OwnerAdmitted) else statement.request
    return [_described(index, entry.kind, record, request) for record in statement.certificates]


def _described(index: int, kind: EntryKind, record: CertificateRecord, request: str | None) -> LoggedCertificate:
    der = b64decode_canonical(record.der)
    try:
        serial = x509.load_der_x509_certificate(der).serial_number
    except ValueError as error:
        raise LogError(f"Log entry {index} lists a malformed certificate in our name.") from error
    fingerprint = hashlib.sha256(der).hexdigest()
    return LoggedCertificate(index=index, kind=kind, purpose=record.purpose, fingerprint=fingerprint, serial=f"{serial:x}", request=request)


def certificates_in_log(home: Home) -> tuple[LoggedCertificate, ...]:
    """The certificates in our name that were found when the log was read last, in log order."""
    return _load(home).certificates


def unknown_certificates(session: Session) -> tuple[LoggedCertificate, ...]:
    """Those of :func:`certificates_in_log` that we never asked for and that are still in force.

    What we asked for is in the statements of our receipts, or in a renewal that was cut off. A later rotation of ours, for the same
    purpose, ends an unknown certificate too.

    Raises:
        LogError, FormatError, SignatureError: a kept receipt was changed.
    """
    pending = load_renewal(session.home)
    known, ended = _asked_for(session)
    return tuple(
        each
        for each in certificates_in_log(session.home)
        if each.fingerprint not in known
        and not (pending is not None and each.request == pending.request)
        and each.index > ended.get(each.purpose, -1)
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    index: int
    statement: _Issuing


def _asked_for(session: Session) -> tuple[set[str], dict[str, int]]:
    """Fingerprints of our certificates, and for each purpose the entry of our last rotation of that key."""
    known: set[str] = set()
    ended: dict[str, int] = {}
    for kept in _receipts(session):
        for record in kept.statement.certificates:
            known.add(hashlib.sha256(b64decode_canonical(record.der)).hexdigest())
            if isinstance(kept.statement, KeyRotated):
                ended[record.purpose] = max(kept.index, ended.get(record.purpose, -1))
    return known, ended


def _receipts(session: Session) -> Iterator[_Kept]:
    renewed = session.home.receipts / "renewed"
    folders: list[Path] = [session.home.admission_receipt]
    folders += sorted(path for path in renewed.iterdir() if not path.name.startswith(".")) if renewed.is_dir() else []
    for folder in folders:
        kind = receipt_kind(folder)
        receipt = load_receipt(folder, kind, f"owner/{session.config.owner}", session.config.pinned.log_key)
        if receipt is None:
            raise LogError(f"The receipt {folder} is missing.")
        statement = operator_says(receipt.document, session.root, session.config, parse_time(receipt.entry.time))
        if isinstance(statement, _Issuing):
            yield _Kept(receipt.index, statement)


def _nothing() -> _Watched:
    return _Watched.model_validate({"schema": "elmgrove.watch/v1", "size": 0, "peaks": (), "certificates": ()})


def _load(home: Home) -> _Watched:
    """What was kept; nothing if it is missing or damaged, since the log can be read again."""
    try:
        watched = parse_document(_Watched, home.watch.read_bytes())
    except (FileNotFoundError, FormatError):
        return _nothing()
    return watched if len(watched.peaks) == watched.size.bit_count() else _nothing()
