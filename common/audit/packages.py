"""Auditing an expert package or an anchor: signature, every byte and, with a log, that it was accepted and what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.audit.logs import AuditedLog, checked_log, expert_facts, require_folders
from common.audit.report import AuditReport
from common.errors import FormatError, NotLoggedError, RevokedError
from common.formats.fields import format_time, utc_now
from common.formats.manifest import AnchorManifest, ExpertManifest, Manifest
from common.formats.strictjson import loads_strict
from common.ledger.state import AnchorState, ExpertState
from common.progress import ProgressSink, silent
from common.trust.certificates import TrustRoot
from common.weights.manifests import check_anchor_files, check_expert_files
from common.weights.packages import (
    Signed,
    check_finite,
    check_folder_members,
    content_faults,
    read_bundle,
    verify_anchor_documents,
    verify_expert_documents,
)
from common.weights.sources import in_folder, read_manifest
from common.weights.template import check_template

__all__ = ["FolderDocuments", "audit_contents", "audit_package", "read_documents", "verify_documents"]


@dataclass(frozen=True, slots=True)
class FolderDocuments:
    """The two documents of a package or anchor, unverified, and the kind that the manifest says it is."""

    bundle: bytes
    manifest: bytes
    is_anchor: bool

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def document(self) -> str:
        """SHA-256 of the signature, which is what the log names."""
        return hashlib.sha256(self.bundle).hexdigest()


def audit_package(
    folder: Path,
    root: TrustRoot,
    *,
    at: datetime | None = None,
    log: Path | None = None,
    tensors: bool = False,
    progress: ProgressSink = silent,
) -> AuditReport:
    """Check a package's or anchor's signature and every byte of it.

    Args:
        folder: the package or anchor.
        root: the consortium's root certificate.
        at: without a log, the time at which the signer's certificate must be valid (now by default); with a log, the log is taken as it
            stood then.
        log: the log's files; the certificate must then have been valid when the log took the package.
        tensors: also do what admission did: recompute every tensor's digest, and look for NaN and infinity.
        progress: told of the bytes hashed.

    Raises:
        NotFoundError: there is no such folder.
        StorageError: a file cannot be read.
    """
    require_folders(folder)
    report = AuditReport("package", folder.resolve().name)
    with report.collecting():
        audited = None
        if log is not None:
            audited = checked_log(report, log, root, until=at)
        with report.checking("signature"):
            documents = read_documents(folder)
        logged = _find(report, audited, documents) if audited is not None else None
        moment = _moment(at, audited, logged)
        with report.checking("signature"):
            signed = verify_documents(documents, root, moment)
        report.holds("signature", f"by {signed.signer.uri}, whose certificate was valid at {format_time(moment)}")
        report.facts |= _facts(signed)
        audit_contents(report, folder, signed.manifest, signed.signer.uri, tensors=tensors, progress=progress)
        if tensors:
            with report.also_checking("values", "every value of every tensor is a finite number"):
                check_finite(signed.manifest, in_folder(folder), progress=progress)
        with report.also_checking("form", "the files and tensors are those of its kind"):
            _check_form(signed.manifest, folder, audited)
        if audited is not None and logged is not None:
            _report_standing(report, audited, logged)
    return report


def read_documents(folder: Path) -> FolderDocuments:
    """Read a folder's manifest and signature.

    Raises:
        NotFoundError, LayoutError, LimitError: one is missing, not a regular file, or too large.
    """
    manifest = read_manifest(folder)
    try:
        document = loads_strict(manifest)
    except FormatError:
        document = None  # the signature will not cover these bytes, which is the better message
    is_anchor = isinstance(document, dict) and document.get("schema") == "elmgrove.anchor/v1"
    return FolderDocuments(bundle=read_bundle(folder), manifest=manifest, is_anchor=is_anchor)


def verify_documents(documents: FolderDocuments, root: TrustRoot, moment: datetime) -> Signed[Manifest]:
    """Verify them as of ``moment``; errors as ``common.weights.packages.verify_expert_documents``."""
    if documents.is_anchor:
        return verify_anchor_documents(documents.bundle, documents.manifest, root, at=moment)
    return verify_expert_documents(documents.bundle, documents.manifest, root, at=moment)


def _moment(at: datetime | None, audited: AuditedLog | None, logged: AnchorState | ExpertState | None) -> datetime:
    if logged is not None:
        return logged.published_at if isinstance(logged, AnchorState) else logged.accepted_at
    if audited is not None:
        return audited.state.time
    return at or utc_now()


def _find(report: AuditReport, audited: AuditedLog, documents: FolderDocuments) -> AnchorState | ExpertState | None:
    """The log's record of this package: by its signature, else by its manifest, so that a changed signature is named as such."""
    state = audited.state
    versions = [version for each in state.experts.values() for version in each]
    known: list[AnchorState | ExpertState] = [*state.anchors.values(), *versions]
    found = next((item for item in known if item.document == documents.document), None)
    if found is not None:
        verb = "published" if isinstance(found, AnchorState) else "accepted"
        report.holds("log entry", f"{verb} by {audited.place(found.index)}")
        return found
    found = next((item for item in known if item.digest == documents.digest), None)
    if found is not None:
        report.fails("log entry", [NotLoggedError(f"model.sig is not the signature that the log took with {audited.place(found.index)}.")])
        return found
    report.fails("log entry", [NotLoggedError("The log has no entry for this package.")])
    return None


