"""The signed container: a sigstore bundle v0.3 around a DSSE envelope (OMS specification v1.0; ``docs/formats.md``, section 7.1)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, StringConstraints

from common.errors import CertificateError, SignatureError
from common.formats.limits import MAX_BUNDLE_BYTES
from common.formats.strictjson import Document, b64decode_canonical, b64encode, parse_document
from common.trust.certificates import TrustRoot, VerifiedLeaf, verify_leaf

__all__ = ["VerifiedEnvelope", "pre_authentication_encoding", "sign_envelope", "signing_certificate", "verify_envelope"]

BUNDLE_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"

Base64 = Annotated[str, StringConstraints(min_length=4, max_length=MAX_BUNDLE_BYTES)]


class _RawCertificate(Document):
    rawBytes: Base64  # noqa: N815 - the bundle's own spelling


class _Chain(Document):
    certificates: Annotated[tuple[_RawCertificate, ...], Field(min_length=1, max_length=2)]


class _Material(Document):
    x509CertificateChain: _Chain  # noqa: N815
    tlogEntries: Annotated[tuple[str, ...], Field(max_length=0)] = ()  # noqa: N815


class _Signature(Document):
    sig: Base64
    keyid: Literal[""] | None = ""


class _Envelope(Document):
    payload: Base64
    payloadType: Annotated[str, StringConstraints(max_length=128)]  # noqa: N815
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1, max_length=1)]


class _Bundle(Document):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    verificationMaterial: _Material  # noqa: N815
    dsseEnvelope: _Envelope  # noqa: N815


@dataclass(frozen=True, slots=True)
class VerifiedEnvelope:
    """A payload whose signature and certificate hold; made by :func:`verify_envelope` alone."""

    payload: bytes
    signer: VerifiedLeaf
    digest: str
    """SHA-256 of the bundle's bytes: the document's name in the log."""


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed: DSSE v1 PAE."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, payload_type: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    """Sign ``payload`` and wrap it; the same input gives the same bytes (RFC 6979).

    Raises:
        SignatureError: the key is not the certificate's.
    """
    if key.public_key() != certificate.public_key():
        raise SignatureError("The signing key does not belong to the signing certificate.")
    signature = key.sign(pre_authentication_encoding(payload_type, payload), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    bundle = {
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {
            "x509CertificateChain": {"certificates": [{"rawBytes": b64encode(certificate.public_bytes(Encoding.DER))}]},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": b64encode(payload),
            "payloadType": payload_type,
            "signatures": [{"sig": b64encode(signature), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode("ascii")


def verify_envelope(raw: bytes, root: TrustRoot, *, payload_type: str, at: datetime) -> VerifiedEnvelope:
    """Verify a bundle's certificate and signature.

    (1) strict JSON of exactly this form, one signature, canonical base64; (2) the expected payload type; (3) the first certificate is a
    signing leaf of ``root``, valid at ``at``, and nothing follows it but that root, which the stock tool embeds when it is given as the
    chain; (4) the signature holds over the payload bytes as they came.

    The caller decides whether this signer may say this.

    Raises:
        FormatError: (1) failed.
        SignatureError: (2) or (4) failed.
        CertificateError: (3) failed.
    """
    bundle = parse_document(_Bundle, raw, max_bytes=MAX_BUNDLE_BYTES)  # (1)
    envelope = bundle.dsseEnvelope
    payload = b64decode_canonical(envelope.payload)
    signature = b64decode_canonical(envelope.signatures[0].sig)
    leaf_der, *chain = (b64decode_canonical(each.rawBytes) for each in bundle.verificationMaterial.x509CertificateChain.certificates)
    if envelope.payloadType != payload_type:  # (2)
        raise SignatureError(f"The envelope holds {envelope.payloadType[:80]!r}, not {payload_type!r}.")
    signer = verify_leaf(leaf_der, root, "signing", at)  # (3)
    if any(issuer != root.der for issuer in chain):
        raise CertificateError("The bundle's chain holds a certificate that is not this consortium's root.")
    try:  # (4)
        signer.public_key.verify(signature, pre_authentication_encoding(payload_type, payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise SignatureError("The signature does not hold.") from error
    return VerifiedEnvelope(payload=payload, signer=signer, digest=hashlib.sha256(raw).hexdigest())


def signing_certificate(raw: bytes) -> bytes:
    """The DER of the certificate a bundle carries, unverified; for messages and for looking up its issuer's records.

    Raises:
        FormatError: the bundle is malformed.
    """
    bundle = parse_document(_Bundle, raw, max_bytes=MAX_BUNDLE_BYTES)
    return b64decode_canonical(bundle.verificationMaterial.x509CertificateChain.certificates[0].rawBytes)
