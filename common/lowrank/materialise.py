"""Materialising low-rank experts: full FFN matrices from an anchor's and the factors, block by block (``docs/formats.md``, section 5.1).

Memory is bounded by one pair of factors and one block of rows per thread, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from common.errors import DigestError, NonFiniteError, StorageError, TemplateError
from common.files import fsync_folder, storage_errors
from common.formats.layout import factor_names, ffn_names, split_dense_ffn
from common.formats.manifest import LowRankKind, MaterialisedTensor
from common.formats.safetensors import DTYPE_BYTES, TensorSpan, encode_header
from common.lowrank.arithmetic import Float32, add_product, narrow, widen
from common.progress import ProgressSink, silent
from common.weights.digests import open_regular, read_exactly
from common.weights.index import read_header
from common.weights.parallel import Meter, map_threads
from common.weights.sources import AnchorSource, ExpertSource
from common.weights.template import anchor_weight_files, expert_parts

__all__ = [
    "LowRankMatrix",
    "StoredTensor",
    "low_rank_kind",
    "low_rank_matrices",
    "materialised_digests",
    "source_matrices",
    "write_materialised",
]

_BLOCK_VALUES: Final = 128 * 1024  # values of a block of rows: 512 KiB in float32, which stays in a core's second-level cache

Take = Callable[[int, bytes], None]
"""Given the place of a block within its tensor, in bytes, and the block."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes lie, and the SHA-256 that was signed for them, if the reader is to compare it."""

    path: Path
    span: TensorSpan
    sha256: str | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.span.end - self.span.start


@dataclass(frozen=True, slots=True)
class LowRankMatrix:
    """One FFN matrix ``W + B A``: the anchor's ``W`` ``[out, in]`` and the factors ``A`` ``[r, in]`` and ``B`` ``[out, r]``."""

    name: str
    base: StoredTensor
    a: StoredTensor
    b: StoredTensor

    def __post_init__(self) -> None:
        if len(self.base.span.shape) != 2 or not self.a.span.shape or self.rank < 1:
            raise TemplateError(f"Matrix {self.name} or its factor {self.a.span.name} has no shape that a low-rank expert can have.")
        (out, into), rank, dtype = self.base.span.shape, self.rank, self.base.span.dtype
        for factor, shape in ((self.a, (rank, into)), (self.b, (out, rank))):
            if (factor.span.dtype, factor.span.shape) != (dtype, shape):
                found = f"{factor.span.dtype} {list(factor.span.shape)}"
                raise TemplateError(f"Tensor {factor.span.name} is {found} where {dtype} {list(shape)} belongs.")

    @property
    def rank(self) -> int:
        """Rows of ``A``, columns of ``B``."""
        return self.a.span.shape[0]


def low_rank_matrices(
    anchor_files: Iterable[Path], factor_files: Iterable[Path], *, signed: Mapping[str, str] | None = None
) -> tuple[LowRankMatrix, ...]:
    """The matrices of a low-rank expert in layer order, from the headers of the anchor's weight files and the package's parts.

    Args:
        anchor_files: hold the anchor's FFN.
        factor_files: hold two factors of each of its matrices and nothing else.
        signed: SHA-256 of the anchor's tensors by name, to be compared as they are read.

    Raises:
        TemplateError: a factor is missing, surplus, or of another shape or dtype.
        SafetensorsError, NotFoundError, LayoutError, StorageError: a file cannot be read.
    """
    anchor, factors = _located(anchor_files, signed or {}), _located(factor_files, {})
    layers = sum((split_dense_ffn(name) or (0, ""))[1] == "gate_proj" for name in anchor)
    matrices = []
    for name in ffn_names(layers):
        needed = (anchor.get(name), *(factors.pop(factor, None) for factor in factor_names(name)))
        base, a, b = needed
        if base is None or a is None or b is None:
            raise TemplateError(f"Matrix {name} of the anchor, or one of its two factors, is missing.")
        matrices.append(LowRankMatrix(name, base, a, b))
    if factors:
        raise TemplateError(f"Tensor {min(factors)} is no factor of a matrix of the anchor.")
    return tuple(matrices)


def _located(files: Iterable[Path], signed: Mapping[str, str]) -> dict[str, StoredTensor]:
    return {span.name: StoredTensor(path, span, signed.get(span.name)) for path in files for span in read_header(path).tensors}


def source_matrices(anchor: AnchorSource, expert: ExpertSource) -> tuple[LowRankMatrix, ...]:
    """As :func:`low_rank_matrices` for an anchor and an expert with manifests; the anchor's signed digests will be compared.

    Raises:
        TemplateError, LayoutError, SafetensorsError, NotFoundError, StorageError: as :func:`low_rank_matrices`.
    """
    return low_rank_matrices(
        [anchor.resolve(name) for name in anchor_weight_files(entry.name for entry in anchor.manifest.files)],
        [expert.resolve(name) for name in expert_parts(entry.name for entry in expert.manifest.files)],
        signed={entry.name: entry.sha256 for entry in anchor.manifest.tensors},
    )


