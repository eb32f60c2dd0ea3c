"""Assembly: one Hugging Face mixture folder out of an anchor and expert packages, by copying bytes (``docs/formats.md``, section 6).

Pure in its inputs: no time, no randomness, no tensor library, so anyone who has the same packages gets the same bytes. Every
byte written is read back and its SHA-256 compared with the manifest it came from before the folder appears.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from common.errors import DigestError
from common.files import atomic_folder, storage_errors
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import MANIFEST_NAME, SIGNATURE_NAME, ModelManifest
from common.progress import ProgressSink, silent
from common.weights.contents import Row, Tables, encode_manifest, file_row
from common.weights.copying import copy_range, write_all
from common.weights.digests import BLOCK_BYTES, FileDigest, Hasher, HashingReader, open_regular, read_exactly
from common.weights.parallel import Meter, map_threads
from common.weights.plan import AssemblyPlan, OutputFile, Piece, plan_assembly
from common.weights.sources import AnchorSource, ExpertSource, anchor_source, expert_source

__all__ = [
    "AnchorSource",
    "AssemblyPlan",
    "ExpertSource",
    "Signer",
    "anchor_source",
    "digest_assembly",
    "expert_source",
    "plan_assembly",
    "write_assembly",
]

Signer = Callable[[Mapping[str, str]], bytes]
"""From file names and their SHA-256, the manifest's included, to the bytes of ``model.sig``."""


def write_assembly(plan: AssemblyPlan, out: Path, *, progress: ProgressSink = silent, sign: Signer | None = None) -> bytes:
    """Write the planned folder; it appears whole or not at all.

    Args:
        plan: from :func:`plan_assembly`.
        out: the folder to make; must not exist.
        progress: told of the bytes copied, then of the bytes hashed.
        sign: makes ``model.sig`` before the folder appears; without it there is none.

    Returns:
        The bytes of ``manifest.json``; its SHA-256 is the digest of the model.

    Raises:
        AlreadyExistsError: ``out`` exists.
        DigestError: a source's bytes are not those of its manifest; the tensor is named.
        StorageError: the disk is full, or a file cannot be read or written.
    """
    with atomic_folder(out) as aside:
        copying = Meter(f"Assembling {out.name}", plan.size, progress)
        map_threads(lambda file: _write_file(file, aside / file.name, copying), plan.files, copying)
        hashing = Meter(f"Verifying {out.name}", plan.size, progress)
        rows = map_threads(lambda file: _read_back(file, aside / file.name, hashing), plan.files, hashing)
        manifest = _manifest(plan, rows)
        (aside / MANIFEST_NAME).write_bytes(manifest)
        if sign is not None:
            resources = {str(row["name"]): str(row["sha256"]) for row, _ in rows}
            resources[MANIFEST_NAME] = hashlib.sha256(manifest).hexdigest()
            (aside / SIGNATURE_NAME).write_bytes(sign(resources))
    return manifest


def digest_assembly(plan: AssemblyPlan, *, progress: ProgressSink = silent) -> bytes:
    """The bytes of ``manifest.json`` that :func:`write_assembly` would give, from the sources alone: nothing is written.

    Args:
        plan: from :func:`plan_assembly`.
        progress: told of the bytes hashed.

    Raises:
        DigestError: a source's bytes are not those of its manifest; the tensor is named.
        NotFoundError, LayoutError, StorageError: a source file cannot be read.
    """
    meter = Meter("Rebuilding", plan.size, progress)
    return _manifest(plan, map_threads(lambda file: _rows(file, _SourceReader(file, meter)), plan.files, meter))


def _write_file(file: OutputFile, path: Path, meter: Meter) -> None:
    with storage_errors(path.name):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            write_all(target, file.head)
            meter.add(len(file.head))
            for run in _runs(file.pieces):
                with open_regular(run.path) as source:
                    copy_range(source, target, run.offset, run.length, meter=meter)
        finally:
            os.close(target)


def _runs(pieces: tuple[Piece, ...]) -> Iterator[Piece]:
    """Join pieces that lie one after the other in one file, so that each costs one call."""
    current: Piece | None = None
    for piece in pieces:
        if current is not None and current.path == piece.path and current.offset + current.length == piece.offset:
            current = Piece(current.path, current.offset, current.length + piece.length, "", current.origin)
            continue
        if current is not None:
            yield current
        current = piece
    if current is not None:
        yield current


