"""Auditing the log from its files and the root certificate alone (RFC 6962, C2SP tlog-tiles, and the rules of ``common/ledger``).

1. the first entry founds a consortium under the auditor's root and names the log's key
2. the checkpoint is signed by that key, and entries and hash tiles are exactly those it signs
3. every entry follows the rules of the fold, its documents and certificates included, and every anchor's configuration is there
4. an earlier checkpoint the auditor kept is a prefix: same key, not larger, same root at its size
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from common.audit.report import AuditReport
from common.errors import FormatError, LogError, LogInconsistentError, NotFoundError
from common.formats.entries import LogEntry, parse_entry
from common.formats.fields import format_time, parse_time
from common.formats.layout import ROUTER_NAME
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.manifest import AnchorManifest
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState, ExpertState
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.merkle import leaf_hash, root_hash
from common.translog.reader import FolderReader, LogReader, VerifiedLog, load_document, read_entries, read_log
from common.trust.certificates import TrustRoot
from common.weights.digests import read_small
from common.weights.template import CONFIG_NAME

__all__ = ["AuditedLog", "anchor_config", "audit_log", "open_log"]


@dataclass(frozen=True, slots=True)
class AuditedLog:
    """A log for which steps 1 to 3 went through.

    ``state`` is what its entries say, all of them or those up to the moment that was asked about.
    """

    reader: FolderReader
    log: VerifiedLog
    entries: tuple[LogEntry, ...]
    state: ConsortiumState

    def place(self, index: int) -> str:
        """An entry's index and time, for people."""
        return f"entry {index} ({self.entries[index].time})"

    def standing(self, expert: ExpertState) -> str:
        """What has become of a version of an expert, for people."""
        limit = expert.manifest.not_after
        if expert.status == "in-force":
            expired = limit is not None and not expert.in_force_at(self.state.time)
            return f"expired at {limit}" if expired else "in force"
        return f"{expert.status} since {self.place(expert.ended_index)}" if expert.ended_index is not None else expert.status


def open_log(folder: Path, root: TrustRoot, *, until: datetime | None = None) -> AuditedLog:
    """Steps 1 to 3.

    Args:
        folder: the log's files: ``checkpoint``, ``tile/``, ``documents/``.
        root: the consortium's root certificate.
        until: the state is that of the entries up to this moment; the files are verified whole all the same.

    Raises:
        NotFoundError: there is no such folder.
        LogError: a step failed; the message names the file or entry.
    """
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.")
    reader = FolderReader(folder)
    documents = partial(load_document, reader)
    # 1. Who keeps this log.
    first = read_entries(reader).entries[:1]
    log_key = fold(first, documents, root).log_key
    # 2. These are the entries it signs.
    log = read_log(reader, log_key)
    # 3. They make sense.
    state = fold(log.entries, documents, root)
    for anchor in state.anchors.values():
        anchor_config(reader, anchor.manifest)
    entries = tuple(parse_entry(raw) for raw in log.entries)
    if until is not None:
        size = sum(parse_time(entry.time) <= until for entry in entries)
        if not size:
            raise LogError(f"At {format_time(until)} the log did not exist; its first entry is of {entries[0].time}.")
        state = fold(log.entries[:size], documents, root)
    return AuditedLog(reader=reader, log=log, entries=entries, state=state)


def anchor_config(reader: LogReader, anchor: AnchorManifest) -> bytes:
    """An anchor's ``config.json``, which lies beside the log so that every model's can be derived.

    Raises:
        LogError: it is missing, or not the one the operator signed.
    """
    digest = next((entry.sha256 for entry in anchor.files if entry.name == CONFIG_NAME), None)
    if digest is None:
        raise LogError(f"Anchor {anchor.name} has no {CONFIG_NAME}.")
    return load_document(reader, digest)


def check_since(audited: AuditedLog, note: bytes) -> Checkpoint:
    """Step 4: the log continues the one that an earlier checkpoint signs.

    Raises:
        FormatError: the earlier checkpoint is malformed.
        LogError: it is not signed by this log's key.
        LogInconsistentError: the log was rolled back or forked since.
    """
    earlier = verify_checkpoint(note, audited.state.log_key)
    size = len(audited.log.entries)
    if earlier.size > size:
        raise LogInconsistentError(f"The log has {size} entries, but an earlier checkpoint signs {earlier.size}: it was rolled back.")
    if root_hash([leaf_hash(entry) for entry in audited.log.entries[: earlier.size]]) != earlier.root:
        raise LogInconsistentError(
            f"The first {earlier.size} entries are not those that the earlier checkpoint signs: the log's key has signed two histories."
        )
    return earlier


