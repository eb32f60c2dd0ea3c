from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NonFiniteError
from common.formats.safetensors import DTYPE_BYTES
from common.weights.digests import open_regular
from common.weights.finite import first_non_finite, scan_finite
from common.weights.index import read_header
from tests.support.tiny_weights import write_safetensors


def is_finite(raw: bytes, dtype: str) -> bool:
    """The definition, value by value."""
    if dtype == "F16":
        return math.isfinite(struct.unpack("<e", raw)[0])
    return math.isfinite(struct.unpack("<f", raw if dtype == "F32" else b"\0\0" + raw)[0])


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_value_is_decided_as_the_definition_says(dtype: str) -> None:
    for value in range(2**16):
        raw = struct.pack("<H", value)
        assert (first_non_finite(raw, dtype) is None) == is_finite(raw, dtype), hex(value)


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF]), max_size=20))
def test_the_first_bad_f32_value_is_found(values: list[int]) -> None:
    raws = [struct.pack("<I", value) for value in values]
    expected = next((at for at, raw in enumerate(raws) if not is_finite(raw, "F32")), None)
    assert first_non_finite(b"".join(raws), "F32") == expected


@given(st.binary(max_size=200), st.sampled_from(["BF16", "F16"]))
def test_the_first_bad_16_bit_value_is_found(content: bytes, dtype: str) -> None:
    content = content[: len(content) // 2 * 2]
    values = [content[at : at + 2] for at in range(0, len(content), 2)]
    assert first_non_finite(content, dtype) == next((at for at, raw in enumerate(values) if not is_finite(raw, dtype)), None)


@pytest.mark.parametrize(("dtype", "bad"), [("F32", b"\0\0\x80\x7f"), ("F32", b"\1\0\x80\xff"), ("BF16", b"\x80\x7f"), ("F16", b"\0\xfc")])
def test_one_bad_value_at_the_end_of_a_large_tensor_is_named(tmp_path: Path, dtype: str, bad: bytes) -> None:
    count = 700_001
    good = bytes(DTYPE_BYTES[dtype] * (count - 1))
    write_safetensors(tmp_path / "f.safetensors", {"fine": (dtype, (1,), good[: DTYPE_BYTES[dtype]]), "bad": (dtype, (count,), good + bad)})
    spans = read_header(tmp_path / "f.safetensors").tensors
    with open_regular(tmp_path / "f.safetensors") as descriptor:
        scan_finite(descriptor, "f.safetensors", spans[:1])
        with pytest.raises(NonFiniteError, match=rf"Tensor bad of f\.safetensors .*\(value {count - 1}\)"):
            scan_finite(descriptor, "f.safetensors", spans)


def test_random_bits_are_nearly_surely_not_finite() -> None:
    assert first_non_finite(os.urandom(1_000_000), "BF16") is not None
