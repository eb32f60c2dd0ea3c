"""Issuing certificates: from public keys to the records that a statement lists and the log makes known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import FormatError
from common.formats.statements import CertificateRecord
from common.formats.strictjson import b64decode_canonical, b64encode
from common.trust.certificates import Purpose, issue_leaf, public_key_from_csr
from coordinator.usecases.context import Coordinator

__all__ = ["PublicKeys", "ders", "issue_records", "key_text", "read_requests"]

PublicKeys = Mapping[Purpose, ec.EllipticCurvePublicKey]


def read_requests(*, signing_csr: bytes, transport_csr: bytes) -> dict[Purpose, ec.EllipticCurvePublicKey]:
    """The keys of certificate requests, by purpose; an empty request is left out.

    Raises:
        FormatError: a request is malformed, not signed by its own key, or both are for one key.
    """
    requests: dict[Purpose, bytes] = {"signing": signing_csr, "transport": transport_csr}
    keys = {purpose: public_key_from_csr(csr) for purpose, csr in requests.items() if csr}
    if len({key_text(key) for key in keys.values()}) < len(keys):
        raise FormatError("The signing and the transport key must be two keys.")
    return keys


def issue_records(coordinator: Coordinator, uri: str, keys: PublicKeys, at: datetime) -> tuple[CertificateRecord, ...]:
    """Certificates of the consortium's root for ``uri`` and each key, as the log lists them.

    Raises:
        KeyStoreError: the root key cannot be opened.
    """
    authority = coordinator.keys.signing("root")
    days = coordinator.config.certificate_days
    records: list[CertificateRecord] = []
    for purpose, key in keys.items():
        certificate = issue_leaf(coordinator.root, authority.key, key, purpose, uri, at, days)
        records.append(CertificateRecord(purpose=purpose, uri=uri, der=b64encode(certificate.public_bytes(Encoding.DER))))
    return tuple(records)


def ders(records: tuple[CertificateRecord, ...]) -> dict[str, bytes]:
    """The certificates' DER by purpose; of several for one purpose, the last."""
    return {record.purpose: b64decode_canonical(record.der) for record in records}


def key_text(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as statements spell it: base64 of the SubjectPublicKeyInfo's DER."""
    return b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
