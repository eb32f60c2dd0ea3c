"""Where an auditor finds the bytes of anchors and experts: a coordinator's content-addressed store, or plain folders of packages.

A place is believed nothing: whoever reads from it compares every byte with a signed digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import NotFoundError, StorageError
from common.formats.manifest import MANIFEST_NAME, Manifest
from common.weights.sources import Resolver, read_manifest

__all__ = ["BlobFolders", "find_blobs"]

_STORE: Final = "sha256"
_SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class BlobFolders:
    """What :func:`find_blobs` found."""

    packages: dict[str, Path]
    """Folders of packages and anchors, by the SHA-256 of their manifests."""
    stores: tuple[Path, ...]
    """Folders that hold files under their digests, as ``sha256/ab/DIGEST``."""
    materialised: tuple[Path, ...]
    """Folders that may hold low-rank experts' full matrices, as ``DIGEST.safetensors``."""

    def resolver(self, manifest: Manifest, digest: str) -> Resolver:
        """From a file name of ``manifest``, whose SHA-256 is ``digest``, to where its bytes lie or would lie."""
        folder = self.packages.get(digest)
        if folder is not None:
            return lambda name: folder / name
        digests = {entry.name: entry.sha256 for entry in manifest.files}
        return lambda name: self._blob(digests[name])

    def _blob(self, digest: str) -> Path:
        places = [store / _STORE / digest[:2] / digest for store in self.stores] or [Path(_STORE) / digest[:2] / digest]
        return next((place for place in places if place.is_file()), places[0])

    def full_matrices(self, digest: str) -> Path | None:
        """The file of a low-rank expert's full matrices, if one is here."""
        places = [folder / f"{digest}{_SUFFIX}" for folder in self.materialised]
        return next((place for place in places if place.is_file()), None)


def find_blobs(folders: Iterable[Path]) -> BlobFolders:
    """Look what lies in ``folders``: each is a store, a coordinator's home, a package, an anchor, or holds packages and anchors.

    Raises:
        NotFoundError: one does not exist, or none of them holds anything of the kind.
        StorageError: one cannot be read.
        LayoutError, LimitError: a manifest is no regular file, or too large.
    """
    packages: dict[str, Path] = {}
    stores: list[Path] = []
    materialised: list[Path] = []
    for folder in folders:
        places = (folder, *_inside(folder))
        stores += [place for place in (folder, folder / "blobs") if (place / _STORE).is_dir()]
        materialised += [place for place in (folder, folder / "materialised") if place.is_dir() and any(place.glob(f"*{_SUFFIX}"))]
        for place in places:
            if (place / MANIFEST_NAME).is_file():
                packages[hashlib.sha256(read_manifest(place)).hexdigest()] = place
    if not packages and not stores and not materialised:
        raise NotFoundError("None of the folders given with --blobs holds a package, an anchor or a coordinator's blobs.")
    return BlobFolders(packages, tuple(stores), tuple(materialised))


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"There is no folder {folder}.") from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {os.strerror(error.errno or 0)}.") from error
