"""Which version comes next, asked of the coordinator when it answers and of this home's receipts otherwise."""

from __future__ import annotations

from pathlib import Path

from common.errors import KeyStoreError, UnavailableError
from owner_client.cli.options import notice
from owner_client.daemon.session import Session
from owner_client.daemon.status import withdrawn_experts
from owner_client.daemon.versions import LoggedVersion, NextVersion, logged_versions, next_version
from owner_client.keys.passphrase import find_passphrase

__all__ = ["ask_next_version"]


def ask_next_version(session: Session, expert: str, *, offline: bool, passphrase_file: Path | None) -> NextVersion:
    """From our receipts and, if it answers, the coordinator; the connection is closed before any private file is opened.

    Raises:
        WithdrawnError: the expert was withdrawn; its name cannot be used again.
        LogError, FormatError, SignatureError: a kept receipt was changed.
    """
    home = session.home
    known = list(logged_versions(home, session.config, session.root))
    withdrawn = set(withdrawn_experts(home))
    if not offline:
        try:
            with session.connect(find_passphrase(passphrase_file)) as coordinator:
                remote = coordinator.status()
        except (KeyStoreError, UnavailableError) as error:
            notice(f"The next version is taken from the receipts in this home, because the coordinator could not be asked: {error}")
        else:
            known += [LoggedVersion(item.name, item.version, item.manifest, item.index) for item in remote.experts]
            withdrawn |= {item.name for item in remote.experts if item.status == "withdrawn"}
    return next_version(expert, known, withdrawn)
