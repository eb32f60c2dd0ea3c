"""Writing ``manifest.json`` for an anchor or expert folder (``docs/formats.md``, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import FormatError, LayoutError
from common.formats.fields import format_time, owner_name
from common.formats.hfconfig import architecture_of, loads_config
from common.formats.layout import INDEX_NAME, PRIVACY_NAME
from common.formats.manifest import RESERVED_NAMES, AnchorManifest, ExpertManifest, FullKind, LowRankKind
from common.progress import ProgressSink, silent
from common.weights.contents import build_tables, encode_manifest
from common.weights.digests import read_small
from common.weights.index import list_folder
from common.weights.sources import Resolver, in_folder
from common.weights.template import CONFIG_NAME, anchor_weight_files, check_anchor_template, expert_parts

__all__ = ["build_anchor_manifest", "build_expert_manifest", "check_anchor_files", "check_expert_files", "read_config"]

_MAX_JSON_BYTES = 16 * 1024 * 1024  # bytes; the index of a 7B checkpoint is under 0.1 MiB


def build_expert_manifest(
    folder: Path,
    *,
    consortium: str,
    owner_uri: str,
    name: str,
    version: int,
    anchor_digest: str,
    kind: FullKind | LowRankKind,
    training: Mapping[str, int | str],
    licence: str,
    permitted_uses: Sequence[str],
    not_after: datetime | None,
    supersedes: str | None,
    created: datetime,
    progress: ProgressSink = silent,
) -> bytes:
    """``manifest.json`` for the parts, router and privacy report that lie in ``folder``; a manifest or signature there is passed over.

    Raises:
        LayoutError: the folder holds something else or lacks something.
        FormatError: a file is malformed, or a field has no valid form.
        StorageError: a file cannot be read.
    """
    owner_name(owner_uri, consortium)
    names = [found for found in list_folder(folder) if found not in RESERVED_NAMES]
    expert_parts(names)
    fields = {
        "schema": "elmgrove.expert/v1",
        "consortium": consortium,
        "owner": owner_uri,
        "name": name,
        "version": version,
        "anchor": anchor_digest,
        "kind": kind.model_dump(mode="json"),
        "training": dict(training),
        "licence": licence,
        "permitted_uses": list(permitted_uses),
        "not_after": format_time(not_after) if not_after else None,
        "supersedes": supersedes,
        "created": format_time(created),
    }
    raw, manifest = encode_manifest(ExpertManifest, build_tables(in_folder(folder), names, progress=progress), fields)
    check_expert_files(manifest, in_folder(folder))
    return raw


def build_anchor_manifest(
    folder: Path,
    *,
    consortium: str,
    name: str,
    licence: str,
    provenance: str,
    created: datetime,
    progress: ProgressSink = silent,
) -> bytes:
    """``manifest.json`` for the checkpoint, tokenizer, router file and public sample in ``folder``; an old manifest is passed over.

    Raises:
        ArchitectureError: the checkpoint is not the Olmo2 its ``config.json`` describes.
        LayoutError: the folder holds something else or lacks something.
        FormatError: a file is malformed, or a field has no valid form.
        StorageError: a file cannot be read.
    """
    names = [found for found in list_folder(folder) if found not in RESERVED_NAMES]
    anchor_weight_files(names)
    resolve = in_folder(folder)
    fields = {
        "schema": "elmgrove.anchor/v1",
        "consortium": consortium,
        "name": name,
        "architecture": architecture_of(read_config(resolve)).model_dump(mode="json"),
        "licence": licence,
        "provenance": provenance,
        "created": format_time(created),
    }
    raw, manifest = encode_manifest(AnchorManifest, build_tables(resolve, names, progress=progress), fields)
    check_anchor_files(manifest, resolve)
    return raw


def read_config(resolve: Resolver) -> dict[str, Any]:
    """The parsed ``config.json``.

    Raises:
        FormatError: it is no JSON object.
        NotFoundError, LayoutError, StorageError: it cannot be read.
    """
    return loads_config(read_small(resolve(CONFIG_NAME), _MAX_JSON_BYTES))


def check_anchor_files(manifest: AnchorManifest, resolve: Resolver) -> None:
    """Check an anchor's table against its configuration and its shards against the index.

    Raises:
        ArchitectureError: the tensors are not those the configuration describes, or the manifest gives another architecture.
        LayoutError: a file does not belong, or the index places a tensor elsewhere.
        FormatError: ``config.json`` or the index is malformed.
    """
    config = read_config(resolve)
    if architecture_of(config) != manifest.architecture:
        raise FormatError("The manifest's architecture is not the one in config.json.")
    check_anchor_template(manifest, tied=bool(config.get("tie_word_embeddings", False)))
    names = [entry.name for entry in manifest.files]
    if INDEX_NAME not in names:
        return
    index = loads_config(read_small(resolve(INDEX_NAME), _MAX_JSON_BYTES))
    weight_files = set(anchor_weight_files(names))
    if index.get("weight_map") != {entry.name: entry.file for entry in manifest.tensors if entry.file in weight_files}:
        raise LayoutError(f"{INDEX_NAME} does not place every tensor in the file where it lies.")


def check_expert_files(manifest: ExpertManifest, resolve: Resolver) -> None:
    """Check what can be said about a package without its anchor: its file names, and that the privacy report is a JSON object.

    Raises:
        LayoutError: a file is missing or does not belong.
        FormatError: ``privacy.json`` is malformed.
    """
    expert_parts(entry.name for entry in manifest.files)
    try:
        loads_config(read_small(resolve(PRIVACY_NAME), _MAX_JSON_BYTES))
    except FormatError as error:
        raise FormatError(f"{PRIVACY_NAME} is not a JSON object.") from error
