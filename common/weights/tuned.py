"""Writing a tuned model: a copy of an assembled folder with other router rows (``docs/formats.md``, section 6).

Everything but the router file is copied byte for byte; what was written is read back and compared before the folder appears.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from common.errors import DigestError, NonFiniteError, TemplateError
from common.files import atomic_folder, storage_errors
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, ModelManifest
from common.formats.safetensors import TensorSpan, encode_header
from common.progress import ProgressSink, silent
from common.weights.assembly import Signer
from common.weights.contents import build_tables, encode_manifest
from common.weights.copying import copy_range
from common.weights.digests import open_regular
from common.weights.finite import first_non_finite
from common.weights.index import read_header
from common.weights.packages import VerifiedModel
from common.weights.parallel import Meter, map_threads
from common.weights.plan import ROUTER_FILE
from common.weights.sources import in_folder

__all__ = ["write_tuned"]


def write_tuned(model: VerifiedModel, routers: Mapping[str, bytes], out: Path, *, progress: ProgressSink = silent, sign: Signer) -> bytes:
    """Write the folder ``out``: ``model`` with these routers; it appears whole or not at all.

    Args:
        model: the assembled model, verified.
        routers: the bytes of every router ``[N, H]`` by tensor name, little-endian, in the dtype the model has.
        out: the folder to make; must not exist.
        progress: told of the bytes copied, then of the bytes hashed.
        sign: makes ``model.sig`` before the folder appears.

    Returns:
        The bytes of ``manifest.json``; its SHA-256 is the digest of the tuned model.

    Raises:
        TemplateError: the routers are not exactly the model's by name and size.
        NonFiniteError: a router holds NaN or infinity.
        AlreadyExistsError: ``out`` exists.
        DigestError: a file changed since it was verified, or was not stored as it was written.
        StorageError: the disk is full, or a file cannot be read or written.
    """
    spans = read_header(model.folder / ROUTER_FILE).tensors
    _check_routers(spans, routers)
    copied = [entry for entry in model.manifest.files if entry.name != ROUTER_FILE]
    with atomic_folder(out) as aside:
        meter = Meter(f"Writing {out.name}", sum(entry.size for entry in copied), progress)
        map_threads(lambda entry: _copy(model.folder, aside, entry, meter), copied, meter)
        head, _ = encode_header([(span.name, span.dtype, span.shape) for span in spans])
        (aside / ROUTER_FILE).write_bytes(head + b"".join(routers[span.name] for span in spans))
        raw, manifest = _manifest(model, aside, progress)
        _check_copies(copied, manifest)
        (aside / MANIFEST_NAME).write_bytes(raw)
        resources = {entry.name: entry.sha256 for entry in manifest.files} | {MANIFEST_NAME: hashlib.sha256(raw).hexdigest()}
        (aside / SIGNATURE_NAME).write_bytes(sign(resources))
    return raw


def _check_routers(spans: tuple[TensorSpan, ...], routers: Mapping[str, bytes]) -> None:
    sizes = {span.name: span.end - span.start for span in spans}
    if sizes != {name: len(rows) for name, rows in routers.items()}:
        raise TemplateError("The tuned routers are not those of the model by name and size.")
    for span in spans:
        if first_non_finite(routers[span.name], span.dtype) is not None:
            raise NonFiniteError(f"The tuned router {span.name} holds a value that is no finite number.")


def _copy(folder: Path, aside: Path, entry: FileEntry, meter: Meter) -> None:
    with storage_errors(entry.name), open_regular(folder / entry.name) as source:
        target = os.open(aside / entry.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            copy_range(source, target, 0, entry.size, meter=meter)
        finally:
            os.close(target)


def _manifest(model: VerifiedModel, aside: Path, progress: ProgressSink) -> tuple[bytes, ModelManifest]:
    base = model.manifest
    names = [entry.name for entry in base.files]
    fields = {
        "schema": base.schema_,
        "consortium": base.consortium,
        "anchor": base.anchor,
        "experts": [slot.model_dump(mode="json") for slot in base.experts],
        "top_k": base.top_k,
        "licence": base.licence,
        "tuned_from": model.digest,
    }
    return encode_manifest(ModelManifest, build_tables(in_folder(aside), names, progress=progress), fields)


def _check_copies(copied: list[FileEntry], manifest: ModelManifest) -> None:
    found = {entry.name: entry.sha256 for entry in manifest.files}
    for entry in copied:
        if found[entry.name] != entry.sha256:
            raise DigestError(f"{entry.name} changed while it was being copied.")