def materialised_digests(
    matrices: Sequence[LowRankMatrix], *, label: str = "Materialising", progress: ProgressSink = silent
) -> dict[str, str]:
    """SHA-256 of every matrix as it is when materialised, by name, without writing it.

    Raises:
        NonFiniteError: a materialised value is NaN or infinite; the tensor is named.
        StorageError: the anchor's stored bytes are not those that were signed, or cannot be read.
        DigestError: a file is shorter than its header says.
    """
    meter = Meter(label, _size(matrices), progress)
    digests = map_threads(lambda matrix: _materialise(matrix, lambda _at, _block: None, meter), matrices, meter)
    return {matrix.name: digest for matrix, digest in zip(matrices, digests, strict=True)}


def low_rank_kind(matrices: Sequence[LowRankMatrix], *, progress: ProgressSink = silent) -> LowRankKind:
    """What a package with these factors must say of itself in its manifest.

    Raises:
        TemplateError: the factors are not all of one rank.
        NonFiniteError, StorageError, DigestError: as :func:`materialised_digests`.
    """
    ranks = sorted({matrix.rank for matrix in matrices})
    if len(ranks) != 1:
        raise TemplateError(f"The factors are of ranks {ranks[0]} to {ranks[-1]}; a package has one rank.")
    digests = materialised_digests(matrices, progress=progress)
    table = tuple(MaterialisedTensor(name=name, sha256=digests[name]) for name in sorted(digests))
    return LowRankKind(type="low_rank", rank=ranks[0], materialised=table)


def write_materialised(
    matrices: Sequence[LowRankMatrix],
    target: Path,
    expected: Mapping[str, str],
    *,
    label: str = "Materialising",
    progress: ProgressSink = silent,
) -> None:
    """Write the matrices, in the order given, as the safetensors file ``target``, which appears whole or not at all.

    Args:
        matrices: from :func:`low_rank_matrices`.
        target: replaced if it exists; its folder must exist.
        expected: SHA-256 by name, from the expert's signed manifest.
        label: what progress is reported as.
        progress: told of the bytes written.

    Raises:
        DigestError: a matrix is not the one that was signed; it is named.
        NonFiniteError, StorageError: as :func:`materialised_digests`; also when the disk is full.
    """
    head, header = encode_header([(matrix.name, matrix.base.span.dtype, matrix.base.span.shape) for matrix in matrices])
    meter = Meter(label, _size(matrices), progress)
    with storage_errors(target.name):
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        try:
            _write_at(descriptor, 0, head)
            pairs = list(zip(matrices, header.tensors, strict=True))
            map_threads(lambda pair: _write_matrix(*pair, descriptor, expected, meter), pairs, meter)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            Path(name).replace(target)
        finally:
            os.close(descriptor)
            Path(name).unlink(missing_ok=True)
        fsync_folder(target.parent)


def _write_matrix(matrix: LowRankMatrix, span: TensorSpan, descriptor: int, expected: Mapping[str, str], meter: Meter) -> None:
    digest = _materialise(matrix, lambda at, block: _write_at(descriptor, span.start + at, block), meter)
    if digest != expected.get(matrix.name):
        raise DigestError(f"Tensor {matrix.name} as materialised is not the one its owner signed; a stored factor of it was changed.")


def _write_at(descriptor: int, at: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _size(matrices: Iterable[LowRankMatrix]) -> int:
    return sum(matrix.base.size for matrix in matrices)


def _materialise(matrix: LowRankMatrix, take: Take, meter: Meter) -> str:
    """Hand every block of the matrix to ``take`` in order; returns the SHA-256 of the whole."""
    span = matrix.base.span
    rows, width = span.shape
    a, b = _factor(matrix.a), _factor(matrix.b)
    step = max(1, _BLOCK_VALUES // width)
    stored, made = hashlib.sha256(), hashlib.sha256()
    row_bytes = width * DTYPE_BYTES[span.dtype]
    with open_regular(matrix.base.path) as descriptor:
        for first in range(0, rows, step):
            count = min(step, rows - first)
            raw = read_exactly(descriptor, matrix.base.path.name, count * row_bytes, span.start + first * row_bytes)
            block = _block(matrix.name, raw, b[first : first + count], a, span.dtype)
            stored.update(raw)
            made.update(block)
            take(first * row_bytes, block)
            meter.add(len(block))
    if matrix.base.sha256 is not None and stored.hexdigest() != matrix.base.sha256:
        raise StorageError(
            f"The stored bytes of tensor {matrix.name} of the anchor are not those of its signed manifest; restore the file."
        )
    return made.hexdigest()


def _block(name: str, raw: bytes, b: Float32, a: Float32, dtype: str) -> bytes:
    values = widen(raw, dtype).reshape(len(b), -1)
    add_product(values, b, a)
    try:
        return narrow(values, dtype)
    except NonFiniteError as error:
        raise NonFiniteError(f"Tensor {name} holds NaN or infinity once its factors are multiplied out.") from error


def _factor(tensor: StoredTensor) -> Float32:
    span = tensor.span
    with open_regular(tensor.path) as descriptor:
        raw = read_exactly(descriptor, tensor.path.name, prod(span.shape) * DTYPE_BYTES[span.dtype], span.start)
    return widen(raw, span.dtype).reshape(span.shape)
