"""C2SP tlog-tiles: where hashes and entries lie as static files, and how entry bundles are encoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from common.errors import FormatError
from common.formats.limits import MAX_ENTRY_BYTES

__all__ = ["TILE_HEIGHT", "TILE_WIDTH", "Tile", "encode_entries", "entries_path", "parse_entries", "tile_path", "tiles_for"]

TILE_WIDTH: Final = 256  # hashes in a full tile, entries in a full bundle
TILE_HEIGHT: Final = 8  # binary levels of the tree in one level of tiles
_MAX_LEVEL: Final = 63
_LENGTH_BYTES: Final = 2

Tile = tuple[int, int, int]
"""``(level, index, width)``."""


def _number(index: int, width: int) -> str:
    if index < 0 or not 1 <= width <= TILE_WIDTH:
        raise FormatError("There is no such tile.")
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups)) + ("" if width == TILE_WIDTH else f".p/{width}")


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """``tile/LEVEL/N[.p/W]``: tile 1234067 lies at ``x001/x234/067``.

    Raises:
        FormatError: no such tile.
    """
    if not 0 <= level <= _MAX_LEVEL:
        raise FormatError("There is no such tile.")
    return f"tile/{level}/{_number(index, width)}"


def entries_path(index: int, width: int = TILE_WIDTH) -> str:
    """``tile/entries/N[.p/W]``, the bundle of entries ``index * 256`` and following.

    Raises:
        FormatError: no such bundle.
    """
    return f"tile/entries/{_number(index, width)}"


def tiles_for(size: int) -> Iterator[Tile]:
    """Every non-empty hash tile of a tree of ``size`` leaves, level by level; the last of a level may be partial."""
    level, count = 0, size
    while count > 0:
        for index in range(-(-count // TILE_WIDTH)):
            yield level, index, min(TILE_WIDTH, count - index * TILE_WIDTH)
        level, count = level + 1, count // TILE_WIDTH


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """An entry bundle: each entry after its length as two bytes, big-endian.

    Raises:
        FormatError: an entry is empty or longer than we allow.
    """
    if any(not 0 < len(entry) <= MAX_ENTRY_BYTES for entry in entries):
        raise FormatError("A log entry is empty or too long.")
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def parse_entries(raw: bytes) -> list[bytes]:
    """Split an entry bundle.

    Raises:
        FormatError: it is cut, too long, or holds an entry that is empty or longer than we allow.
    """
    entries: list[bytes] = []
    position = 0
    while position < len(raw):
        if position + _LENGTH_BYTES > len(raw) or len(entries) == TILE_WIDTH:
            raise FormatError("An entry bundle is malformed.")
        (length,) = struct.unpack_from(">H", raw, position)
        position += _LENGTH_BYTES
        if not 0 < length <= MAX_ENTRY_BYTES or position + length > len(raw):
            raise FormatError("An entry bundle is malformed.")
        entries.append(raw[position : position + length])
        position += length
    return entries