def _facts(signed: Signed[Manifest]) -> dict[str, object]:
    manifest = signed.manifest
    facts: dict[str, object] = {
        "consortium": manifest.consortium,
        "signer": signed.signer.uri,
        "manifest": signed.digest,
        "document": signed.document,
        "files": len(manifest.files),
        "tensors": len(manifest.tensors),
        "bytes": sum(entry.size for entry in manifest.files),
    }
    if isinstance(manifest, ExpertManifest):
        facts |= {"expert": manifest.name, "version": manifest.version, "anchor": manifest.anchor, "licence": manifest.licence}
        facts["kind"] = manifest.kind.model_dump(mode="json", exclude={"materialised"})
        facts |= {"permitted_uses": list(manifest.permitted_uses), "not_after": manifest.not_after}
    return facts


def audit_contents(
    report: AuditReport,
    folder: Path,
    manifest: Manifest,
    signer: str,
    *,
    origin: Callable[[str], str] | None = None,
    tensors: bool = True,
    progress: ProgressSink,
) -> None:
    """Report whether a folder holds exactly the files, tensors and bytes of its manifest; arguments as ``content_faults``."""
    with report.also_checking("files", f"{len(manifest.files)} files, flat, nothing else"):
        check_folder_members(folder, manifest)
    faults = content_faults(manifest, in_folder(folder), signer, origin=origin, tensors=tensors, progress=progress)
    total = sum(entry.size for entry in manifest.files)
    report.outcome("contents", faults, f"{len(manifest.tensors)} tensors, {total:,} bytes: every one as {signer} signed it")
    report.facts["tensor_digests_recomputed"] = tensors


def _check_form(manifest: Manifest, folder: Path, audited: AuditedLog | None) -> None:
    if isinstance(manifest, AnchorManifest):
        check_anchor_files(manifest, in_folder(folder))
    elif isinstance(manifest, ExpertManifest):
        check_expert_files(manifest, in_folder(folder))
        anchor = audited.state.anchors.get(manifest.anchor) if audited is not None else None
        if anchor is not None:
            check_template(manifest, anchor.manifest, anchor_digest=anchor.digest)


def _report_standing(report: AuditReport, audited: AuditedLog, logged: AnchorState | ExpertState) -> None:
    report.facts["entry"] = logged.index
    if isinstance(logged, AnchorState):
        return
    report.facts["log"] = expert_facts(audited, logged)
    if logged.status == "revoked" and logged.ended_index is not None:
        report.fails("standing", [RevokedError(f"Its owner was revoked with {audited.place(logged.ended_index)}.")])
    elif logged.status == "in-force" and logged.in_force_at(audited.state.time):
        report.holds("standing", "in force")
    else:
        report.note("standing", audited.standing(logged))
