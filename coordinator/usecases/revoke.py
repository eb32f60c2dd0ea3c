"""Revoking an owner: from that entry on its certificates open nothing and its experts enter no assembly."""

from __future__ import annotations

from common.errors import AlreadyExistsError, NotFoundError
from common.formats.fields import format_time
from common.formats.statements import OwnerRevoked
from common.trust.statements import sign_statement
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator

__all__ = ["revoke_owner"]


def revoke_owner(coordinator: Coordinator, name: str, *, reason: str) -> LogReceipt:
    """Log the revocation of an owner and drop its open uploads.

    Raises:
        NotFoundError: no such owner.
        AlreadyExistsError: it was revoked before.
        StorageError: the disk is full or not writable.
    """
    with coordinator.ledger.exclusive() as session:
        operator = coordinator.keys.signing("operator")
        owner = session.state.owners.get(name) if session.state is not None else None
        if owner is None:
            raise NotFoundError(f"There is no owner {name}.")
        if owner.revoked_index is not None:
            raise AlreadyExistsError(f"Owner {name} was revoked before, by entry {owner.revoked_index}.")
        fields = {
            "schema": "elmgrove.owner-revoked/v1",
            "consortium": coordinator.consortium,
            "created": format_time(session.time),
            "owner": owner.uri,
            "reason": reason,
        }
        envelope = sign_statement(OwnerRevoked.model_validate(fields), operator.key, operator.certificate)
        receipt = session.append("owner-revoked", f"owner/{name}", envelope, ())
    for record, _ in coordinator.uploads.open_of(name):
        coordinator.uploads.remove(record.id)
    coordinator.audit.record("revoked", owner=name, index=receipt.index)
    return receipt
