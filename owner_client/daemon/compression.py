"""Where a full expert and the low-rank one made from it lie: the smaller takes the outbox, the full one waits under ``runs/``."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import NotFoundError, SignerError, UsageError
from common.files import storage_errors
from common.formats.fields import parse_time
from common.formats.manifest import ExpertManifest, LowRankKind
from common.progress import ProgressSink
from common.weights.packages import InspectedPackage, inspect_package
from owner_client.config import Home
from owner_client.daemon.outbox import Terms, replaced_folder, require_free
from owner_client.daemon.review import find_package
from owner_client.daemon.session import Session

__all__ = ["compression_folder", "find_full", "laid_in_place", "terms_of"]

_KEPT = ".full"


def compression_folder(home: Home, expert: str, version: int) -> Path:
    """Where the files of a low-rank package wait for their manifest; what an interrupted command left there is cleared."""
    folder = home.runs / f"{expert}-v{version}.compressed"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _kept(home: Home, expert: str, version: int) -> Path:
    run = home.run(expert, version)
    return run.with_name(run.name + _KEPT)


def find_full(session: Session, name_or_path: str, progress: ProgressSink) -> InspectedPackage:
    """The full package meant by a path or the name of an expert: in the outbox, or set aside when it was compressed before.

    Every byte is compared with its manifest.

    Raises:
        NotFoundError: there is none.
        UsageError: it is of low rank, and the full one it was made from is not here.
        SignerError: it is another owner's.
        LayoutError, FormatError, DigestError: the folder is not a package, or was changed.
    """
    home = session.home
    try:
        folder = find_package(home, name_or_path)
    except NotFoundError:
        aside = sorted(home.runs.glob(f"*-v*{_KEPT}"), key=lambda path: path.stat().st_mtime) if home.runs.is_dir() else []
        matching = [path for path in aside if path.name.removesuffix(_KEPT).rpartition("-v")[0] == name_or_path]
        if not matching:
            raise
        folder = matching[-1]
    found = inspect_package(folder, progress=progress)
    if isinstance(found.manifest.kind, LowRankKind):
        kept = _kept(home, found.manifest.name, found.manifest.version)
        if folder.resolve() != home.package(found.manifest.name, found.manifest.version).resolve() or not kept.is_dir():
            raise UsageError(f"{folder} is of rank {found.manifest.kind.rank} already. Compress the full expert that it was made from.")
        found = inspect_package(kept, progress=progress)
    if (found.manifest.consortium, found.manifest.owner) != (session.config.consortium, session.config.uri):
        raise SignerError(f"The package is by {found.manifest.owner}; this home is {session.config.uri}.")
    return found


@contextlib.contextmanager
def laid_in_place(home: Home, full: InspectedPackage, expert: str, version: int, *, fresh: bool) -> Iterator[Callable[[], None]]:
    """Watch over the outbox while a low-rank package is made and laid there.

    Yields:
        What to call when it is ready to be laid in place: a package of that version is then moved under ``runs/``, where a full one that
        it was made from stays and another vanishes when the block ends well. If the block fails, the outbox is as it was.

    Raises:
        AlreadyExistsError: another package of this version waits, and ``fresh`` was not asked for.
    """
    target, kept = home.package(expert, version), _kept(home, expert, version)
    same = (full.manifest.name, full.manifest.version) == (expert, version)
    takes_over = same and full.folder.resolve() == target.resolve()
    remade = same and full.folder.resolve() == kept.resolve()
    if not (takes_over or remade or fresh):
        require_free(home, expert, version, fresh=False)
    aside = kept if takes_over else replaced_folder(home, expert, version)
    moved = []

    def make_room() -> None:
        if target.exists():
            _move(target, aside)
            moved.append(aside)

    try:
        yield make_room
    except BaseException:
        if moved and not target.exists():
            aside.rename(target)
        raise


def _move(package: Path, aside: Path) -> None:
    with storage_errors(str(aside)):
        shutil.rmtree(aside, ignore_errors=True)
        package.rename(aside)


def terms_of(manifest: ExpertManifest) -> Terms:
    """What the owner said about an expert, to be said of the one that is made from it."""
    return Terms(manifest.licence, manifest.permitted_uses, None if manifest.not_after is None else parse_time(manifest.not_after))
