"""Assembling a logged model again from its parts, and comparing what comes out with the log and the model (``docs/formats.md``, 6).

1. the log holds, and says what the model was assembled from (``common/audit/models.py``)
2. the bytes of the anchor and of every expert are at hand; a withdrawn expert's may be deleted, and then nothing can be rebuilt
3. assembled again, with every tensor compared with the digest its owner signed, they give the very manifest that the log names
4. every byte of the model is what that manifest says

Without ``out`` nothing is written: each file is digested piece by piece from where its parts lie. Two things cannot be made again here
and are named: the rows of a tuned router, which come from training, and a low-rank expert's full matrices, whose product needs numpy;
the latter are taken from where they lie and compared with the digests that the expert's owner signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.audit.blobs import BlobFolders, find_blobs
from common.audit.logs import AuditedLog, checked_log, require_folders
from common.audit.models import IdentifiedModel, identify_model
from common.audit.packages import audit_contents
from common.audit.report import AuditReport
from common.errors import AlreadyExistsError, ModelMismatchError, NotFoundError, WithdrawnError
from common.formats.layout import ROUTER_NAME
from common.formats.manifest import MANIFEST_NAME, LowRankKind, ModelManifest
from common.formats.strictjson import parse_document
from common.ledger.state import ExpertState
from common.progress import ProgressSink, silent
from common.trust.certificates import TrustRoot
from common.weights.assembly import AssemblyPlan, digest_assembly, plan_assembly, write_assembly
from common.weights.plan import ROUTER_FILE, expert_file
from common.weights.sources import AnchorSource, ExpertSource, Resolver, Source
from common.weights.template import CONFIG_NAME, COPIED_FILES, anchor_weight_files, expert_parts

__all__ = ["audit_rebuild"]


@dataclass(frozen=True, slots=True)
class _Sources:
    """The parts of a model with their bytes, and where the full matrices of low-rank experts are taken from."""

    anchor: AnchorSource
    experts: tuple[ExpertSource, ...]
    materialised: Mapping[str, Path]


def audit_rebuild(
    folder: Path,
    root: TrustRoot,
    *,
    log: Path,
    blobs: Sequence[Path],
    out: Path | None = None,
    progress: ProgressSink = silent,
) -> AuditReport:
    """All four steps, as a report.

    Args:
        folder: the assembled model.
        root: the consortium's root certificate.
        log: the log's files.
        blobs: a coordinator's store, or folders of packages and the anchor.
        out: folder to write the rebuilt model to; it appears whole, and only if it is the logged one. Must not exist.
        progress: told of the bytes read and written.

    Raises:
        NotFoundError: a folder does not exist.
        AlreadyExistsError: ``out`` exists.
        StorageError: a file cannot be read or written.
    """
    require_folders(folder, log)
    if out is not None and (out.exists() or out.is_symlink()):
        raise AlreadyExistsError(f"{out} exists already; choose another name or remove it.")
    found = find_blobs(blobs)
    report = AuditReport("rebuild", folder.resolve().name)
    with report.collecting():
        audited = checked_log(report, log, root)  # 1
        model = identify_model(report, audited, folder, root)
        if model.assembled is None:
            return report
        with report.checking("blobs"):  # 2
            sources = _sources(audited, model, found)
        report.holds("blobs", f"the bytes of the anchor and of {len(sources.experts)} experts are at hand")
        _note_low_rank(report, model, sources)
        _rebuild(report, model, sources, out, progress)  # 3
        operator = model.signed.signer.uri
        audit_contents(report, folder, model.signed.manifest, operator, progress=progress)  # 4
    return report


def _sources(audited: AuditedLog, model: IdentifiedModel, found: BlobFolders) -> _Sources:
    anchor, digest = model.parts.anchor, model.signed.manifest.anchor
    base: AnchorSource = Source(anchor, digest, found.resolver(anchor, digest))
    names = [entry.name for entry in anchor.files]
    needed = [CONFIG_NAME, ROUTER_NAME, *anchor_weight_files(names), *(name for name in COPIED_FILES if name in names)]
    for name in _absent(base.resolve, needed):
        raise NotFoundError(f"{name} of anchor {anchor.name} is not in the folders given with --blobs.")
    experts: list[ExpertSource] = []
    materialised: dict[str, Path] = {}
    for slot, state in zip(model.signed.manifest.experts, model.experts, strict=True):
        manifest = state.manifest
        source: ExpertSource = Source(manifest, state.digest, found.resolver(manifest, state.digest))
        wanted = [ROUTER_NAME]
        if isinstance(manifest.kind, LowRankKind):
            materialised[state.digest] = found.full_matrices(state.digest) or model.folder / expert_file(slot)
        else:
            wanted += expert_parts(entry.name for entry in manifest.files)
        for name in _absent(source.resolve, wanted):
            raise _missing(audited, state, name)
        experts.append(source)
    return _Sources(base, tuple(experts), materialised)


def _absent(resolve: Resolver, names: Iterable[str]) -> list[str]:
    return [name for name in names if not resolve(name).is_file()]


def _missing(audited: AuditedLog, expert: ExpertState, name: str) -> NotFoundError | WithdrawnError:
    what = f"{name} of expert {expert.name} version {expert.version} of {expert.owner} is not in the folders given with --blobs"
    if expert.in_force_at(audited.state.time):
        return NotFoundError(f"{what}.")
    return WithdrawnError(
        f"{what}. The expert is {audited.standing(expert)}, and the weights of an expert that left are deleted: without them the model "
        "cannot be rebuilt. Its bytes can still be compared with what its owners signed: elmgrove-audit model."
    )


def _note_low_rank(report: AuditReport, model: IdentifiedModel, sources: _Sources) -> None:
    for expert in sources.experts:
        path = sources.materialised.get(expert.digest)
        if path is None:
            continue
        place = "the model itself" if path.parent == model.folder else path.parent.name
        report.note(
            "low rank",
            f"{expert.manifest.name}: its full matrices are taken from {place} and compared with the digests its owner signed; "
            "they were not multiplied out again, which needs numpy",
        )


def _rebuild(report: AuditReport, model: IdentifiedModel, sources: _Sources, out: Path | None, progress: ProgressSink) -> None:
    signed = model.signed.manifest
    with report.checking("rebuilt"):
        plan = plan_assembly(sources.anchor, sources.experts, signed.top_k, signed.licence, materialised=sources.materialised)
        if out is not None and model.tuned is None:
            raw = write_assembly(plan, out, progress=progress, sign=lambda resources: _require_logged(model, resources))
        else:
            raw = digest_assembly(plan, progress=progress)
            rebuilt = parse_document(ModelManifest, raw)
            digests = {entry.name: entry.sha256 for entry in rebuilt.files}
            _require_logged(model, digests | {MANIFEST_NAME: hashlib.sha256(raw).hexdigest()})
    digest = hashlib.sha256(raw).hexdigest()
    report.facts |= {"rebuilt": digest, "files": len(plan.files), "bytes": plan.size}
    report.holds(
        "rebuilt", f"{len(plan.files)} files, {plan.size:,} bytes: they give {MANIFEST_NAME} {digest[:16]}, the one that was logged"
    )
    if model.tuned is not None:
        report.note("tuned", f"the rows in {ROUTER_FILE} come from training and cannot be rebuilt; every other file is the untuned model's")
        _write_untuned(report, plan, out, progress)
    elif out is not None:
        report.holds("out", f"{out} is the model, signature included")


def _require_logged(model: IdentifiedModel, rebuilt: Mapping[str, str]) -> bytes:
    """The model's own signature, if the files that were rebuilt, by name and SHA-256, are what the log says.

    Raises:
        ModelMismatchError: they are not; the first that came out differently is named.
    """
    expected = {entry.name: entry.sha256 for entry in model.signed.manifest.files}
    trained = {ROUTER_FILE} if model.tuned is not None else set()
    for name in sorted(rebuilt.keys() - trained - {MANIFEST_NAME}):
        if rebuilt[name] != expected.get(name):
            raise ModelMismatchError(f"{name} of the model is not the file that its parts give.")
    if model.assembled is None or rebuilt[MANIFEST_NAME] != model.assembled.digest:
        raise ModelMismatchError("The parts that the log names give another model than the one that was logged.")
    return model.signed.bundle


def _write_untuned(report: AuditReport, plan: AssemblyPlan, out: Path | None, progress: ProgressSink) -> None:
    if out is None:
        return
    write_assembly(plan, out, progress=progress)
    report.note("out", f"{out} is the model before its rows were tuned; it has no signature, since none is at hand")
