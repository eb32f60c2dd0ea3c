"""Model soups (arXiv 2203.05482): one dense model whose weights are a mean of several, uniform or by how well each fits the input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.modeling.model import CausalLM
from tests.bench.experiment.scoring import ScoredText, score_batches, split_windows

__all__ = ["Ingredients", "prefix_weights", "score_weighted_soup"]


class Ingredients:
    """Models of one shape, and a pot: a model that takes any weighted mean of them."""

    def __init__(self, models: Sequence[CausalLM]) -> None:
        self._names = [name for name, _ in models[0].named_parameters()]
        states = [dict(model.named_parameters()) for model in models]
        self._stacked = [torch.stack([state[name].detach() for state in states]).flatten(1) for name in self._names]
        self.pot = CausalLM(models[0].config, kind="dense").eval().requires_grad_(False)

    @torch.no_grad()
    def mix(self, weights_N: Tensor) -> CausalLM:
        """The pot with the mean by ``weights_N``, which sum to 1."""
        parameters = dict(self.pot.named_parameters())
        for name, stack in zip(self._names, self._stacked, strict=True):
            parameters[name].copy_((weights_N @ stack).view_as(parameters[name]))
        return self.pot


def prefix_weights(losses_NT: NDArray[np.floating], text: ScoredText, *, prefix: int, temperature: float) -> NDArray[np.float64]:
    """Softmax over models of the log-likelihood of every window's first ``prefix`` tokens: ``[windows, N]``."""
    sums = np.stack([window[:, :prefix].sum(-1, dtype=np.float64) for window in split_windows(losses_NT, text)])
    logits = -sums / temperature
    logits -= logits.max(-1, keepdims=True)
    weights: NDArray[np.float64] = np.exp(logits)
    weights /= weights.sum(-1, keepdims=True)
    return weights


@torch.inference_mode()
def score_weighted_soup(soup: Ingredients, weights_WN: NDArray[np.float64], text: ScoredText) -> NDArray[np.float32]:
    """The loss of every token, each window read by the soup that its own weights give."""

    def losses(tokens: Tensor, targets: Tensor, numbers: Sequence[int]) -> Tensor:
        model = soup.mix(torch.from_numpy(weights_WN[numbers[0]]).float())
        return model.token_losses(tokens, targets)

    return score_batches(losses, text, batch_tokens=1)
