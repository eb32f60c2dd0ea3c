"""Auditing a kept receipt: that the log promised to hold one entry, and what that entry stands for (C2SP tlog-proof).

1. the entry is well-formed and names the document that is kept with it
2. which key is the log's: its founding says so, signed by the operator under the auditor's root. The founding is entry 0 of the log or,
   without a log, a receipt of its own that every owner keeps
3. that key signed the receipt's checkpoint, and the proof leads from the entry to the checkpoint's root
4. the document's signature and certificate hold at the entry's time, and its signer may say such a thing
5. with the log: it holds, continues the receipt's checkpoint and has this very entry; what became of it since
6. with the package: its signature is the receipt's document, and every byte is the one that was signed

Without the log nothing shows that the consortium's rules allowed the entry, or what came after it; the report says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from common.audit.logs import AuditedLog, check_since, expert_facts, open_log
from common.audit.packages import audit_contents, read_documents, verify_documents
from common.audit.report import AuditReport
from common.errors import DigestError, LayoutError, LogError, LogInconsistentError, NotFoundError, NotLoggedError, SignerError, UsageError
from common.formats.entries import LogEntry, parse_entry
from common.formats.fields import operator_uri, owner_name, parse_time, subject_expert
from common.formats.limits import MAX_BUNDLE_BYTES, MAX_ENTRY_BYTES
from common.formats.manifest import MANIFEST_NAME, AnchorManifest, ExpertManifest, Manifest
from common.formats.statements import ExpertWithdrawn
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState
from common.progress import ProgressSink, silent
from common.translog.proof import VerifiedReceipt, parse_receipt, verify_receipt
from common.translog.reader import load_document
from common.trust.certificates import TrustRoot
from common.trust.oms import verify_bundle
from common.trust.statements import verify_statement
from common.weights.digests import read_small

__all__ = ["audit_receipt"]

_ENTRY: Final = "entry.json"
_PROOF: Final = "receipt.tlog-proof"
_DOCUMENT: Final = "document.json"
_FOUNDING: Final = "founding"
_MAX_PROOF_BYTES: Final = 64 * 1024  # bytes; the limit of common/translog/proof.py
_PACKAGES: Final = frozenset({"anchor-published", "expert-accepted"})
_OWNERS_SAY: Final = frozenset({"expert-accepted", "expert-withdrawn"})


@dataclass(frozen=True, slots=True)
class _Kept:
    """A receipt's three parts, unverified."""

    raw_entry: bytes
    proof: bytes
    document: bytes


def audit_receipt(
    path: Path, root: TrustRoot, *, log: Path | None = None, package: Path | None = None, progress: ProgressSink = silent
) -> AuditReport:
    """All six steps, as a report.

    Args:
        path: the receipt's folder, or its ``.tlog-proof`` file alone; the log is then needed for the entry.
        root: the consortium's root certificate.
        log: the log's files.
        package: the expert package or anchor that the receipt is for.
        progress: told of the bytes hashed.

    Raises:
        NotFoundError: a path does not exist.
        UsageError: a file alone, without a log.
        StorageError: a file cannot be read.
    """
    for needed in (path, log, package):
        if needed is not None and not needed.exists():
            raise NotFoundError(f"There is no {needed}.")
    if log is None and not path.is_dir():
        raise UsageError(f"{path.name} alone holds no entry. Give its whole folder, or the log's files with --log.")
    report = AuditReport("receipt", path.resolve().name)
    with report.collecting():
        audited = None
        if log is not None:
            with report.checking("log"):
                audited = open_log(log, root)
        with report.checking("receipt"):
            kept = _read(path, audited)
        entry = _check_entry(report, kept)  # 1
        state = _check_founding(report, path, kept, root, audited)  # 2
        verified = _check_proof(report, kept, state)  # 3
        _check_document(report, kept, entry, state, root)  # 4
        if audited is not None:  # 5
            _check_log(report, audited, kept, entry, verified)
        else:
            report.note("not checked", "that the consortium's rules allowed this entry, and what came after it; give --log")
        if package is not None:  # 6
            _check_package(report, package, entry, root, progress)
        elif entry.kind in _PACKAGES:
            report.note("not checked", f"that any files are those of {entry.subject}; give --package")
    return report


def _read(path: Path, audited: AuditedLog | None) -> _Kept:
    if path.is_dir():
        return _Kept(
            raw_entry=read_small(path / _ENTRY, MAX_ENTRY_BYTES),
            proof=read_small(path / _PROOF, _MAX_PROOF_BYTES),
            document=read_small(path / _DOCUMENT, MAX_BUNDLE_BYTES),
        )
    proof = read_small(path, _MAX_PROOF_BYTES)
    index = parse_receipt(proof).index
    if audited is None or index >= len(audited.entries):
        raise NotLoggedError(f"The log has no entry {index}, which the receipt is for.")
    return _Kept(audited.log.entries[index], proof, load_document(audited.reader, audited.entries[index].document))


def _check_entry(report: AuditReport, kept: _Kept) -> LogEntry:
    with report.checking("entry"):
        entry = parse_entry(kept.raw_entry)
        if hashlib.sha256(kept.document).hexdigest() != entry.document:
            raise DigestError(f"{_DOCUMENT} is not the document that the receipt's entry names.")
    report.holds("entry", f"{entry.kind} of {entry.subject}, {entry.time}; names the document that is kept with it")
    report.facts |= {"kind": entry.kind, "about": entry.subject, "time": entry.time, "document": entry.document}
    return entry


