"""Private keys: ECDSA P-256 to sign and to speak TLS, Ed25519 for the log; PKCS #8 PEM on disk (RFC 5958)."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import KeyStoreError

__all__ = ["PrivateKey", "generate_log_key", "generate_signing_key", "load_private_key", "private_key_pem"]

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
"""The two kinds of key there are."""


def generate_signing_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key, the one curve that OMS, TLS and X.509 tools all accept."""
    return ec.generate_private_key(ec.SECP256R1())


def generate_log_key() -> Ed25519PrivateKey:
    """A new Ed25519 key, the algorithm of C2SP checkpoints."""
    return Ed25519PrivateKey.generate()


def private_key_pem(key: PrivateKey, passphrase: bytes | None) -> bytes:
    """PKCS #8 PEM, encrypted (PBES2, the library's best) when a passphrase is given."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def load_private_key(pem: bytes, passphrase: bytes | None) -> PrivateKey:
    """Open a key written by :func:`private_key_pem`.

    Raises:
        KeyStoreError: not a PEM key, of another kind, or the passphrase is missing, superfluous or wrong.
    """
    try:
        key = serialization.load_pem_private_key(pem, passphrase or None)
    except TypeError as error:
        needed = "encrypted; give its passphrase" if not passphrase else "not encrypted, but a passphrase was given"
        raise KeyStoreError(f"The key is {needed}.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyStoreError("The key cannot be opened: it is damaged, or the passphrase is wrong.") from error
    if isinstance(key, Ed25519PrivateKey) or (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)):
        return key
    raise KeyStoreError("The key is of a kind that Elmgrove does not use; P-256 and Ed25519 are.")
