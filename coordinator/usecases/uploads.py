"""Accepting an upload: offered and judged before the first byte, received chunk by chunk, admitted and logged at the end.

A refused package leaves nothing behind but a line in the audit trail. What fails through no fault of the package (a full disk) leaves
the upload open, so that the owner can go on when the cause is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from common.errors import (
    AdmissionError,
    ElmgroveError,
    FormatError,
    IdentityError,
    IncompleteUploadError,
    KeyStoreError,
    LogError,
    NotFoundError,
    QuotaError,
    VerificationError,
)
from common.formats.fields import subject_expert, utc_now
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, ExpertManifest, FileEntry
from common.formats.strictjson import parse_document
from common.ledger.state import ConsortiumState, ExpertState, OwnerState
from common.weights.packages import check_finite, verify_package
from common.weights.sources import Source, in_folder
from coordinator.log.view import LogReceipt
from coordinator.store.uploads import ChunkKey, UploadRecord
from coordinator.usecases.admission import OfferedPackage, check_rules, read_offer
from coordinator.usecases.context import Coordinator
from coordinator.usecases.materialise import check_materialised

__all__ = ["OfferResult", "abandon_upload", "accepted_bytes", "clear_uploads", "commit_upload", "offer_upload", "open_upload"]

_REFUSALS = (AdmissionError, FormatError, IdentityError, VerificationError)
_NOT_THE_PACKAGES_FAULT = (IncompleteUploadError, LogError, KeyStoreError)


@dataclass(frozen=True, slots=True)
class OfferResult:
    """What an offer is answered with: the chunks still wanted, or the receipt of a package that is in the log already."""

    upload_id: str
    missing: tuple[ChunkKey, ...]
    receipt: LogReceipt | None


def offer_upload(coordinator: Coordinator, owner: OwnerState, *, bundle: bytes, manifest_raw: bytes) -> OfferResult:
    """Judge a package by its documents and begin, or resume, its upload.

    Raises:
        ElmgroveError: as :func:`coordinator.usecases.admission.read_offer` and ``check_rules``; ``QuotaError`` if the owner's quota does
            not hold it; ``StorageError`` if the disk does not.
    """
    with _audited(coordinator, owner, "offer"):
        now = utc_now()
        package = read_offer(bundle, manifest_raw, owner=owner, root=coordinator.root, at=now)
        state = coordinator.ledger.state()
        accepted = _find_accepted(state, owner, package)
        if accepted is not None:
            return OfferResult("", (), coordinator.ledger.view.receipt(accepted.index))
        check_rules(package, owner=owner, state=state, at=now)
        record = coordinator.uploads.find(owner.name, package.digest)
        if record is None:
            _check_quota(coordinator, owner, state, package)
            record = _create(coordinator, owner, package)
        else:
            coordinator.uploads.replace_bundle(record, bundle)
    return OfferResult(record.id, _missing(coordinator, record, package.manifest.files), None)


def _create(coordinator: Coordinator, owner: OwnerState, package: OfferedPackage) -> UploadRecord:
    manifest = package.manifest
    return coordinator.uploads.create(
        owner=owner.name,
        manifest=package.digest,
        expert=manifest.name,
        version=manifest.version,
        files=manifest.files,
        documents=(package.manifest_raw, package.bundle),
        at=utc_now(),
    )


def _find_accepted(state: ConsortiumState, owner: OwnerState, package: OfferedPackage) -> ExpertState | None:
    versions = state.experts.get(package.manifest.name, ())
    return next((version for version in versions if version.digest == package.digest and version.owner == owner.uri), None)


def _missing(coordinator: Coordinator, record: UploadRecord, files: Sequence[FileEntry]) -> tuple[ChunkKey, ...]:
    here = coordinator.uploads.chunks(record.id)
    wanted = ((file, chunk) for file, entry in enumerate(files) for chunk in range(len(entry.chunks)))
    return tuple(key for key in wanted if key not in here)


def accepted_bytes(coordinator: Coordinator, state: ConsortiumState, owner: OwnerState) -> int:
    """Bytes of all packages of an owner that are in the log and were not deleted since."""
    mine = (version for versions in state.experts.values() for version in versions if version.owner == owner.uri)
    sizes = {entry.sha256: entry.size for version in mine for entry in version.manifest.files}
    return sum(size for digest, size in sizes.items() if coordinator.blobs.has(digest))


def _check_quota(coordinator: Coordinator, owner: OwnerState, state: ConsortiumState, package: OfferedPackage) -> None:
    quota = coordinator.config.quota
    under_way = coordinator.uploads.open_of(owner.name)
    if len(under_way) >= quota.open_uploads:
        raise QuotaError(f"{len(under_way)} uploads are open already, of {quota.open_uploads} allowed. Finish or abandon one.")
    used = accepted_bytes(coordinator, state, owner) + sum(record.size for record, _ in under_way)
    if used + package.size > quota.bytes_per_owner:
        raise QuotaError(f"The package has {package.size} bytes; {max(0, quota.bytes_per_owner - used)} of the quota are left.")


def open_upload(coordinator: Coordinator, owner: OwnerState, upload_id: str) -> tuple[UploadRecord, ExpertManifest]:
    """An upload that may still receive chunks, and its manifest.

    Raises:
        NotFoundError: this owner has no such open upload.
    """
    record = coordinator.uploads.get(upload_id, owner.name)
    if record.entry_index is not None:
        raise NotFoundError("The upload was committed before.")
    return record, parse_document(ExpertManifest, _document(coordinator, record, MANIFEST_NAME))


def _document(coordinator: Coordinator, record: UploadRecord, name: str) -> bytes:
    try:
        return (coordinator.uploads.folder(record.id) / name).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("The upload has ended. Offer the package again.") from error


def commit_upload(coordinator: Coordinator, owner: OwnerState, upload_id: str) -> LogReceipt:
    """Admit an upload whose every byte has arrived, and log it. Repeating it gives the same entry.

    1. Nobody writes to it any more.
    2. Every chunk has arrived.
    3. The package as it lies on the disk verifies: signature, files, tensors, every value finite; a low-rank expert's factors give
       the matrices that its owner signed.
    4. With nobody else deciding: the rules still hold; blobs, then the log.

    Raises:
        NotFoundError: this owner has no such upload.
        UnavailableError: it is being committed by another call; asking again gives that call's result.
        IncompleteUploadError: 2 does not hold; the upload stays open.
        AdmissionError, FormatError, IdentityError, VerificationError: 3 or 4 does not hold; the upload is gone.
        StorageError: the disk is full or failing; the upload stays open.
    """
    coordinator.uploads.get(upload_id, owner.name)
    coordinator.arrivals.seal(upload_id)  # (1)
    try:
        record = coordinator.uploads.get(upload_id, owner.name)
        if record.entry_index is not None:
            return coordinator.ledger.view.receipt(record.entry_index)
        with _audited(coordinator, owner, "upload", record=record):
            return _admit(coordinator, owner, record)
    except _NOT_THE_PACKAGES_FAULT:
        raise
    except _REFUSALS:
        coordinator.uploads.remove(upload_id)
        raise
    finally:
        coordinator.arrivals.unseal(upload_id)


def _admit(coordinator: Coordinator, owner: OwnerState, record: UploadRecord) -> LogReceipt:
    _, manifest = open_upload(coordinator, owner, record.id)
    missing = _missing(coordinator, record, manifest.files)
    if missing:  # (2)
        raise IncompleteUploadError(f"{len(missing)} chunks have not arrived yet.")
    folder = coordinator.uploads.folder(record.id)
    verify_package(folder, coordinator.root, at=utc_now(), owner=owner.uri, tensors=True)  # (3)
    check_finite(manifest, in_folder(folder))
    check_materialised(coordinator, coordinator.ledger.state(), Source(manifest, record.manifest, in_folder(folder)))
    documents = (_document(coordinator, record, SIGNATURE_NAME), _document(coordinator, record, MANIFEST_NAME))
    with coordinator.ledger.exclusive() as session:  # (4)
        if session.state is None:
            raise NotFoundError("The log is empty.")
        present = session.state.owners[owner.name]
        package = read_offer(*documents, owner=present, root=coordinator.root, at=session.time)
        accepted = _find_accepted(session.state, owner, package)
        if accepted is None:
            check_rules(package, owner=present, state=session.state, at=session.time)
            with _adopted(coordinator, folder, manifest.files):
                subject = subject_expert(manifest.name, manifest.version)
                receipt = session.append("expert-accepted", subject, documents[0], (documents[1],))
        else:
            receipt = coordinator.ledger.view.receipt(accepted.index)
    coordinator.uploads.accept(record, receipt.index)
    coordinator.audit.record("accepted", owner=owner.name, index=receipt.index, **_about(record))
    return receipt


@contextmanager
def _adopted(coordinator: Coordinator, folder: Path, files: Sequence[FileEntry]) -> Iterator[None]:
    """Make the files blobs for the block that logs them; if it fails, those that were new go again."""
    added: list[str] = []
    try:
        for entry in files:
            if coordinator.blobs.adopt(folder / entry.name, entry.sha256):
                added.append(entry.sha256)  # noqa: PERF401 - the list must be right when adopting fails half way
        yield
    except BaseException:
        document = hashlib.sha256((folder / SIGNATURE_NAME).read_bytes()).hexdigest()
        if not any(version.document == document for versions in coordinator.ledger.state().experts.values() for version in versions):
            coordinator.blobs.discard(added)
        raise


def abandon_upload(coordinator: Coordinator, owner: OwnerState, upload_id: str) -> None:
    """Give up an upload and free what it held.

    Raises:
        NotFoundError: this owner has no such open upload.
        UnavailableError: it is being committed.
    """
    record, _ = open_upload(coordinator, owner, upload_id)
    coordinator.arrivals.seal(upload_id)
    try:
        coordinator.uploads.remove(upload_id)
    finally:
        coordinator.arrivals.unseal(upload_id)
    coordinator.audit.record("abandoned", owner=owner.name, expert=record.expert, version=record.version)


def clear_uploads(coordinator: Coordinator) -> int:
    """Remove uploads without news for longer than the settings say, and what a crash left, before serving. Returns how many."""
    return coordinator.uploads.clear(untouched_since=utc_now() - timedelta(days=coordinator.config.retention.upload_days))


@contextmanager
def _audited(coordinator: Coordinator, owner: OwnerState, event: str, *, record: UploadRecord | None = None) -> Iterator[None]:
    """Write a line for what is refused inside the block."""
    try:
        yield
    except ElmgroveError as error:
        coordinator.audit.refused(event, error, owner=owner.name, **(_about(record) if record else {}))
        raise


def _about(record: UploadRecord) -> dict[str, str | int | None]:
    return {"expert": record.expert, "version": record.version, "manifest": record.manifest}
