"""Admitting an owner: a single-use token and two certificate requests become two certificates and one log entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import ElmgroveError, FormatError, InvitationRefusedError, UsageError
from common.formats.fields import format_time, owner_uri
from common.formats.statements import OwnerAdmitted
from common.formats.strictjson import b64decode_canonical, b64encode
from common.ledger.state import OwnerState
from common.trust.certificates import issue_leaf, public_key_from_csr
from common.trust.statements import sign_statement
from coordinator.log.ledger import LedgerSession
from coordinator.log.view import LogReceipt
from coordinator.usecases.context import Coordinator

__all__ = ["Admission", "enrol"]

PublicKeys = Mapping[str, ec.EllipticCurvePublicKey]


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
    keys = {"signing": public_key_from_csr(signing_csr), "transport": public_key_from_csr(transport_csr)}  # (1)
    if _spki(keys["signing"]) == _spki(keys["transport"]):
        raise FormatError("The signing and the transport key must be two keys.")
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
    authority, operator = coordinator.keys.signing("root"), coordinator.keys.signing("operator")
    days = coordinator.config.certificate_days
    issued: dict[str, x509.Certificate] = {
        purpose: issue_leaf(coordinator.root, authority.key, key, purpose, uri, session.time, days)  # type: ignore[arg-type]  # a literal by construction
        for purpose, key in keys.items()
    }
    ders = {purpose: certificate.public_bytes(Encoding.DER) for purpose, certificate in issued.items()}
    fields = {
        "schema": "elmgrove.owner-admitted/v1",
        "consortium": coordinator.consortium,
        "created": format_time(session.time),
        "owner": uri,
        "certificates": tuple({"purpose": purpose, "uri": uri, "der": b64encode(der)} for purpose, der in ders.items()),
    }
    envelope = sign_statement(OwnerAdmitted.model_validate(fields), operator.key, operator.certificate)
    receipt = session.append("owner-admitted", f"owner/{owner}", envelope, ())
    return Admission(uri, ders["signing"], ders["transport"], receipt)


def _repeated(coordinator: Coordinator, session: LedgerSession, token: str, keys: PublicKeys) -> Admission | None:
    """The admission this very token and these very keys led to before, if they did."""
    owner = coordinator.invitations.spent_on(token)
    state = session.state.owners.get(owner) if session.state is not None and owner is not None else None
    if state is None:
        return None
    ders = _certificates(state)
    if any(purpose not in ders or _spki(_public_key(ders[purpose])) != _spki(key) for purpose, key in keys.items()):
        return None
    return Admission(state.uri, ders["signing"], ders["transport"], coordinator.ledger.view.receipt(state.admitted_index))


def _certificates(state: OwnerState) -> dict[str, bytes]:
    return {record.purpose: b64decode_canonical(record.der) for record in state.certificates}


def _public_key(der: bytes) -> ec.EllipticCurvePublicKey:
    key = x509.load_der_x509_certificate(der).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError("A logged certificate is for a key of another kind.")
    return key


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
