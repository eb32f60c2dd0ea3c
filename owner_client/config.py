"""The owner's home folder and its one settings file, ``owner.toml``; an unknown key is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from common.errors import AlreadyExistsError, ConfigError, NotFoundError
from common.files import write_atomic
from common.formats.fields import Digest, Name, owner_uri
from common.formats.invitation import Host, Port
from common.formats.settings import encode_settings, parse_settings
from common.formats.statements import VerifierKey
from common.formats.strictjson import Document

__all__ = ["HOME_VARIABLE", "CoordinatorAddress", "Home", "OwnerConfig", "Pinned", "TransferSettings", "load_config", "save_config"]

HOME_VARIABLE: Final = "ELMGROVE_OWNER_HOME"
_DEFAULT_HOME: Final = "~/.elmgrove/owner"


class CoordinatorAddress(Document):
    """Where the coordinator answers calls made with our transport certificate."""

    host: Host
    port: Port


class Pinned(Document):
    """What enrolment fixed for good: whoever later shows another root or log key is not our consortium."""

    root_sha256: Digest
    log_key: VerifierKey


class TransferSettings(Document):
    """How packages and anchors travel."""

    streams: Annotated[int, Field(ge=1, le=16)] = 4
    """Parallel streams; memory grows by about 2 MiB for each."""
    patience_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """How long to keep trying, counted from the last byte that arrived, while the coordinator does not answer."""


class OwnerConfig(Document):
    """``owner.toml``: who we are, in which consortium, and how to reach it. It holds no secret."""

    consortium: Name
    owner: Name
    coordinator: CoordinatorAddress
    pinned: Pinned
    transfer: TransferSettings = TransferSettings()

    @property
    def uri(self) -> str:
        """Our identity, ``elmgrove://CONSORTIUM/owners/OWNER``."""
        return owner_uri(self.consortium, self.owner)


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything of one owner lies. The properties name places; nothing here creates them."""

    path: Path

    @classmethod
    def resolve(cls, option: str | None) -> Home:
        """The folder given on the command line, else in ``ELMGROVE_OWNER_HOME``, else ``~/.elmgrove/owner``."""
        text = option or os.environ.get(HOME_VARIABLE) or _DEFAULT_HOME
        return cls(Path(text).expanduser().absolute())

    @property
    def config(self) -> Path:
        """``owner.toml``; it is written last when joining, so its presence means that joining was finished."""
        return self.path / "owner.toml"

    @property
    def keys(self) -> Path:
        """The folder of the two private keys."""
        return self.path / "keys"

    @property
    def certificates(self) -> Path:
        """The folder of our two certificates."""
        return self.path / "certs"

    @property
    def root(self) -> Path:
        """The consortium's root certificate."""
        return self.path / "root.pem"

    @property
    def anchors(self) -> Path:
        """The folder of verified anchors, each under its digest."""
        return self.path / "anchors"

    @property
    def outbox(self) -> Path:
        """The folder of expert packages that are ready to be reviewed and pushed: the only things that ever leave."""
        return self.path / "outbox"

    @property
    def runs(self) -> Path:
        """The folder of training runs; they may hold traces of private text and never leave."""
        return self.path / "runs"

    @property
    def receipts(self) -> Path:
        """The folder of verified receipts: what the log promised us."""
        return self.path / "receipts"

    @property
    def admission_receipt(self) -> Path:
        """The receipt of our own admission."""
        return self.receipts / "admitted"

    @property
    def founding_receipt(self) -> Path:
        """The receipt of the consortium's founding, which names the log's key; the others can be checked with it and the root alone."""
        return self.receipts / "founding"

    def anchor_receipt(self, digest: str) -> Path:
        """The receipt of a published anchor."""
        return self.receipts / "anchors" / digest

    def expert_receipt(self, expert: str, version: int) -> Path:
        """The receipt of an accepted version of an expert."""
        return self.receipts / "experts" / f"{expert}-v{version}"

    def withdrawal_receipt(self, expert: str) -> Path:
        """The receipt of the withdrawal of an expert."""
        return self.receipts / "withdrawn" / expert

    def renewal_receipt(self, index: int) -> Path:
        """The receipt of the log entry that renewed our certificates or rotated our keys."""
        return self.receipts / "renewed" / str(index)

    @property
    def renewing(self) -> Path:
        """A renewal that is not finished: what was asked, the new keys, and the answer once it is checked."""
        return self.path / ".renewing"

    @property
    def watch(self) -> Path:
        """How far the log was read for what it says in our name; it may be deleted, and the log is then read again from its beginning."""
        return self.path / "log" / "watch.json"

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint of the log that we verified."""
        return self.path / "log" / "checkpoint"

    def package(self, expert: str, version: int) -> Path:
        """Where a trained version of an expert lies in the outbox."""
        return self.outbox / f"{expert}-v{version}"

    def run(self, expert: str, version: int) -> Path:
        """Where the training run of a version of an expert keeps its state."""
        return self.runs / f"{expert}-v{version}"

    def is_joined(self) -> bool:
        """Whether joining was finished here."""
        return self.config.is_file()

    def require_new(self) -> None:
        """Raise unless this home is free to join from.

        Raises:
            AlreadyExistsError: an owner lives here already.
        """
        if self.is_joined():
            known = load_config(self)
            raise AlreadyExistsError(
                f"{self.path} belongs to owner {known.owner!r} of consortium {known.consortium!r} already. Name another folder with --home."
            )


def load_config(home: Home) -> OwnerConfig:
    """Read ``owner.toml``.

    Raises:
        NotFoundError: nobody joined from this home.
        ConfigError: unreadable, not TOML, or a key is unknown, missing or wrong.
    """
    try:
        raw = home.config.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{home.path} is not an owner's home: there is no owner.toml. "
            "Run 'elmgrove-owner join INVITATION' first, or name the folder with --home."
        ) from error
    except OSError as error:
        raise ConfigError(f"{home.config} cannot be read: {os.strerror(error.errno or 0)}.") from error
    return parse_config(raw, str(home.config))


def parse_config(raw: bytes, place: str) -> OwnerConfig:
    """Parse the bytes of an ``owner.toml`` that lies at ``place`` (used in messages only).

    Raises:
        ConfigError: too large, not UTF-8 TOML, or a key is unknown, missing or wrong.
    """
    return parse_settings(OwnerConfig, raw, place)


def encode_config(config: OwnerConfig) -> bytes:
    """Spell a config as TOML with a comment for the reader."""
    return encode_settings(config, head="Written by 'elmgrove-owner join'. The [pinned] values were fixed then and must not change.")


def save_config(home: Home, config: OwnerConfig) -> None:
    """Write ``owner.toml``, whole or not at all.

    Raises:
        StorageError: the disk is full or not writable.
    """
    write_atomic(home.config, encode_config(config))
