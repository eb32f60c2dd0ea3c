"""From a finished training to a package in the outbox: the manifest is built from the files, checked, and only then moved there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from common.errors import AlreadyExistsError
from common.files import fsync_folder, fsync_tree, storage_errors, write_atomic
from common.formats.fields import utc_now
from common.formats.manifest import MANIFEST_NAME, FullKind, LowRankKind
from common.progress import ProgressSink, silent
from common.weights.packages import build_expert_manifest
from owner_client.config import Home, OwnerConfig
from owner_client.daemon.review import Review, review_package
from owner_client.daemon.versions import NextVersion

__all__ = ["Terms", "publish_package", "replaced_folder", "require_free"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What the owner says about an expert: licence, permitted uses, and until when it may be used (``None``: until withdrawn)."""

    licence: str
    permitted_uses: tuple[str, ...]
    not_after: datetime | None


def require_free(home: Home, expert: str, version: int, *, fresh: bool) -> None:
    """Raise if this version lies in the outbox already; with ``fresh`` set it aside until another takes its place.

    Raises:
        AlreadyExistsError: it does, and ``fresh`` was not asked for.
    """
    package = home.package(expert, version)
    if not package.exists():
        return
    if not fresh:
        raise AlreadyExistsError(
            f"{package} is trained and waits to be pushed. Push it, or train it anew with --fresh. "
            "The next version follows once this one is pushed."
        )
    aside = replaced_folder(home, expert, version)
    with storage_errors(str(aside)):
        shutil.rmtree(aside, ignore_errors=True)
        home.runs.mkdir(parents=True, exist_ok=True)
        package.rename(aside)


def replaced_folder(home: Home, expert: str, version: int) -> Path:
    """Where a package that is being replaced waits until the other has taken its place."""
    run = home.run(expert, version)
    return run.with_name(run.name + ".replaced")


def publish_package(
    home: Home,
    config: OwnerConfig,
    folder: Path,
    *,
    expert: str,
    following: NextVersion,
    anchor: str,
    kind: FullKind | LowRankKind,
    training: Mapping[str, int | str],
    terms: Terms,
    progress: ProgressSink = silent,
) -> Review:
    """Add the manifest to the trained files in ``folder``, check the whole as before sending, and move it to the outbox.

    Raises:
        FormatError, LayoutError, NonFiniteError: the trained files are not a package.
        StorageError: the disk is full or not writable.
    """
    raw = build_expert_manifest(
        folder,
        consortium=config.consortium,
        owner_uri=config.uri,
        name=expert,
        version=following.version,
        anchor_digest=anchor,
        kind=kind,
        training=dict(training),
        licence=terms.licence,
        permitted_uses=terms.permitted_uses,
        not_after=terms.not_after,
        supersedes=following.supersedes,
        created=utc_now(),
        progress=progress,
    )
    write_atomic(folder / MANIFEST_NAME, raw)
    review = review_package(folder, progress=progress)
    target = home.package(expert, following.version)
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        fsync_tree(folder)
        folder.rename(target)
        fsync_folder(target.parent)
        shutil.rmtree(replaced_folder(home, expert, following.version), ignore_errors=True)
    return replace(review, folder=target, package=replace(review.package, folder=target))
