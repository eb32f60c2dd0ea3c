"""An owner's home, opened: settings, root certificate and our certificates, checked against what was pinned at joining."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import CertificateError, ConfigError, RootFingerprintError
from common.formats.fields import utc_now
from common.rpc.channels import ClientIdentity
from common.translog.proof import parse_receipt
from common.trust.certificates import TrustRoot, VerifiedLeaf, verify_leaf
from common.trust.keys import private_key_pem
from owner_client.config import Home, OwnerConfig, load_config
from owner_client.daemon.client import Coordinator
from owner_client.daemon.receipts import CheckedReceipt
from owner_client.daemon.sync import SeenCheckpoint, follow_log
from owner_client.daemon.witness import Witness
from owner_client.keys.keystore import KeyStore

__all__ = ["SIGNING_CERTIFICATE", "TRANSPORT_CERTIFICATE", "Session", "open_session"]

SIGNING_CERTIFICATE: Final = "signing.pem"
TRANSPORT_CERTIFICATE: Final = "transport.pem"
_MAX_PEM_BYTES: Final = 64 * 1024  # bytes; ours have about 800


@dataclass(frozen=True, slots=True)
class Session:
    """An opened home: only :func:`open_session` makes it. Keys stay closed until a method needs one."""

    home: Home
    config: OwnerConfig
    root: TrustRoot

    def connect(self, passphrase: bytes | None) -> Coordinator:
        """A connection to the coordinator under our transport certificate, on which our witness key cosigns what we follow.

        Raises:
            KeyStoreError: the transport or the witness key cannot be opened.
            ConfigError: the certificate is missing.
        """
        key = KeyStore(self.home.keys).open_transport(passphrase)
        identity = ClientIdentity(key_pem=private_key_pem(key, None), certificate_pem=self._pem(TRANSPORT_CERTIFICATE))
        witness = Witness(self.home, self.config, KeyStore(self.home.keys).open_witness(passphrase), lambda: self.signer(passphrase))
        return Coordinator(self.config.coordinator, self.root, identity, witness)

    def signer(self, passphrase: bytes | None) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        """The signing key and its certificate, to sign with now.

        Raises:
            KeyStoreError: the key cannot be opened.
            CertificateError: the certificate is not valid now, or not of this key.
        """
        certificate = self.certificate(SIGNING_CERTIFICATE)
        leaf = verify_leaf(certificate.public_bytes(Encoding.DER), self.root, purpose="signing", at=utc_now())
        key = KeyStore(self.home.keys).open_signing(passphrase)
        if leaf.uri != self.config.uri or leaf.public_key != key.public_key():
            raise CertificateError("The signing certificate does not belong to the signing key of this home.")
        return key, certificate

    def certificate(self, name: str) -> x509.Certificate:
        """One of our certificates, parsed but not verified.

        Raises:
            ConfigError: missing or malformed.
        """
        try:
            return x509.load_pem_x509_certificate(self._pem(name))
        except ValueError as error:
            raise ConfigError(f"The certificate {self.home.certificates / name} is malformed.") from error

    def verified_leaf(self, name: str) -> VerifiedLeaf:
        """One of our certificates, verified as of now.

        Raises:
            CertificateError: expired, or not of this consortium.
        """
        purpose: Final = "signing" if name == SIGNING_CERTIFICATE else "transport"
        return verify_leaf(self.certificate(name).public_bytes(Encoding.DER), self.root, purpose=purpose, at=utc_now())

    def follow_log(self, coordinator: Coordinator, *receipts: CheckedReceipt) -> SeenCheckpoint:
        """Move to the log's present checkpoint, which must extend the last one and those of ``receipts``, and cosign it.

        Raises:
            LogInconsistentError: the log contradicts itself; the proof was written to a file.
        """
        shown = [parse_receipt(receipt.proof).checkpoint for receipt in receipts]
        seen = follow_log(self.home, self.config, coordinator, shown)
        return coordinator.witness.attest(coordinator, seen) if coordinator.witness is not None else seen

    def _pem(self, name: str) -> bytes:
        return _read_pem(self.home.certificates / name)


def open_session(home: Home) -> Session:
    """Open an owner's home.

    Raises:
        NotFoundError: nobody joined from this home.
        ConfigError: a file is missing or wrong.
        RootFingerprintError: the root certificate is not the one pinned at joining.
    """
    config = load_config(home)
    root = TrustRoot.from_pem(_read_pem(home.root))
    if root.fingerprint != config.pinned.root_sha256:
        raise RootFingerprintError(f"{home.root} is not the root certificate that was pinned when you joined.")
    return Session(home, config, root)


def _read_pem(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os.strerror(error.errno or 0)}.") from error