def _check_founding(report: AuditReport, path: Path, kept: _Kept, root: TrustRoot, audited: AuditedLog | None) -> ConsortiumState:
    """The consortium as the log's first entry founds it, and with it the log's key."""
    if audited is not None:
        report.holds("log key", "from the founding, entry 0 of the log, which the operator signed under the root")
        return audited.state
    with report.checking("log key"):
        founding = kept if parse_receipt(kept.proof).index == 0 else _find_founding(path)
        state = fold([founding.raw_entry], lambda _digest: founding.document, root)
        if verify_receipt(founding.proof, founding.raw_entry, state.log_key).index != 0:
            raise LogError("The founding kept with the receipt is not the first entry of its log.")
    report.holds("log key", "from the founding kept with the receipt, which the operator signed under the root")
    return state


def _find_founding(path: Path) -> _Kept:
    places = [folder / _FOUNDING for folder in (path, path.resolve().parent, path.resolve().parent.parent)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise NotLoggedError(
            "Nothing here says which key is the log's, so its signature was not checked. "
            f"Give --log, or keep the owner's receipts/{_FOUNDING} beside the receipt."
        )
    return _read(found, None)


def _check_proof(report: AuditReport, kept: _Kept, state: ConsortiumState) -> VerifiedReceipt:
    with report.checking("inclusion"):
        verified = verify_receipt(kept.proof, kept.raw_entry, state.log_key)
    checkpoint = verified.checkpoint
    signed = f"the log of {state.consortium} signed {checkpoint.size} entries, root {checkpoint.root.hex()[:16]}"
    report.holds("inclusion", f"{signed}; entry {verified.index} is this one")
    report.facts |= {
        "consortium": state.consortium,
        "entry": verified.index,
        "checkpoint": {"size": checkpoint.size, "root_hash": checkpoint.root.hex()},
        "log_key": state.log_key,
    }
    return verified


def _check_document(report: AuditReport, kept: _Kept, entry: LogEntry, state: ConsortiumState, root: TrustRoot) -> None:
    with report.checking("document"):
        signer = _signer(kept.document, entry, root, parse_time(entry.time))
        if entry.kind in _OWNERS_SAY:
            owner_name(signer, state.consortium)
        elif signer != operator_uri(state.consortium):
            raise SignerError(f"Only the operator may say this, but {signer} signed it.")
    report.holds("document", f"signed by {signer}, whose certificate was valid at {entry.time}")
    report.facts["signer"] = signer
    if entry.kind in _PACKAGES:
        manifest = verify_bundle(kept.document, root, at=parse_time(entry.time)).resources.get(MANIFEST_NAME)
        report.note("stands for", f"{entry.subject}, the package whose {MANIFEST_NAME} has the SHA-256 {manifest}")
        report.facts["manifest"] = manifest


def _signer(document: bytes, entry: LogEntry, root: TrustRoot, moment: datetime) -> str:
    if entry.kind in _PACKAGES:
        return verify_bundle(document, root, at=moment).signer.uri
    verified = verify_statement(document, root, at=moment)
    statement = verified.statement
    if isinstance(statement, ExpertWithdrawn) and statement.owner != verified.signer.uri:
        raise SignerError(f"Only {statement.owner} may withdraw this expert, but {verified.signer.uri} signed it.")
    return verified.signer.uri


def _check_log(report: AuditReport, audited: AuditedLog, kept: _Kept, entry: LogEntry, verified: VerifiedReceipt) -> None:
    with report.checking("log"):
        check_since(audited, parse_receipt(kept.proof).checkpoint)
        if audited.log.entries[verified.index] != kept.raw_entry:
            raise LogInconsistentError(f"Entry {verified.index} of the log is another one than the receipt's.")
    report.holds("log", f"its {audited.state.size} entries follow the rules and continue the receipt's checkpoint")
    report.facts["log_size"] = audited.state.size
    experts = [version for versions in audited.state.experts.values() for version in versions]
    expert = next((each for each in experts if subject_expert(each.name, each.version) == entry.subject), None)
    if expert is not None:
        report.note("standing", f"{expert.name} version {expert.version} of {expert.owner}: {audited.standing(expert)}")
        report.facts["expert"] = expert_facts(audited, expert)


def _check_package(report: AuditReport, folder: Path, entry: LogEntry, root: TrustRoot, progress: ProgressSink) -> None:
    with report.checking("package"):
        documents = read_documents(folder)
        if documents.document != entry.document:
            raise DigestError(f"The signature of {folder.name} is not the document that the receipt is for.")
        signed = verify_documents(documents, root, parse_time(entry.time))
        manifest = signed.manifest
        about = _about(manifest)
        if about != entry.subject:
            raise NotLoggedError(f"The package is {about}, but the receipt is for {entry.subject}.")
    report.holds("package", f"{folder.resolve().name} is {entry.subject}, which the receipt is for")
    audit_contents(report, folder, manifest, signed.signer.uri, progress=progress)


def _about(manifest: Manifest) -> str:
    """The subject of the entry that takes in a folder with this manifest."""
    if isinstance(manifest, ExpertManifest):
        return subject_expert(manifest.name, manifest.version)
    if isinstance(manifest, AnchorManifest):
        return f"anchor/{manifest.name}"
    raise LayoutError("The folder is neither an expert package nor an anchor.")
