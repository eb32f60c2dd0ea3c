"""A consortium's keys and certificates for the tests of this folder, and leaves that no issuer should make."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.trust.certificates import TrustRoot, issue_leaf, issue_root
from common.trust.envelope import pre_authentication_encoding
from common.trust.keys import generate_signing_key

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
URI = "elmgrove://grove/owners/anna"
DAY = timedelta(days=1)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Pki:
    root_key: ec.EllipticCurvePrivateKey
    root: TrustRoot
    key: ec.EllipticCurvePrivateKey
    leaf: x509.Certificate


@cache
def pki() -> Pki:
    """One consortium for all tests: a root of two days before ``NOW``, and anna's signing leaf, issued at ``NOW``."""
    root_key, key = generate_signing_key(), generate_signing_key()
    root = TrustRoot.from_der(der(issue_root("grove", root_key, NOW - 2 * DAY)))
    return Pki(root_key, root, key, issue_leaf(root, root_key, key.public_key(), "signing", URI, NOW))


def key_usage(*, digital_signature: bool = True, key_cert_sign: bool = False, key_agreement: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=False, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=key_agreement, encipher_only=False, decipher_only=False,
    )  # fmt: skip


@dataclass
class Shape:
    """What goes into a certificate; the defaults are what Elmgrove issues. None leaves an extension out."""

    ca: bool | None = False
    path_length: int | None = None
    usage: x509.KeyUsage | None = None
    no_usage: bool = False
    purposes: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CODE_SIGNING,)
    names: Sequence[x509.GeneralName] | None = (x509.UniformResourceIdentifier(URI),)
    begin: datetime = NOW - DAY
    end: datetime = NOW + DAY
    extra: Sequence[tuple[x509.ExtensionType, bool]] = ()
    issuer: x509.Name | None = None
    issuer_key: Any = None
    public_key: Any = None
    algorithm: hashes.HashAlgorithm | None = field(default_factory=hashes.SHA256)


def make(shape: Shape) -> bytes:
    """Sign a certificate of this shape with the consortium's root key, or another."""
    world = pki()
    issuer = world.root.certificate.subject if shape.issuer is None else shape.issuer
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anna")])
    key = shape.public_key or world.key.public_key()
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), shape.begin, shape.end)
    extensions: list[tuple[x509.ExtensionType | None, bool]] = [
        (None if shape.ca is None else x509.BasicConstraints(ca=shape.ca, path_length=shape.path_length), True),
        (None if shape.no_usage else shape.usage or key_usage(), True),
        (None if shape.purposes is None else x509.ExtendedKeyUsage(shape.purposes), False),
        (None if shape.names is None else x509.SubjectAlternativeName(shape.names), False),
        *shape.extra,
    ]
    for value, critical in extensions:
        if value is not None:
            builder = builder.add_extension(value, critical=critical)
    signer = shape.issuer_key or world.root_key
    return der(builder.sign(signer, shape.algorithm))


def wrap(payload: bytes, payload_type: str, change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
    """A correctly signed bundle over any payload, changed afterwards by ``change``."""
    world = pki()
    signature = world.key.sign(pre_authentication_encoding(payload_type, payload), ec.ECDSA(hashes.SHA256()))
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"x509CertificateChain": {"certificates": [{"rawBytes": b64(der(world.leaf))}]}, "tlogEntries": []},
        "dsseEnvelope": {"payload": b64(payload), "payloadType": payload_type, "signatures": [{"sig": b64(signature), "keyid": ""}]},
    }
    change(bundle)
    return json.dumps(bundle).encode()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
