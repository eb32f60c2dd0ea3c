"""Renders docs/errors.md from the exception tree; ``make docs`` writes it, a test compares it."""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import ElmgroveError

HEAD = """# Exit codes and errors

Each class of `common/errors.py` has one exit code, which scripts can rely on, and one code that travels over the wire. Exit code 0 means
that everything asked was done or verified; 1 is a bug (with a traceback); 2 is a wrong command line. This page is generated: `make docs`.

| exit code | wire code | class | meaning |
|--:|---|---|---|
"""


def all_errors() -> list[type[ElmgroveError]]:
    """The root and every subclass defined in ``common.errors``, by exit code."""
    found: set[type[ElmgroveError]] = set()
    pending: list[type[ElmgroveError]] = [ElmgroveError]
    while pending:
        cls = pending.pop()
        if cls.__module__ == "common.errors":
            found.add(cls)
        pending.extend(cls.__subclasses__())
    return sorted(found, key=lambda cls: cls.exit_code)


def render() -> str:
    """The whole page."""
    rows = [f"| {cls.exit_code} | `{cls.code}` | `{cls.__name__}` | {' '.join((cls.__doc__ or '').split())} |" for cls in all_errors()]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
