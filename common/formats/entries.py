"""The log entry: a small fixed record that names a signed document by its digest (``docs/formats.md``, section 8)."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from common.errors import FormatError
from common.formats.fields import Digest, Timestamp
from common.formats.limits import MAX_ENTRY_BYTES
from common.formats.strictjson import Document, parse_document

__all__ = ["EntryKind", "LogEntry", "encode_entry", "parse_entry"]

EntryKind = Literal[
    "consortium-founded",
    "owner-admitted",
    "owner-revoked",
    "anchor-published",
    "expert-accepted",
    "expert-withdrawn",
    "model-assembled",
    "router-tuned",
    "witness-registered",
]

Subject = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[a-z0-9@-]{1,80}$", max_length=96)]


class LogEntry(Document):
    """One fact of the consortium.

    ``document`` is the SHA-256 of the signed bytes the entry stands for: an OMS bundle for an anchor or expert, a statement
    envelope for everything else. The document lies beside the log, in ``documents/``.
    """

    schema_: Literal["elmgrove.entry/v1"] = Field(alias="schema")
    kind: EntryKind
    subject: Subject
    document: Digest
    time: Timestamp

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


def encode_entry(entry: LogEntry) -> bytes:
    """The one encoding of an entry: compact JSON, keys in field order, ASCII."""
    return json.dumps(entry.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=True).encode("ascii")


def parse_entry(raw: bytes) -> LogEntry:
    """Parse the bytes of a log leaf.

    Raises:
        FormatError: malformed, or not in the one encoding, so that one fact has one leaf hash.
        LimitError: longer than ``MAX_ENTRY_BYTES``.
    """
    entry = parse_document(LogEntry, raw, max_bytes=MAX_ENTRY_BYTES)
    if encode_entry(entry) != raw:
        raise FormatError("A log entry is not in its canonical encoding.")
    return entry
