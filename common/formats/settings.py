"""The two daemons' settings files: strict TOML, written with every setting spelled out; an unknown key is an error."""

from __future__ import annotations

import json
import tomllib
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from common.errors import ConfigError
from common.formats.strictjson import Document

__all__ = ["encode_settings", "parse_settings"]

SettingsT = TypeVar("SettingsT", bound=Document)
_MAX_BYTES: Final = 64 * 1024  # bytes; a real file has about 600


def parse_settings(kind: type[SettingsT], raw: bytes, place: str) -> SettingsT:
    """Parse the bytes of a settings file that lies at ``place`` (used in messages only).

    Raises:
        ConfigError: too large, not UTF-8 TOML, or a key is unknown, missing or wrong.
    """
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{place} is too large to be a settings file.")
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{place} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{place} is not valid TOML: nested too deeply.") from error
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = "is not a known key" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{place}: {key}: {reason}.") from error


def encode_settings(settings: Document, *, head: str = "") -> bytes:
    """Spell settings as TOML: plain keys first, then one section for each nested document, so that the file shows what can be changed.

    Args:
        settings: documents of texts, integers and flags, nested at most once; JSON's spelling of those is TOML's too.
        head: a comment for the reader, without ``#``.
    """
    sections: list[tuple[str, dict[str, Any]]] = []
    lines = [f"# {head}", ""] if head else []
    for key, value in settings.model_dump(mode="json").items():
        if isinstance(value, dict):
            sections.append((key, value))
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    for name, section in sections:
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in section.items())]
    return ("\n".join(lines) + "\n").encode("utf-8")
