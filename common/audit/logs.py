"""Auditing the log from its files and the root certificate alone (RFC 6962, C2SP tlog-tiles, and the rules of ``common/ledger``).

1. the first entry founds a consortium under the auditor's root and names the log's key
2. the checkpoint is signed by that key, and entries and hash tiles are exactly those it signs
3. every entry follows the rules of the fold, its documents and certificates included, and every anchor's configuration is there
4. an earlier checkpoint the auditor kept is a prefix: same key, not larger, same root at its size
5. every cosignature of a registered witness holds; with a policy, the quorum it asks for has cosigned (C2SP tlog-policy)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from common.audit.report import AuditReport
from common.errors import FormatError, LogError, LogInconsistentError, NotFoundError
from common.formats.entries import LogEntry, parse_entry
from common.formats.fields import format_time, parse_time, utc_now
from common.formats.layout import ROUTER_NAME
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.manifest import AnchorManifest
from common.ledger.fold import fold
from common.ledger.state import ConsortiumState, ExpertState
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.cosignature import VerifiedCosignature, verify_cosignature
from common.translog.evidence import contradiction
from common.translog.merkle import consistency_proof, leaf_hash, nodes_of, root_hash
from common.translog.note import parse_note, parse_vkey
from common.translog.policy import PolicyVerdict, parse_policy, verify_policy
from common.translog.reader import FolderReader, LogReader, VerifiedLog, load_document, read_first_entry, read_log
from common.trust.certificates import TrustRoot
from common.weights.digests import read_small
from common.weights.template import CONFIG_NAME

__all__ = ["AuditedLog", "anchor_config", "audit_log", "checked_log", "log_reader", "majority_policy", "open_log", "require_folders"]


@dataclass(frozen=True, slots=True)
class AuditedLog:
    """A log for which steps 1 to 3 went through.

    ``state`` is what its entries say, all of them or those up to the moment that was asked about.
    """

    reader: LogReader
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


def _is_url(place: str | Path) -> bool:
    return isinstance(place, str) and place.startswith(("http://", "https://"))


def log_reader(place: str | Path) -> LogReader:
    """Where a log is read from: an address that begins with ``http://`` or ``https://``, or a folder.

    Raises:
        NotFoundError: there is no such folder.
        UsageError: the address is malformed.
    """
    if _is_url(place):
        from common.translog.remote import HttpReader  # an audit of files loads nothing that could use a network

        return HttpReader(str(place))
    if not Path(place).is_dir():
        raise NotFoundError(f"There is no folder {place}.")
    return FolderReader(Path(place))


def require_folders(*folders: Path) -> None:
    """Before anything is checked.

    Raises:
        NotFoundError: one is no folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise NotFoundError(f"There is no folder {folder}.")


def checked_log(report: AuditReport, place: str | Path, root: TrustRoot, *, until: datetime | None = None) -> AuditedLog:
    """:func:`open_log` as the step ``log`` of another report, which ends there if the log does not hold."""
    with report.checking("log"):
        audited = open_log(place, root, until=until)
    report.holds("log", f"{audited.state.size} entries of {audited.state.consortium}, all in order")
    return audited


def open_log(place: str | Path, root: TrustRoot, *, until: datetime | None = None) -> AuditedLog:
    """Steps 1 to 3.

    Args:
        place: folder or address of the log's files: ``checkpoint``, ``tile/``, ``documents/``.
        root: the consortium's root certificate.
        until: the state is that of the entries up to this moment; the files are verified whole all the same.

    Raises:
        NotFoundError: there is no such folder.
        UnavailableError: the address does not answer.
        LogError: a step failed; the message names the file or entry.
    """
    reader = log_reader(place)
    documents = partial(load_document, reader)
    # 1. Who keeps this log.
    log_key = fold([read_first_entry(reader)], documents, root).log_key
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


def _evidence(audited: AuditedLog, note: bytes, finding: str) -> dict[str, object]:
    """The two notes that contradict each other, with the consistency proof that does not connect them."""
    earlier, size = verify_checkpoint(note, audited.state.log_key), len(audited.log.entries)
    proof = []
    if 0 < earlier.size <= size:
        proof = consistency_proof(earlier.size, size, nodes_of([leaf_hash(entry) for entry in audited.log.entries]))
    return contradiction(
        consortium=audited.state.consortium,
        log_key=audited.state.log_key,
        older=note,
        newer=audited.log.note,
        proof=proof,
        finding=finding,
        found=utc_now(),
    )


