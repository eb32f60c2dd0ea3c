"""Hypothesis strategies that spoil valid bytes: flips, cuts, doubled pieces, number and Unicode variants, other JSON and DER trees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

__all__ = ["hostile_bytes", "hostile_der", "hostile_json"]

FRAGMENTS: Sequence[bytes] = (
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", "e\u0301".encode(), "\u2028".encode(), "\u202e".encode(), b'"', b"\\", b"\\u0000",
    b"\\ud800", b"{", b"}", b"[" * 40, b'{"a":' * 40, b",", b":", b"\n", b"\n\n", b"\r\n", b"\t", b" ", b"NaN", b"-Infinity", b"1e400",
    b"1.0", b"-0", b"0x10", b"00", b"9007199254740992", b"18446744073709551616", b"9" * 400, b"true", b"null", b"=", b"+", b"/", b"-",
    b"../", b"\xe2\x80\x94 ", b'"schema":1,', b'"__metadata__":{},',
)  # fmt: skip
VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, -(2**64), 10**400, 0.0, 1.5, float("inf"), float("nan"), "", "\x00",
    "x" * 5000, "e\u0301", "\ud800", "0" * 64, "A" * 64, "../x", [], {}, [[]], [0] * 300, {"a": {"a": {}}}, {"schema": "elmgrove.entry/v1"},
)  # fmt: skip


def _flip(draw: st.DrawFn, raw: bytes) -> bytes:
    spoiled = bytearray(raw)
    for place in draw(st.lists(st.integers(0, max(0, len(raw) - 1)), min_size=1, max_size=3)):
        if spoiled:
            spoiled[place] ^= draw(st.integers(1, 255))
    return bytes(spoiled)


def _piece(draw: st.DrawFn, raw: bytes) -> tuple[int, int]:
    begin = draw(st.integers(0, len(raw)))
    return begin, min(len(raw), begin + draw(st.integers(0, 64)))


def _cut(draw: st.DrawFn, raw: bytes) -> bytes:
    return raw[: draw(st.integers(0, len(raw)))]


def _drop(draw: st.DrawFn, raw: bytes) -> bytes:
    begin, end = _piece(draw, raw)
    return raw[:begin] + raw[end:]


def _double(draw: st.DrawFn, raw: bytes) -> bytes:
    begin, end = _piece(draw, raw)
    return raw[:end] + raw[begin:end] * draw(st.integers(1, 3)) + raw[end:]


def _insert(draw: st.DrawFn, raw: bytes) -> bytes:
    place = draw(st.integers(0, len(raw)))
    return raw[:place] + draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=8)) + raw[place:]


def _overwrite(draw: st.DrawFn, raw: bytes) -> bytes:
    begin, end = _piece(draw, raw)
    return raw[:begin] + draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=8)) + raw[end:]


_CHANGES = (_flip, _cut, _drop, _double, _insert, _overwrite)


@st.composite
def hostile_bytes(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """Random bytes, or a sample after one to three changes, or the beginning of one sample and the end of another."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=300))
    if kind == 1:
        first, second = draw(st.sampled_from(samples)), draw(st.sampled_from(samples))
        return first[: draw(st.integers(0, len(first)))] + second[draw(st.integers(0, len(second))) :]
    raw = draw(st.sampled_from(samples))
    for change in draw(st.lists(st.sampled_from(_CHANGES), min_size=1, max_size=3)):
        raw = change(draw, raw)
    return raw


# --- JSON ---------------------------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += _places(inner, (*path, key))
    return found


def _change_tree(draw: st.DrawFn, root: Any) -> Any:
    path = draw(st.sampled_from(_places(root)))
    if not path:
        return deepcopy(draw(st.sampled_from(VALUES))) if draw(st.integers(0, 9)) == 0 else root
    parent = root
    for step in path[:-1]:
        parent = parent[step]
    key, kind = path[-1], draw(st.sampled_from(["value", "delete", "wrap", "more", "twice"]))
    if kind == "value":
        parent[key] = deepcopy(draw(st.sampled_from(VALUES) | st.integers() | st.text(max_size=12)))
    elif kind == "delete":
        del parent[key]
    elif kind == "wrap":
        for _ in range(draw(st.integers(1, 20))):
            parent[key] = [parent[key]]
    elif kind == "more" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["extra", "schema", "_type", "", "\u017f", "__proto__"]) | st.text(max_size=4))] = deepcopy(parent[key])
    elif isinstance(parent, list):
        parent[key:key] = [deepcopy(parent[key]) for _ in range(draw(st.integers(1, 3)))]
    return root


@st.composite
def hostile_json(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """A JSON sample with values, keys or items changed, removed, nested or repeated, in some spelling; or :func:`hostile_bytes` of it."""
    if draw(st.booleans()):
        return draw(hostile_bytes(samples))
    value = json.loads(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        value = _change_tree(draw, value)
    text = json.dumps(value, indent=draw(st.sampled_from([None, None, 2])), ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


# --- DER ----------------------------------------------------------------------------------------------------------------------------

Node = list[Any]  # [tag, bytes | list of nodes]


def _read_der(raw: bytes) -> list[Node]:
    nodes: list[Node] = []
    place = 0
    while place < len(raw):
        tag, length, begin = raw[place], raw[place + 1], place + 2
        if length & 0x80:
            count = length & 0x7F
            length, begin = int.from_bytes(raw[begin : begin + count], "big"), begin + count
        body = raw[begin : begin + length]
        nodes.append([tag, _read_der(body) if tag & 0x20 else body])
        place = begin + length
    return nodes


def _write_der(nodes: list[Node]) -> bytes:
    out = b""
    for tag, content in nodes:
        body = content if isinstance(content, bytes) else _write_der(content)
        short = len(body) < 0x80
        size = bytes([len(body)]) if short else b"\x82" + len(body).to_bytes(2, "big")
        out += bytes([tag]) + size + body
    return out


def _all_nodes(nodes: list[Node]) -> list[tuple[list[Node], int]]:
    found = []
    for at, (_, content) in enumerate(nodes):
        found.append((nodes, at))
        if not isinstance(content, bytes):
            found += _all_nodes(content)
    return found


@st.composite
def hostile_der(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """A DER sample with nodes changed, removed, doubled, retagged or nested and every length put right; or :func:`hostile_bytes` of it."""
    if draw(st.integers(0, 2)) == 0:
        return draw(hostile_bytes(samples))
    tree = _read_der(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 2))):
        places = _all_nodes(tree)
        if not places:
            break
        nodes, at = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["tag", "body", "delete", "twice", "nest", "empty"]))
        if kind == "tag":
            nodes[at] = [draw(st.integers(0, 255)), nodes[at][1]]
        elif kind == "body":
            nodes[at] = [nodes[at][0], draw(st.binary(max_size=40))]
        elif kind == "delete":
            del nodes[at]
        elif kind == "twice":
            nodes.insert(at, nodes[at])
        elif kind == "nest":
            for _ in range(draw(st.integers(1, 60))):
                nodes[at] = [0x30, [nodes[at]]]
        else:
            nodes[at] = [nodes[at][0], b""]
    return _write_der(tree)
