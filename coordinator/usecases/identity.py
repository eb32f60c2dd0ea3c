"""Who is calling: from the certificate of the TLS handshake to an admitted, unrevoked owner."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import CertificateError, FormatError, RevokedError, UnauthenticatedError
from common.formats.fields import owner_name, utc_now
from common.formats.strictjson import b64encode
from common.ledger.state import OwnerState
from common.trust.certificates import verify_leaf
from coordinator.usecases.context import Coordinator

__all__ = ["authenticate", "check_signer"]


def authenticate(coordinator: Coordinator, certificate_pem: bytes, *, replaced: bool = False) -> OwnerState:
    """The owner a transport certificate speaks for.

    Args:
        coordinator: whose owners.
        certificate_pem: from the handshake.
        replaced: take a certificate whose key the owner has replaced, too. Only for asking again for the answer that was lost.

    1. It is a transport certificate under the consortium's root, valid now.
    2. Its identity is an owner of this consortium whom the log has admitted.
    3. The log lists this very certificate, for the key the owner has now.
    4. The owner is not revoked.

    Raises:
        UnauthenticatedError: 1, 2 or 3 does not hold.
        RevokedError: 4 does not hold.
    """
    try:
        der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
        leaf = verify_leaf(der, coordinator.root, purpose="transport", at=utc_now())  # (1)
        name = owner_name(leaf.uri, coordinator.consortium)
    except (ValueError, CertificateError, FormatError) as error:
        raise UnauthenticatedError from error
    owner = coordinator.ledger.state().owners.get(name)  # (2)
    if owner is None or not _is_listed(owner, "transport", der, replaced=replaced):  # (3)
        raise UnauthenticatedError
    if owner.revoked_index is not None:  # (4)
        raise RevokedError
    return owner


def check_signer(owner: OwnerState, der: bytes) -> None:
    """Check that a signing certificate is one the log lists for ``owner``.

    Raises:
        CertificateError: it is not.
    """
    if not _is_listed(owner, "signing", der):
        raise CertificateError("The signing certificate is not one that the log lists for this owner.")


def _is_listed(owner: OwnerState, purpose: str, der: bytes, *, replaced: bool = False) -> bool:
    text = b64encode(der)
    ever = tuple(record for issue in owner.issued for record in issue.certificates)
    return any(record.purpose == purpose and record.der == text for record in (ever if replaced else owner.certificates))
