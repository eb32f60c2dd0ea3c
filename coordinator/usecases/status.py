"""What an owner may know: its own things, and what is published to everyone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from common.formats.fields import utc_now
from common.formats.manifest import ExpertManifest
from common.formats.statements import CertificateRecord
from common.formats.strictjson import b64decode_canonical
from common.ledger.state import AnchorState, ConsortiumState, ExpertState, OwnerState
from coordinator.store.uploads import UploadRecord
from coordinator.usecases.context import Coordinator
from coordinator.usecases.uploads import accepted_bytes

__all__ = ["ModelUse", "OwnerStatus", "owner_status", "standing", "terms"]


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that holds experts of the owner, by ``NAME@VERSION``."""

    manifest: str
    index: int
    time: datetime
    experts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnerStatus:
    """Everything the status call answers."""

    owner: OwnerState
    now: datetime
    anchors: tuple[AnchorState, ...]
    experts: tuple[ExpertState, ...]
    certificates: tuple[tuple[CertificateRecord, bytes], ...]
    uploads: tuple[tuple[UploadRecord, int], ...]
    models: tuple[ModelUse, ...]
    bytes_used: int
    checkpoint: bytes


def owner_status(coordinator: Coordinator, owner: OwnerState) -> OwnerStatus:
    """The status of ``owner`` at the newest checkpoint."""
    state = coordinator.ledger.state()
    anchors = sorted(state.anchors.values(), key=lambda anchor: anchor.index)
    mine = sorted((one for many in state.experts.values() for one in many if one.owner == owner.uri), key=lambda expert: expert.index)
    uploads = tuple(coordinator.uploads.open_of(owner.name))
    return OwnerStatus(
        owner=owner,
        now=utc_now(),
        anchors=tuple(anchors),
        experts=tuple(mine),
        certificates=tuple((record, b64decode_canonical(record.der)) for record in owner.certificates),
        uploads=uploads,
        models=_uses(state, owner),
        bytes_used=accepted_bytes(coordinator, state, owner) + sum(record.size for record, _ in uploads),
        checkpoint=coordinator.ledger.view.checkpoint,
    )


def standing(expert: ExpertState, at: datetime) -> str:
    """An expert's status for people: as the log has it, or ``expired``."""
    return "expired" if expert.status == "in-force" and not expert.in_force_at(at) else expert.status


def terms(manifest: ExpertManifest) -> str:
    """What an expert's owner permits, for people; empty if the manifest says nothing of it."""
    parts = [f"licence {manifest.licence}" if manifest.licence else ""]
    parts.append(f"permitted uses: {'; '.join(manifest.permitted_uses)}" if manifest.permitted_uses else "")
    parts.append(f"not after {manifest.not_after}" if manifest.not_after else "")
    return ", ".join(" ".join(part.split()) for part in parts if part)  # the owner's text may hold line feeds


def _uses(state: ConsortiumState, owner: OwnerState) -> tuple[ModelUse, ...]:
    uses: list[ModelUse] = []
    made = [(model.digest, model.index, model.assembled_at, model.statement) for model in state.models]
    made += [(tuned.digest, tuned.index, tuned.tuned_at, tuned.base.statement) for tuned in state.tuned]
    for digest, index, moment, statement in sorted(made, key=lambda each: each[1]):
        names = tuple(f"{slot.name}@{slot.version}" for slot in statement.experts if slot.owner == owner.uri)
        if names:
            uses.append(ModelUse(digest, index, moment, names))
    return tuple(uses)
