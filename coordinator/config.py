"""The coordinator's home folder and its one settings file, ``coordinator.toml``; an unknown key is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from common.errors import ConfigError, NotFoundError
from common.files import write_atomic
from common.formats.fields import Name
from common.formats.invitation import Host, Port
from common.formats.settings import encode_settings, parse_settings
from common.formats.strictjson import Document

__all__ = ["HOME_VARIABLE", "CoordinatorConfig", "Home", "Quota", "Retention", "load_config", "parse_config", "save_config"]

HOME_VARIABLE: Final = "ELMGROVE_HOME"
_GIB: Final = 2**30


class Quota(Document):
    """What one owner may use of this machine."""

    bytes_per_owner: Annotated[int, Field(ge=2**20, le=2**50)] = 256 * _GIB
    """Bytes of accepted packages and open uploads together; a 7B expert has 8.7 GB."""
    open_uploads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Uploads begun and not committed."""
    streams: Annotated[int, Field(ge=1, le=16)] = 8
    """Upload streams at a time; each holds a server thread and about 2 MiB."""


class Retention(Document):
    """How long unfinished and unusable things are kept."""

    upload_days: Annotated[int, Field(ge=1, le=365)] = 7
    """Days after the last byte until an uncommitted upload is cleared away."""
    withdrawn_days: Annotated[int, Field(ge=0, le=36_500)] = 30
    """Days from an expert's withdrawal, or its owner's revocation, until its weights are deleted; the log keeps its digests for ever."""
    delete_superseded: bool = False
    """Whether versions that a newer one superseded are deleted too, as many days after it."""


class CoordinatorConfig(Document):
    """``coordinator.toml``. It holds no secret."""

    consortium: Name
    host: Host
    """Name or address under which owners reach this machine; it stands in the server's certificate and in every invitation."""
    port: Port
    enrol_port: Port
    listen: Host
    """Local address to listen on; ``0.0.0.0`` or ``::`` for all."""
    web_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port for the log's files and the health check over plain HTTP; 0 for none."""
    certificate_days: Annotated[int, Field(ge=1, le=3650)] = 730
    """Validity of certificates issued to owners."""
    quota: Quota = Quota()
    retention: Retention = Retention()


@dataclass(frozen=True, slots=True)
class Home:
    """Where everything of one coordinator lies. The properties name places; nothing here creates them."""

    path: Path

    @classmethod
    def resolve(cls, option: str | None) -> Home:
        """The folder given on the command line, else in ``ELMGROVE_HOME``, else the current folder."""
        return cls(Path(option or os.environ.get(HOME_VARIABLE) or ".").expanduser().absolute())

    @property
    def config(self) -> Path:
        """``coordinator.toml``."""
        return self.path / "coordinator.toml"

    @property
    def keys(self) -> Path:
        """The folder of private keys: root, operator, server, log."""
        return self.path / "keys"

    @property
    def certificates(self) -> Path:
        """The folder of certificates: root, operator, server."""
        return self.path / "certs"

    @property
    def root(self) -> Path:
        """The consortium's root certificate, PEM; the one file an auditor needs to trust."""
        return self.certificates / "root.pem"

    @property
    def renewing(self) -> Path:
        """The operator's and server's next keys and certificates until the log lists them."""
        return self.path / ".renewing"

    @property
    def database(self) -> Path:
        """Operational state: invitations, uploads under way."""
        return self.path / "state.db"

    @property
    def blobs(self) -> Path:
        """Content-addressed files of anchors and accepted packages."""
        return self.path / "blobs"

    @property
    def materialised(self) -> Path:
        """Full matrices of low-rank experts, one file each; made when a model needs them, and may be deleted at any time."""
        return self.path / "materialised"

    @property
    def uploads(self) -> Path:
        """Packages that are arriving, one folder each."""
        return self.path / "uploads"

    @property
    def log(self) -> Path:
        """The transparency log's files; any web server can serve this folder."""
        return self.path / "log"

    @property
    def audit(self) -> Path:
        """One JSON line for everything that was admitted or refused."""
        return self.path / "audit.jsonl"


def load_config(home: Home) -> CoordinatorConfig:
    """Read ``coordinator.toml``.

    Raises:
        NotFoundError: no consortium was founded here.
        ConfigError: unreadable, not TOML, or a key is unknown, missing or wrong.
    """
    try:
        raw = home.config.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{home.path} is not a coordinator's home: there is no coordinator.toml. "
            "Run 'elmgrove-coordinator init DIR --name NAME' first, or name the folder with --home."
        ) from error
    except OSError as error:
        raise ConfigError(f"{home.config} cannot be read: {os.strerror(error.errno or 0)}.") from error
    return parse_config(raw, str(home.config))


def parse_config(raw: bytes, place: str) -> CoordinatorConfig:
    """Parse the bytes of a ``coordinator.toml`` that lies at ``place`` (used in messages only).

    Raises:
        ConfigError: too large, not UTF-8 TOML, or a key is unknown, missing or wrong.
    """
    config = parse_settings(CoordinatorConfig, raw, place)
    if len({config.port, config.enrol_port, config.web_port}) < 3:
        raise ConfigError(f"{place}: port, enrol_port and web_port must differ.")
    return config


def save_config(home: Home, config: CoordinatorConfig) -> None:
    """Write ``coordinator.toml`` with every setting spelled out, so that the file shows what can be changed.

    Raises:
        StorageError: the disk is full or not writable.
    """
    write_atomic(home.config, encode_settings(config))
