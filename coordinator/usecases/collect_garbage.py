"""Deleting the bytes of experts that may never be used again, once the operator's retention time is over (``[retention]`` in the settings).

Only blobs are deleted: the files of the packages. Manifests, signatures and every digest stay beside the log, so that a model of old can
still be audited, though not assembled again. A blob that anything else needs stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common.errors import NotFoundError
from common.formats.entries import parse_entry
from common.formats.fields import parse_time
from common.formats.manifest import Manifest
from common.ledger.state import ConsortiumState, ExpertState
from coordinator.usecases.context import Coordinator

__all__ = ["Deletion", "Garbage", "collect_garbage"]

_STRAY_SECONDS: Final = 24 * 3600.0  # age at which a blob that no manifest names is taken for what a crash left


@dataclass(frozen=True, slots=True)
class Deletion:
    """One version of an expert whose files go. ``files`` are the digests of its blobs that nothing else needs."""

    expert: ExpertState
    ended_at: datetime
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """What is, or would be, deleted: versions of experts, and blobs that no logged manifest names."""

    deletions: tuple[Deletion, ...]
    strays: tuple[str, ...]


def collect_garbage(coordinator: Coordinator, *, dry_run: bool = False) -> Garbage:
    """Delete what the settings let go, with a line in the audit trail for each expert, written before the first byte goes.

    With every other writer kept out, so that no upload can come to need a blob in between.

    Args:
        coordinator: whose blobs.
        dry_run: only say what would be deleted.

    Raises:
        LogError: the log does not hold.
        StorageError: the disk is failing.
    """
    with coordinator.ledger.exclusive() as session:
        if session.state is None:
            raise NotFoundError("The log is empty.")
        garbage = _plan(coordinator, session.state, session.time)
        if not dry_run:
            _delete(coordinator, garbage)
    return garbage


def _plan(coordinator: Coordinator, state: ConsortiumState, now: datetime) -> Garbage:
    kept_for = timedelta(days=coordinator.config.retention.withdrawn_days)
    ended = [(version, _ended_at(coordinator, versions, version)) for versions in state.experts.values() for version in versions]
    over = [(version, moment) for version, moment in ended if moment is not None and moment + kept_for <= now]
    gone = {version.digest for version, _ in over}
    staying = (version.manifest for versions in state.experts.values() for version in versions if version.digest not in gone)
    needed = _digests([*(anchor.manifest for anchor in state.anchors.values()), *staying])
    deletions: list[Deletion] = []
    for version, moment in sorted(over, key=lambda each: each[0].index):
        sizes = {entry.sha256: entry.size for entry in version.manifest.files if entry.sha256 not in needed}
        here = tuple(digest for digest in sizes if coordinator.blobs.has(digest))
        if here:
            deletions.append(Deletion(version, moment, here, sum(sizes[digest] for digest in here)))
    named = needed | _digests(version.manifest for version, _ in over)
    return Garbage(tuple(deletions), coordinator.blobs.unnamed(named, older_than=time.time() - _STRAY_SECONDS))


def _ended_at(coordinator: Coordinator, versions: tuple[ExpertState, ...], version: ExpertState) -> datetime | None:
    """When a version came to its end for good; None while it is in force, or superseded and the settings keep those."""
    newest = versions[-1]
    if newest.status in {"withdrawn", "revoked"}:
        index = newest.ended_index
    elif version.status == "superseded" and coordinator.config.retention.delete_superseded:
        index = version.ended_index
    else:
        return None
    if index is None:
        return None
    [entry] = coordinator.ledger.view.entries(index, index + 1)
    return parse_time(parse_entry(entry).time)


def _digests(manifests: Iterable[Manifest]) -> set[str]:
    return {entry.sha256 for manifest in manifests for entry in manifest.files}


def _delete(coordinator: Coordinator, garbage: Garbage) -> None:
    for deletion in garbage.deletions:
        expert = deletion.expert
        coordinator.audit.record(
            "deleted",
            owner=expert.manifest.owner.rsplit("/", 1)[-1],
            expert=expert.name,
            version=expert.version,
            manifest=expert.digest,
            files=len(deletion.files),
            bytes=deletion.size,
        )
        coordinator.blobs.discard(list(deletion.files))
        (coordinator.home.materialised / f"{expert.digest}.safetensors").unlink(missing_ok=True)
    if garbage.strays:
        coordinator.audit.record("deleted", strays=len(garbage.strays))
        coordinator.blobs.discard(list(garbage.strays))
