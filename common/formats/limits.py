"""Limits on everything a stranger sends: one named constant each, with its unit and its reason (``docs/formats.md``, section 1)."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CHUNK_BYTES",
    "MAX_BUNDLE_BYTES",
    "MAX_DOCUMENT_BYTES",
    "MAX_ENTRY_BYTES",
    "MAX_FILES",
    "MAX_JSON_DEPTH",
    "MAX_JSON_NODES",
    "MAX_PART_BYTES",
    "MAX_PROXIES",
    "MAX_SAFETENSORS_HEADER_BYTES",
    "MAX_TENSORS",
    "MAX_TEXT",
]

CHUNK_BYTES: Final = 16 * 1024 * 1024  # bytes; the unit that is digested, sent and resumed
MAX_PART_BYTES: Final = 512 * 1024 * 1024  # bytes; parts this size hash and travel in parallel
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024  # bytes; a 7B anchor's manifest is about 0.3 MiB
MAX_BUNDLE_BYTES: Final = 4 * 1024 * 1024  # bytes; a bundle lists one digest per file, base64 adds a third
MAX_ENTRY_BYTES: Final = 2048  # bytes; tlog-tiles allows 65,535, a fixed record needs under 400
MAX_FILES: Final = 4096  # files in one folder
MAX_TENSORS: Final = 65_536  # tensors in one folder
MAX_PROXIES: Final = 20_000  # documents in one list: the list is a function of private text, so it is kept short
MAX_JSON_DEPTH: Final = 16  # levels; our documents need 5
MAX_JSON_NODES: Final = 1_000_000  # values; bounds the time of a hostile document
MAX_SAFETENSORS_HEADER_BYTES: Final = 8 * 1024 * 1024  # bytes; 65,536 tensors at about 120 bytes
MAX_TEXT: Final = 4096  # characters in one free-text field
