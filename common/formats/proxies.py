"""The list of proxy documents that an owner chooses for an expert: JSON lines of digests of public texts (``docs/formats.md``, 10)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from common.errors import FormatError, LimitError
from common.formats.fields import Digest, Name
from common.formats.limits import MAX_DOCUMENT_BYTES, MAX_PROXIES
from common.formats.strictjson import Document, parse_document

__all__ = ["ProxyList", "encode_proxies", "parse_proxies", "text_digest"]

_LINE_BYTES = 512  # bytes; the longest line is the first


class ProxyList(Document):
    """First line of the list. One line ``{"sha256": ...}`` follows for each document, the best first."""

    schema_: Literal["elmgrove.proxies/v1"] = Field(alias="schema")
    expert: Name
    anchor: Digest
    count: Annotated[int, Field(ge=1, le=MAX_PROXIES)]

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class _Line(Document):
    sha256: Digest


def text_digest(text: str) -> str:
    """What names a public document: the SHA-256 of its text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def encode_proxies(expert: str, anchor: str, digests: Sequence[str]) -> bytes:
    """The bytes of a list.

    Args:
        expert: whose proxies they are.
        anchor: digest of the anchor whose public sample they were chosen from.
        digests: :func:`text_digest` of every document, the best first.

    Raises:
        FormatError: a field has no valid form, or a document is named twice.
    """
    first = {"schema": "elmgrove.proxies/v1", "expert": expert, "anchor": anchor, "count": len(digests)}
    lines = [first, *({"sha256": digest} for digest in digests)]
    raw = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode("ascii")
    parse_proxies(raw)
    return raw


def parse_proxies(raw: bytes) -> tuple[ProxyList, tuple[str, ...]]:
    """Read a list: its first line, and the documents' digests in order.

    Raises:
        FormatError: malformed, another number of lines than it says, or a document twice.
        LimitError: too large.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise LimitError(f"A list of proxies has more than {MAX_DOCUMENT_BYTES} bytes.")
    if not raw.endswith(b"\n"):
        raise FormatError("The list of proxies does not end with a whole line.")
    first, *rest = raw.split(b"\n")[:-1]
    head = parse_document(ProxyList, first, max_bytes=_LINE_BYTES)
    digests = tuple(parse_document(_Line, line, max_bytes=_LINE_BYTES).sha256 for line in rest)
    if len(digests) != head.count or len(set(digests)) != head.count:
        raise FormatError(f"The list of proxies does not hold {head.count} distinct documents.")
    return head, digests
