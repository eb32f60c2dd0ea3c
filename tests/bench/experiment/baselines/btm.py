"""Branch-Train-Merge (arXiv 2208.03306) and prompt routing: dense models mixed in their output, from the losses of each on every token.

Only the probability of the token that came is needed, so no logits are kept: an ensemble's probability of it is the weighted mean of
the models'.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.bench.experiment.scoring import ScoredText, split_windows

__all__ = ["best_temperature", "ensemble", "ensemble_from_prefix", "route_by_prefix"]

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
Losses = NDArray[np.floating]


def _log_posterior(losses_NT: Losses, temperature: float) -> NDArray[np.float64]:
    """Log-weights before each token from all earlier ones of the window, uniform at its start; ``[N, T]``, not normalised."""
    wide = losses_NT.astype(np.float64)
    return -(np.cumsum(wide, axis=1) - wide) / temperature


def _mixed(losses_NT: Losses, log_weights_NT: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Losses ``[T]`` of the mean of the ``top_k`` heaviest models by renormalised weights."""
    kept = np.argsort(-log_weights_NT, axis=0, kind="stable")[:top_k]
    weights = np.take_along_axis(log_weights_NT, kept, axis=0)
    chosen = np.take_along_axis(losses_NT.astype(np.float64), kept, axis=0)
    mixed: NDArray[np.float64] = np.logaddexp.reduce(weights, axis=0) - np.logaddexp.reduce(weights - chosen, axis=0)
    return mixed


def ensemble(losses_NT: Losses, text: ScoredText, *, top_k: int, temperature: float) -> NDArray[np.float64]:
    """BTM: before every token the ``top_k`` models with the highest posterior given the window so far. All models run."""
    windows = split_windows(losses_NT, text)
    return np.concatenate([_mixed(window, _log_posterior(window, temperature), top_k) for window in windows])


def ensemble_from_prefix(losses_NT: Losses, text: ScoredText, *, prefix: int, top_k: int, temperature: float) -> NDArray[np.float64]:
    """BTM at a bounded cost: all models read a window's first ``prefix`` tokens, then only the ``top_k`` best of them go on."""
    out = []
    for window in split_windows(losses_NT, text):
        posterior = _log_posterior(window, temperature)
        best = np.argsort(window[:, :prefix].sum(1), kind="stable")[:top_k]
        head = _mixed(window[:, :prefix], posterior[:, :prefix], len(window))
        out += [head, _mixed(window[best, prefix:], posterior[best, prefix:], top_k)]
    return np.concatenate(out)


def route_by_prefix(losses_NT: Losses, text: ScoredText, *, prefix: int) -> NDArray[np.float64]:
    """Prompt routing: the model that finds the first ``prefix`` tokens likeliest reads the window.

    The prompt itself is scored by the chosen model too, which flatters this row.
    """
    windows = split_windows(losses_NT, text)
    return np.concatenate([window[int(window[:, :prefix].sum(1).argmin())].astype(np.float64) for window in windows])


def best_temperature(losses: Mapping[str, Losses], texts: Mapping[str, ScoredText], *, top_k: int) -> float:
    """The temperature with the lowest loss per token, averaged over held-out texts."""

    def mean_loss(temperature: float) -> float:
        return float(np.mean([ensemble(losses[name], texts[name], top_k=top_k, temperature=temperature).mean() for name in texts]))

    return min(TEMPERATURES, key=mean_loss)
