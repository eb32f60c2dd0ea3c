"""Which version of an expert comes next: it follows the last logged one and names the manifest it replaces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import LogError, WithdrawnError
from common.formats.fields import parse_time, subject_expert
from common.formats.manifest import MANIFEST_NAME
from common.trust.certificates import TrustRoot
from common.trust.oms import verify_bundle
from owner_client.config import Home, OwnerConfig
from owner_client.daemon.receipts import load_receipt

__all__ = ["LoggedVersion", "NextVersion", "logged_versions", "next_version"]


@dataclass(frozen=True, slots=True)
class LoggedVersion:
    """One version of an expert that the log took in: its number, the digest of its manifest and the index of its entry."""

    expert: str
    version: int
    digest: str
    index: int


@dataclass(frozen=True, slots=True)
class NextVersion:
    """The number of the version to train and the digest of the manifest it replaces (``None`` for the first)."""

    version: int
    supersedes: str | None


def logged_versions(home: Home, config: OwnerConfig, root: TrustRoot) -> tuple[LoggedVersion, ...]:
    """Every expert version we hold a receipt for, by name and version. Each receipt is checked again.

    Raises:
        LogError, FormatError, SignatureError: a kept receipt was changed.
    """
    folder = home.receipts / "experts"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    versions = [_logged_version(folder / name, config, root) for name in names]
    return tuple(sorted(versions, key=lambda version: (version.expert, version.version)))


def _logged_version(folder: Path, config: OwnerConfig, root: TrustRoot) -> LoggedVersion:
    expert, _, number = folder.name.rpartition("-v")
    if not expert or not number.isdecimal():
        raise LogError(f"{folder} is not a receipt; the folder of receipts holds nothing else. Move it away.")
    receipt = load_receipt(folder, "expert-accepted", subject_expert(expert, int(number)), config.pinned.log_key)
    if receipt is None:
        raise LogError(f"The receipt {folder} is not a folder.")
    bundle = verify_bundle(receipt.document, root, at=parse_time(receipt.entry.time))
    return LoggedVersion(expert, int(number), bundle.resources[MANIFEST_NAME], receipt.index)


def next_version(expert: str, logged: Iterable[LoggedVersion], withdrawn: Iterable[str]) -> NextVersion:
    """The version that follows the highest logged one.

    Args:
        expert: its name.
        logged: versions from receipts, from the coordinator, or both.
        withdrawn: names of experts that were withdrawn.

    Raises:
        WithdrawnError: the expert was withdrawn; its name cannot be used again.
    """
    if expert in set(withdrawn):
        raise WithdrawnError(f"Expert {expert!r} was withdrawn, and a withdrawn name is never used again. Train under another --name.")
    known = [version for version in logged if version.expert == expert]
    if not known:
        return NextVersion(1, None)
    last = max(known, key=lambda version: version.version)
    return NextVersion(last.version + 1, last.digest)
