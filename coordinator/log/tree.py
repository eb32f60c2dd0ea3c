"""The right edge of the log's Merkle tree: all that appending to it and knowing its root needs (RFC 6962, section 2.1; C2SP tlog-tiles)."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import LogError
from common.translog.merkle import root_hash
from common.translog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile

__all__ = ["TileContent", "TreeEdge"]

TileContent = tuple[Tile, bytes]
"""A hash tile's place and its bytes."""


class TreeEdge:
    """For every level of tiles, the hashes of its last tile that is not full: at most 255 a level, however long the log is.

    Args:
        rows: these hashes, level 0 first; of an empty tree by default.
        size: number of leaves.
    """

    def __init__(self, rows: Sequence[Sequence[bytes]] = ((),), size: int = 0) -> None:
        self._rows = [list(row) for row in rows]
        self._size = size

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """Leaf hashes of the last bundle of entries that is not full."""
        return tuple(self._rows[0])

    def copy(self) -> TreeEdge:
        """An independent copy."""
        return TreeEdge(self._rows, self._size)

    def add(self, leaf: bytes) -> list[TileContent]:
        """Append a leaf hash and return the tiles that it filled, lowest level first."""
        self._rows[0].append(leaf)
        self._size += 1
        filled: list[TileContent] = []
        level = 0
        while len(row := self._rows[level]) == TILE_WIDTH:
            filled.append(((level, (self._size >> TILE_HEIGHT * (level + 1)) - 1, TILE_WIDTH), b"".join(row)))
            if level + 1 == len(self._rows):
                self._rows.append([])
            self._rows[level + 1].append(root_hash(row))
            row.clear()
            level += 1
        return filled

    def partial(self) -> list[TileContent]:
        """The tiles that are begun and not full, lowest level first."""
        return [((level, self._size >> TILE_HEIGHT * (level + 1), len(row)), b"".join(row)) for level, row in enumerate(self._rows) if row]

    def root(self) -> bytes:
        """Root hash: what is right of a level's complete subtrees joins them as one more.

        Raises:
            LogError: the tree is empty.
        """
        if not self._size:
            raise LogError("An empty log has no root that is signed.")
        right: list[bytes] = []
        for row in self._rows:
            hashes = [*row, *right]
            right = [root_hash(hashes)] if hashes else []
        return right[0]
