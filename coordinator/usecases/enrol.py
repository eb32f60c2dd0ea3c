"""Admitting an owner: a single-use token and two certificate requests become two certificates and one log entry."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ElmgroveError, FormatError, InvitationRefusedError
from common.formats.fields import format_time, owner_uri
from common.formats.statements import OwnerAdmitted
from common.ledger.state import keys_in_force
from common.trust.statements import sign_statement
from coordinator.log.ledger import LedgerSession
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator
from coordinator.usecases.issue import PublicKeys, ders, issue_records, key_text, read_requests

__all__ = ["Admission", "enrol"]


@dataclass(frozen=True, slots=True)
class Admission:
    """What a new owner takes home."""

    owner_uri: str
    signing_der: bytes
    transport_der: bytes
    receipt: LogReceipt


def enrol(coordinator: Coordinator, *, token: str, signing_csr: bytes, transport_csr: bytes) -> Admission:
    """Spend ``token`` on certificates for the two keys.

    1. Both requests are well formed, signed by their own keys, and for different keys.
    2. The token is spent; of two callers one wins.
    3. Certificates are issued and logged; if that fails, the token is usable again.

    A repeated call with the same token and the same keys (the answer was lost on the way) gives the same certificates.

    Raises:
        FormatError: a certificate request is malformed.
        InvitationRefusedError: the token is unknown, used or expired, or its name was admitted meanwhile.
        StorageError: the disk is full or not writable.
    """
    keys = read_requests(signing_csr=signing_csr, transport_csr=transport_csr)  # (1)
    if len(keys) < 2:
        raise FormatError("A certificate request is missing.")
    with coordinator.ledger.exclusive() as session:
        try:
            owner = coordinator.invitations.spend(token, at=session.time)  # (2)
        except InvitationRefusedError as error:
            repeated = _repeated(coordinator, session, token, keys)
            if repeated is None:
                coordinator.audit.refused("enrol", error)
                raise
            return repeated
        try:
            admission = _admit(coordinator, session, owner, keys)  # (3)
        except InvitationRefusedError as error:
            coordinator.audit.refused("enrol", error, owner=owner)
            raise
        except (ElmgroveError, OSError):
            coordinator.invitations.give_back(token)
            raise
    coordinator.audit.record("admitted", owner=owner, index=admission.receipt.index)
    return admission


def _admit(coordinator: Coordinator, session: LedgerSession, owner: str, keys: PublicKeys) -> Admission:
    if session.state is None or owner in session.state.owners:
        raise InvitationRefusedError
    uri = owner_uri(coordinator.consortium, owner)
    operator = coordinator.keys.signing("operator")
    records = issue_records(coordinator, uri, keys, session.time)
    fields = {
        "schema": "elmgrove.owner-admitted/v1",
        "consortium": coordinator.consortium,
        "created": format_time(session.time),
        "owner": uri,
        "certificates": records,
    }
    envelope = sign_statement(OwnerAdmitted.model_validate(fields), operator.key, operator.certificate)
    receipt = session.append("owner-admitted", f"owner/{owner}", envelope, ())
    issued = ders(records)
    return Admission(uri, issued["signing"], issued["transport"], receipt)


def _repeated(coordinator: Coordinator, session: LedgerSession, token: str, keys: PublicKeys) -> Admission | None:
    """The admission this very token and these very keys led to before, if they did."""
    owner = coordinator.invitations.spent_on(token)
    state = session.state.owners.get(owner) if session.state is not None and owner is not None else None
    if state is None:
        return None
    admitted = state.issued[0].certificates
    if keys_in_force(admitted) != {purpose: key_text(key) for purpose, key in keys.items()}:
        return None
    issued = ders(admitted)
    return Admission(state.uri, issued["signing"], issued["transport"], coordinator.ledger.view.receipt(state.admitted_index))
