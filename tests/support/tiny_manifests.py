"""Manifests for tiny folders, with the fields a test does not care about filled in."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from common.formats.fields import owner_uri
from common.formats.manifest import FullKind
from common.weights.manifests import build_anchor_manifest, build_expert_manifest
from common.weights.sources import AnchorSource, ExpertSource, anchor_source, expert_source
from tests.support.tiny_weights import TINY, TinyShape, write_anchor_files, write_expert_files

CONSORTIUM = "grove"
CREATED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def anchor_manifest(folder: Path, *, consortium: str = CONSORTIUM, name: str = "base", created: datetime = CREATED) -> bytes:
    """Build and write ``manifest.json`` of an anchor folder."""
    raw = build_anchor_manifest(
        folder, consortium=consortium, name=name, licence="Apache-2.0", provenance="random numbers", created=created
    )
    (folder / "manifest.json").write_bytes(raw)
    return raw


def expert_manifest(
    folder: Path,
    anchor_digest: str,
    *,
    name: str,
    owner: str = "anna",
    version: int = 1,
    supersedes: str | None = None,
    consortium: str = CONSORTIUM,
    created: datetime = CREATED,
    not_after: datetime | None = None,
) -> bytes:
    """Build and write ``manifest.json`` of a package folder."""
    raw = build_expert_manifest(
        folder,
        consortium=consortium,
        owner_uri=owner_uri(consortium, owner),
        name=name,
        version=version,
        anchor_digest=anchor_digest,
        kind=FullKind(type="full"),
        training={"steps": 10, "router": "discriminant"},
        licence="CC-BY-4.0",
        permitted_uses=["research"],
        not_after=not_after,
        supersedes=supersedes,
        created=created,
    )
    (folder / "manifest.json").write_bytes(raw)
    return raw


def make_anchor(folder: Path, shape: TinyShape = TINY, *, seed: int = 0, shards: int = 1) -> AnchorSource:
    """A tiny anchor folder with its manifest, unsigned."""
    write_anchor_files(folder, shape, seed=seed, shards=shards)
    return anchor_source(anchor_manifest(folder), folder)


def make_expert(folder: Path, anchor: AnchorSource, name: str, shape: TinyShape = TINY, *, seed: int = 1, parts: int = 1) -> ExpertSource:
    """A tiny expert package with its manifest, unsigned."""
    write_expert_files(folder, shape, seed=seed, parts=parts)
    return expert_source(expert_manifest(folder, anchor.digest, name=name), folder)


def sha256(raw: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(raw).hexdigest()
