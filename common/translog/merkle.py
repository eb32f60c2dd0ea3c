"""Merkle tree hashing and proofs of RFC 6962, section 2.1 (the same as RFC 9162, section 2.1).

A *node* function gives the hash of a complete subtree: ``node(level, index)`` covers leaves ``index * 2**level`` up to
``(index + 1) * 2**level``. Proofs need nothing else, so they work on a list, a database or tiles alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from common.errors import LogError, LogInconsistentError

__all__ = [
    "HASH_BYTES",
    "NodeLookup",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "nodes_of",
    "root_hash",
    "subtree_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_BYTES: Final = 32
_MAX_PROOF: Final = 64  # hashes; a tree of 2**63 leaves needs no more

NodeLookup = Callable[[int, int], bytes]
"""``(level, index)`` to the hash of a complete subtree."""


def leaf_hash(data: bytes) -> bytes:
    """``SHA-256(0x00 || data)``."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """``SHA-256(0x01 || left || right)``."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_hash(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root of a tree of these leaf hashes; of no leaves, the hash of nothing."""
    if not leaf_hashes:
        return hashlib.sha256(b"").digest()
    peaks: list[tuple[int, bytes]] = []
    for leaf in leaf_hashes:
        level, carried = 0, leaf
        while peaks and peaks[-1][0] == level:
            carried = node_hash(peaks.pop()[1], carried)
            level += 1
        peaks.append((level, carried))
    joined = peaks.pop()[1]
    while peaks:
        joined = node_hash(peaks.pop()[1], joined)
    return joined


def nodes_of(leaf_hashes: Sequence[bytes]) -> NodeLookup:
    """A node function over a list, each level computed once."""
    levels = [list(leaf_hashes)]
    while len(levels[-1]) > 1:
        row = levels[-1]
        levels.append([node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)])
    return lambda level, index: levels[level][index]


def subtree_hash(start: int, end: int, node: NodeLookup) -> bytes:
    """Hash of the leaves ``start`` to ``end``, where ``start`` is a multiple of the largest power of two in ``end - start``."""
    level = (end - start).bit_length() - 1
    if end - start == 1 << level:
        return node(level, start >> level)
    split = start + _split(end - start)
    return node_hash(subtree_hash(start, split, node), subtree_hash(split, end, node))


def _split(size: int) -> int:
    """The largest power of two below ``size`` (``size`` at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(index: int, size: int, node: NodeLookup) -> list[bytes]:
    """``PATH(index, D[0:size])``, from the leaf upwards.

    Raises:
        LogError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise LogError(f"A log of {size} entries has no entry {index}.")
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            proof.append(subtree_hash(split, end, node))
            end = split
        else:
            proof.append(subtree_hash(start, split, node))
            start = split
    return proof[::-1]


def consistency_proof(old: int, new: int, node: NodeLookup) -> list[bytes]:
    """``PROOF(old, D[0:new])``; empty when the sizes are equal.

    Raises:
        LogError: the sizes are not ``0 < old <= new``.
    """
    if not 0 < old <= new:
        raise LogError(f"There is no consistency proof from size {old} to size {new}.")
    proof: list[bytes] = []
    start, end, whole = 0, new, True
    while old != end:
        split = start + _split(end - start)
        if old <= split:
            proof.append(subtree_hash(split, end, node))
            end = split
        else:
            proof.append(subtree_hash(start, split, node))
            start, whole = split, False
    if not whole:
        proof.append(subtree_hash(start, end, node))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Verify that ``leaf`` (a leaf hash) stands at ``index`` in the tree of ``size`` leaves with this root (RFC 9162, 2.1.3.2).

    Raises:
        LogError: the proof does not lead there, or has the wrong form.
    """
    _check_hashes([leaf, root, *proof])
    if not 0 <= index < size:
        raise LogError("The inclusion proof's index lies outside its tree.")
    first, last, joined = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise LogError("The inclusion proof is too long.")
        if first & 1 or first == last:
            joined = node_hash(sibling, joined)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            joined = node_hash(joined, sibling)
        first, last = first >> 1, last >> 1
    if last != 0 or joined != root:
        raise LogError("The inclusion proof does not lead to the checkpoint's root.")


def verify_consistency(old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Verify that the tree of ``old_size`` leaves is a prefix of the tree of ``new_size`` (RFC 9162, 2.1.4.2).

    Raises:
        LogInconsistentError: the newer tree is smaller, differs at the same size, or the proof does not connect the two roots.
        LogError: the proof has the wrong form, or the older tree is empty.
    """
    _check_hashes([old_root, new_root, *proof])
    if old_size <= 0:
        raise LogError("Consistency is defined from a tree that has at least one entry.")
    if new_size < old_size:
        raise LogInconsistentError(f"The log shrank from {old_size} entries to {new_size}.")
    if new_size == old_size:
        if proof:
            raise LogError("A consistency proof between equal sizes must be empty.")
        if old_root != new_root:
            raise LogInconsistentError(f"The log shows two different histories of {old_size} entries.")
        return
    _connect(old_size, new_size, list(proof), old_root, new_root)


def _connect(old_size: int, new_size: int, path: list[bytes], old_root: bytes, new_root: bytes) -> None:
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise LogError("The consistency proof is empty.")
    first, last = old_size - 1, new_size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old_joined = new_joined = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise LogError("The consistency proof is too long.")
        if first & 1 or first == last:
            old_joined = node_hash(sibling, old_joined)
            new_joined = node_hash(sibling, new_joined)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new_joined = node_hash(new_joined, sibling)
        first, last = first >> 1, last >> 1
    if last != 0 or old_joined != old_root or new_joined != new_root:
        raise LogInconsistentError(f"The log of {new_size} entries does not continue the log of {old_size} entries that was seen before.")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > _MAX_PROOF + 2 or any(len(each) != HASH_BYTES for each in hashes):
        raise LogError("A proof must be at most 64 hashes of 32 bytes.")
