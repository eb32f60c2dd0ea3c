"""How the baselines are trained; ``run.py --stage sweep`` measures the alternatives on documents held out of training files."""

from __future__ import annotations

from tests.bench.experiment.training import Recipe

__all__ = ["BTX_ALL", "BTX_ROUTER", "DENSE", "DENSE_PUBLIC_SHARE", "MIXTURE", "SWEEP"]

DENSE = Recipe(lr=0.004, matrix_lr=0.01)
DENSE_PUBLIC_SHARE = 0.0
"""Of a dense expert's sequences."""
MIXTURE = Recipe(lr=0.004, matrix_lr=0.01)
BTX_ROUTER = Recipe(lr=0.005, matrix_lr=0.0)
BTX_ALL = Recipe(lr=0.002, matrix_lr=0.005)

SWEEP = {
    "adamw 2e-3": Recipe(lr=0.002, matrix_lr=0.0),
    "adamw 4e-3": Recipe(lr=0.004, matrix_lr=0.0),
    "muon 0.005": Recipe(lr=0.002, matrix_lr=0.005),
    "muon 0.01": Recipe(lr=0.004, matrix_lr=0.01),
    "muon 0.02": Recipe(lr=0.008, matrix_lr=0.02),
}
"""What is tried."""
