"""How long work tells the person who waits for it; the terminal side is in ``common/console.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["ProgressSink", "silent"]


class ProgressSink(Protocol):
    """Receives the state of one piece of long work; called often, so it decides itself what to show."""

    def __call__(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
        """Report that ``done`` of ``total`` ``unit`` (``"bytes"``, ``"steps"``, ``"tokens"``) of ``label`` are finished.

        Args:
            label: what is being done, a few words; a new label starts a new line.
            done: finished units; ``done == total`` ends the label.
            total: units in all, 0 when unknown.
            unit: name of the unit; ``"bytes"`` is shown as KiB, MiB, GiB.
            figures: short name to short text, for example ``{"loss": "4.21", "tok/s": "10.4k"}``.
        """


def silent(label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
    """A :class:`ProgressSink` that shows nothing."""
