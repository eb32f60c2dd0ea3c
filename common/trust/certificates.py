"""Certificates of a consortium: one root, leaves issued by it directly, one purpose each (RFC 5280; ``docs/formats.md``, section 7.4)."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from common.errors import CertificateError, FormatError
from common.formats.fields import check_name

__all__ = ["Purpose", "TrustRoot", "VerifiedLeaf", "issue_leaf", "issue_root", "make_csr", "public_key_from_csr", "verify_leaf"]

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)
Purpose = Literal["signing", "transport", "server"]

LEAF_DAYS: Final = 730  # days; an audit at the log's time outlives it, a lost key should not
_ROOT_DAYS: Final = 7305  # days
_BACKDATE: Final = timedelta(minutes=5)  # clocks of new owners may be a little behind
_MAX_CERTIFICATE_BYTES: Final = 16 * 1024  # bytes; ours have under 1 KiB

_USAGES: Final = {
    "signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "transport": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
}
_KNOWN_EXTENSIONS: Final = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
}


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """The consortium's root certificate, the one thing an auditor brings along. Make it with ``from_pem`` or ``from_der``."""

    certificate: x509.Certificate
    der: bytes
    fingerprint: str
    """SHA-256 of the DER, hexadecimal: what an invitation pins."""

    @classmethod
    def from_pem(cls, pem: bytes) -> TrustRoot:
        """Read ``root.pem``.

        Raises:
            CertificateError: not exactly one certificate, or not a root as :func:`issue_root` makes it.
        """
        if len(pem) > 2 * _MAX_CERTIFICATE_BYTES:
            raise CertificateError("The root certificate's file is too large.")
        try:
            certificates = x509.load_pem_x509_certificates(pem)
        except (ValueError, x509.InvalidVersion) as error:
            raise CertificateError("The root certificate's file is not a PEM certificate.") from error
        if len(certificates) != 1:
            raise CertificateError("The root certificate's file must hold exactly one certificate.")
        return cls.from_der(certificates[0].public_bytes(Encoding.DER))

    @classmethod
    def from_der(cls, der: bytes) -> TrustRoot:
        """Read a root certificate's DER.

        Raises:
            CertificateError: malformed, not self-signed, not a P-256 CA with path length 0, without key usage keyCertSign, restricted to
                some extended key usage, or with an unknown critical extension.
        """
        certificate = _load(der)
        _check_curve(certificate)
        _check_issued_by(certificate, certificate)
        constraints = _extension(certificate, x509.BasicConstraints)
        usage = _extension(certificate, x509.KeyUsage)
        if not constraints.ca or constraints.path_length != 0 or not usage.key_cert_sign:
            raise CertificateError("The root certificate is not a certification authority for leaves.")
        if any(extension.oid == ExtensionOID.EXTENDED_KEY_USAGE for extension in certificate.extensions):
            raise CertificateError("The root certificate is restricted to some extended key usage.")
        _check_critical(certificate)
        return cls(certificate=certificate, der=der, fingerprint=hashlib.sha256(der).hexdigest())


@dataclass(frozen=True, slots=True)
class VerifiedLeaf:
    """A leaf for which :func:`verify_leaf` went through: who it speaks for, and its key."""

    uri: str
    certificate: x509.Certificate
    public_key: ec.EllipticCurvePublicKey
    serial: int
    der: bytes
    fingerprint: str