def audit_log(folder: Path, root: TrustRoot, *, since: Path | None = None) -> AuditReport:
    """All four steps, as a report.

    Args:
        folder: the log's files.
        root: the consortium's root certificate.
        since: a checkpoint file kept from an earlier time.

    Raises:
        NotFoundError: there is no such folder or checkpoint file.
        StorageError: a file cannot be read.
    """
    note = read_small(since, MAX_DOCUMENT_BYTES) if since is not None else None
    if not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.")
    report = AuditReport("log", folder.resolve().name)
    with report.collecting():
        with report.checking("log"):
            audited = open_log(folder, root)
        _describe(report, audited)
        if note is not None:
            with report.checking("since"):
                try:
                    earlier = check_since(audited, note)
                except FormatError as error:
                    raise FormatError(f"The earlier checkpoint cannot be read: {error}") from error
            report.holds("since", f"continues the checkpoint of {earlier.size} entries")
            report.facts["since_size"] = earlier.size
    return report


def _describe(report: AuditReport, audited: AuditedLog) -> None:
    state = audited.state
    experts = [version for versions in state.experts.values() for version in versions]
    report.holds(
        "checkpoint", f"signed by the log of {state.consortium}: {state.size} entries, root {audited.log.checkpoint.root.hex()[:16]}"
    )
    report.holds("entries", f"all follow the rules, from {audited.entries[0].time} to {audited.entries[-1].time}")
    report.holds(
        "parties",
        f"{len(state.owners)} owners, {len(state.anchors)} anchors, {len(experts)} expert versions, {len(state.models)} models, "
        f"{len(state.tuned)} tuned",
    )
    for owner in state.owners.values():
        if owner.revoked_index is not None:
            report.note("owner", f"{owner.name} is revoked since {audited.place(owner.revoked_index)}")
    for expert in sorted(experts, key=lambda each: each.index):
        report.note("expert", f"{expert.name} version {expert.version} of {expert.owner}: {audited.standing(expert)}")
    for copied, original in _copies(experts):
        older = f"{original.name} version {original.version} of {original.owner}"
        report.note("copy", f"{copied.name} version {copied.version} of {copied.owner} holds the same weights as {older}, which came first")
    report.facts |= {
        "consortium": state.consortium,
        "size": state.size,
        "root_hash": audited.log.checkpoint.root.hex(),
        "log_key": state.log_key,
        "owners": [
            {"name": owner.name, "uri": owner.uri, "admitted": owner.admitted_index, "revoked": owner.revoked_index}
            for owner in state.owners.values()
        ],
        "experts": [expert_facts(audited, expert) for expert in sorted(experts, key=lambda each: each.index)],
        "models": [{"manifest": model.digest, "entry": model.index} for model in state.models],
        "tuned": [{"manifest": model.digest, "entry": model.index, "base": model.base.digest} for model in state.tuned],
        "entries": [
            {"index": index, "kind": entry.kind, "subject": entry.subject, "time": entry.time, "document": entry.document}
            for index, entry in enumerate(audited.entries)
        ],
    }


def _copies(experts: Iterable[ExpertState]) -> Iterator[tuple[ExpertState, ExpertState]]:
    """Experts whose matrices an expert of another owner had before, each with the first such."""
    first: dict[tuple[str, ...], ExpertState] = {}
    for expert in sorted(experts, key=lambda each: each.index):
        weights = tuple(sorted(entry.sha256 for entry in expert.manifest.tensors if entry.file != ROUTER_NAME))
        original = first.setdefault(weights, expert)
        if original.owner != expert.owner:
            yield expert, original


def expert_facts(audited: AuditedLog, expert: ExpertState) -> dict[str, object]:
    """One version of an expert for the JSON form."""
    return {
        "name": expert.name,
        "version": expert.version,
        "owner": expert.owner,
        "manifest": expert.digest,
        "entry": expert.index,
        "since": audited.entries[expert.index].time,
        "status": expert.status,
        "ended": expert.ended_index,
        "ended_at": audited.entries[expert.ended_index].time if expert.ended_index is not None else None,
        "not_after": expert.manifest.not_after,
        "standing": audited.standing(expert),
    }
