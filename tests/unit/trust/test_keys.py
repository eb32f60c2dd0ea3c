"""Private keys in PEM: opened with the right passphrase and with nothing else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from common.errors import KeyStoreError
from common.trust.keys import PrivateKey, generate_log_key, generate_signing_key, load_private_key, private_key_pem


def _secret(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("passphrase", [None, b"correct horse", "pässwort".encode()])
@pytest.mark.parametrize("make", [generate_signing_key, generate_log_key])
def test_round_trip(make: type, passphrase: bytes | None) -> None:
    key = make()
    pem = private_key_pem(key, passphrase)
    assert (b"ENCRYPTED" in pem) == (passphrase is not None)
    assert _secret(load_private_key(pem, passphrase)) == _secret(key)


def test_kinds() -> None:
    assert isinstance(generate_signing_key().curve, ec.SECP256R1)
    assert isinstance(generate_log_key(), ed25519.Ed25519PrivateKey)


def test_wrong_missing_and_superfluous_passphrase() -> None:
    closed = private_key_pem(generate_signing_key(), b"right")
    with pytest.raises(KeyStoreError, match="passphrase is wrong"):
        load_private_key(closed, b"wrong")
    for none in (None, b""):
        with pytest.raises(KeyStoreError, match="encrypted; give its passphrase"):
            load_private_key(closed, none)
    with pytest.raises(KeyStoreError, match="not encrypted, but a passphrase was given"):
        load_private_key(private_key_pem(generate_signing_key(), None), b"right")


def test_an_empty_passphrase_is_no_passphrase() -> None:
    assert b"ENCRYPTED" not in private_key_pem(generate_signing_key(), b"")


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed448.Ed448PrivateKey.generate(),
    ],
)
def test_other_kinds_of_key_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(KeyStoreError, match="kind that Elmgrove does not use"):
        load_private_key(pem, None)


def test_public_keys_and_certificates_are_no_private_keys() -> None:
    for pem in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"-----BEGIN PRIVATE KEY-----\n"):
        with pytest.raises(KeyStoreError, match="cannot be opened"):
            load_private_key(pem, None)
