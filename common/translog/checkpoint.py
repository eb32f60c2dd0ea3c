"""C2SP tlog-checkpoint v1.0.0: a signed note of origin, size and root hash. We write no extension lines and accept none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import FormatError, LogError, SignatureError
from common.formats.fields import check_name
from common.formats.strictjson import b64decode_canonical, b64encode
from common.translog.merkle import HASH_BYTES
from common.translog.note import open_note, parse_vkey, sign_note

__all__ = ["Checkpoint", "encode_checkpoint", "log_origin", "parse_checkpoint", "sign_checkpoint", "verify_checkpoint"]

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_SIZE: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree: whose, how many entries, and its root hash of 32 bytes."""

    origin: str
    size: int
    root: bytes


def log_origin(consortium: str) -> str:
    """The name of a consortium's log: first line of its checkpoints, and name of its key."""
    return f"elmgrove/{check_name(consortium, 'consortium')}/log"


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """The note's text."""
    return f"{checkpoint.origin}\n{checkpoint.size}\n{b64encode(checkpoint.root)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a note's text.

    Raises:
        FormatError: not three lines of origin, size and root.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]) or int(lines[1]) > _MAX_SIZE:
        raise FormatError("The checkpoint is malformed.")
    root = b64decode_canonical(lines[2])
    if len(root) != HASH_BYTES:
        raise FormatError("The checkpoint's root hash does not have 32 bytes.")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=root)


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> bytes:
    """Sign a checkpoint under its own origin."""
    return sign_note(encode_checkpoint(checkpoint), checkpoint.origin, key)


def verify_checkpoint(raw: bytes, vkey: str) -> Checkpoint:
    """Verify a checkpoint's signature by the log's key and read it.

    Raises:
        FormatError, LimitError: the note, checkpoint or key is malformed.
        LogError: not signed by that key, or of another log.
    """
    key = parse_vkey(vkey)
    try:
        checkpoint = parse_checkpoint(open_note(raw, [key]).text)
    except SignatureError as error:
        raise LogError(f"The log's checkpoint does not hold: {error}") from error
    if checkpoint.origin != key.name:
        raise LogError("The checkpoint is of another log than its key.")
    return checkpoint
