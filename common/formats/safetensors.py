"""Headers of safetensors files, parsed more strictly than the format's own library does (``docs/formats.md``, section 3).

A file is 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes without gap, overlap or tail.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from common.errors import FormatError, LimitError, SafetensorsError
from common.formats.fields import TENSOR_NAME_PATTERN
from common.formats.limits import MAX_SAFETENSORS_HEADER_BYTES, MAX_TENSORS
from common.formats.strictjson import loads_strict

__all__ = ["DTYPE_BYTES", "Header", "TensorSpan", "encode_header", "parse_header", "parse_length"]

DTYPE_BYTES: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
"""The dtypes Elmgrove carries and their width in bytes."""
PREFIX_BYTES: Final = 8
_ALIGNMENT: Final = 8  # bytes; the library pads the header so that tensors start aligned
_MAX_DIMENSIONS: Final = 4
_NAME: Final = re.compile(TENSOR_NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor of a file: ``start`` and ``end`` are byte offsets from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header: ``data_start`` is the file offset of the first tensor byte; ``tensors`` are in file order."""

    data_start: int
    file_size: int
    tensors: tuple[TensorSpan, ...]
    metadata: Mapping[str, str]


def parse_length(prefix: bytes, file_size: int) -> int:
    """Length in bytes of the JSON header, from the first 8 bytes of a file of ``file_size`` bytes.

    Raises:
        SafetensorsError: the file is too short, or the length runs past its end (a pickle or zip lands here).
        LimitError: the header is larger than any we accept.
    """
    if len(prefix) < PREFIX_BYTES:
        raise SafetensorsError("The file is too short to be a safetensors file.")
    length = int(struct.unpack("<Q", prefix[:PREFIX_BYTES])[0])
    if length > file_size - PREFIX_BYTES:
        raise SafetensorsError("The file is not a safetensors file, or it was cut: its header runs past its end.")
    if length > MAX_SAFETENSORS_HEADER_BYTES:
        raise LimitError(f"A safetensors header of {length} bytes exceeds the limit of {MAX_SAFETENSORS_HEADER_BYTES}.")
    return length


def parse_header(raw: bytes, file_size: int) -> Header:
    """Parse the JSON header ``raw`` (without its length prefix) of a file of ``file_size`` bytes.

    Raises:
        SafetensorsError: malformed JSON, a duplicate tensor, a name that no manifest may hold, an unknown dtype, a shape that does not
            fit its bytes, or bytes that belong to no tensor or to two.
        LimitError: too many tensors.
    """
    if not raw.startswith(b"{"):
        raise SafetensorsError("The safetensors header does not begin with a JSON object.")
    try:
        table = loads_strict(raw, max_bytes=MAX_SAFETENSORS_HEADER_BYTES)
    except LimitError:
        raise
    except FormatError as error:
        raise SafetensorsError(f"The safetensors header is malformed: {error}") from error
    metadata = _metadata(table.pop("__metadata__", {}))
    if len(table) > MAX_TENSORS:
        raise LimitError(f"A file of {len(table)} tensors exceeds the limit of {MAX_TENSORS}.")
    data_start = PREFIX_BYTES + len(raw)
    spans = sorted((_span(name, entry, data_start) for name, entry in table.items()), key=lambda span: (span.start, span.end))
    _check_cover(spans, data_start, file_size)
    return Header(data_start=data_start, file_size=file_size, tensors=tuple(spans), metadata=metadata)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise SafetensorsError("The safetensors metadata is not a table of texts.")
    return value


def _span(name: str, entry: Any, data_start: int) -> TensorSpan:
    if not _NAME.fullmatch(name):
        raise SafetensorsError(f"The tensor name {name[:100]!r} is not allowed: use letters, digits, dots and underscores.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"Tensor {name[:100]!r} has not exactly the fields dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise SafetensorsError(f"Tensor {name[:100]!r} has dtype {str(dtype)[:20]!r}; only {', '.join(DTYPE_BYTES)} are accepted.")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise SafetensorsError(f"Tensor {name[:100]!r} has no valid shape.")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise SafetensorsError(f"Tensor {name[:100]!r} has no valid offsets.")
    start, end = offsets
    if end - start != prod(shape) * DTYPE_BYTES[dtype]:
        raise SafetensorsError(f"Tensor {name[:100]!r}: its shape does not fit its {end - start} bytes.")
    return TensorSpan(name=name, dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)


def _check_cover(spans: Sequence[TensorSpan], data_start: int, file_size: int) -> None:
    position = data_start
    for span in spans:
        if span.start != position:
            kind = "overlaps another" if span.start < position else "leaves a gap before it"
            raise SafetensorsError(f"Tensor {span.name[:100]!r} {kind}.")
        position = span.end
    if position != file_size:
        raise SafetensorsError(f"The tensors end at byte {position} of a file of {file_size} bytes.")


def encode_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], *, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, Header]:
    """Encode a header for tensors ``(name, dtype, shape)`` that will follow in this order.

    Returns:
        The bytes before the first tensor (length prefix, JSON, space padding to 8 bytes), always the same for the same input,
        and the parsed form with file offsets.
    """
    table: dict[str, Any] = {"__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))}
    position = 0
    for name, dtype, shape in tensors:
        size = prod(shape) * DTYPE_BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    body = json.dumps(table, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    body += b" " * (-(PREFIX_BYTES + len(body)) % _ALIGNMENT)
    return struct.pack("<Q", len(body)) + body, parse_header(body, PREFIX_BYTES + len(body) + position)
