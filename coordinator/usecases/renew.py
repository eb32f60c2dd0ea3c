"""Renewing an owner's certificates, and replacing its keys on its own signed word; both are one log entry each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from common.errors import (
    ElmgroveError,
    ForbiddenError,
    FormatError,
    NotFoundError,
    QuotaError,
    RevokedError,
    SignerError,
    UnauthenticatedError,
)
from common.formats.entries import EntryKind, parse_entry
from common.formats.fields import format_time, parse_time
from common.formats.statements import CertificatesRenewed, KeyRotated, NewKeys, request_digest
from common.formats.strictjson import b64encode
from common.ledger.state import OwnerState, keys_in_force
from common.trust.statements import sign_statement, verify_statement
from coordinator.log.ledger import LedgerSession
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator
from coordinator.usecases.identity import authenticate, check_signer
from coordinator.usecases.issue import PublicKeys, ders, issue_records, key_text, read_requests

__all__ = ["Renewal", "renew_certificates"]

_MAX_AUTHORISATION_BYTES: Final = 12 * 1024  # bytes; a real one has about 2,500, and it travels inside a statement
_PER_DAY: Final = 8  # renewals of one owner within a day; each is a log entry for ever


@dataclass(frozen=True, slots=True)
class Renewal:
    """New certificates by purpose, DER, and the receipt of the entry that lists them."""

    certificates: Mapping[str, bytes]
    receipt: LogReceipt


def renew_certificates(
    coordinator: Coordinator, certificate_pem: bytes, *, signing_csr: bytes, transport_csr: bytes, authorisation: bytes
) -> Renewal:
    """Certify the caller's keys anew or, with its authorisation, other keys in their place. Repeating a request gives the same entry.

    1. The requests are well formed, and the caller is an owner; a transport certificate that this very request replaced is enough.
    2. A request that is the newest logged one is answered from the log.
    3. The caller's transport certificate is in force, and it has not renewed too often today.
    4. Without an authorisation the keys are the caller's own. With one, a signing key in force names exactly these keys.
    5. Certificates are issued and logged.

    Raises:
        FormatError: 1 or 4 does not hold: something is malformed, or there is no request at all.
        UnauthenticatedError, RevokedError: 1 or 3 does not hold.
        QuotaError: 3 does not hold.
        ForbiddenError, SignerError, SignatureError, CertificateError: 4 does not hold.
        StorageError: the disk is full or not writable.
    """
    keys = read_requests(signing_csr=signing_csr, transport_csr=transport_csr)  # (1)
    if not keys or len(authorisation) > _MAX_AUTHORISATION_BYTES:
        raise FormatError("There is no certificate request, or the authorisation is too large.")
    request = request_digest(signing_csr=signing_csr, transport_csr=transport_csr, authorisation=authorisation)
    name = authenticate(coordinator, certificate_pem, replaced=True).name
    try:
        with coordinator.ledger.exclusive() as session:
            owner = _present(session, name)
            newest = owner.issued[-1]
            if newest.request == request:  # (2)
                return Renewal(ders(newest.certificates), coordinator.ledger.view.receipt(newest.index))
            authenticate(coordinator, certificate_pem)  # (3)
            _check_rate(coordinator, owner, session.time)
            _check_keys(coordinator, owner, keys, authorisation, session.time)  # (4)
            renewal = _issue(coordinator, session, owner, keys, request, authorisation)  # (5)
    except ElmgroveError as error:
        coordinator.audit.refused("renew", error, owner=name)
        raise
    coordinator.audit.record("key-rotated" if authorisation else "certificates-renewed", owner=name, index=renewal.receipt.index)
    return renewal


def _present(session: LedgerSession, name: str) -> OwnerState:
    owner = session.state.owners.get(name) if session.state is not None else None
    if owner is None:
        raise UnauthenticatedError
    if owner.revoked_index is not None:
        raise RevokedError
    return owner


def _check_rate(coordinator: Coordinator, owner: OwnerState, now: datetime) -> None:
    if len(owner.issued) < _PER_DAY:
        return
    index = owner.issued[-_PER_DAY].index
    [entry] = coordinator.ledger.view.entries(index, index + 1)
    if parse_time(parse_entry(entry).time) > now - timedelta(days=1):
        raise QuotaError(f"Certificates were issued {_PER_DAY} times within a day; try again tomorrow.")


def _check_keys(coordinator: Coordinator, owner: OwnerState, keys: PublicKeys, authorisation: bytes, now: datetime) -> None:
    present = keys_in_force(owner.certificates)
    wanted: dict[str, str] = {purpose: key_text(key) for purpose, key in keys.items()}
    if not authorisation:
        if any(present.get(purpose) != key for purpose, key in wanted.items()):
            raise ForbiddenError("The request is for another key than yours; a new key needs an authorisation by your present signing key.")
        return
    verified = verify_statement(authorisation, coordinator.root, at=now)
    statement = verified.statement
    if verified.signer.uri != owner.uri or not isinstance(statement, NewKeys) or statement.holder != owner.uri:
        raise SignerError("The authorisation of new keys is not the caller's.")
    check_signer(owner, verified.signer.der)
    if {record.purpose: record.key for record in statement.keys} != wanted or len(statement.keys) != len(wanted):
        raise ForbiddenError("The authorisation names other keys than the requests are for.")
    if set(wanted.values()) & set(present.values()):
        raise ForbiddenError("A key that is to be new is one of yours already.")


def _issue(
    coordinator: Coordinator, session: LedgerSession, owner: OwnerState, keys: PublicKeys, request: str, authorisation: bytes
) -> Renewal:
    if session.state is None:
        raise NotFoundError("The log is empty.")
    operator = coordinator.keys.signing("operator")
    records = issue_records(coordinator, owner.uri, keys, session.time)
    kind: EntryKind = "key-rotated" if authorisation else "certificates-renewed"
    fields = {
        "schema": f"elmgrove.{kind}/v1",
        "consortium": coordinator.consortium,
        "created": format_time(session.time),
        "holder": owner.uri,
        "certificates": records,
        "request": request,
    }
    statement = (
        KeyRotated.model_validate(fields | {"authorisation": b64encode(authorisation)})
        if authorisation
        else CertificatesRenewed.model_validate(fields)
    )
    envelope = sign_statement(statement, operator.key, operator.certificate)
    return Renewal(ders(records), session.append(kind, f"owner/{owner.name}", envelope, ()))
