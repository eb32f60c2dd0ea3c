"""Auditing an assembled model: which signed experts it is made of, bit for bit, and that nothing else is in it.

1. the log holds (``common/audit/logs.py``)
2. the operator's signature covers the model's manifest, and the log says the model was assembled from these experts
3. the anchor and every expert the manifest names are in the log; their signed manifests are taken from there
4. every tensor of the manifest is the anchor's or one expert's, none is missing, none is left over
5. every byte of the folder is what the manifest says, and every router row is the one its expert's owner signed, unless the log says
   that the operator tuned the rows of this very model; then it is named as tuned, and its rows as the operator's
6. index and tokenizer files follow from the anchor; ``config.json`` is exactly the one that the anchor's, a document of the log, gives
7. what has become of its experts since, and which others are out, why and since when, is reported; it is no fault
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.audit.logs import AuditedLog, anchor_config, checked_log, expert_facts, require_folders
from common.audit.packages import audit_contents
from common.audit.report import AuditReport
from common.audit.trace import Parts, TracedTensor, config_faults, file_faults, router_faults, table_faults, trace
from common.errors import ModelMismatchError, NotLoggedError
from common.formats.fields import operator_uri, parse_time
from common.formats.hfconfig import flex_olmo_config, loads_config
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.manifest import ModelManifest
from common.ledger.state import ExpertState, ModelState, TunedState
from common.progress import ProgressSink, silent
from common.trust.certificates import TrustRoot
from common.weights.digests import open_regular, read_small
from common.weights.finite import scan_finite
from common.weights.index import read_header
from common.weights.packages import SignedModel, read_bundle, verify_model_documents
from common.weights.plan import ANCHOR_FILE, ROUTER_FILE
from common.weights.sources import read_manifest
from common.weights.template import CONFIG_NAME, check_template

__all__ = ["IdentifiedModel", "audit_model", "identify_model"]


@dataclass(frozen=True, slots=True)
class IdentifiedModel:
    """A model whose manifest is signed and whose parts the log knows."""

    folder: Path
    signed: SignedModel
    parts: Parts
    experts: tuple[ExpertState, ...]
    traced: dict[str, TracedTensor]
    assembled: ModelState | None
    """The assembly it comes from."""
    tuned: TunedState | None
    """The log's entry for its rows, if they are not the owners'."""


def audit_model(
    folder: Path,
    root: TrustRoot,
    *,
    log: Path,
    at: datetime | None = None,
    progress: ProgressSink = silent,
) -> AuditReport:
    """All seven steps, as a report.

    Args:
        folder: the assembled model.
        root: the consortium's root certificate.
        log: the log's files.
        at: take the log as it stood then.
        progress: told of the bytes hashed.

    Raises:
        NotFoundError: a folder does not exist.
        StorageError: a file cannot be read.
    """
    require_folders(folder, log)
    report = AuditReport("model", folder.resolve().name)
    with report.collecting():
        audited = checked_log(report, log, root, until=at)  # 1
        model = identify_model(report, audited, folder, root)  # 2 and 3
        _check_tensors(report, audited, model, progress)  # 4 and 5
        _check_files(report, audited, model)  # 6
        _report_experts(report, audited, model)  # 7
    return report


def identify_model(report: AuditReport, audited: AuditedLog, folder: Path, root: TrustRoot) -> IdentifiedModel:
    """Steps 2 and 3; a model that was never logged is a finding, and ``assembled`` is then None."""
    with report.checking("signature"):
        manifest = read_manifest(folder)
        digest = hashlib.sha256(manifest).hexdigest()
        tuned = next((model for model in audited.state.tuned if model.digest == digest), None)
        assembled = tuned.base if tuned is not None else next((model for model in audited.state.models if model.digest == digest), None)
        moment = _logged_at(audited, assembled, tuned)
        signed = verify_model_documents(read_bundle(folder), manifest, root, at=moment)
    report.holds("signature", f"by {signed.signer.uri}")
    with report.also_checking("log entry", "the log says it was assembled from these experts"):
        if assembled is None:
            made = "assembly" if signed.manifest.tuned_from is None else "tuning"
            raise NotLoggedError(f"The log has no entry for the {made} of this model.")
        _compare(signed.manifest, assembled, tuned)
        entry = tuned if tuned is not None else assembled
        report.facts |= {"entry": entry.index, "log_size": entry.statement.log_size}
    with report.checking("parts"):
        parts, experts = _parts(audited, signed.manifest)
    report.holds("parts", f"anchor {parts.anchor.name} and {len(experts)} experts, each signed by its owner and accepted by the log")
    report.facts |= {"manifest": digest, "anchor": signed.manifest.anchor, "anchor_name": parts.anchor.name, "top_k": signed.manifest.top_k}
    return IdentifiedModel(folder, signed, parts, experts, trace(parts), assembled, tuned)


def _logged_at(audited: AuditedLog, assembled: ModelState | None, tuned: TunedState | None) -> datetime:
    if tuned is not None:
        return tuned.tuned_at
    return assembled.assembled_at if assembled is not None else audited.state.time


def _compare(manifest: ModelManifest, assembled: ModelState, tuned: TunedState | None) -> None:
    statement = assembled.statement
    if manifest.tuned_from != (None if tuned is None else tuned.base.digest):
        raise ModelMismatchError("The model's manifest and the log disagree about whether, and from what, it was tuned.")
    if (manifest.anchor, manifest.experts, manifest.top_k) != (statement.anchor, statement.experts, statement.top_k):
        raise ModelMismatchError("The model's manifest names other parts than the log's entry for its assembly.")


def _parts(audited: AuditedLog, manifest: ModelManifest) -> tuple[Parts, tuple[ExpertState, ...]]:
    state = audited.state
    if manifest.consortium != state.consortium:
        raise ModelMismatchError(f"The model is of consortium {manifest.consortium}, the log of {state.consortium}.")
    anchor = state.anchors.get(manifest.anchor)
    if anchor is None:
        raise NotLoggedError(f"The log has no anchor {manifest.anchor[:16]}.")
    experts = []
    for slot in manifest.experts:
        found = next((version for version in state.experts.get(slot.name, ()) if version.digest == slot.manifest), None)
        if found is None or (found.version, found.owner) != (slot.version, slot.owner):
            raise NotLoggedError(f"The log never accepted expert {slot.name} version {slot.version} of {slot.owner} with this manifest.")
        if found.manifest.anchor != manifest.anchor:
            raise ModelMismatchError(f"Expert {slot.name} is for another anchor than the model's.")
        check_template(found.manifest, anchor.manifest)
        experts.append(found)
    pairs = tuple((slot, expert.manifest) for slot, expert in zip(manifest.experts, experts, strict=True))
    return Parts(anchor.manifest, operator_uri(state.consortium), pairs), tuple(experts)


def _check_tensors(report: AuditReport, audited: AuditedLog, model: IdentifiedModel, progress: ProgressSink) -> None:
    manifest, traced = model.signed.manifest, model.traced
    shared = sum(tensor.file == ANCHOR_FILE for tensor in traced.values())
    routers = sum(tensor.file == ROUTER_FILE for tensor in traced.values())
    detail = (
        f"{len(traced)} tensors: {shared} are the anchor's, {len(traced) - shared - routers} the experts', {routers} routers; none other"
    )
    report.outcome("tensors", table_faults(manifest, traced), detail)
    signers = {name: tensor.signer for name, tensor in traced.items()}
    operator = model.signed.signer.uri
    audit_contents(report, model.folder, manifest, operator, origin=lambda name: signers.get(name, operator), progress=progress)
    with report.checking("routers"):
        faults = router_faults(model.folder, traced)
        if model.tuned is not None:
            _check_tuned_values(model.folder)
    if model.tuned is None:
        report.outcome("routers", faults, f"every row of {routers} routers is the one its slot's owner signed")
    else:
        _report_tuning(report, audited, model.tuned, changed=len(faults), rows=routers * (len(model.experts) + 1))
    report.facts["tensors"] = len(traced)


def _check_tuned_values(folder: Path) -> None:
    """Nobody but the operator has seen these rows, so that they are numbers is looked at here."""
    with open_regular(folder / ROUTER_FILE) as descriptor:
        scan_finite(descriptor, ROUTER_FILE, read_header(folder / ROUTER_FILE).tensors)


def _report_tuning(report: AuditReport, audited: AuditedLog, tuned: TunedState, *, changed: int, rows: int) -> None:
    used = ", ".join(proxies.expert for proxies in tuned.statement.proxies) or "none"
    report.holds("routers", f"TUNED by the operator, {audited.place(tuned.index)}: {changed} of {rows} rows are not the owners'")
    report.note("tuned", f"from model {tuned.base.digest[:16]}, {audited.place(tuned.base.index)}; proxies of {used}")
    report.facts["tuned"] = {
        "entry": tuned.index,
        "base": tuned.base.digest,
        "changed_rows": changed,
        "proxies": [proxies.model_dump(mode="json") for proxies in tuned.statement.proxies],
        "settings": dict(tuned.statement.settings),
    }


def _check_files(report: AuditReport, audited: AuditedLog, model: IdentifiedModel) -> None:
    manifest, parts = model.signed.manifest, model.parts
    report.outcome("other files", file_faults(manifest, parts, model.traced), "index and tokenizer are those that follow from the anchor")
    count = len(manifest.experts) + 1
    with report.checking("config"):
        raw = read_small(model.folder / CONFIG_NAME, MAX_DOCUMENT_BYTES)
        faults = config_faults(raw, parts.anchor.architecture, num_experts=count, top_k=manifest.top_k)
    report.outcome("config", faults, f"architecture, {count} experts and top-{manifest.top_k} agree")
    if faults:
        return
    with report.also_checking("config", "exactly the one that the anchor's configuration gives"):
        source = anchor_config(audited.reader, parts.anchor)
        if raw != flex_olmo_config(loads_config(source), num_experts=count, top_k=manifest.top_k):
            raise ModelMismatchError(f"{CONFIG_NAME} is not the one that the anchor's configuration gives.")


def _report_experts(report: AuditReport, audited: AuditedLog, model: IdentifiedModel) -> None:
    if model.assembled is not None:
        report.note("assembled", f"{audited.place(model.assembled.index)}, from anchor {model.parts.anchor.name}")
        report.facts["assembled_at"] = audited.entries[model.assembled.index].time
    listed = []
    for slot, expert in zip(model.signed.manifest.experts, model.experts, strict=True):
        text = f"slot {slot.slot}: {slot.name} version {slot.version} of {slot.owner}, since {audited.place(expert.index)}"
        report.note("in", f"{text}; now {audited.standing(expert)}")
        listed.append({"slot": slot.slot, **expert_facts(audited, expert)})
    report.facts["experts"] = listed
    left_out = []
    for expert in _left_out(audited, model):
        why = _why_out(audited, model, expert)
        report.note("out", f"{expert.name} version {expert.version} of {expert.owner}: {why}")
        left_out.append({"why": why, **expert_facts(audited, expert)})
    report.facts["left_out"] = left_out


def _left_out(audited: AuditedLog, model: IdentifiedModel) -> list[ExpertState]:
    """Every version of an expert that the log knows and the model does not hold, in log order."""
    inside = {expert.digest for expert in model.experts}
    versions = [version for each in audited.state.experts.values() for version in each]
    return sorted((version for version in versions if version.digest not in inside), key=lambda each: each.index)


def _why_out(audited: AuditedLog, model: IdentifiedModel, expert: ExpertState) -> str:
    """Why the model could not hold it, or that it could have; and what became of it since the model was assembled."""
    limit = expert.manifest.not_after
    index = model.assembled.index if model.assembled is not None else audited.state.size
    moment = model.assembled.assembled_at if model.assembled is not None else audited.state.time
    if expert.index > index:
        return f"accepted after the model was assembled, {audited.place(expert.index)}; {audited.standing(expert)}"
    if expert.ended_index is not None and expert.ended_index < index:
        return audited.standing(expert)
    if expert.manifest.anchor != model.signed.manifest.anchor:
        return f"for another anchor; {audited.standing(expert)}"
    if limit is not None and moment > parse_time(limit):
        return f"expired at {limit}"
    return f"not included, though in force since {audited.place(expert.index)}; now {audited.standing(expert)}"
