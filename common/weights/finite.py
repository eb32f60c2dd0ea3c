"""Finding NaN and infinity in tensors' bytes: IEEE 754 and bfloat16 values whose exponent bits are all ones.

Two passes in pure Python. The screen takes every value's highest byte (a strided slice) and looks for 0x7f and 0xff with
``bytes.find``: in F32 and BF16 those mean a magnitude of at least 1.7e38, which no weight has, so the screen nearly always
ends the search, at several GB/s. What it cannot clear, and every F16 block, is decided exactly by arithmetic on one large integer:
masking each lane to its exponent bits and adding the lowest of them carries into the sign bit only when all were ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from common.errors import NonFiniteError
from common.formats.safetensors import DTYPE_BYTES, TensorSpan
from common.weights.digests import BLOCK_BYTES, read_exactly
from common.weights.parallel import Meter

__all__ = ["first_non_finite", "scan_finite"]

_EXPONENT: Final = {"F32": 0x7F80_0000, "BF16": 0x7F80, "F16": 0x7C00}


@lru_cache(maxsize=8)
def _lanes(dtype: str, count: int) -> tuple[int, int, int]:
    """Exponent mask, its lowest bit and the sign bit of ``dtype``, each repeated over ``count`` lanes."""
    width = DTYPE_BYTES[dtype]
    mask = _EXPONENT[dtype]
    lowest, sign = mask & -mask, 1 << (8 * width - 1)
    repeated = (int.from_bytes(value.to_bytes(width, "little") * count, "little") for value in (mask, lowest, sign))
    first, second, third = repeated
    return first, second, third


def first_non_finite(raw: bytes, dtype: str) -> int | None:
    """Index of the first value in ``raw`` that is NaN or infinite, or ``None``.

    Args:
        raw: whole little-endian values.
        dtype: ``F32``, ``F16`` or ``BF16``.
    """
    width = DTYPE_BYTES[dtype]
    if dtype != "F16":
        high = raw[width - 1 :: width]
        if high.find(0x7F) < 0 and high.find(0xFF) < 0:
            return None
    mask, lowest, sign = _lanes(dtype, len(raw) // width)
    carried = ((int.from_bytes(raw, "little") & mask) + lowest) & sign
    if not carried:
        return None
    return ((carried & -carried).bit_length() - 1) // (8 * width)


def scan_finite(descriptor: int, name: str, spans: Iterable[TensorSpan], *, meter: Meter | None = None) -> None:
    """Check that every value of every tensor in ``spans`` is finite.

    Args:
        descriptor: the opened safetensors file.
        name: its name, for messages.
        spans: tensors of its parsed header.
        meter: told of every block.

    Raises:
        NonFiniteError: names the tensor and the index of the value, counted row by row.
        DigestError: the file is shorter than its header says.
        StorageError: it cannot be read.
    """
    for span in spans:
        position = span.start
        while position < span.end:
            raw = read_exactly(descriptor, name, min(BLOCK_BYTES, span.end - position), position)
            at = first_non_finite(raw, span.dtype)
            if at is not None:
                value = (position - span.start) // DTYPE_BYTES[span.dtype] + at
                raise NonFiniteError(f"Tensor {span.name} of {name} holds NaN or infinity (value {value}).")
            position += len(raw)
            if meter is not None:
                meter.add(len(raw))
