"""Comparing bytes with the manifest that was signed for them, and building that manifest's tables (``docs/formats.md``, section 4)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.errors import DigestError, ElmgroveError, FormatError, LayoutError, NotFoundError
from common.formats.manifest import FileEntry, Manifest, TensorEntry
from common.formats.safetensors import Header
from common.formats.strictjson import canonical_bytes, parse_document
from common.progress import ProgressSink, silent
from common.weights.digests import FileDigest, open_regular
from common.weights.finite import scan_finite
from common.weights.index import SAFETENSORS_SUFFIX, ScannedFile, read_header, scan_file
from common.weights.parallel import Meter, map_threads
from common.weights.sources import Resolver

__all__ = [
    "Row",
    "Tables",
    "build_tables",
    "check_contents",
    "check_finite",
    "content_faults",
    "encode_manifest",
    "file_row",
    "tensor_rows",
]


Row = Mapping[str, object]
ManifestT = TypeVar("ManifestT", bound=Manifest)


@dataclass(frozen=True, slots=True)
class Tables:
    """The file and tensor tables of a manifest to be, in their order, as JSON rows; parsing that manifest validates them."""

    files: tuple[Row, ...]
    tensors: tuple[Row, ...]


def build_tables(resolve: Resolver, names: Iterable[str], *, progress: ProgressSink = silent) -> Tables:
    """Digest files, their chunks and their tensors in one pass on all cores.

    Raises:
        FormatError: a ``.safetensors`` file is malformed or holds a name or shape that no manifest may hold.
        NotFoundError, LayoutError, StorageError, DigestError: as :func:`common.weights.index.scan_file`.
    """
    ordered = sorted(names)
    scanned = _scan_all(resolve, ordered, progress)
    for scan in scanned:
        if scan.fault is not None:
            raise scan.fault
    pairs = list(zip(ordered, scanned, strict=True))
    return Tables(
        files=tuple(file_row(name, scan.digest) for name, scan in pairs),
        tensors=tuple(row for name, scan in pairs for row in tensor_rows(name, scan)),
    )


def encode_manifest(kind: type[ManifestT], tables: Tables, fields: Mapping[str, Any]) -> tuple[bytes, ManifestT]:
    """The bytes of a manifest, and the manifest as every reader will see it.

    Raises:
        FormatError: a field, file name or tensor has a form that no manifest may hold.
    """
    document = {
        **fields,
        "files": tables.files,
        "tensors": tables.tensors,
    }
    manifest = parse_document(kind, json.dumps(document).encode("utf-8"))
    raw = canonical_bytes(manifest)
    return raw, parse_document(kind, raw)


def file_row(name: str, digest: FileDigest) -> Row:
    """One row of a file table."""
    return {"name": name, "size": digest.size, "sha256": digest.sha256, "chunks": list(digest.chunks)}


def tensor_rows(file: str, scan: ScannedFile) -> list[Row]:
    """The rows of a tensor table for one scanned file, by name."""
    spans = sorted(scan.header.tensors, key=lambda span: span.name) if scan.header is not None else ()
    return [
        {"name": span.name, "dtype": span.dtype, "shape": list(span.shape), "sha256": scan.tensors[span.name], "file": file}
        for span in spans
    ]


def _scan_all(resolve: Resolver, names: Sequence[str], progress: ProgressSink) -> list[ScannedFile]:
    meter = Meter("Hashing", _total(resolve, names), progress)
    return map_threads(lambda name: scan_file(resolve(name), name=name, meter=meter), names, meter)


def _total(resolve: Resolver, names: Iterable[str]) -> int:
    total = 0
    for name in names:
        with open_regular(resolve(name)) as descriptor:
            total += os.fstat(descriptor).st_size
    return total


def content_faults(
    manifest: Manifest,
    resolve: Resolver,
    signer: str,
    *,
    origin: Callable[[str], str] | None = None,
    tensors: bool = True,
    progress: ProgressSink = silent,
) -> list[ElmgroveError]:
    """Every way in which the files differ from the manifest, most telling first within each file; empty when they are the same.

    What is hashed is what was opened. The digest of a file binds its every byte, so chunk digests, which serve transfer, are never
    compared, and tensor digests only when they are asked for (``docs/formats.md``, section 4.1). A file whose own digest differs is
    read once more, so that the tensor that changed is named.

    Args:
        manifest: whose signature the caller has checked, or which the caller built.
        resolve: where the files lie.
        signer: who stands for the manifest, for messages.
        origin: from a tensor's name to who signed that tensor; ``signer`` for all of them by default.
        tensors: also recompute every tensor's digest, for a caller who is going to rely on the manifest's; twice the time.
        progress: told of the bytes hashed.
    """
    signer_of = origin or (lambda _name: signer)
    tables: dict[str, dict[str, TensorEntry]] = {entry.name: {} for entry in manifest.files}
    for entry in manifest.tensors:
        tables[entry.file][entry.name] = entry
    meter = Meter("Verifying", sum(entry.size for entry in manifest.files), progress)

    def check(entry: FileEntry) -> list[ElmgroveError]:
        return _file_faults(entry, tables[entry.name], resolve(entry.name), signer, signer_of, tensors=tensors, meter=meter)

    largest_first = sorted(manifest.files, key=lambda entry: -entry.size)  # so that no core is left with a large file at the end
    found = dict(zip((entry.name for entry in largest_first), map_threads(check, largest_first, meter), strict=True))
    return [fault for entry in manifest.files for fault in found[entry.name]]


def _file_faults(
    entry: FileEntry,
    table: Mapping[str, TensorEntry],
    path: Path,
    signer: str,
    signer_of: Callable[[str], str],
    *,
    tensors: bool,
    meter: Meter,
) -> list[ElmgroveError]:
    try:
        scan = scan_file(path, name=entry.name, chunks=False, tensors=tensors, meter=meter)
        if _changed(entry, scan) and not tensors:
            scan = scan_file(path, name=entry.name, chunks=False)
    except NotFoundError:
        return [LayoutError(f"{entry.name} is missing.")]
    except (LayoutError, DigestError) as error:
        return [error]
    changed = _changed(entry, scan)
    if scan.fault is not None:
        return [_damaged(entry, scan, signer, f" ({scan.fault})") if changed else scan.fault]
    faults: list[ElmgroveError] = list(_tensor_faults(entry.name, table, scan, signer_of))
    if changed and not faults:
        faults.append(_damaged(entry, scan, signer, " outside its tensors' values" if scan.header else ""))
    return faults


def _changed(entry: FileEntry, scan: ScannedFile) -> bool:
    return (scan.digest.sha256, scan.digest.size) != (entry.sha256, entry.size)


def _damaged(entry: FileEntry, scan: ScannedFile, signer: str, where: str) -> DigestError:
    if scan.digest.size != entry.size:
        return DigestError(f"{entry.name} has {scan.digest.size} bytes where {signer} signed {entry.size}{where}.")
    return DigestError(f"{entry.name} differs from the one {signer} signed{where}.")


def _tensor_faults(
    file: str, table: Mapping[str, TensorEntry], scan: ScannedFile, signer_of: Callable[[str], str]
) -> Iterable[ElmgroveError]:
    spans = {span.name: span for span in scan.header.tensors} if scan.header is not None else {}
    for name in sorted(table.keys() | spans.keys()):
        where, signer = f"Tensor {name} of {file}", signer_of(name)
        if name not in spans:
            yield DigestError(f"{where}, which {signer} signed, is missing.")
        elif name not in table:
            yield DigestError(f"{where} is not among those {signer} signed.")
        elif (spans[name].dtype, spans[name].shape) != (table[name].dtype, table[name].shape):
            found = f"{spans[name].dtype} {list(spans[name].shape)}"
            yield DigestError(f"{where} is {found} where {signer} signed {table[name].dtype} {list(table[name].shape)}.")
        elif scan.tensors.get(name, table[name].sha256) != table[name].sha256:
            yield DigestError(f"{where} differs from the one {signer} signed.")


def check_contents(manifest: Manifest, resolve: Resolver, signer: str, *, tensors: bool = True, progress: ProgressSink = silent) -> None:
    """Check that the files are, byte for byte and tensor by tensor, what the manifest says; arguments as :func:`content_faults`.

    Raises:
        DigestError: a file or tensor differs; tensors are named.
        LayoutError: a file is missing or not a regular file.
        SafetensorsError, LimitError: a file that was signed as it is, is malformed.
        StorageError: a file cannot be read.
    """
    faults = content_faults(manifest, resolve, signer, tensors=tensors, progress=progress)
    if faults:
        raise faults[0]


def check_finite(manifest: Manifest, resolve: Resolver, *, progress: ProgressSink = silent) -> None:
    """Check that every value of every tensor is a finite number.

    Raises:
        NonFiniteError: names the tensor.
        SafetensorsError, NotFoundError, LayoutError, StorageError, DigestError: a file cannot be read as the manifest says.
    """
    names = [entry.name for entry in manifest.files if entry.name.endswith(SAFETENSORS_SUFFIX)]
    meter = Meter("Looking for NaN and infinity", sum(entry.size for entry in manifest.files if entry.name in names), progress)

    def scan(name: str) -> None:
        header = _header(resolve(name), name)
        meter.add(header.data_start)
        with open_regular(resolve(name)) as descriptor:
            scan_finite(descriptor, name, header.tensors, meter=meter)

    map_threads(scan, names, meter)


def _header(path: Path, name: str) -> Header:
    try:
        return read_header(path)
    except FormatError as error:
        raise type(error)(str(error).replace(path.name, name, 1)) from error
