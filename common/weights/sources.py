"""Where an anchor's or expert's bytes lie: a manifest and a way from its file names to paths.

A coordinator keeps files under the name of their digest and an owner in plain folders; whoever reads weights is given a
:class:`Source` and does not know the difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.manifest import MANIFEST_NAME, AnchorManifest, ExpertManifest, Manifest
from common.formats.strictjson import parse_document
from common.weights.digests import read_small

__all__ = ["AnchorSource", "ExpertSource", "Resolver", "Source", "anchor_source", "expert_source", "in_folder", "read_manifest"]

Resolver = Callable[[str], Path]
"""From a file name of the manifest to the path where its bytes lie."""
ManifestT = TypeVar("ManifestT", bound=Manifest)


@dataclass(frozen=True, slots=True)
class Source(Generic[ManifestT]):
    """A manifest, the SHA-256 of its bytes, and where its files lie."""

    manifest: ManifestT
    digest: str
    resolve: Resolver


AnchorSource = Source[AnchorManifest]
ExpertSource = Source[ExpertManifest]


def in_folder(folder: Path) -> Resolver:
    """A resolver for files that lie under their own names in ``folder``."""
    return lambda name: folder / name


def read_manifest(folder: Path) -> bytes:
    """The bytes of a folder's ``manifest.json``.

    Raises:
        NotFoundError, LayoutError, LimitError: it is missing, not a regular file, or too large.
    """
    return read_small(folder / MANIFEST_NAME, MAX_DOCUMENT_BYTES)


def _source(kind: type[ManifestT], manifest: bytes, resolve: Resolver | Path) -> Source[ManifestT]:
    parsed = parse_document(kind, manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    return Source(manifest=parsed, digest=digest, resolve=in_folder(resolve) if isinstance(resolve, Path) else resolve)


def anchor_source(manifest: bytes, resolve: Resolver | Path) -> AnchorSource:
    """The source of an anchor whose files lie in a folder or are found by a resolver.

    Raises:
        FormatError: ``manifest`` is not an anchor's.
    """
    return _source(AnchorManifest, manifest, resolve)


def expert_source(manifest: bytes, resolve: Resolver | Path) -> ExpertSource:
    """The source of an expert whose files lie in a folder or are found by a resolver.

    Raises:
        FormatError: ``manifest`` is not an expert's.
    """
    return _source(ExpertManifest, manifest, resolve)
