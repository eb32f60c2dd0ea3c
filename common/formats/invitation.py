"""The invitation: one string an operator hands an owner (``docs/formats.md``, section 9).

``elmgrove1-`` + base64url(JSON) + ``-`` + 8 hexadecimal digits of SHA-256 over the JSON, so that a cut or mistyped string is
noticed before anything is sent.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated

from pydantic import Field, StringConstraints

from common.errors import FormatError, InvitationFormatError
from common.formats.fields import Digest, Name, Timestamp
from common.formats.strictjson import Document, parse_document

__all__ = ["Invitation", "decode_invitation", "encode_invitation"]

_PREFIX = "elmgrove1-"
_COPY_WHOLE = "Copy the whole string the operator gave you."
_MAX_CHARACTERS = 2048  # characters; a real one has about 400

Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:\[\]_-]{1,253}$")]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Invitation(Document):
    """Where to enrol, as whom, with which single-use token, and the root certificate to expect there."""

    consortium: Name
    owner: Name
    host: Host
    enrol_port: Port
    port: Port
    root_sha256: Digest
    token: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
    expires: Timestamp


def encode_invitation(invitation: Invitation) -> str:
    """Spell an invitation as the one string that is handed over."""
    raw = json.dumps(invitation.model_dump(mode="json"), separators=(",", ":")).encode("ascii")
    return f"{_PREFIX}{_body(raw)}-{hashlib.sha256(raw).hexdigest()[:8]}"


def _body(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def decode_invitation(text: str) -> Invitation:
    """Read an invitation string.

    Raises:
        InvitationFormatError: it is not an invitation, or a character was lost or changed.
    """
    text = text.strip()
    if not text.startswith(_PREFIX) or len(text) > _MAX_CHARACTERS or "-" not in text[len(_PREFIX) :]:
        raise InvitationFormatError(f"This is not an invitation; one begins with {_PREFIX!r}. {_COPY_WHOLE}")
    body, check = text[len(_PREFIX) :].rsplit("-", 1)
    try:
        raw = base64.b64decode(body.encode("ascii") + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvitationFormatError(f"The invitation is damaged. {_COPY_WHOLE}") from error
    if _body(raw) != body or hashlib.sha256(raw).hexdigest()[:8] != check:
        raise InvitationFormatError(f"The invitation is damaged: its check digits do not match. {_COPY_WHOLE}")
    try:
        return parse_document(Invitation, raw, max_bytes=_MAX_CHARACTERS)
    except FormatError as error:
        raise InvitationFormatError(f"The invitation is malformed: {error}") from error
