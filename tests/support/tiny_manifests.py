"""Manifests for tiny folders, with the fields a test does not care about filled in."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from common.formats.fields import owner_uri
from common.formats.manifest import FullKind, LowRankKind
from common.lowrank.materialise import low_rank_kind, low_rank_matrices
from common.weights.manifests import build_anchor_manifest, build_expert_manifest
from common.weights.sources import AnchorSource, ExpertSource, anchor_source, expert_source
from tests.support.tiny_weights import TINY, TinyShape, write_anchor_files, write_expert_files, write_low_rank_files

CONSORTIUM = "grove"
FULL = FullKind(type="full")
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
    kind: FullKind | LowRankKind = FULL,
) -> bytes:
    """Build and write ``manifest.json`` of a package folder."""
    raw = build_expert_manifest(
        folder,
        consortium=consortium,
        owner_uri=owner_uri(consortium, owner),
        name=name,
        version=version,
        anchor_digest=anchor_digest,
        kind=kind,
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


def kind_of(anchor: Path, package: Path) -> LowRankKind:
    """The kind of a low-rank package, from the files of both folders."""
    return low_rank_kind(low_rank_matrices(sorted(anchor.glob("model*.safetensors")), sorted(package.glob("part-*.safetensors"))))


def make_low_rank(folder: Path, anchor: AnchorSource, name: str, shape: TinyShape = TINY, *, rank: int = 2, seed: int = 1) -> ExpertSource:
    """A tiny low-rank package with its manifest, unsigned; the anchor lies in plain files."""
    write_low_rank_files(folder, shape, rank=rank, seed=seed)
    kind = kind_of(anchor.resolve("manifest.json").parent, folder)
    return expert_source(expert_manifest(folder, anchor.digest, name=name, kind=kind), folder)


def sha256(raw: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(raw).hexdigest()
