"""Whole files that are hostile or odd, beside what the format's own library says of them (safetensors 0.8).

The library answers another question: can these bytes be mapped into memory. Ours: is every byte a signed tensor's, and would every
reader see the same. docs/formats.md, 7.5, lists the same places.
"""

from __future__ import annotations

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
import safetensors

from common.errors import FormatError, LimitError, NonFiniteError, SafetensorsError
from common.weights.digests import open_regular
from common.weights.finite import scan_finite
from common.weights.index import read_header

A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
B = '"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}'


def file(header: str | bytes, data: int = 8, *, length: int | None = None) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


def tensor(name: str, shape: list[int], begin: int, end: int, dtype: str = "F32") -> str:
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}, ensure_ascii=False)[1:-1]


def _archive() -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as out:
        out.writestr("archive/data.pkl", pickle.dumps({"w": 1}) * 40)
    return target.getvalue()


@dataclass(frozen=True)
class Row:
    library: bool
    reason: str
    content: Callable[[], bytes]
    kind: type[FormatError] = SafetensorsError


ROWS: dict[str, Row] = {
    # taken by the library
    "same tensor twice, the same way": Row(True, "same key twice", lambda: file(f"{{{A},{A}}}")),
    "same tensor twice, another way": Row(True, "same key twice", lambda: file("{" + tensor("a", [1], 0, 4) + f",{A}}}")),
    "same metadata key twice": Row(True, "same key twice", lambda: file(f'{{"__metadata__":{{"k":"1","k":"2"}},{A}}}')),
    "metadata under an escaped twin": Row(True, "same key twice", lambda: file(f'{{"__metadata__":{{"k":"1","\\u006b":"2"}},{A}}}')),
    "two names that look alike (NFC and NFD)": Row(
        True, "is not allowed", lambda: file("{" + tensor("é", [2], 0, 8) + "," + tensor("e\u0301", [1], 8, 12) + "}", 12)
    ),
    "empty name": Row(True, "is not allowed", lambda: file("{" + tensor("", [2], 0, 8) + "}")),
    "name that is a path": Row(True, "is not allowed", lambda: file("{" + tensor("../../x", [2], 0, 8) + "}")),
    "name with a line feed": Row(True, "is not allowed", lambda: file("{" + tensor("a\n", [2], 0, 8) + "}")),
    "dtype without a place here": Row(True, "has dtype 'I64'", lambda: file("{" + tensor("a", [1], 0, 8, "I64") + "}")),
    "five dimensions": Row(True, "no valid shape", lambda: file("{" + tensor("a", [1, 1, 1, 1, 2], 0, 8) + "}")),
    "header of 9 MiB": Row(True, "exceeds the limit", lambda: file(f"{{{A}}}" + " " * (9 << 20)), LimitError),
    # refused by both
    "length of 2^63": Row(False, "runs past its end", lambda: file(f"{{{A}}}", length=1 << 63)),
    "length of 200 MB that are not there": Row(False, "runs past its end", lambda: file(f"{{{A}}}", length=200_000_000)),
    "overlap": Row(False, "overlaps another", lambda: file(f"{{{A}," + tensor("b", [2], 4, 12) + "}", 12)),
    "gap": Row(False, "leaves a gap", lambda: file(f"{{{A}," + tensor("b", [1], 12, 16) + "}", 16)),
    "first tensor not at the beginning": Row(False, "leaves a gap", lambda: file("{" + tensor("a", [2], 4, 12) + "}", 12)),
    "bytes after the last tensor": Row(False, "end at byte", lambda: file(f"{{{A}}}", 9)),
    "data cut": Row(False, "end at byte", lambda: file(f"{{{A}}}", 7)),
    "shape that does not fit its bytes": Row(False, "does not fit", lambda: file("{" + tensor("a", [3], 0, 8) + "}")),
    "product of a shape beyond 2^64": Row(False, "does not fit", lambda: file("{" + tensor("a", [2**33, 2**33], 0, 8) + "}")),
    "fractional size": Row(False, "fraction", lambda: file('{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}')),
    "NaN for a size": Row(False, "NaN", lambda: file('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}')),
    "metadata that is no text": Row(False, "metadata", lambda: file(f'{{"__metadata__":{{"k":1}},{A}}}')),
    "byte-order mark": Row(False, "does not begin", lambda: file(b"\xef\xbb\xbf" + f"{{{A}}}".encode())),
    "not UTF-8": Row(False, "not UTF-8", lambda: file(b'{"\xff":1}')),
    "100,000 opening brackets": Row(False, "nested deeper", lambda: file('{"a":' + "[" * 100_000), LimitError),
    "pickle": Row(False, "runs past its end", lambda: pickle.dumps({"w": list(range(1000))})),
    "zip, as torch.save writes": Row(False, "runs past its end", _archive),
    "empty file": Row(False, "too short", lambda: b""),
}  # fmt: skip


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items()])
def test_row(row: Row, tmp_path: Path) -> None:
    content = row.content()
    (tmp_path / "w.safetensors").write_bytes(content)
    try:
        safetensors.deserialize(content)
        taken = True
    except safetensors.SafetensorError:
        taken = False
    assert taken == row.library
    with pytest.raises(FormatError, match=row.reason) as caught:
        read_header(tmp_path / "w.safetensors")
    assert type(caught.value) is row.kind


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_no_number_in_the_last_element(tmp_path: Path, value: float) -> None:
    content = file(f"{{{A},{B}}}", 8) + struct.pack("<f", value)
    (tmp_path / "w.safetensors").write_bytes(content)
    assert {name for name, _ in safetensors.deserialize(content)} == {"a", "b"}
    header = read_header(tmp_path / "w.safetensors")
    with open_regular(tmp_path / "w.safetensors") as descriptor, pytest.raises(NonFiniteError, match=r"Tensor b .* \(value 0\)"):
        scan_finite(descriptor, "w.safetensors", header.tensors)
