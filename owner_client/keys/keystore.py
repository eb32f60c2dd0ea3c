"""The folder of private keys: written once with mode 0600, at joining or first use, and opened only to sign or to connect."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import AlreadyExistsError, KeyStoreError
from common.files import storage_errors, write_atomic
from common.trust.keys import generate_log_key, generate_signing_key, load_private_key, private_key_pem

__all__ = ["KeyStore", "NewKeys", "generate_keys"]

_SIGNING: Final = "signing.pem"
_TRANSPORT: Final = "transport.pem"
_WITNESS: Final = "witness.pem"
_MAX_KEY_BYTES: Final = 16 * 1024  # bytes; an encrypted P-256 key has about 400


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Two fresh P-256 keys that are still only in memory."""

    signing: ec.EllipticCurvePrivateKey
    transport: ec.EllipticCurvePrivateKey


def generate_keys() -> NewKeys:
    """Make the signing and the transport key."""
    return NewKeys(signing=generate_signing_key(), transport=generate_signing_key())


@dataclass(frozen=True, slots=True)
class KeyStore:
    """The keys under ``folder``; every opening reads the file anew, so that no key stays in memory longer than its use."""

    folder: Path

    def create(self, keys: NewKeys, passphrase: bytes | None) -> None:
        """Write both keys, encrypted if there is a passphrase, readable by this user alone.

        Raises:
            AlreadyExistsError: there are keys here; they are never overwritten.
            StorageError: the disk is full or not writable.
        """
        with storage_errors("the key folder"):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)
        for name, key in ((_SIGNING, keys.signing), (_TRANSPORT, keys.transport)):
            write_atomic(self.folder / name, private_key_pem(key, passphrase), mode=0o600, exclusive=True)

    def open_signing(self, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
        """The key that signs packages and statements.

        Raises:
            KeyStoreError: missing, unreadable, readable by others, or the passphrase is missing or wrong.
        """
        return self._open(_SIGNING, passphrase)

    def open_transport(self, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
        """The key behind the client certificate of the connection.

        Raises:
            KeyStoreError: as :meth:`open_signing`.
        """
        return self._open(_TRANSPORT, passphrase)

    def open_witness(self, passphrase: bytes | None) -> Ed25519PrivateKey:
        """The key that cosigns the log's checkpoints, made and kept at the first call; encrypted if the others are.

        Raises:
            KeyStoreError: unreadable, readable by others, or the passphrase is missing or wrong.
            StorageError: it is not there yet and the disk is full or not writable.
        """
        if not (self.folder / _WITNESS).exists():
            pem = private_key_pem(generate_log_key(), passphrase if self.is_encrypted() else None)
            with contextlib.suppress(AlreadyExistsError):  # another process was faster
                write_atomic(self.folder / _WITNESS, pem, mode=0o600, exclusive=True)
        pem = self._read(_WITNESS)
        key = load_private_key(pem, passphrase if b"ENCRYPTED" in pem else None)
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyStoreError(f"The key {_WITNESS} is not an Ed25519 key.")
        return key

    def is_encrypted(self) -> bool:
        """Whether a passphrase is needed.

        Raises:
            KeyStoreError: the keys are missing, unreadable or readable by others.
        """
        return b"ENCRYPTED" in self._read(_SIGNING)

    def _open(self, name: str, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
        pem = self._read(name)
        # A passphrase may stand in the environment for another store; an open key must not fail because of it.
        key = load_private_key(pem, passphrase if b"ENCRYPTED" in pem else None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise KeyStoreError(f"The key {name} is not a P-256 key.")
        return key

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            with path.open("rb") as stream:
                _check_private(os.fstat(stream.fileno()), path)
                return stream.read(_MAX_KEY_BYTES)
        except FileNotFoundError as error:
            raise KeyStoreError(f"The key {path} is missing. Restore it from a backup, or join again from another folder.") from error
        except OSError as error:
            raise KeyStoreError(f"The key {path} cannot be read: {os.strerror(error.errno or 0)}.") from error


def _check_private(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise KeyStoreError(f"Others may read the key {path}; this must not be so. Run: chmod 600 {path}")
