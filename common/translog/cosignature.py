"""C2SP tlog-cosignature v1 with Ed25519: a witness says that it saw a checkpoint, and when, and that it continued all it saw before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import FormatError, LimitError, SignatureError
from common.formats.fields import check_name
from common.formats.strictjson import b64encode
from common.translog.checkpoint import parse_checkpoint
from common.translog.note import ALG_COSIGNATURE, encode_vkey, parse_note, parse_vkey

__all__ = ["VerifiedCosignature", "cosign", "verify_cosignature", "with_cosignature", "witness_name", "witness_vkey"]

_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64
_MAX_TIME: Final = 253_402_300_799  # seconds; the end of the year 9999, the last that a datetime can say


@dataclass(frozen=True, slots=True)
class VerifiedCosignature:
    """A witness's word about a checkpoint; made by :func:`verify_cosignature` alone."""

    name: str
    time: datetime


def witness_name(consortium: str, owner: str) -> str:
    """The name that an owner's witness key signs under."""
    return f"elmgrove/{check_name(consortium, 'consortium')}/witness/{check_name(owner, 'owner')}"


def witness_vkey(name: str, key: Ed25519PrivateKey) -> str:
    """Spell a witness's verifier key; its kind differs from a log's, so that neither can stand for the other."""
    return encode_vkey(name, key.public_key(), algorithm=ALG_COSIGNATURE)


def cosign(note: bytes, name: str, key: Ed25519PrivateKey, time: datetime) -> str:
    """The signature line of witness ``name`` under a checkpoint.

    The caller has verified the log's signature and the consistency with the last checkpoint it cosigned, and has stored this one.

    Raises:
        FormatError: the note is no checkpoint, the name cannot be a key's, or the time is before 1970.
        LimitError: the note is too large.
    """
    text = _checkpoint_text(note)
    vkey = parse_vkey(witness_vkey(name, key))
    seconds = int(time.timestamp())
    if not 0 < seconds <= _MAX_TIME:
        raise FormatError("A cosignature's time lies after 1970.")
    signature = key.sign(_message(text, seconds))
    blob = vkey.key_id.to_bytes(4, "big") + seconds.to_bytes(_TIME_BYTES, "big") + signature
    return f"\u2014 {name} {b64encode(blob)}\n"


def with_cosignature(note: bytes, line: str, vkey: str) -> bytes | None:
    """The checkpoint with one more cosignature, in the place of an older one of the same key.

    Returns:
        The new note; the same one if it holds a newer cosignature of this key; None if it has no room for one more line.

    Raises:
        FormatError: the line is no signature line, or the key is not a witness's.
        SignatureError: the line is not this key's over this checkpoint.
    """
    head, separator, block = note.rpartition(b"\n\n")
    added = verify_cosignature(head + separator + line.encode("utf-8"), vkey)
    key = parse_vkey(vkey)
    lines = list(zip(parse_note(note)[1], block.splitlines(keepends=True), strict=True))
    others = b"".join(raw for known, raw in lines if (known.name, known.key_id) != (key.name, key.key_id))
    if len(others) < len(block) and verify_cosignature(note, vkey).time > added.time:
        return note
    joined = head + separator + others + line.encode("utf-8")
    try:
        parse_note(joined)
    except LimitError:
        return None
    return joined


def verify_cosignature(note: bytes, vkey: str) -> VerifiedCosignature:
    """Verify the line of one witness under a checkpoint.

    (1) the note is a checkpoint; (2) the key is a witness's; (3) the note carries exactly one line of it; (4) the signature holds over
    the checkpoint and the time the line states. The caller verifies the log's own signature, and decides how many witnesses it wants.

    Raises:
        FormatError, LimitError: (1) or (2) failed.
        SignatureError: (3) or (4) failed.
    """
    text = _checkpoint_text(note)  # (1)
    key = parse_vkey(vkey)
    if key.algorithm != ALG_COSIGNATURE:  # (2)
        raise FormatError("The verifier key is not a witness's.")
    lines = [line.signature for line in parse_note(note)[1] if (line.name, line.key_id) == (key.name, key.key_id)]
    if len(lines) != 1 or len(lines[0]) != _TIME_BYTES + _SIGNATURE_BYTES:  # (3)
        raise SignatureError(f"The checkpoint does not carry exactly one cosignature of {key.name}.")
    seconds = int.from_bytes(lines[0][:_TIME_BYTES], "big")
    if not 0 < seconds <= _MAX_TIME:
        raise SignatureError(f"The cosignature of {key.name} states no time.")
    try:  # (4)
        key.public_key().verify(lines[0][_TIME_BYTES:], _message(text, seconds))
    except InvalidSignature as error:
        raise SignatureError(f"The cosignature of {key.name} does not hold.") from error
    return VerifiedCosignature(name=key.name, time=datetime.fromtimestamp(seconds, UTC))


def _checkpoint_text(note: bytes) -> str:
    text = parse_note(note)[0]
    parse_checkpoint(text)
    return text


def _message(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()