def issue_root(consortium: str, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    """Make a consortium's self-signed root: CA, path length 0, valid for twenty years."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{check_name(consortium, 'consortium')} root")])
    usage = _key_usage(digital_signature=False, key_cert_sign=True)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=_ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def issue_leaf(
    root: TrustRoot,
    root_key: ec.EllipticCurvePrivateKey,
    public_key: ec.EllipticCurvePublicKey,
    purpose: Purpose,
    uri: str,
    now: datetime,
    days: int = LEAF_DAYS,
    names: Sequence[str] = (),
) -> x509.Certificate:
    """Issue a leaf for one purpose.

    Args:
        root: the issuer.
        root_key: its key.
        public_key: the subject's.
        purpose: what the leaf may be used for; exactly one extended key usage follows from it.
        uri: the identity, the one URI among the subject alternative names.
        now: time of issue; the leaf is valid from five minutes earlier, but never before the root.
        days: validity, cut at the root's own end.
        names: DNS names and IP addresses, for servers.
    """
    begin = max(now - _BACKDATE, root.certificate.not_valid_before_utc)
    end = min(now + timedelta(days=days), root.certificate.not_valid_after_utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{uri.rsplit('/', 1)[-1]} {purpose}"[:64])])
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri), *(_host(name) for name in names)]
    return (
        x509.CertificateBuilder(root.certificate.subject, subject, public_key, x509.random_serial_number(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, key_cert_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[purpose]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_csr(key: ec.EllipticCurvePrivateKey, uri: str) -> bytes:
    """A certificate signing request (PKCS #10, DER) that proves possession of ``key``; the issuer decides the identity."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri.rsplit("/", 1)[-1])])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def public_key_from_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose sender holds the private one.

    Raises:
        FormatError: malformed, not signed by its own key, or not P-256.
    """
    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise FormatError("The certificate request is too large.")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise FormatError("The certificate request is malformed.") from error
    if not valid:
        raise FormatError("The certificate request is not signed by its own key.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise FormatError("The certificate request's key is not P-256.")
    return key


def verify_leaf(der: bytes, root: TrustRoot, purpose: Purpose, at: datetime) -> VerifiedLeaf:
    """Verify that ``der`` is a leaf of ``root`` for ``purpose``, valid at ``at``.

    (1) it parses, with nothing after it; (2) its key is P-256; (3) the root issued it directly, with ECDSA and SHA-256; (4) leaf and root
    are valid at ``at``, and the leaf's validity does not begin before the root's; (5) it is no CA; (6) its key usage is digitalSignature
    and nothing else; (7) its one extended key usage is the purpose's; (8) it names exactly one URI; (9) no critical extension is
    unknown.

    The caller compares ``uri`` with the identity it expects, and asks the ledger about revocation.

    Raises:
        CertificateError: a step failed; the message says which.
    """
    certificate = _load(der)  # (1)
    key = _check_curve(certificate)  # (2)
    _check_issued_by(certificate, root.certificate)  # (3)
    for name, holder in (("certificate", certificate), ("root certificate", root.certificate)):  # (4)
        if at < holder.not_valid_before_utc:
            raise CertificateError(f"The {name} is not yet valid at {at:%Y-%m-%d %H:%M:%S} UTC.")
        if at > holder.not_valid_after_utc:
            raise CertificateError(f"The {name} had expired at {at:%Y-%m-%d %H:%M:%S} UTC.")
    if certificate.not_valid_before_utc < root.certificate.not_valid_before_utc:
        raise CertificateError("The certificate's validity begins before that of the root certificate.")
    if _extension(certificate, x509.BasicConstraints).ca:  # (5)
        raise CertificateError("The certificate is a certification authority's, not a leaf.")
    if _extension(certificate, x509.KeyUsage) != _key_usage(digital_signature=True, key_cert_sign=False):  # (6)
        raise CertificateError("The certificate's key usage is not digitalSignature alone.")
    if list(_extension(certificate, x509.ExtendedKeyUsage)) != [_USAGES[purpose]]:  # (7)
        raise CertificateError(f"The certificate was not issued for {purpose}.")
    uris = _extension(certificate, x509.SubjectAlternativeName).get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:  # (8)
        raise CertificateError("The certificate does not name exactly one identity.")
    _check_critical(certificate)  # (9)
    return VerifiedLeaf(
        uri=uris[0], certificate=certificate, public_key=key, serial=certificate.serial_number, der=der,
        fingerprint=hashlib.sha256(der).hexdigest(),
    )  # fmt: skip


def _load(der: bytes) -> x509.Certificate:
    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise CertificateError("The certificate is too large.")
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.extensions  # noqa: B018 - parsed on access; a malformed one must fail here
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError("The certificate is malformed.") from error
    if certificate.public_bytes(Encoding.DER) != der:
        raise CertificateError("The certificate is not in its canonical encoding.")
    return certificate


def _check_curve(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError("The certificate's key is not supported.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("The certificate's key is not P-256.")
    return key


def _check_critical(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _KNOWN_EXTENSIONS:
            raise CertificateError("The certificate has an unknown critical extension.")


def _check_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise CertificateError("The certificate is not signed with ECDSA and SHA-256.")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise CertificateError("The certificate was not issued by this consortium's root.") from error


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateError(f"The certificate lacks the extension {kind.__name__}.") from error
