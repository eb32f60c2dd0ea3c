"""C2SP signed notes v1.0.0 with Ed25519 keys: a text and lines of signatures, and the spelling of verifier keys."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import FormatError, LimitError, SignatureError
from common.formats.strictjson import b64decode_canonical, b64encode

__all__ = [
    "ALG_COSIGNATURE",
    "ALG_ED25519",
    "NoteSignature",
    "VerifiedNote",
    "VerifierKey",
    "encode_vkey",
    "open_note",
    "parse_note",
    "parse_vkey",
    "sign_note",
]

ALG_ED25519: Final = 0x01
ALG_COSIGNATURE: Final = 0x04
_MAX_NOTE_BYTES: Final = 64 * 1024  # bytes; a checkpoint with 16 cosignatures has about 3 KiB
_MAX_SIGNATURES: Final = 100  # lines; what the Go implementation accepts
_KEY_BYTES: Final = 32
_REFUSED_IN_TEXT = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
_NAME_CHARACTER: Final = r"[^\s+\x00-\x1f\x7f\ud800-\udfff]"
_NAME = re.compile(_NAME_CHARACTER + "{1,255}")
_SIGNATURE_LINE = re.compile(rf"\u2014 ({_NAME_CHARACTER}+) ([A-Za-z0-9+/]+={{0,2}})")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name it signs under."""

    name: str
    algorithm: int
    public_bytes: bytes
    key_id: int

    def public_key(self) -> Ed25519PublicKey:
        """The Ed25519 key itself."""
        return Ed25519PublicKey.from_public_bytes(self.public_bytes)


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One line of a note, not verified: the key it claims, and the signature's bytes after the key id."""

    name: str
    key_id: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedNote:
    """A text under which at least one of the asked-for keys has signed; made by :func:`open_note` alone."""

    text: str
    signers: tuple[str, ...]


def _key_id(name: str, algorithm: int, public_bytes: bytes) -> int:
    return int.from_bytes(hashlib.sha256(name.encode() + b"\n" + bytes([algorithm]) + public_bytes).digest()[:4], "big")


def encode_vkey(name: str, key: Ed25519PublicKey, *, algorithm: int = ALG_ED25519) -> str:
    """Spell a verifier key: ``NAME+KEYID+BASE64``.

    Raises:
        FormatError: the name is empty, too long, or holds white space, control characters or ``+``.
    """
    if not _NAME.fullmatch(name):
        raise FormatError("A verifier key's name may not hold white space, control characters or a plus sign.")
    raw = key.public_bytes_raw()
    return f"{name}+{_key_id(name, algorithm, raw):08x}+{b64encode(bytes([algorithm]) + raw)}"


def parse_vkey(text: str) -> VerifierKey:
    """Read a verifier key.

    Raises:
        FormatError: malformed, an unknown algorithm, or a key id that does not follow from the rest.
    """
    parts = text.split("+", 2)
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not re.fullmatch(r"[0-9a-f]{8}", parts[1]):
        raise FormatError("The verifier key is malformed.")
    raw = b64decode_canonical(parts[2])
    if len(raw) != 1 + _KEY_BYTES or raw[0] not in {ALG_ED25519, ALG_COSIGNATURE}:
        raise FormatError("The verifier key is of an unknown kind.")
    key_id = _key_id(parts[0], raw[0], raw[1:])
    if key_id != int(parts[1], 16):
        raise FormatError("The verifier key's id does not follow from its name and key.")
    return VerifierKey(name=parts[0], algorithm=raw[0], public_bytes=raw[1:], key_id=key_id)


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> bytes:
    """Sign a text, which must end with a line feed, under a name.

    Raises:
        FormatError: the text or name cannot be signed.
    """
    _check_text(text)
    vkey = parse_vkey(encode_vkey(name, key.public_key()))
    blob = vkey.key_id.to_bytes(4, "big") + key.sign(text.encode("utf-8"))
    return f"{text}\n\u2014 {name} {b64encode(blob)}\n".encode()


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _REFUSED_IN_TEXT.search(text):
        raise FormatError("A note's text must end with a line feed and hold no control characters.")


def parse_note(raw: bytes) -> tuple[str, list[NoteSignature]]:
    """Split a note into its text and its signature lines, verifying nothing.

    Raises:
        LimitError: too large, or too many signatures.
        FormatError: malformed.
    """
    if len(raw) > _MAX_NOTE_BYTES:
        raise LimitError(f"A note of {len(raw)} bytes exceeds the limit of {_MAX_NOTE_BYTES}.")
    try:
        whole = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("The note is not UTF-8.") from error
    split = whole.rfind("\n\n")
    if split < 0 or not whole.endswith("\n"):
        raise FormatError("The note has no signatures.")
    text, lines = whole[: split + 1], whole[split + 2 : -1].split("\n")
    _check_text(text)
    if len(lines) > _MAX_SIGNATURES:
        raise LimitError(f"The note has more than {_MAX_SIGNATURES} signatures.")
    return text, [_signature(line) for line in lines]


def _signature(line: str) -> NoteSignature:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None:
        raise FormatError("A signature line of the note is malformed.")
    blob = b64decode_canonical(match.group(2))
    if len(blob) < 5:
        raise FormatError("A signature of the note is too short.")
    return NoteSignature(name=match.group(1), key_id=int.from_bytes(blob[:4], "big"), signature=blob[4:])


def open_note(raw: bytes, verifiers: Sequence[VerifierKey]) -> VerifiedNote:
    """Verify a note's Ed25519 signatures by the given keys; lines of other keys are ignored.

    Raises:
        FormatError, LimitError: as :func:`parse_note`.
        SignatureError: a line of a given key does not hold or comes twice, or none of the given keys has signed.
    """
    text, lines = parse_note(raw)
    known = {(key.name, key.key_id): key for key in verifiers if key.algorithm == ALG_ED25519}
    signed: set[tuple[str, int]] = set()
    signers: list[str] = []
    for line in lines:
        key = known.get((line.name, line.key_id))
        if key is None:
            continue
        if (line.name, line.key_id) in signed:
            raise SignatureError(f"The note carries two signatures of {line.name}.")
        try:
            key.public_key().verify(line.signature, text.encode("utf-8"))
        except InvalidSignature as error:
            raise SignatureError(f"The note's signature of {line.name} does not hold.") from error
        signed.add((line.name, line.key_id))
        signers.append(line.name)
    if not signers:
        raise SignatureError("The note is not signed by the expected key.")
    return VerifiedNote(text=text, signers=tuple(signers))
