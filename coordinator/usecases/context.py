"""What every use case works with: one coordinator's home, opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConfigError, KeyStoreError, NotFoundError
from common.files import storage_errors
from common.translog.note import parse_vkey
from common.trust.certificates import TrustRoot
from common.trust.keys import load_private_key
from coordinator.config import CoordinatorConfig, Home, load_config
from coordinator.log.ledger import Ledger, WritableLedger
from coordinator.log.view import LogView
from coordinator.store.arrivals import Arrivals
from coordinator.store.audit import AuditTrail
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.invitations import Invitations
from coordinator.store.log_head import LogHead
from coordinator.store.uploads import Uploads
from coordinator.usecases.log_memory import RememberingWriter, check_continues
from coordinator.usecases.staged_keys import finish_staged

__all__ = ["Coordinator", "KeyRing", "Signer", "log_key_path", "open_coordinator", "open_ledger", "open_public"]


@dataclass(frozen=True, slots=True, repr=False)
class Signer:
    """A signing key and the certificate that says whose it is."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, repr=False)
class KeyRing:
    """The coordinator's private keys, opened when they are needed."""

    home: Home
    passphrase: bytes | None

    def pem(self, name: str) -> bytes:
        """The stored bytes of a key.

        Raises:
            KeyStoreError: the file is missing or unreadable.
        """
        try:
            return (self.home.keys / f"{name}.pem").read_bytes()
        except OSError as error:
            raise KeyStoreError(f"The {name} key of this coordinator cannot be read.") from error

    def certificate(self, name: str) -> x509.Certificate:
        """The certificate ``certs/NAME.pem``.

        Raises:
            KeyStoreError: missing or not a certificate.
        """
        try:
            return x509.load_pem_x509_certificate((self.home.certificates / f"{name}.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise KeyStoreError(f"The {name} certificate of this coordinator cannot be read.") from error

    def signing(self, name: str) -> Signer:
        """The key pair ``root``, ``operator`` or ``server``.

        Raises:
            KeyStoreError: missing, of the wrong kind, or the passphrase is wrong.
        """
        key = load_private_key(self.pem(name), self.passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise KeyStoreError(f"The {name} key of this coordinator is of the wrong kind.")
        return Signer(key, self.certificate(name))

    def log(self) -> Ed25519PrivateKey:
        """The key that signs checkpoints.

        Raises:
            KeyStoreError: missing, of the wrong kind, or the passphrase is wrong.
        """
        key = load_private_key(self.pem("log"), self.passphrase)
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyStoreError("The log key of this coordinator is of the wrong kind.")
        return key


@dataclass(frozen=True, slots=True)
class Coordinator:
    """One coordinator's home, opened for work. Its parts are safe to share between threads."""

    home: Home
    config: CoordinatorConfig
    root: TrustRoot
    log_key: str
    keys: KeyRing
    ledger: WritableLedger
    database: Database
    invitations: Invitations
    blobs: Blobs
    uploads: Uploads
    arrivals: Arrivals
    audit: AuditTrail

    @property
    def consortium(self) -> str:
        """The consortium's name."""
        return self.config.consortium

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_coordinator(home: Home, passphrase: bytes | None) -> Coordinator:
    """Open a home for work, after finishing a change of the coordinator's own keys that was cut off.

    Raises:
        NotFoundError: no consortium was founded there.
        ConfigError: its settings are wrong.
        KeyStoreError: its keys cannot be opened.
        LogInconsistentError: the log on the disk is older than one that was signed here.
    """
    config = load_config(home)
    root, log_key = open_public(home)
    keys = KeyRing(home, passphrase)
    private = keys.log()
    database = Database(home.database)
    try:
        ledger = _open_log(home, root, log_key, private, LogHead(database))
    except BaseException:
        database.close()
        raise
    uploads = Uploads(database, home.uploads)
    return Coordinator(
        home=home,
        config=config,
        root=root,
        log_key=log_key,
        keys=keys,
        ledger=ledger,
        database=database,
        invitations=Invitations(database),
        blobs=Blobs(home.blobs),
        uploads=uploads,
        arrivals=Arrivals(uploads),
        audit=AuditTrail(home.audit),
    )


def _open_log(home: Home, root: TrustRoot, log_key: str, private: Ed25519PrivateKey, head: LogHead) -> WritableLedger:
    """The log for writing, once it is known to continue the newest one that was signed here."""
    writer = RememberingWriter(home.log, log_key, private, parse_vkey(log_key).name, head)
    present = check_continues(writer, log_key, head)
    if present is not None:
        head.remember(present)
    ledger = WritableLedger(writer, root)
    finish_staged(home, ledger)
    return ledger


def open_ledger(home: Home) -> Ledger:
    """The consortium's state for commands that only read; needs no key and no passphrase.

    Raises:
        NotFoundError: no consortium was founded there.
        ConfigError: its settings are wrong.
    """
    load_config(home)
    root, log_key = open_public(home)
    return Ledger(LogView(home.log, log_key), root)


def open_public(home: Home) -> tuple[TrustRoot, str]:
    """The root certificate and the log's verifier key, which are no secrets.

    Raises:
        NotFoundError: the home is incomplete.
        CertificateError: the root certificate is malformed.
    """
    root = TrustRoot.from_pem(_read(home.root))
    return root, _read(log_key_path(home)).decode("ascii", "replace").strip()


def log_key_path(home: Home) -> Path:
    """Where the log's verifier key lies."""
    return home.certificates / "log.vkey"


def _read(path: Path) -> bytes:
    try:
        with storage_errors(path.name):
            return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"This home is incomplete: {path.name} is missing.") from error
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read.") from error
