"""Training and inference arithmetic as the FlexOlmo paper counts it: multiply-adds of matrix products, two FLOPs each, per token.

Attention scores, norms, embeddings and the router's own product are left out, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.modeling.config import ModelConfig

__all__ = ["Budget", "Costs"]


@dataclass(frozen=True, slots=True)
class Costs:
    """FLOPs per token of a model with these sizes; ``active`` is the number of FFNs that a token passes."""

    config: ModelConfig

    @property
    def _ffn(self) -> int:
        return 3 * self.config.num_layers * self.config.hidden_size * self.config.intermediate_size

    def _products(self, active: float) -> float:
        config = self.config
        attention = config.num_layers * 2 * config.hidden_size * (config.hidden_size + config.kv_size)
        return attention + active * self._ffn + config.hidden_size * config.vocab_size

    def forward(self, active: float = 1.0) -> float:
        """Inference."""
        return 2 * self._products(active)

    def full_training(self, active: float = 1.0) -> float:
        """Every weight is trained: forward, gradient of activations, gradient of weights."""
        return 6 * self._products(active)

    def ffn_training(self) -> float:
        """Only the FFNs of a dense model are trained."""
        return 4 * self._products(1) + 2 * self._ffn

    def rows_training(self, active: float) -> float:
        """Only router rows are trained: no gradient of any matrix."""
        return 4 * self._products(active)

    def pair_training(self, rank: int | None = None) -> float:
        """An expert pair: two FFNs forward and back, the gradient of one.

        With a ``rank`` the base products are computed once and the low-rank factors alone are trained.
        """
        if rank is None:
            return 4 * self._products(2) + 2 * self._ffn
        factors = 3 * self.config.num_layers * rank * (self.config.hidden_size + self.config.intermediate_size)
        return 4 * (self._products(1) + factors) + 2 * factors


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens every kind of training gets so that all of them cost what ``domains`` expert pairs of ``pair_tokens`` cost."""

    costs: Costs
    domains: int
    pair_tokens: int

    @property
    def total(self) -> float:
        """FLOPs of all expert pairs: what 1.0 stands for in the table."""
        return self.domains * self.pair_tokens * self.costs.pair_training()

    @property
    def dense_expert_tokens(self) -> int:
        """Of one domain's dense model."""
        return round(self.pair_tokens * self.costs.pair_training() / self.costs.full_training())

    @property
    def dense_all_tokens(self) -> int:
        """Of one dense model on everything."""
        return self.domains * self.dense_expert_tokens

    def mixture_tokens(self, top_k: int, factor: float = 1.0) -> int:
        """Of a mixture of which every weight is trained, at ``factor`` times the budget."""
        return round(factor * self.total / self.costs.full_training(top_k))
