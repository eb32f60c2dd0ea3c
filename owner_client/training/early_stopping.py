"""Early stopping: which step was best on private held-out text, and when to give up; kept in the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EarlyStopping"]


@dataclass(slots=True)
class EarlyStopping:
    """State of early stopping after some measurements."""

    patience: int
    """Measurements without a better loss after which to stop; 0 never stops and keeps no best step."""
    best_step: int = 0
    """The best measured step; 0 before any."""
    best_loss: float = math.inf
    """Its private loss, nats per token."""
    worse: int = 0
    """Measurements since then."""

    @property
    def stopped(self) -> bool:
        """Whether patience is at its end."""
        return self.patience > 0 and self.worse >= self.patience

    def note(self, step: int, loss: float) -> bool:
        """Take in the private ``loss`` measured after ``step`` steps; returns whether it is the best so far."""
        if not self.patience:
            return False
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.worse = step, loss, 0
            return True
        self.worse += 1
        return False

    def facts(self) -> dict[str, int | float]:
        """The state for a checkpoint's JSON."""
        known = {"best_loss": self.best_loss} if self.best_step else {}
        return {"best_step": self.best_step, "worse": self.worse, **known}

    def restore(self, facts: Mapping[str, object]) -> None:
        """Go back to what :meth:`facts` gave.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        self.best_step, self.worse = int(str(facts["best_step"])), int(str(facts["worse"]))
        self.best_loss = float(str(facts["best_loss"])) if self.best_step else math.inf