def cosignatures(audited: AuditedLog) -> dict[str, VerifiedCosignature]:
    """Step 5: by owner, the cosignatures that the log's registered witnesses have put under its checkpoint.

    Raises:
        SignatureError: a line of a registered witness does not hold, or comes twice.
    """
    lines = {(line.name, line.key_id) for line in parse_note(audited.log.note)[1]}
    found: dict[str, VerifiedCosignature] = {}
    for owner in audited.state.owners.values():
        key = parse_vkey(owner.witness_key) if owner.witness_key is not None else None
        if key is not None and owner.witness_key is not None and (key.name, key.key_id) in lines:
            found[owner.name] = verify_cosignature(audited.log.note, owner.witness_key)
    return found


def majority_policy(state: ConsortiumState) -> str:
    """A policy that asks for a majority of the witnesses that the log registers, revoked owners left out; for auditors to read and keep."""
    witnesses = [(owner.name, owner.witness_key) for owner in state.owners.values() if owner.witness_key and owner.revoked_index is None]
    lines = [f"log {state.log_key}", *(f"witness {name} {key}" for name, key in witnesses)]
    if witnesses:
        lines.append(f"group -majority- {len(witnesses) // 2 + 1} {' '.join(name for name, _ in witnesses)}")
    return "\n".join([*lines, f"quorum {'-majority-' if witnesses else 'none'}", ""])


def audit_log(place: str | Path, root: TrustRoot, *, since: Path | None = None, policy: Path | None = None) -> AuditReport:
    """All five steps, as a report.

    Args:
        place: folder or address of the log's files.
        root: the consortium's root certificate.
        since: a checkpoint file kept from an earlier time.
        policy: a policy file: who must have cosigned the checkpoint.

    Raises:
        NotFoundError: there is no such folder, checkpoint file or policy file.
        StorageError: a file cannot be read.
        UnavailableError: the address does not answer.
    """
    note = read_small(since, MAX_DOCUMENT_BYTES) if since is not None else None
    rules = parse_policy(read_small(policy, MAX_DOCUMENT_BYTES)) if policy is not None else None
    log_reader(place)
    report = AuditReport("log", str(place) if _is_url(place) else Path(place).resolve().name)
    with report.collecting():
        with report.checking("log"):
            audited = open_log(place, root)
        _describe(report, audited)
        if note is not None:
            _report_since(report, audited, note)
        with report.checking("witness"):
            _report_witnesses(report, cosignatures(audited))
        if rules is not None:
            with report.checking("quorum"):
                _report_quorum(report, verify_policy(audited.log.note, rules, audited.state.log_key))
    return report


def _report_since(report: AuditReport, audited: AuditedLog, note: bytes) -> None:
    with report.checking("since"):
        try:
            earlier = check_since(audited, note)
        except FormatError as error:
            raise FormatError(f"The earlier checkpoint cannot be read: {error}") from error
        except LogInconsistentError as error:
            report.facts["contradiction"] = _evidence(audited, note, str(error))
            raise
    report.holds("since", f"continues the checkpoint of {earlier.size} entries")
    report.facts["since_size"] = earlier.size


def _report_witnesses(report: AuditReport, found: Mapping[str, VerifiedCosignature]) -> None:
    for owner, seen in found.items():
        report.holds("witness", f"{owner}'s client saw this checkpoint at {format_time(seen.time)}")
    report.facts["witnesses"] = [{"owner": owner, "key": seen.name, "time": format_time(seen.time)} for owner, seen in found.items()]


def _report_quorum(report: AuditReport, verdict: PolicyVerdict) -> None:
    report.facts["policy"] = {
        "holds": verdict.holds,
        "cosigned": [{"name": each.name, "key": each.key_name, "time": format_time(each.time)} for each in verdict.cosigned],
        "missing": list(verdict.missing),
    }
    verdict.require_quorum()
    names = ", ".join(each.name for each in verdict.cosigned)
    report.holds("quorum", f"cosigned by {names}, as the policy asks" if names else "the policy asks for no cosignature")


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
