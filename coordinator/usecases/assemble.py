"""Assembling a model from the experts that are in force, signing it, and logging that it was done."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import AlreadyExistsError, NotFoundError, UsageError, WithdrawnError
from common.files import storage_errors
from common.formats.fields import format_time, utc_now
from common.formats.manifest import MANIFEST_NAME, ExpertSlot
from common.formats.statements import ModelAssembled
from common.ledger.state import AnchorState, ConsortiumState, ExpertState
from common.progress import ProgressSink, silent
from common.trust.oms import sign_resources
from common.trust.statements import sign_statement
from common.weights.assembly import AssemblyPlan, plan_assembly, write_assembly
from common.weights.plan import check_request
from common.weights.sources import AnchorSource, ExpertSource, Source
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator
from coordinator.usecases.materialise import anchor_blobs, blob_resolver, discard_materialised, materialised_files

__all__ = ["DEFAULT_TOP_K", "AssembledModel", "assemble_model", "choose_anchor", "choose_experts"]

DEFAULT_TOP_K: Final = 4  # experts; quality saturates at about four active of eight (FlexOlmo, figure 3), cost does not


@dataclass(frozen=True, slots=True)
class AssembledModel:
    """A model folder, and the entry that says what it is made of."""

    digest: str
    experts: tuple[ExpertSlot, ...]
    top_k: int
    receipt: LogReceipt


def assemble_model(
    coordinator: Coordinator,
    out: Path,
    *,
    anchor: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    top_k: int | None = None,
    licence: str = "",
    progress: ProgressSink = silent,
) -> AssembledModel:
    """Write the model folder ``out``; it appears whole, signed and logged, or not at all.

    Args:
        coordinator: who assembles.
        out: folder to make; must not exist.
        anchor: name or digest of the anchor; by default the newest.
        include: experts to take; by default all in force for that anchor.
        exclude: experts to leave out.
        top_k: experts active for each token, the anchor's own counted; by default all of them, but at most :data:`DEFAULT_TOP_K`.
        licence: of the model, for its manifest.
        progress: told of the bytes copied and hashed.

    Raises:
        NotFoundError: no such anchor or expert.
        WithdrawnError: an expert that was asked for is not in force, or was withdrawn while the model was being made.
        UsageError: the choice makes no sense.
        AlreadyExistsError: ``out`` exists.
        StorageError: the disk is full or not writable.
    """
    state = coordinator.ledger.state()
    base = choose_anchor(state, anchor)
    chosen = choose_experts(state, base, include=include, exclude=exclude)
    base_source = anchor_blobs(coordinator, base)
    sources = [Source(expert.manifest, expert.digest, blob_resolver(coordinator.blobs, expert.manifest)) for expert in chosen]
    active = min(DEFAULT_TOP_K, len(chosen) + 1) if top_k is None else top_k
    _check_before_work(out, base_source, sources, active)
    discard_materialised(coordinator, {expert.digest for expert in state.experts_in_force(at=utc_now())})
    whole = materialised_files(coordinator, base_source, sources, progress=progress)
    plan = plan_assembly(base_source, sources, active, licence, materialised=whole)
    logged: list[LogReceipt] = []

    def sign(resources: Mapping[str, str]) -> bytes:
        operator = coordinator.keys.signing("operator")
        bundle = sign_resources(resources, out.name, operator.key, operator.certificate)
        logged.append(_log(coordinator, plan, resources[MANIFEST_NAME]))
        return bundle

    raw = write_assembly(plan, out, progress=progress, sign=sign)
    digest = hashlib.sha256(raw).hexdigest()
    coordinator.audit.record("assembled", manifest=digest, experts=len(chosen), index=logged[0].index)
    return AssembledModel(digest, plan.experts, plan.top_k, logged[0])


def _check_before_work(out: Path, anchor: AnchorSource, experts: Sequence[ExpertSource], top_k: int) -> None:
    """Materialising may take long; what would be refused after it is refused before it."""
    check_request(anchor, experts, top_k)
    with storage_errors(str(out)):
        if out.exists() or out.is_symlink():
            raise AlreadyExistsError(f"{out} exists already; choose another name or remove it.")


def choose_anchor(state: ConsortiumState, wanted: str | None) -> AnchorState:
    """The newest anchor, or the one of a name or (beginning of a) digest.

    Raises:
        NotFoundError: there is none.
        UsageError: the beginning of a digest fits several.
    """
    if not state.anchors:
        raise NotFoundError("No anchor was published yet. Run 'elmgrove-coordinator anchor publish'.")
    if wanted is None:
        return max(state.anchors.values(), key=lambda anchor: anchor.index)
    named = [anchor for anchor in state.anchors.values() if anchor.name == wanted]
    found = named or [anchor for anchor in state.anchors.values() if len(wanted) >= 8 and anchor.digest.startswith(wanted)]
    if not found:
        raise NotFoundError(f"There is no anchor {wanted}.")
    if len(found) > 1:
        raise UsageError(f"{wanted} fits several anchors; give more of the digest.")
    return found[0]


def choose_experts(
    state: ConsortiumState, anchor: AnchorState, *, include: Sequence[str], exclude: Sequence[str]
) -> tuple[ExpertState, ...]:
    """The experts of a model in slot order: those in force for ``anchor``, by first appearance in the log.

    Raises:
        NotFoundError: an expert that was named does not exist.
        WithdrawnError: an expert to include is not in force.
        UsageError: an expert is both included and excluded, or is for another anchor.
    """
    both = sorted(set(include) & set(exclude))
    if both:
        raise UsageError(f"Expert {both[0]} is both included and excluded.")
    for name in (*include, *exclude):
        if name not in state.experts:
            raise NotFoundError(f"There is no expert {name}.")
    in_force = {expert.name: expert for expert in state.experts_in_force(anchor=anchor.digest, at=utc_now())}
    for name in include:
        if name not in in_force:
            newest = state.experts[name][-1]
            if newest.manifest.anchor != anchor.digest:
                raise UsageError(f"Expert {name} was trained against another anchor than {anchor.name}.")
            raise WithdrawnError(f"Expert {name} is not in force ({newest.status}).")
    wanted = set(include) or set(in_force)
    return tuple(expert for name, expert in in_force.items() if name in wanted - set(exclude))


def _log(coordinator: Coordinator, plan: AssemblyPlan, manifest: str) -> LogReceipt:
    """Log the assembly, unless an expert went out of force while it was being made."""
    with coordinator.ledger.exclusive() as session:
        operator = coordinator.keys.signing("operator")
        state = session.state
        if state is None:
            raise NotFoundError("The log is empty.")
        in_force = {expert.digest for expert in state.experts_in_force(anchor=plan.anchor, at=session.time)}
        for slot in plan.experts:
            if slot.manifest not in in_force:
                raise WithdrawnError(f"Expert {slot.name} went out of force while the model was being made. Assemble again.")
        fields = {
            "schema": "elmgrove.model-assembled/v1",
            "consortium": coordinator.consortium,
            "created": format_time(session.time),
            "manifest": manifest,
            "anchor": plan.anchor,
            "experts": plan.experts,
            "top_k": plan.top_k,
            "log_size": state.size,
        }
        envelope = sign_statement(ModelAssembled.model_validate(fields), operator.key, operator.certificate)
        return session.append("model-assembled", f"model/{manifest[:16]}", envelope, ())
