"""The arithmetic that materialises a low-rank matrix, fixed to the last bit (``docs/formats.md``, section 5.1; ADR 0004).

Everything is float32 with one rounding after every product and one after every sum, in ascending order of the rank. A BLAS chooses its
own order and a compiler may fuse product and sum, so neither computes here: numpy's element-wise ``multiply`` and ``add`` round each
time, as IEEE 754 says, on every processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from common.errors import NonFiniteError

__all__ = ["Float32", "add_product", "narrow", "widen"]

Float32 = npt.NDArray[np.float32]
_STORED: Final[Mapping[str, str]] = {"F32": "<f4", "F16": "<f2"}
_BF16_EXPONENT: Final = np.uint16(0x7F80)


def widen(raw: bytes, dtype: str) -> Float32:
    """Stored little-endian values as float32, which holds every value of ``F32``, ``F16`` and ``BF16`` exactly; a fresh array ``[n]``."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(raw, _STORED[dtype]).astype(np.float32)


def narrow(values: Float32, dtype: str) -> bytes:
    """Values rounded to nearest, ties to even, as they are stored.

    Raises:
        NonFiniteError: a value is NaN or infinite, before rounding or after.
    """
    finite = bool(np.isfinite(values).all())
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype("<u2")
        finite = finite and not bool(((rounded & _BF16_EXPONENT) == _BF16_EXPONENT).any())
        raw = rounded.tobytes()
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = values.astype(_STORED[dtype])
        finite = finite and bool(np.isfinite(stored).all())
        raw = stored.tobytes()
    if not finite:
        raise NonFiniteError("A materialised value is NaN or infinite.")
    return raw


def add_product(values: Float32, b: Float32, a: Float32) -> None:
    """Add ``b a`` to ``values`` in place: for k = 0, 1 ... r - 1, ``values[i, j] = fl(values[i, j] + fl(b[i, k] * a[k, j]))``.

    Args:
        values: ``[m, n]``, contiguous; few enough rows that it stays in the cache.
        b: ``[m, r]``.
        a: ``[r, n]``, contiguous.
    """
    columns = np.ascontiguousarray(b.T)[:, :, None]
    product = np.empty_like(values)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for column, row in zip(columns, a, strict=True):
            np.multiply(column, row, out=product)
            np.add(values, product, out=values)
