"""A case: a folder with one ``case.toml`` (``tests/conformance/README.md``)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """``why`` it must come out so, in one line; what to do first; what to run; what must come of it."""

    name: str
    why: str
    run: tuple[str, ...]
    exit: int
    says: tuple[str, ...]
    steps: tuple[tuple[Any, ...], ...]
    knobs: Mapping[str, Any]

    @property
    def must_fail(self) -> bool:
        return self.name.endswith("_fail")


def load(folder: Path) -> Case:
    """Read a case; an unknown key is an error."""
    fields = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    why, run, code = fields.pop("why"), tuple(fields.pop("run")), fields.pop("exit")
    says, steps, knobs = tuple(fields.pop("says")), tuple(map(tuple, fields.pop("steps", []))), fields.pop("knobs", {})
    assert not fields, f"{folder.name}: unknown keys {sorted(fields)}"
    return Case(folder.name, why, run, code, says, steps, knobs)


def all_cases(kind: str) -> list[Case]:
    """Every case below one of the folders of cases."""
    return [load(path.parent) for path in sorted((HERE / kind).glob("*/case.toml"))]
