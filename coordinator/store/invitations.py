"""Single-use invitation tokens: only their digests are kept, and spending one is a single atomic statement."""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import insert, select, update

from common.errors import InvitationRefusedError
from coordinator.store.database import Database, invitations

__all__ = ["Invitations"]


class Invitations:
    """The invitations of one coordinator."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, token: str, owner: str, *, created: datetime, expires: datetime) -> None:
        """Remember that ``token`` admits ``owner`` once, until ``expires``."""
        with self._database.begin() as connection:
            connection.execute(
                insert(invitations).values(
                    token_sha256=_digest(token),
                    owner=owner,
                    created_at=int(created.timestamp()),
                    expires_at=int(expires.timestamp()),
                )
            )

    def spend(self, token: str, *, at: datetime) -> str:
        """Use up ``token``; of two callers at the same moment one wins.

        Returns:
            The owner's name the token was made for.

        Raises:
            InvitationRefusedError: unknown, used or expired; the caller cannot tell which.
        """
        now = int(at.timestamp())
        key = _digest(token)
        spendable = (invitations.c.token_sha256 == key) & invitations.c.used_at.is_(None) & (invitations.c.expires_at > now)
        with self._database.begin() as connection:
            if connection.execute(update(invitations).where(spendable).values(used_at=now)).rowcount != 1:
                raise InvitationRefusedError
            return str(connection.execute(select(invitations.c.owner).where(invitations.c.token_sha256 == key)).scalar_one())

    def give_back(self, token: str) -> None:
        """Make a spent token usable again, when the admission it was spent on failed through no fault of the owner."""
        with self._database.begin() as connection:
            connection.execute(update(invitations).where(invitations.c.token_sha256 == _digest(token)).values(used_at=None))

    def unspent(self) -> set[str]:
        """The owners for whom there are invitations that were not used."""
        with self._database.begin() as connection:
            rows = connection.execute(select(invitations.c.owner).where(invitations.c.used_at.is_(None))).all()
        return {str(row.owner) for row in rows}

    def spend_for(self, owner: str, *, at: datetime) -> None:
        """Use up every invitation for ``owner``, who was admitted."""
        unused = (invitations.c.owner == owner) & invitations.c.used_at.is_(None)
        with self._database.begin() as connection:
            connection.execute(update(invitations).where(unused).values(used_at=int(at.timestamp())))

    def spent_on(self, token: str) -> str | None:
        """The owner's name a spent token was made for; ``None`` if the token is unknown or unspent."""
        spent = (invitations.c.token_sha256 == _digest(token)) & invitations.c.used_at.is_not(None)
        with self._database.begin() as connection:
            owner = connection.execute(select(invitations.c.owner).where(spent)).scalar_one_or_none()
        return None if owner is None else str(owner)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
