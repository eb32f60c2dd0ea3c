"""Receipts: C2SP tlog-proof v1, an inclusion proof together with the signed checkpoint it leads to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import FormatError, LimitError
from common.formats.strictjson import b64decode_canonical, b64encode
from common.translog.checkpoint import Checkpoint, verify_checkpoint
from common.translog.merkle import HASH_BYTES, leaf_hash, verify_inclusion

__all__ = ["Receipt", "VerifiedReceipt", "encode_receipt", "parse_receipt", "verify_receipt"]

_MAGIC: Final = "c2sp.org/tlog-proof@v1"
_MAX_BYTES: Final = 64 * 1024  # bytes; a proof in a log of a billion entries has under 2 KiB
_MAX_HASHES: Final = 64
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt's parts, not verified; ``checkpoint`` is the signed note."""

    index: int
    proof: tuple[bytes, ...]
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """The entry is at ``index`` of the log that ``checkpoint`` describes; made by :func:`verify_receipt` alone."""

    index: int
    checkpoint: Checkpoint


def encode_receipt(index: int, proof: Sequence[bytes], checkpoint: bytes) -> bytes:
    """Write a receipt: ``checkpoint`` is the signed note, ``proof`` runs from the leaf to the root."""
    hashes = "".join(b64encode(each) + "\n" for each in proof)
    return f"{_MAGIC}\nindex {index}\n{hashes}\n".encode("ascii") + checkpoint


def parse_receipt(raw: bytes) -> Receipt:
    """Split a receipt, verifying nothing.

    Raises:
        LimitError: too large.
        FormatError: malformed.
    """
    if len(raw) > _MAX_BYTES:
        raise LimitError(f"A receipt of {len(raw)} bytes exceeds the limit of {_MAX_BYTES}.")
    head, separator, checkpoint = raw.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError("The receipt is malformed.") from error
    match = _INDEX.fullmatch(lines[1]) if len(lines) >= 2 else None
    if not separator or lines[0] != _MAGIC or match is None or len(lines) - 2 > _MAX_HASHES:
        raise FormatError("The receipt is malformed.")
    proof = tuple(b64decode_canonical(line) for line in lines[2:])
    if any(len(each) != HASH_BYTES for each in proof):
        raise FormatError("A hash of the receipt does not have 32 bytes.")
    return Receipt(index=int(match.group(1)), proof=proof, checkpoint=checkpoint)


def verify_receipt(raw: bytes, entry: bytes, vkey: str) -> VerifiedReceipt:
    """Verify that a log's signed checkpoint includes ``entry``.

    (1) the receipt has the right form; (2) the log's key signed the checkpoint; (3) the proof leads from the entry to its root.

    Raises:
        FormatError, LimitError: (1) failed.
        LogError: (2) or (3) failed.
    """
    receipt = parse_receipt(raw)  # (1)
    checkpoint = verify_checkpoint(receipt.checkpoint, vkey)  # (2)
    verify_inclusion(leaf_hash(entry), receipt.index, checkpoint.size, receipt.proof, checkpoint.root)  # (3)
    return VerifiedReceipt(index=receipt.index, checkpoint=checkpoint)
