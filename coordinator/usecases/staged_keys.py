"""The operator's and server's next keys and certificates between being made and being logged, under ``.renewing/`` in the home.

They appear there whole before the log's entry is written. Afterwards the log decides: certificates that it lists take the place of
the old ones, in any number of tries; what it does not list was never issued and is dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import KeyStoreError
from common.files import atomic_folder, fsync_folder, storage_errors
from common.formats.strictjson import b64encode
from common.ledger.state import ConsortiumState
from common.trust.keys import private_key_pem
from coordinator.config import Home
from coordinator.log.ledger import WritableLedger

__all__ = ["HolderName", "finish_staged", "stage_keys", "switch_staged"]

HolderName = Literal["operator", "server"]
"""The two leaves of a consortium's own; the files of keys and certificates bear these names."""


def stage_keys(
    home: Home,
    keys: Mapping[HolderName, ec.EllipticCurvePrivateKey],
    certificates: Mapping[HolderName, x509.Certificate],
    passphrase: bytes | None,
) -> None:
    """Write the next keys (those that change) and certificates, by name, durably.

    Raises:
        AlreadyExistsError: others are staged.
        StorageError: the disk is full or not writable.
    """
    with atomic_folder(home.renewing) as aside:
        aside.chmod(0o700)
        for folder in ("keys", "certs"):
            (aside / folder).mkdir(mode=0o700)
        for name, key in keys.items():
            path = aside / "keys" / f"{name}.pem"
            path.touch(mode=0o600)
            path.write_bytes(private_key_pem(key, passphrase))
        for name, certificate in certificates.items():
            (aside / "certs" / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


def finish_staged(home: Home, ledger: WritableLedger) -> None:
    """Bring to its end what a crash left staged; does nothing if there is nothing.

    Raises:
        KeyStoreError: what is staged cannot be read.
        LogError: the log does not hold.
        StorageError: the disk is full or not writable.
    """
    if home.renewing.is_dir():
        with ledger.exclusive() as session:
            if session.state is not None and home.renewing.is_dir():
                switch_staged(home, session.state)


def switch_staged(home: Home, state: ConsortiumState) -> None:
    """Switch to what is staged if the log lists it, else drop it; to be called with every other writer kept out.

    Raises:
        KeyStoreError: what is staged cannot be read.
        StorageError: the disk is full or not writable; the next try goes on.
    """
    listed = {record.der for record in state.certificates}
    with storage_errors("the keys"):
        if all(_der(path) in listed for path in (home.renewing / "certs").iterdir()):
            for folder in (home.keys, home.certificates):
                for path in sorted((home.renewing / folder.name).iterdir()):
                    path.replace(folder / path.name)
                fsync_folder(folder)
        shutil.rmtree(home.renewing)


def _der(path: Path) -> str:
    try:
        return b64encode(x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER))
    except (OSError, ValueError) as error:
        raise KeyStoreError(f"The staged certificate {path.name} cannot be read.") from error
