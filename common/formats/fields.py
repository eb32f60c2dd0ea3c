"""The field types that documents share: names, owner URIs, digests, timestamps (``docs/formats.md``, section 2)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

from common.errors import FormatError
from common.formats.limits import MAX_TEXT

__all__ = [
    "Digest",
    "FileName",
    "IdentityUri",
    "Name",
    "TensorName",
    "Text",
    "Timestamp",
    "check_name",
    "format_time",
    "operator_uri",
    "owner_name",
    "owner_uri",
    "parse_time",
    "server_uri",
    "subject_expert",
    "utc_now",
]

NAME_PATTERN: Final = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN)
_OWNER_URI = re.compile(rf"elmgrove://({NAME_PATTERN})/owners/({NAME_PATTERN})")
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"


def _check_time(text: str) -> str:
    try:
        moment = datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("not a time such as 2026-01-31T08:00:00Z") from None
    if moment.strftime(_TIME_FORMAT) != text or moment.year < 2000:
        raise ValueError("not a time such as 2026-01-31T08:00:00Z")
    return text


Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$", max_length=40)]
"""Lower-case letters, digits and inner hyphens, 1 to 40 characters: consortia, owners and experts."""
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hexadecimal SHA-256."""
IdentityUri = Annotated[
    str, StringConstraints(pattern=rf"^elmgrove://{NAME_PATTERN}/(operator|server|owners/{NAME_PATTERN})$", max_length=200)
]
"""Who a certificate speaks for; the one subject alternative name of a leaf."""
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$", max_length=127)]
"""A flat file name: no folders, no leading dot."""
TENSOR_NAME_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9_.]{0,254}"
TensorName = Annotated[str, StringConstraints(pattern=rf"^{TENSOR_NAME_PATTERN}$", max_length=255)]
"""A Hugging Face tensor name."""
Timestamp = Annotated[str, StringConstraints(max_length=20), AfterValidator(_check_time)]
"""UTC to the second, ``2026-01-31T08:00:00Z``."""
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
"""Free text for people, without control characters other than tab and line feed."""


def utc_now() -> datetime:
    """The present, in UTC, cut to the second, since that is what documents can say."""
    return datetime.now(UTC).replace(microsecond=0)


def format_time(moment: datetime) -> str:
    """Spell an aware ``moment`` as a :data:`Timestamp`."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def parse_time(text: str) -> datetime:
    """Read a :data:`Timestamp`.

    Raises:
        FormatError: another spelling, or no such moment.
    """
    try:
        _check_time(text)
    except ValueError as error:
        raise FormatError(f"{text[:40]!r} is {error}.") from error
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)


def check_name(text: str, what: str) -> str:
    """Return ``text`` if it is a :data:`Name`.

    Raises:
        FormatError: it is not; the message names ``what`` and the rule.
    """
    if not _NAME.fullmatch(text):
        raise FormatError(f"{what} {text[:60]!r}: use 1 to 40 lower-case letters, digits and inner hyphens.")
    return text


def owner_uri(consortium: str, owner: str) -> str:
    """``elmgrove://CONSORTIUM/owners/OWNER``."""
    return f"elmgrove://{check_name(consortium, 'consortium')}/owners/{check_name(owner, 'owner')}"


def operator_uri(consortium: str) -> str:
    """``elmgrove://CONSORTIUM/operator``."""
    return f"elmgrove://{check_name(consortium, 'consortium')}/operator"


def server_uri(consortium: str) -> str:
    """``elmgrove://CONSORTIUM/server``."""
    return f"elmgrove://{check_name(consortium, 'consortium')}/server"


def owner_name(uri: str, consortium: str) -> str:
    """The owner's name in an owner URI of this consortium.

    Raises:
        FormatError: the URI is of another form or another consortium.
    """
    match = _OWNER_URI.fullmatch(uri)
    if match is None or match.group(1) != consortium:
        raise FormatError("The identity is not an owner of this consortium.")
    return match.group(2)


def subject_expert(name: str, version: int) -> str:
    """The log subject of one version of an expert: ``expert/NAME@VERSION``."""
    return f"expert/{name}@{version}"
