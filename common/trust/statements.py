"""Signed statements: typed payloads in the envelope of ``envelope.py`` (``docs/formats.md``, section 7.3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import SignerError
from common.formats.statements import STATEMENT_PAYLOAD_TYPE, Statement, parse_statement
from common.formats.strictjson import canonical_bytes
from common.trust.certificates import TrustRoot, VerifiedLeaf
from common.trust.envelope import sign_envelope, verify_envelope

__all__ = ["VerifiedStatement", "sign_statement", "verify_statement"]


@dataclass(frozen=True, slots=True)
class VerifiedStatement:
    """A statement whose signature and certificate hold; made by :func:`verify_statement` alone."""

    statement: Statement
    signer: VerifiedLeaf
    digest: str
    """SHA-256 of the envelope's bytes."""


def sign_statement(statement: Statement, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    """Encode, sign and wrap a statement."""
    return sign_envelope(canonical_bytes(statement), STATEMENT_PAYLOAD_TYPE, key, certificate)


def verify_statement(raw: bytes, root: TrustRoot, *, at: datetime) -> VerifiedStatement:
    """Verify a statement's envelope and parse the very bytes that were signed.

    (1) envelope, certificate and signature hold; (2) the payload is a known statement; (3) the signer belongs to the consortium the
    statement is about. The caller decides whether this signer may say this.

    Raises:
        FormatError: the envelope or payload is malformed.
        CertificateError, SignatureError: step (1) failed.
        SignerError: step (3) failed.
    """
    verified = verify_envelope(raw, root, payload_type=STATEMENT_PAYLOAD_TYPE, at=at)  # (1)
    statement = parse_statement(verified.payload)  # (2)
    if not verified.signer.uri.startswith(f"elmgrove://{statement.consortium}/"):  # (3)
        raise SignerError("The statement is about another consortium than its signer's.")
    return VerifiedStatement(statement=statement, signer=verified.signer, digest=verified.digest)
