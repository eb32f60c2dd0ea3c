"""A renewal between its request and its end, as files under ``.renewing/``, so that it can be cut off at any moment.

The request and new keys appear there whole before anything is sent, and are sent again, the same bytes, until the answer is checked.
Then the certificates join them, ``ready`` is written last, and from then on the switch is only ever finished: every file replaces
its namesake in the home, in any number of tries.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import KeyStoreError
from common.files import atomic_folder, fsync_folder, storage_errors, write_atomic
from common.formats.statements import request_digest
from owner_client.config import Home
from owner_client.daemon.locks import exclusive
from owner_client.keys.keystore import KeyName, KeyStore

__all__ = ["PendingRenewal", "discard_renewal", "finish_renewal", "load_renewal", "renewal_lock", "settle_renewal", "stage_renewal"]

_SIGNING: Final = "signing.csr"
_TRANSPORT: Final = "transport.csr"
_AUTHORISATION: Final = "authorisation.json"
_READY: Final = "ready"
_DONE: Final = ".renewed"


@dataclass(frozen=True, slots=True)
class PendingRenewal:
    """What was, or is to be, asked: certificate requests (empty for a purpose not asked for) and the authorisation of new keys."""

    folder: Path
    signing_csr: bytes
    transport_csr: bytes
    authorisation: bytes

    @property
    def request(self) -> str:
        """The digest by which the log's entry names this request."""
        return request_digest(signing_csr=self.signing_csr, transport_csr=self.transport_csr, authorisation=self.authorisation)

    @property
    def purposes(self) -> tuple[KeyName, ...]:
        """What certificates are asked for."""
        asked: tuple[tuple[KeyName, bytes], ...] = (("signing", self.signing_csr), ("transport", self.transport_csr))
        return tuple(name for name, csr in asked if csr)

    def key(self, name: KeyName, home: Home, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
        """The new key of that name, or the home's own where it is not replaced.

        Raises:
            KeyStoreError: it cannot be opened.
        """
        new = KeyStore(self.folder / "keys")
        return (new if new.has(name) else KeyStore(home.keys)).open(name, passphrase)


def renewal_lock(home: Home) -> Path:
    """The lock file under which a renewal runs."""
    return home.path / ".renew.lock"


def load_renewal(home: Home) -> PendingRenewal | None:
    """The renewal that was begun and not finished, if there is one.

    Raises:
        KeyStoreError: its files are damaged.
    """
    folder = home.renewing
    if not folder.is_dir():
        return None
    try:
        return PendingRenewal(folder, *((folder / name).read_bytes() for name in (_SIGNING, _TRANSPORT, _AUTHORISATION)))
    except OSError as error:
        raise KeyStoreError(f"The unfinished renewal {folder} cannot be read: {error.strerror}.") from error


def stage_renewal(
    home: Home,
    csrs: Mapping[KeyName, bytes],
    new_keys: Mapping[KeyName, ec.EllipticCurvePrivateKey],
    authorisation: bytes,
    passphrase: bytes | None,
) -> PendingRenewal:
    """Write down what will be asked, with the new keys, before it is sent.

    Raises:
        AlreadyExistsError: an earlier renewal is not finished.
        StorageError: the disk is full or not writable.
    """
    with atomic_folder(home.renewing) as aside:
        aside.chmod(0o700)
        if new_keys:
            KeyStore(aside / "keys").add(new_keys, passphrase)
        (aside / _SIGNING).write_bytes(csrs.get("signing", b""))
        (aside / _TRANSPORT).write_bytes(csrs.get("transport", b""))
        (aside / _AUTHORISATION).write_bytes(authorisation)
    return PendingRenewal(home.renewing, csrs.get("signing", b""), csrs.get("transport", b""), authorisation)


def discard_renewal(home: Home) -> None:
    """Forget a renewal that was refused."""
    shutil.rmtree(home.renewing, ignore_errors=True)


def settle_renewal(pending: PendingRenewal, certificates: Mapping[KeyName, x509.Certificate]) -> None:
    """Keep the checked answer; from here on the switch only goes forward.

    Raises:
        StorageError: the disk is full or not writable.
    """
    folder = pending.folder / "certs"
    with storage_errors("the certificates"):
        folder.mkdir(exist_ok=True)
    for name, certificate in certificates.items():
        write_atomic(folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM))
    write_atomic(pending.folder / _READY, b"")


def finish_renewal(home: Home, *, locked: bool = False) -> None:
    """Switch to the keys and certificates of a settled renewal; does nothing if there is none.

    Args:
        home: whose.
        locked: the caller holds the renewal's lock.

    Raises:
        StorageError: the disk is full or not writable; the next try goes on.
    """
    if not (home.renewing / _READY).is_file():
        return
    if not locked:
        with exclusive(renewal_lock(home)):
            finish_renewal(home, locked=True)
        return
    with storage_errors("the keys"):
        for folder in (home.keys, home.certificates):
            staged = home.renewing / folder.name
            for path in sorted(staged.iterdir()) if staged.is_dir() else ():
                path.replace(folder / path.name)
            fsync_folder(folder)
        done = home.path / _DONE
        shutil.rmtree(done, ignore_errors=True)
        home.renewing.rename(done)
        fsync_folder(home.path)
        shutil.rmtree(done, ignore_errors=True)
