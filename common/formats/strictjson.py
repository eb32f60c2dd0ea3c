"""The one strict JSON loader: RFC 8259 minus everything two parsers could read differently (``docs/formats.md``, section 1).

Refused: a byte-order mark, any encoding but UTF-8, duplicate keys, floats and exponents, NaN and Infinity, integers beyond
2**53 - 1, lone surrogates, nesting deeper than ``MAX_JSON_DEPTH``, documents larger than their limit.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import FormatError, LimitError
from common.formats.limits import MAX_DOCUMENT_BYTES, MAX_JSON_DEPTH, MAX_JSON_NODES

__all__ = ["Document", "b64decode_canonical", "b64encode", "canonical_bytes", "first_fault", "loads_strict", "parse_document", "printable"]

_MAX_QUOTED = 80  # characters of one key in a message
_MAX_MESSAGE = 300  # characters
_TEXT = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # also one that never ends, so that the search stays linear
_BRACKET = re.compile(r"[\[\]{}]")
_MAX_SAFE_INTEGER = 2**53 - 1  # the largest integer every JSON reader agrees on (RFC 8259, section 6)


class Document(BaseModel):
    """Base of every typed document: frozen, no unknown fields, no coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


DocumentT = TypeVar("DocumentT", bound=Document)


def _refuse_constant(name: str) -> NoReturn:
    raise FormatError(f"JSON holds {name}, which is not a JSON value.")


def _refuse_float(_text: str) -> NoReturn:
    raise FormatError("JSON holds a number with a fraction or exponent; only integers are allowed.")


def _parse_int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _MAX_SAFE_INTEGER or text == "-0":
        raise FormatError("JSON holds an integer that not every reader can represent.")
    return int(text)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("JSON object holds the same key twice.")
    return result


def _check_texts(value: Any) -> None:
    """Walk the parsed value without recursion and refuse what is not Unicode text."""
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, dict):
            for key, inner in item.items():
                _check_text(key)
                stack.append(inner)
        elif isinstance(item, list):
            stack.extend(item)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError("JSON holds a lone surrogate, which is not Unicode text.") from error


def _check_structure(text: str) -> None:
    """Refuse what is nested too deep or has too many values, before a recursive parser makes objects of them."""
    structure = _TEXT.sub("", text)
    if sum(structure.count(mark) for mark in ",[{") > MAX_JSON_NODES:
        raise LimitError(f"JSON holds more than {MAX_JSON_NODES} values.")
    depth = 0
    for match in _BRACKET.finditer(structure):
        depth += 1 if match.group() in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise LimitError(f"JSON is nested deeper than {MAX_JSON_DEPTH} levels.")


def loads_strict(raw: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """Parse JSON bytes that a stranger sent.

    Args:
        raw: the whole document, UTF-8 without a byte-order mark.
        max_bytes: largest accepted size in bytes.

    Returns:
        ``dict``, ``list``, ``str``, ``int``, ``bool`` or ``None``.

    Raises:
        LimitError: the document is too large or too deep.
        FormatError: the bytes are not strict JSON; the message says why, without quoting the document.
    """
    if len(raw) > max_bytes:
        raise LimitError(f"A document of {len(raw)} bytes exceeds the limit of {max_bytes}.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"JSON is not UTF-8 at byte {error.start}.") from error
    if text.startswith("\ufeff"):
        raise FormatError("JSON begins with a byte-order mark.")
    _check_structure(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_object,
            parse_constant=_refuse_constant,
            parse_float=_refuse_float,
            parse_int=_parse_int,
        )
    except json.JSONDecodeError as error:
        raise FormatError(f"JSON is malformed at line {error.lineno}, column {error.colno}.") from error
    _check_texts(value)
    return value


def parse_document(kind: type[DocumentT], raw: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> DocumentT:
    """Parse and validate a typed document.

    Raises:
        FormatError: not strict JSON, or a field is missing, unknown, or of the wrong type or form. The first fault is named by its place.
        LimitError: too large or too deep.
    """
    loads_strict(raw, max_bytes=max_bytes)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise FormatError(f"{kind.__name__}: {first_fault(error)}.") from error


def first_fault(error: ValidationError) -> str:
    """Where a document's first fault is, and what it is. Keys and values in it are a stranger's, so they are cut and made printable."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part)[:_MAX_QUOTED] for part in first["loc"]) or "the document"
    return f"{printable(place, _MAX_MESSAGE)}: {printable(first['msg'], _MAX_MESSAGE)}"


def printable(text: str, limit: int) -> str:
    """The first ``limit`` characters of what a stranger wrote, fit for a terminal: control characters are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:limit])


def canonical_bytes(document: Document) -> bytes:
    """Encode a document we are about to sign: keys in field order, two-space indent, UTF-8, final newline.

    Only writers call this. Nothing is ever re-encoded to be checked: verification works on the bytes as they came.
    """
    return (document.model_dump_json(indent=2) + "\n").encode("utf-8")


def b64encode(raw: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(raw).decode("ascii")


def b64decode_canonical(text: str) -> bytes:
    """Decode standard base64 and refuse every spelling but the canonical one.

    Raises:
        FormatError: other alphabet, missing or surplus padding, white space, or non-zero trailing bits.
    """
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise FormatError("A base64 text is malformed.") from error
    if b64encode(raw) != text:
        raise FormatError("A base64 text is not in canonical form.")
    return raw
