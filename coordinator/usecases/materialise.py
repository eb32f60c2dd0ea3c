"""Low-rank experts at the coordinator: their factors are multiplied out once to be admitted, and once to be assembled."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from common.errors import ElmgroveError, MaterialisationError, WrongAnchorError
from common.files import storage_errors
from common.formats.manifest import LowRankKind, Manifest
from common.ledger.state import AnchorState, ConsortiumState
from common.lowrank.materialise import materialised_digests, source_matrices, write_materialised
from common.progress import ProgressSink, silent
from common.weights.index import tensor_digests
from common.weights.sources import AnchorSource, ExpertSource, Resolver, Source
from coordinator.store.blobs import Blobs
from coordinator.usecases.context import Coordinator

__all__ = ["anchor_blobs", "blob_resolver", "check_materialised", "discard_materialised", "materialised_files"]

_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")
_ABANDONED_SECONDS: Final = 24 * 3600.0  # age at which a half-written file is taken for what a killed assembly left


def blob_resolver(blobs: Blobs, manifest: Manifest) -> Resolver:
    """From a file name of a manifest to the blob that holds its bytes."""
    digests = {entry.name: entry.sha256 for entry in manifest.files}
    return lambda name: blobs.path(digests[name])


def anchor_blobs(coordinator: Coordinator, anchor: AnchorState) -> AnchorSource:
    """A published anchor as a source of weights."""
    return Source(anchor.manifest, anchor.digest, blob_resolver(coordinator.blobs, anchor.manifest))


def check_materialised(coordinator: Coordinator, state: ConsortiumState, expert: ExpertSource) -> None:
    """Check that a low-rank expert's factors give exactly the matrices whose digests its owner signed; a full expert has none.

    Raises:
        WrongAnchorError: the expert's anchor is not published here.
        MaterialisationError: a matrix is another; it is named.
        NonFiniteError: a matrix holds NaN or infinity.
        StorageError: the anchor's files are damaged.
    """
    kind = expert.manifest.kind
    if not isinstance(kind, LowRankKind):
        return
    anchor = state.anchors.get(expert.manifest.anchor)
    if anchor is None:
        raise WrongAnchorError(f"No published anchor has the digest {expert.manifest.anchor[:16]}.")
    digests = materialised_digests(source_matrices(anchor_blobs(coordinator, anchor), expert))
    for entry in kind.materialised:
        if digests.get(entry.name) != entry.sha256:
            raise MaterialisationError(f"The factors of {entry.name} give another matrix than the one whose digest was signed.")


def materialised_files(
    coordinator: Coordinator, anchor: AnchorSource, experts: Iterable[ExpertSource], *, progress: ProgressSink = silent
) -> dict[str, Path]:
    """The files of the full matrices of every low-rank expert among ``experts``, by the experts' digests; those missing are made.

    A file that is there is read whole and compared with the expert's signed digests before it is used again.

    Raises:
        DigestError, NonFiniteError: the stored factors do not give what was signed.
        StorageError: the disk is full or failing.
    """
    files: dict[str, Path] = {}
    for expert in experts:
        kind = expert.manifest.kind
        if not isinstance(kind, LowRankKind):
            continue
        folder = coordinator.home.materialised
        with storage_errors("materialised experts"):
            folder.mkdir(mode=0o700, exist_ok=True)
        target = folder / f"{expert.digest}.safetensors"
        expected = {entry.name: entry.sha256 for entry in kind.materialised}
        if not _holds(target, expected):
            label = f"Materialising {expert.manifest.name}"
            write_materialised(source_matrices(anchor, expert), target, expected, label=label, progress=progress)
        files[expert.digest] = target
    return files


def _holds(path: Path, expected: dict[str, str]) -> bool:
    try:
        return dict(tensor_digests(path)) == expected
    except ElmgroveError:
        return False


def discard_materialised(coordinator: Coordinator, keep: Collection[str]) -> None:
    """Remove the files of experts that are no longer in force, and what a killed assembly left half-written.

    Args:
        coordinator: whose home it is.
        keep: digests of the experts in force.
    """
    folder = coordinator.home.materialised
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _FILE.fullmatch(path.name)
        abandoned = match is None and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
        if abandoned or (match is not None and match.group(1) not in keep):
            path.unlink(missing_ok=True)
