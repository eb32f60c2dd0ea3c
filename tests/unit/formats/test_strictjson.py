"""The strict loader: everything two JSON readers could read differently is refused, and nothing else leaks out of it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FormatError, LimitError
from common.formats.limits import MAX_JSON_DEPTH
from common.formats.strictjson import Document, b64decode_canonical, b64encode, canonical_bytes, loads_strict, parse_document

LARGEST = 2**53 - 1


class Leaf(Document):
    name: str
    count: int = 0


class Tree(Document):
    leaves: tuple[Leaf, ...]
    flag: bool


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST, LARGEST) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN, st.booleans(), st.sampled_from([None, 2]))
def test_ordinary_json_is_read_as_json_reads_it(value: Any, escape: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=escape, indent=indent).encode()
    try:
        assert loads_strict(raw) == value
    except LimitError:
        assert _depth(value) > MAX_JSON_DEPTH


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a":1,"a":1}', "same key twice"),
        (b'{"a":1,"\\u0061":2}', "same key twice"),
        (b'[{"x":{"a":1,"b":2,"a":3}}]', "same key twice"),
        (b"1.0", "fraction or exponent"),
        (b"1e3", "fraction or exponent"),
        (b"-0.0", "fraction or exponent"),
        (b"[1E400]", "fraction or exponent"),
        (b"NaN", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b"-0", "not every reader"),
        (b"9007199254740992", "not every reader"),
        (b"-9007199254740992", "not every reader"),
        (b"1" * 5000, "not every reader"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"\\udfff":1}', "lone surrogate"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"\xef\xbb\xbf1", "byte-order mark"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        ("1".encode("utf-16-le"), "malformed"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        (b'"\xc0\xaf"', "not UTF-8"),
        (b"", "malformed at line 1, column 1"),
        (b"1 2", "malformed"),
        (b"[1,]", "malformed"),
        (b"{'a':1}", "malformed"),
        (b"01", "malformed"),
        (b"+1", "malformed"),
        (b'"\t"', "malformed"),
        (b"// comment\n1", "malformed"),
        (b"[1]\x00", "malformed"),
        (b"\xa01".replace(b"\xa0", b"\xc2\xa0"), "malformed"),
    ],
)
def test_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        loads_strict(raw)
    assert type(caught.value) is FormatError


@pytest.mark.parametrize("bracket", ["[", '{"a":'])
def test_depth_is_limited_before_parsing(bracket: str) -> None:
    close = {"[": "]", '{"a":': "}"}[bracket]
    assert loads_strict((bracket * (MAX_JSON_DEPTH - 1) + "1" + close * (MAX_JSON_DEPTH - 1)).encode()) is not None
    for depth in (MAX_JSON_DEPTH + 1, 100_000):
        with pytest.raises(LimitError, match="nested deeper"):
            loads_strict((bracket * depth).encode())


def test_brackets_inside_texts_are_no_depth() -> None:
    text = "[{" * 100 + '\\"' + "[" * 100
    assert loads_strict(json.dumps([text, "\\", '"[']).encode()) == [text, "\\", '"[']


def test_size_is_limited_before_decoding() -> None:
    assert loads_strict(b"12", max_bytes=2) == 12
    with pytest.raises(LimitError, match="3 bytes exceeds the limit of 2"):
        loads_strict(b"\xff\xff\xff", max_bytes=2)


def test_number_of_values_is_limited() -> None:
    with pytest.raises(LimitError, match="values"):
        loads_strict(b"[" + b"0," * 1_000_000 + b"0]")


# --- typed documents ---------------------------------------------------------------------------------------------------------------


def test_document_round_trip() -> None:
    tree = Tree(leaves=(Leaf(name="ä", count=1), Leaf(name="")), flag=True)
    raw = canonical_bytes(tree)
    assert raw.endswith(b"}\n")
    assert parse_document(Tree, raw) == tree


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", "Tree: the document"),
        (b'{"leaves":[]}', "Tree: flag: Field required"),
        (b'{"leaves":[],"flag":true,"more":1}', "Tree: more"),
        (b'{"leaves":[],"flag":1}', "Tree: flag"),
        (b'{"leaves":[],"flag":"true"}', "Tree: flag"),
        (b'{"leaves":[{"name":1}],"flag":true}', "Tree: leaves.0.name"),
        (b'{"leaves":[{"name":"a","count":"1"}],"flag":true}', "Tree: leaves.0.count"),
        (b'{"leaves":[{"name":"a","count":true}],"flag":true}', "Tree: leaves.0.count"),
        (b'{"leaves":{},"flag":true}', "Tree: leaves"),
        (b'{"leaves":null,"flag":true}', "Tree: leaves"),
        (b'{"leaves":[],"flag":true,"flag":true}', "same key twice"),
    ],
)
def test_fault_of_a_document_is_named_by_its_place(raw: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_document(Tree, raw)


def test_documents_are_frozen() -> None:
    leaf = Leaf(name="a")
    with pytest.raises(ValueError, match="frozen"):
        leaf.name = "b"  # type: ignore[misc]


# --- base64 ------------------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_base64_round_trip(raw: bytes) -> None:
    assert b64encode(raw) == base64.b64encode(raw).decode()
    assert b64decode_canonical(b64encode(raw)) == raw


@pytest.mark.parametrize(
    "text", ["YQ", "YQ=", "YQ===", "YR==", "YQ==\n", " YQ==", "Y Q==", "YWI", "YWJ=", "YQ==YQ==", "_-==", "ü", "=", "%YQ=="]
)
def test_every_other_spelling_of_base64_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="base64"):
        b64decode_canonical(text)


@given(st.text(max_size=12))
def test_a_text_that_decodes_is_the_only_spelling_of_its_bytes(text: str) -> None:
    try:
        raw = b64decode_canonical(text)
    except FormatError:
        return
    assert b64encode(raw) == text
