"""What an audit found: checks that hold, notes, and faults that are errors of ``common/errors.py`` (``docs/auditor.md``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from common.errors import (
    AdmissionError,
    ArchitectureError,
    ElmgroveError,
    FormatError,
    IdentityError,
    NotFoundError,
    VerificationError,
)

__all__ = ["AuditReport", "Check", "Outcome"]

Outcome = Literal["holds", "note", "fails"]
_VERDICTS = (FormatError, VerificationError, AdmissionError, IdentityError, ArchitectureError, NotFoundError)
"""Errors that say something about what is audited; any other, such as a failing disk or Ctrl-C, ends the audit itself."""
_SHOWN_FAULTS = 20  # lines of one check; the JSON report has them all


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report."""

    name: str
    outcome: Outcome
    detail: str


class _StopError(Exception):
    """Later checks would stand on one that failed."""


@dataclass(slots=True)
class AuditReport:
    """Grows while an audit runs; ``faults`` empty means that what was claimed holds.

    ``facts`` are what the audit learned, for the JSON form: names, digests, log positions.
    """

    kind: str
    subject: str
    checks: list[Check] = field(default_factory=list)
    faults: list[ElmgroveError] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def holds(self, name: str, detail: str) -> None:
        """Record a check that went through."""
        self.checks.append(Check(name, "holds", detail))

    def note(self, name: str, detail: str) -> None:
        """Record something to know that is no fault."""
        self.checks.append(Check(name, "note", detail))

    def fails(self, name: str, faults: Sequence[ElmgroveError]) -> None:
        """Record the faults of one check."""
        self.faults += faults
        self.checks += [Check(name, "fails", str(fault)) for fault in faults]

    def outcome(self, name: str, faults: Sequence[ElmgroveError], detail: str) -> None:
        """Record a check that holds if there are no faults."""
        if faults:
            self.fails(name, faults)
        else:
            self.holds(name, detail)

    @contextlib.contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Record an error of the block as a fault and leave :meth:`collecting`, since what follows needs the block."""
        try:
            yield
        except _VERDICTS as error:
            self.fails(name, [error])
            raise _StopError from error

    @contextlib.contextmanager
    def also_checking(self, name: str, detail: str) -> Iterator[None]:
        """Record whether the block went through, and go on either way."""
        try:
            yield
        except _VERDICTS as error:
            self.fails(name, [error])
        else:
            self.holds(name, detail)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """The scope that a failed :meth:`checking` leaves."""
        with contextlib.suppress(_StopError):
            yield

    def raise_first(self) -> None:
        """Raise the first fault, whose class decides the exit code; do nothing if all holds.

        Raises:
            ElmgroveError: the first fault.
        """
        if self.faults:
            raise self.faults[0]

    def as_json(self) -> dict[str, object]:
        """The report for scripts."""
        return {
            "audit": self.kind,
            "subject": self.subject,
            "verdict": "fails" if self.faults else "holds",
            "exit_code": self.faults[0].exit_code if self.faults else 0,
            "checks": [{"check": check.name, "outcome": check.outcome, "detail": check.detail} for check in self.checks],
            "findings": [{"code": fault.code, "message": str(fault)} for fault in self.faults],
            **self.facts,
        }

    def as_text(self) -> str:
        """The report for people."""
        width = max((len(check.name) for check in self.checks), default=0)
        marks = {"holds": "ok  ", "note": "note", "fails": "FAIL"}
        lines = [f"Audit of {self.kind} {self.subject}"]
        shown: dict[str, int] = {}
        for check in self.checks:
            shown[check.name] = shown.get(check.name, 0) + 1
            if check.outcome != "fails" or shown[check.name] <= _SHOWN_FAULTS:
                lines.append(f"  {marks[check.outcome]}  {check.name.ljust(width)}  {check.detail}")
        hidden = len(self.checks) + 1 - len(lines)
        if hidden:
            lines.append(f"  ... and {hidden} more; --json lists all.")
        count = len(self.faults)
        lines.append("It holds." if not count else f"It does NOT hold: {count} finding{'s' if count > 1 else ''}.")
        return "\n".join(lines)
