"""Publishing an anchor: a Hugging Face checkpoint becomes a signed, logged folder that every owner trains against."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import AlreadyExistsError, ArchitectureError, LayoutError, LimitError, NotFoundError
from common.files import fsync_tree, scratch_folder
from common.formats.fields import check_name, utc_now
from common.formats.hfconfig import architecture_of
from common.formats.layout import INDEX_NAME, PUBLIC_SAMPLE_NAME, ROUTER_NAME, router_row_name
from common.formats.manifest import MANIFEST_NAME, AnchorManifest, Architecture
from common.formats.safetensors import DTYPE_BYTES, encode_header
from common.formats.strictjson import parse_document
from common.progress import ProgressSink, silent
from common.rpc.limits import MAX_OFFER_BYTES
from common.trust.oms import sign_resources
from common.weights.manifests import build_anchor_manifest, read_config
from common.weights.sources import in_folder
from common.weights.template import CONFIG_NAME, COPIED_FILES, is_weights_name
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator

__all__ = ["MeasureMoments", "PublishedAnchor", "publish_anchor"]

MeasureMoments = Callable[[Path, Path], None]
"""From the anchor's folder (with its public sample) to ``router.safetensors`` at the second path."""

_COPY_BYTES: Final = 4 * 1024 * 1024  # bytes copied between two reports of progress
_NEEDED: Final = (CONFIG_NAME, "tokenizer.json")


@dataclass(frozen=True, slots=True)
class PublishedAnchor:
    """An anchor in the log."""

    digest: str
    manifest: AnchorManifest
    receipt: LogReceipt


def publish_anchor(
    coordinator: Coordinator,
    checkpoint: Path,
    *,
    name: str,
    licence: str,
    provenance: str,
    sample: Iterable[str],
    sample_bytes: int,
    measure: MeasureMoments | None,
    progress: ProgressSink = silent,
) -> PublishedAnchor:
    """Copy, complete, sign, store and log an anchor.

    Args:
        coordinator: who publishes.
        checkpoint: folder of an ``Olmo2ForCausalLM`` in safetensors, with ``tokenizer.json``; other files in it are passed over.
        name: the anchor's.
        licence: under which owners and users get it.
        provenance: where its weights come from.
        sample: public texts; as many as fit go with the anchor.
        sample_bytes: bytes of text (UTF-8) in the sample at most.
        measure: computes the moments of public router inputs; None writes the zero rows alone.
        progress: told of the bytes copied and hashed.

    Raises:
        ArchitectureError: the checkpoint is not an Olmo2 one, or holds no safetensors.
        AlreadyExistsError: an anchor of that name was published before.
        LayoutError, FormatError, DataError: the checkpoint or sample cannot be used.
        StorageError: the disk is full or not writable.
    """
    check_name(name, "anchor")
    if any(anchor.name == name for anchor in coordinator.ledger.state().anchors.values()):
        raise AlreadyExistsError(f"An anchor named {name} was published before. A name is given once; choose another.")
    names, architecture = _choose(checkpoint)
    with scratch_folder(coordinator.home.path, ".anchor-") as folder:
        _copy(checkpoint, folder, names, progress)
        _write_sample(folder / PUBLIC_SAMPLE_NAME, sample, sample_bytes)
        if measure is None:
            _write_zero_rows(folder / ROUTER_NAME, architecture)
        else:
            measure(folder, folder / ROUTER_NAME)
        raw = build_anchor_manifest(
            folder,
            consortium=coordinator.consortium,
            name=name,
            licence=licence,
            provenance=provenance,
            created=utc_now(),
            progress=progress,
        )
        return _log(coordinator, folder, raw)


def _choose(checkpoint: Path) -> tuple[list[str], Architecture]:
    """The files to take, after looking at the one that says whether this is an anchor at all."""
    if not checkpoint.is_dir():
        raise NotFoundError(f"There is no folder {checkpoint}.")
    for needed in _NEEDED:
        if not (checkpoint / needed).is_file():
            raise LayoutError(f"{checkpoint} lacks {needed}; an anchor is a Hugging Face checkpoint folder with its tokenizer.")
    architecture = architecture_of(read_config(in_folder(checkpoint)))
    names = sorted(path.name for path in checkpoint.iterdir() if path.is_file())
    weights = [name for name in names if is_weights_name(name)]
    if not weights:
        raise ArchitectureError(f"{checkpoint} holds no safetensors weights. Pickled checkpoints (*.bin) are not read; convert it first.")
    taken = {CONFIG_NAME, *COPIED_FILES, *weights, *([INDEX_NAME] if len(weights) > 1 else [])}
    return [name for name in names if name in taken], architecture


def _copy(source: Path, target: Path, names: Iterable[str], progress: ProgressSink) -> None:
    chosen = list(names)
    total, done = sum((source / name).stat().st_size for name in chosen), 0
    for name in chosen:
        with (source / name).open("rb") as stream, (target / name).open("xb") as out:
            while data := stream.read(_COPY_BYTES):
                out.write(data)
                done += len(data)
                progress("Copying the checkpoint", done, total, "bytes")


def _write_sample(path: Path, texts: Iterable[str], limit: int) -> None:
    """JSON lines, gzip without a time stamp so that the same texts give the same file."""
    used = 0
    with path.open("xb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        for text in texts:
            used += len(text.encode("utf-8", "replace"))
            if used > limit:
                break
            out.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def _write_zero_rows(path: Path, architecture: Architecture) -> None:
    layers, hidden = architecture.num_hidden_layers, architecture.hidden_size
    head, header = encode_header([(router_row_name(layer), architecture.dtype, (1, hidden)) for layer in range(layers)])
    path.write_bytes(head + bytes(layers * hidden * DTYPE_BYTES[architecture.dtype]))
    if header.file_size != path.stat().st_size:
        raise LayoutError(f"{ROUTER_NAME} was not written in full.")


def _log(coordinator: Coordinator, folder: Path, raw: bytes) -> PublishedAnchor:
    manifest, digest = parse_document(AnchorManifest, raw), hashlib.sha256(raw).hexdigest()
    operator = coordinator.keys.signing("operator")
    resources = {MANIFEST_NAME: digest, **{entry.name: entry.sha256 for entry in manifest.files}}
    bundle = sign_resources(resources, manifest.name, operator.key, operator.certificate)
    if max(len(raw), len(bundle)) > MAX_OFFER_BYTES:
        raise LimitError("The anchor's manifest is too large to be sent in one message: too many tensors or files.")
    config = (folder / CONFIG_NAME).read_bytes()  # beside the log, so that an auditor can derive every model's
    fsync_tree(folder)
    added = [entry.sha256 for entry in manifest.files if coordinator.blobs.adopt(folder / entry.name, entry.sha256)]
    try:
        with coordinator.ledger.exclusive() as session:
            receipt = session.append("anchor-published", f"anchor/{manifest.name}", bundle, (raw, config))
    except BaseException:
        if digest not in coordinator.ledger.state().anchors:
            coordinator.blobs.discard(added)
        raise
    coordinator.audit.record("anchor-published", anchor=manifest.name, manifest=digest, index=receipt.index)
    return PublishedAnchor(digest, manifest, receipt)
