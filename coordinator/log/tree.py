"""The log's Merkle tree in memory: the hashes of all complete subtrees (RFC 6962, section 2.1)."""

from __future__ import annotations

from common.translog.merkle import consistency_proof, inclusion_proof, leaf_hash, node_hash

__all__ = ["Tree"]


class Tree:
    """Grows by one leaf at a time; ``levels[l][i]`` is the hash of leaves ``i * 2**l`` to ``(i + 1) * 2**l``."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def add(self, entry: bytes) -> None:
        """Append the leaf of ``entry``."""
        carried, level = leaf_hash(entry), 0
        while True:
            row = self._levels[level]
            row.append(carried)
            if len(row) % 2:
                return
            carried = node_hash(row[-2], row[-1])
            level += 1
            if level == len(self._levels):
                self._levels.append([])

    def cut(self, size: int) -> None:
        """Drop every leaf from ``size`` on, and all that was built on them."""
        for level, row in enumerate(self._levels):
            del row[size >> level :]

    def node(self, level: int, index: int) -> bytes:
        """Hash of a complete subtree."""
        return self._levels[level][index]

    def root(self) -> bytes:
        """Root hash: complete subtrees from right to left, each joined to what is right of it."""
        size = self.size
        peaks = [self._levels[level][(size >> level) - 1] for level in range(size.bit_length()) if size >> level & 1]
        if not peaks:
            raise ValueError("an empty log has no checkpoint")
        joined = peaks[0]
        for peak in peaks[1:]:
            joined = node_hash(peak, joined)
        return joined

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Audit path of leaf ``index`` in the tree of the first ``size`` leaves."""
        return list(inclusion_proof(index, size, self.node))

    def consistency(self, old_size: int, size: int) -> list[bytes]:
        """Proof that the first ``old_size`` leaves are a prefix of the first ``size``."""
        return list(consistency_proof(old_size, size, self.node))