def _read_back(file: OutputFile, path: Path, meter: Meter) -> tuple[Row, list[Row]]:
    """The file's row and its tensors' rows, after comparing every piece with the digest its manifest gives."""
    with open_regular(path) as descriptor:
        return _rows(file, HashingReader(descriptor, file.name, meter=meter))


class _Reader(Protocol):
    """What :class:`HashingReader` is, wherever the bytes come from."""

    def take(self, count: int) -> bytes: ...
    def feed(self, count: int, *hashers: Hasher) -> None: ...
    def finish(self) -> FileDigest: ...


class _SourceReader:
    """Reads the file that a plan describes from where its pieces lie, one after the other; each ``feed`` is one piece."""

    def __init__(self, file: OutputFile, meter: Meter) -> None:
        self._head = file.head
        self._pieces = iter(file.pieces)
        self._meter = meter
        self._whole, self._chunk = hashlib.sha256(), hashlib.sha256()
        self._chunks: list[str] = []
        self._size = 0

    def take(self, count: int) -> bytes:
        self._add(self._head[:count])
        return self._head[:count]

    def feed(self, count: int, *hashers: Hasher) -> None:
        piece = next(self._pieces)
        with open_regular(piece.path) as descriptor:
            for done in range(0, count, BLOCK_BYTES):
                block = read_exactly(descriptor, piece.path.name, min(BLOCK_BYTES, count - done), piece.offset + done)
                for hasher in hashers:
                    hasher.update(memoryview(block))
                self._add(block)

    def _add(self, block: bytes) -> None:
        self._whole.update(block)
        at = 0
        while at < len(block):
            part = block[at : at + CHUNK_BYTES - self._size % CHUNK_BYTES]
            self._chunk.update(part)
            self._size += len(part)
            at += len(part)
            if self._size % CHUNK_BYTES == 0:
                self._end_chunk()
        self._meter.add(len(block))

    def _end_chunk(self) -> None:
        self._chunks.append(self._chunk.hexdigest())
        self._chunk = hashlib.sha256()

    def finish(self) -> FileDigest:
        if self._size % CHUNK_BYTES:
            self._end_chunk()
        return FileDigest(size=self._size, sha256=self._whole.hexdigest(), chunks=tuple(self._chunks))


def _rows(file: OutputFile, reader: _Reader) -> tuple[Row, list[Row]]:
    if reader.take(len(file.head)) != file.head:
        raise DigestError(f"{file.name} was not stored as it was written; check the disk.")
    pieces = iter(file.pieces)
    digests = {span.name: _read_tensor(reader, pieces, span.end - span.start) for span in file.tensors}
    for piece in pieces:
        _read_piece(reader, piece)
    row = file_row(file.name, reader.finish())
    spans = sorted(file.tensors, key=lambda span: span.name)
    forms = [{"name": span.name, "dtype": span.dtype, "shape": list(span.shape)} for span in spans]
    return row, [{**form, "sha256": digests[str(form["name"])], "file": file.name} for form in forms]


def _read_tensor(reader: _Reader, pieces: Iterator[Piece], length: int) -> str:
    piece = next(pieces)
    if piece.length == length:
        return _read_piece(reader, piece)
    whole = hashlib.sha256()
    _read_piece(reader, piece, whole)
    length -= piece.length
    while length:
        piece = next(pieces)
        _read_piece(reader, piece, whole)
        length -= piece.length
    return whole.hexdigest()


def _read_piece(reader: _Reader, piece: Piece, *also: Hasher) -> str:
    hasher = hashlib.sha256()
    reader.feed(piece.length, hasher, *also)
    if hasher.hexdigest() != piece.sha256:
        raise DigestError(f"The stored bytes of {piece.origin} are not those of its signed manifest; restore the file.")
    return piece.sha256


def _manifest(plan: AssemblyPlan, rows: list[tuple[Row, list[Row]]]) -> bytes:
    tables = Tables(files=tuple(file for file, _ in rows), tensors=tuple(row for _, tensors in rows for row in tensors))
    fields = {
        "schema": "elmgrove.model/v1",
        "consortium": plan.consortium,
        "anchor": plan.anchor,
        "experts": [slot.model_dump(mode="json") for slot in plan.experts],
        "top_k": plan.top_k,
        "licence": plan.licence,
    }
    raw, _ = encode_manifest(ModelManifest, tables, fields)
    return raw
