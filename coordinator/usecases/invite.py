"""Inviting an owner: one string that admits one name once."""

from __future__ import annotations

import secrets
from datetime import timedelta

from common.errors import AlreadyExistsError, UsageError
from common.formats.fields import check_name, format_time, utc_now
from common.formats.invitation import Invitation, encode_invitation
from coordinator.usecases.context import Coordinator

__all__ = ["invite"]

_MAX_VALIDITY = timedelta(days=365)
_TOKEN_BYTES = 32  # 256 bits; 43 characters of base64url


def invite(coordinator: Coordinator, owner: str, *, valid_for: timedelta) -> str:
    """Make the invitation string for ``owner``.

    Raises:
        FormatError: the name is not one.
        UsageError: the validity is not between a minute and a year.
        AlreadyExistsError: an owner of that name was admitted before.
    """
    check_name(owner, "owner")
    if not timedelta(minutes=1) <= valid_for <= _MAX_VALIDITY:
        raise UsageError("An invitation is valid for at least a minute and at most a year.")
    if owner in coordinator.ledger.state().owners:
        raise AlreadyExistsError(f"Owner {owner} was admitted before. A name is given once; invite under another name.")
    token, now = secrets.token_urlsafe(_TOKEN_BYTES), utc_now()
    config = coordinator.config
    invitation = Invitation(
        consortium=config.consortium,
        owner=owner,
        host=config.host,
        enrol_port=config.enrol_port,
        port=config.port,
        root_sha256=coordinator.root.fingerprint,
        token=token,
        expires=format_time(now + valid_for),
    )
    coordinator.invitations.add(token, owner, created=now, expires=now + valid_for)
    coordinator.audit.record("invited", owner=owner, expires=invitation.expires)
    return encode_invitation(invitation)
