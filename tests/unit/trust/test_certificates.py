"""Which certificates are taken and which are not, one property changed at a time (the stock OMS tool takes many of those refused here)."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CertificateError, FormatError
from common.trust.certificates import Purpose, TrustRoot, issue_leaf, issue_root, make_csr, public_key_from_csr, verify_leaf
from common.trust.keys import generate_signing_key
from tests.unit.trust.pki import DAY, NOW, URI, Shape, der, key_usage, make, pki

SIGN, CLIENT, SERVER = ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
URIS = (x509.UniformResourceIdentifier(URI), x509.UniformResourceIdentifier("elmgrove://grove/owners/ben"))
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
NAME_LIMITS = x509.NameConstraints(permitted_subtrees=[x509.DNSName("grove")], excluded_subtrees=None)


@pytest.mark.parametrize("purpose", ["signing", "transport", "server"])
def test_issued_leaf_verifies_for_its_purpose_alone(purpose: Purpose) -> None:
    world = pki()
    leaf = der(issue_leaf(world.root, world.root_key, world.key.public_key(), purpose, URI, NOW, names=["localhost", "127.0.0.1"]))
    verified = verify_leaf(leaf, world.root, purpose, NOW)
    assert (verified.uri, verified.der) == (URI, leaf)
    assert verified.fingerprint == hashlib.sha256(leaf).hexdigest()
    assert verified.public_key == world.key.public_key()
    assert verified.serial == x509.load_der_x509_certificate(leaf).serial_number
    others: set[Purpose] = {"signing", "transport", "server"}
    for other in others - {purpose}:
        with pytest.raises(CertificateError, match=f"not issued for {other}"):
            verify_leaf(leaf, world.root, other, NOW)


def test_our_default_shape_is_accepted_so_that_each_refusal_below_is_for_its_one_change() -> None:
    assert verify_leaf(make(Shape()), pki().root, "signing", NOW).uri == URI
    tolerated = Shape(extra=[(UNKNOWN, False)], names=(*URIS[:1], x509.DNSName("localhost")))
    assert verify_leaf(make(tolerated), pki().root, "signing", NOW).uri == URI


REFUSED: list[tuple[str, Shape, str]] = [
    ("expired", Shape(end=NOW - timedelta(seconds=1)), "had expired"),
    ("not yet valid", Shape(begin=NOW + timedelta(seconds=1)), "not yet valid"),
    ("begins before its root", Shape(begin=NOW - 2 * DAY - timedelta(seconds=1)), "begins before that of the root"),
    ("signed with SHA-384", Shape(algorithm=hashes.SHA384()), "not signed with ECDSA and SHA-256"),
    ("foreign key, same issuer name", Shape(issuer_key=generate_signing_key()), "not issued by this consortium"),
    (
        "foreign issuer name, our key",
        Shape(issuer=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "heath root")])),
        "not issued by this consortium",
    ),
    ("signed by itself", Shape(issuer_key=pki().key), "not issued by this consortium"),
    ("Ed25519 key", Shape(public_key=ed25519.Ed25519PrivateKey.generate().public_key()), "not P-256"),
    ("RSA key", Shape(public_key=rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()), "not P-256"),
    ("P-384 key", Shape(public_key=ec.generate_private_key(ec.SECP384R1()).public_key()), "not P-256"),
    ("secp256k1 key", Shape(public_key=ec.generate_private_key(ec.SECP256K1()).public_key()), "not P-256"),
    ("CA leaf", Shape(ca=True), "a certification authority's"),
    ("no basic constraints", Shape(ca=None), "lacks the extension BasicConstraints"),
    ("no key usage", Shape(no_usage=True), "lacks the extension KeyUsage"),
    ("key usage keyAgreement", Shape(usage=key_usage(digital_signature=False, key_agreement=True)), "not digitalSignature alone"),
    ("key usage keyCertSign too", Shape(usage=key_usage(key_cert_sign=True)), "not digitalSignature alone"),
    ("no EKU", Shape(purposes=None), "lacks the extension ExtendedKeyUsage"),
    ("client certificate", Shape(purposes=(CLIENT,)), "not issued for signing"),
    ("server certificate", Shape(purposes=(SERVER,)), "not issued for signing"),
    ("any EKU", Shape(purposes=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)), "not issued for signing"),
    ("two EKUs", Shape(purposes=(SIGN, CLIENT)), "not issued for signing"),
    ("one EKU twice", Shape(purposes=(SIGN, SIGN)), "not issued for signing"),
    ("no SAN", Shape(names=None), "lacks the extension SubjectAlternativeName"),
    ("SAN without a URI", Shape(names=(x509.DNSName("localhost"),)), "not name exactly one identity"),
    ("two URIs", Shape(names=URIS), "not name exactly one identity"),
    ("one URI twice", Shape(names=URIS[:1] * 2), "not name exactly one identity"),
    ("unknown critical extension", Shape(extra=[(UNKNOWN, True)]), "unknown critical extension"),
    ("name constraints", Shape(extra=[(NAME_LIMITS, True)]), "unknown critical extension"),
    ("too large", Shape(extra=[(x509.UnrecognizedExtension(UNKNOWN.oid, b"\x00" * 20_000), False)]), "too large"),
]


@pytest.mark.parametrize(("shape", "reason"), [pytest.param(shape, reason, id=name) for name, shape, reason in REFUSED])
def test_refused_leaf(shape: Shape, reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        verify_leaf(make(shape), pki().root, "signing", NOW)


def test_validity_is_judged_at_the_time_asked_about_to_the_second() -> None:
    world, second = pki(), timedelta(seconds=1)
    leaf = make(Shape(begin=NOW + DAY, end=NOW + 2 * DAY))
    assert verify_leaf(leaf, world.root, "signing", NOW + DAY) == verify_leaf(leaf, world.root, "signing", NOW + 2 * DAY)
    with pytest.raises(CertificateError, match="not yet valid"):
        verify_leaf(leaf, world.root, "signing", NOW + DAY - second)
    with pytest.raises(CertificateError, match="had expired"):
        verify_leaf(leaf, world.root, "signing", NOW + 2 * DAY + second)
    begin = world.root.certificate.not_valid_before_utc
    with pytest.raises(CertificateError, match="root certificate is not yet valid"):
        verify_leaf(make(Shape(begin=begin - DAY)), world.root, "signing", begin - second)


def test_a_leaf_outliving_its_root_is_refused_after_the_roots_end() -> None:
    world, end = pki(), pki().root.certificate.not_valid_after_utc
    leaf = make(Shape(end=end + 10 * DAY))
    assert verify_leaf(leaf, world.root, "signing", end).uri == URI
    with pytest.raises(CertificateError, match="root certificate had expired"):
        verify_leaf(leaf, world.root, "signing", end + timedelta(seconds=1))


def test_issued_leaf_never_reaches_outside_its_roots_validity() -> None:
    world, root = pki(), pki().root.certificate
    leaf = issue_leaf(world.root, world.root_key, world.key.public_key(), "signing", URI, root.not_valid_before_utc, days=100_000)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (root.not_valid_before_utc, root.not_valid_after_utc)


def test_intermediate_cannot_issue() -> None:
    middle_key = generate_signing_key()
    middle = make(Shape(ca=True, usage=key_usage(key_cert_sign=True), public_key=middle_key.public_key()))
    leaf = make(Shape(issuer=x509.load_der_x509_certificate(middle).subject, issuer_key=middle_key))
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        verify_leaf(leaf, pki().root, "signing", NOW)


def test_trailing_and_missing_bytes_are_refused() -> None:
    leaf = der(pki().leaf)
    for changed in (leaf + b"\x00", leaf[:-1], leaf * 2, b"", b"\x30\x00"):
        with pytest.raises(CertificateError, match="malformed"):
            verify_leaf(changed, pki().root, "signing", NOW)


def test_unknown_certificate_version_and_unsupported_name_are_our_errors() -> None:
    leaf = der(pki().leaf)
    version = leaf.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020109"), 1)
    uri = leaf.replace(bytes([0x86, len(URI)]) + URI.encode(), bytes([0xA3, len(URI)]) + URI.encode())  # x400Address
    for changed in (version, uri):
        assert changed != leaf
        with pytest.raises(CertificateError, match="malformed"):
            verify_leaf(changed, pki().root, "signing", NOW)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None)
@given(place=st.integers(0, len(der(pki().leaf)) * 8 - 1))
def test_any_flipped_bit_of_what_a_leaf_says_is_refused(place: int) -> None:
    leaf = der(pki().leaf)
    changed = bytearray(leaf)
    changed[place // 8] ^= 1 << place % 8
    try:
        verified = verify_leaf(bytes(changed), pki().root, "signing", NOW)
    except CertificateError:
        return
    # OpenSSL-style leniency: the count of unused bits before the signature is no part of what is signed, and nothing is read from it.
    assert place // 8 == len(leaf) - len(pki().leaf.signature) - 1
    assert verified.certificate.tbs_certificate_bytes == pki().leaf.tbs_certificate_bytes


# --- roots -------------------------------------------------------------------------------------------------------------------------


def test_root_round_trip_through_pem() -> None:
    world = pki()
    again = TrustRoot.from_pem(world.root.certificate.public_bytes(Encoding.PEM))
    assert again == world.root
    assert again.fingerprint == hashlib.sha256(again.der).hexdigest()


def _self_signed(**change: object) -> bytes:
    key = generate_signing_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anna")])
    shape = Shape(ca=True, path_length=0, usage=key_usage(digital_signature=False, key_cert_sign=True), purposes=None, names=None)
    shape.issuer, shape.issuer_key, shape.public_key = subject, key, key.public_key()
    for field, value in change.items():
        setattr(shape, field, value)
    return make(shape)


def test_a_self_made_root_of_the_right_shape_is_a_root() -> None:
    assert TrustRoot.from_der(_self_signed()).certificate.subject.rfc4514_string() == "CN=anna"


BAD_ROOTS = [
    ("no CA", {"ca": False, "path_length": None}, "not a certification authority"),
    ("path length 1", {"path_length": 1}, "not a certification authority"),
    ("no path length", {"path_length": None}, "not a certification authority"),
    ("cannot sign", {"usage": key_usage()}, "not a certification authority"),
    ("no key usage", {"no_usage": True}, "lacks the extension KeyUsage"),
    ("no basic constraints", {"ca": None}, "lacks the extension BasicConstraints"),
    ("signed by another key", {"issuer_key": generate_signing_key()}, "not issued by"),
    ("P-384", {"public_key": ec.generate_private_key(ec.SECP384R1()).public_key()}, "not P-256"),
    ("signed with SHA-512", {"algorithm": hashes.SHA512()}, "not signed with ECDSA and SHA-256"),
    ("restricted to servers", {"purposes": (SERVER,)}, "restricted to some extended key usage"),
    ("restricted to code signing", {"purposes": (SIGN,)}, "restricted to some extended key usage"),
    ("unknown critical extension", {"extra": [(UNKNOWN, True)]}, "unknown critical extension"),
    ("name constraints", {"extra": [(NAME_LIMITS, True)]}, "unknown critical extension"),
]


@pytest.mark.parametrize(("change", "reason"), [pytest.param(change, reason, id=name) for name, change, reason in BAD_ROOTS])
def test_refused_root(change: dict[str, object], reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        TrustRoot.from_der(_self_signed(**change))


def test_root_file_must_hold_one_pem_certificate() -> None:
    pem = pki().root.certificate.public_bytes(Encoding.PEM)
    for wrong in (b"", b"nonsense", pki().root.der, pem.replace(b"MII", b"AAA", 1)):
        with pytest.raises(CertificateError):
            TrustRoot.from_pem(wrong)
    with pytest.raises(CertificateError, match="exactly one"):
        TrustRoot.from_pem(pem + pem)
    with pytest.raises(CertificateError, match="too large"):
        TrustRoot.from_pem(pem + b"#" * 40_000)


def test_a_root_with_the_same_name_is_another_root() -> None:
    other = TrustRoot.from_der(der(issue_root("grove", generate_signing_key(), NOW)))
    with pytest.raises(CertificateError, match="not issued by this consortium"):
        verify_leaf(der(pki().leaf), other, "signing", NOW)


# --- requests ----------------------------------------------------------------------------------------------------------------------


def test_request_gives_the_key_it_proves() -> None:
    key = generate_signing_key()
    assert public_key_from_csr(make_csr(key, URI)) == key.public_key()


def test_refused_requests() -> None:
    key = generate_signing_key()
    request = make_csr(key, URI)
    point = x509.load_der_x509_csr(request).public_key().public_numbers().x.to_bytes(32, "big")
    stolen = generate_signing_key().public_key().public_numbers()
    swapped = request.replace(point, stolen.x.to_bytes(32, "big"))
    flipped = request[:-1] + bytes([request[-1] ^ 1])
    big = make_csr(ec.generate_private_key(ec.SECP384R1()), URI)
    for wrong in (b"", request[:-1], request + b"\x00", swapped, flipped, big, b"\x00" * 100_000):
        with pytest.raises(FormatError):
            public_key_from_csr(wrong)


def test_requests_with_other_keys_or_of_unreasonable_size_are_refused() -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "anna")])
    builder = x509.CertificateSigningRequestBuilder(name)
    padded = builder.add_extension(x509.UnrecognizedExtension(UNKNOWN.oid, bytes(20_000)), critical=False)
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for request in (builder.sign(rsa_key, hashes.SHA256()), padded.sign(generate_signing_key(), hashes.SHA256())):
        with pytest.raises(FormatError):
            public_key_from_csr(request.public_bytes(Encoding.DER))
