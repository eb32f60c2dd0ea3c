"""Safetensors headers: what the format's own library writes is read, and every byte belongs to exactly one tensor."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FormatError, LimitError, SafetensorsError
from common.formats.limits import MAX_SAFETENSORS_HEADER_BYTES, MAX_TENSORS
from common.formats.safetensors import DTYPE_BYTES, PREFIX_BYTES, encode_header, parse_header, parse_length

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "BF16", "shape": [1, 3], "data_offsets": [8, 14]}


def raw(table: Any) -> bytes:
    return json.dumps(table).encode()


def size(header: bytes, data: int = 14) -> int:
    return PREFIX_BYTES + len(header) + data


def test_offsets_are_counted_from_the_beginning_of_the_file() -> None:
    header = raw({"b": B, "a": A, "__metadata__": {"format": "pt"}})
    parsed = parse_header(header, size(header))
    begin = PREFIX_BYTES + len(header)
    assert [(each.name, each.dtype, each.shape, each.start, each.end) for each in parsed.tensors] == [
        ("a", "F32", (2,), begin, begin + 8),
        ("b", "BF16", (1, 3), begin + 8, begin + 14),
    ]
    assert (parsed.data_start, parsed.file_size, parsed.metadata) == (begin, begin + 14, {"format": "pt"})


def test_padding_after_the_header_is_allowed_and_before_it_is_not() -> None:
    header = raw({"a": A, "b": B})
    assert parse_header(header + b"   ", size(header + b"   ")).tensors
    with pytest.raises(SafetensorsError, match="does not begin"):
        parse_header(b" " + header, size(b" " + header))


@pytest.mark.parametrize(
    ("table", "data", "reason"),
    [
        ({"a": A}, 9, "end at byte"),
        ({"a": A}, 7, "end at byte"),
        ({"a": A, "b": B | {"data_offsets": [9, 15]}}, 15, "leaves a gap"),
        ({"a": A | {"data_offsets": [1, 9]}}, 9, "leaves a gap"),
        ({"a": A, "b": B | {"data_offsets": [7, 13]}}, 13, "overlaps"),
        ({"a": A, "b": A}, 8, "overlaps"),
        ({"a": A | {"shape": [3]}}, 8, "does not fit"),
        ({"a": A | {"dtype": "F16"}}, 8, "does not fit"),
        ({"a": A | {"dtype": "I64", "shape": [1]}}, 8, "dtype"),
        ({"a": A | {"dtype": "f32"}}, 8, "dtype"),
        ({"a": A | {"dtype": ["F32"]}}, 8, "dtype"),
        ({"a": A | {"shape": [-2]}}, 8, "no valid shape"),
        ({"a": A | {"shape": [True, 2]}}, 8, "no valid shape"),
        ({"a": A | {"shape": "2"}}, 8, "no valid shape"),
        ({"a": A | {"shape": [1, 1, 1, 1, 2]}}, 8, "no valid shape"),
        ({"a": A | {"data_offsets": [0]}}, 8, "no valid offsets"),
        ({"a": A | {"data_offsets": [8, 0]}}, 8, "does not fit"),
        ({"a": A | {"data_offsets": [0, 8, 8]}}, 8, "no valid offsets"),
        ({"a": A | {"data_offsets": [-8, 0]}}, 8, "no valid offsets"),
        ({"a": A | {"more": 1}}, 8, "exactly the fields"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "exactly the fields"),
        ({"a": 1}, 8, "exactly the fields"),
        ({"a": A, "__metadata__": []}, 8, "metadata"),
        ({"a": A, "__metadata__": {"a": 1}}, 8, "metadata"),
        ({"a": A, "__metadata__": {"a": {"b": "c"}}}, 8, "metadata"),
    ],
)
def test_faulty_header(table: Any, data: int, reason: str) -> None:
    header = raw(table)
    with pytest.raises(SafetensorsError, match=reason):
        parse_header(header, size(header, data))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":%s,"a":%s}' % (raw(A), raw(A)),
        b'{"a":%s,"__metadata__":{"x":"1","x":"2"}}' % raw(A),
        b'{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}',
        b'{"a":%s}x' % raw(A),
        b'{"a":%s' % raw(A),
        b"[]",
        b"",
        b"{\xff}",
    ],
)
def test_header_that_is_not_strict_json(header: bytes) -> None:
    with pytest.raises(SafetensorsError):
        parse_header(header, size(header, 8))


def test_product_of_a_huge_shape_does_not_wrap_around() -> None:
    header = raw({"a": A | {"shape": [2**32, 2**32, 2**2], "data_offsets": [0, 0]}})
    with pytest.raises(SafetensorsError, match="does not fit"):
        parse_header(header, size(header, 0))


def test_length_prefix() -> None:
    assert parse_length(struct.pack("<Q", 92), 100) == 92
    for prefix, file_size in ((struct.pack("<Q", 93), 100), (struct.pack("<Q", 2**63), 100), (b"\x01" * 7, 7), (b"", 0)):
        with pytest.raises(SafetensorsError):
            parse_length(prefix, file_size)
    with pytest.raises(LimitError, match="exceeds the limit"):
        parse_length(struct.pack("<Q", MAX_SAFETENSORS_HEADER_BYTES + 1), 2**40)


def test_pickle_and_zip_are_not_safetensors() -> None:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("data.pkl", pickle.dumps({"w": 1}) * 50)
    for content in (pickle.dumps({"w": list(range(1000))}), archive.getvalue()):
        with pytest.raises(FormatError):
            parse_length(content[:8], len(content))


def test_number_of_tensors_is_limited() -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = raw(dict.fromkeys(map(str, range(MAX_TENSORS + 1)), empty))
    with pytest.raises(LimitError):
        parse_header(header, size(header, 0))


def test_written_header_is_aligned_deterministic_and_read_by_the_formats_own_library() -> None:
    import safetensors

    tensors = [("w", "F32", (2, 2)), ("a", "BF16", (3,)), ("e", "F16", (1,))]
    head, header = encode_header(tensors)
    assert encode_header(tensors) == (head, header)
    assert len(head) == header.data_start
    assert len(head) % 8 == 0
    assert [(each.name, each.dtype, each.shape) for each in header.tensors] == tensors
    content = head + bytes(range(header.file_size - header.data_start))
    found = {name: (each["dtype"], tuple(each["shape"]), bytes(each["data"])) for name, each in safetensors.deserialize(content)}
    assert found == {each.name: (each.dtype, each.shape, content[each.start : each.end]) for each in header.tensors}


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,7}", fullmatch=True)
TENSORS = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 9), max_size=4).map(tuple)),
    max_size=6, unique_by=lambda each: each[0],
)  # fmt: skip


@given(TENSORS)
def test_what_is_written_is_read(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    head, header = encode_header(tensors)
    length = parse_length(head, header.file_size)
    assert parse_header(head[PREFIX_BYTES:], header.file_size) == header
    assert length == len(head) - PREFIX_BYTES
