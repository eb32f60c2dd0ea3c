"""The owner's documents: duplicates left out, a fixed part held out for measuring, and counts; nothing here keeps or logs their content."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.textdata.readers import read_texts

__all__ = ["DocumentCounts", "Part", "documents", "fingerprint", "is_held_out"]

Part = Literal["train", "heldout"]


@dataclass(slots=True)
class DocumentCounts:
    """What one pass over the files found."""

    kept: int = 0
    """Documents of the part that was asked for."""
    duplicates: int = 0
    """Documents left out because an earlier one is the same but for white space."""
    empty: int = 0
    """Documents without a visible character."""
    characters: int = 0
    """Length of the kept documents."""


def fingerprint(text: str) -> bytes:
    """16 bytes that are equal for texts that differ only in white space or Unicode composition."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


def is_held_out(mark: bytes, *, fraction: float, seed: int) -> bool:
    """Whether the document with fingerprint ``mark`` is in the held-out part: the same answer in every run and every file order."""
    drawn = hashlib.blake2b(mark, digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(drawn, "big") < fraction * 2**64


def documents(
    paths: Sequence[Path], *, part: Part, text_field: str, fraction: float, seed: int, counts: DocumentCounts | None = None
) -> Iterator[str]:
    """Yield the documents of one part, each text once, in the files' order.

    Args:
        paths: data files.
        part: ``"train"`` or ``"heldout"``; the two never share a document.
        text_field: field or column of the text.
        fraction: share of documents held out.
        seed: of the choice.
        counts: filled while reading.

    Raises:
        DataError, TextFieldError, MissingExtraError: as :func:`common.textdata.readers.read_texts`.
    """
    counts = counts if counts is not None else DocumentCounts()
    seen: set[bytes] = set()

    def skipped(_path: Path, _row: int, _reason: str) -> None:
        counts.empty += 1

    for text in read_texts(paths, text_field=text_field, on_skip=skipped):
        mark = fingerprint(text)
        if mark in seen:
            counts.duplicates += 1
            continue
        seen.add(mark)
        if is_held_out(mark, fraction=fraction, seed=seed) == (part == "heldout"):
            counts.kept += 1
            counts.characters += len(text)
            yield text
