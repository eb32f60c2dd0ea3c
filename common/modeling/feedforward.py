"""What a layer's FFN can be: one SwiGLU, an expert pair, full or low-rank, or a mixture (``modeling_flex_olmo.py`` is the oracle)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.errors import UsageError
from common.modeling.config import ModelConfig
from common.modeling.kernels import low_rank_pair, swiglu, swiglu_pair

__all__ = ["ExpertPair", "FeedForward", "LowRankExpert", "LowRankPair", "Mixture", "RoutingTap", "SwiGLU", "check_allowed"]

RoutingTap = Callable[[int, Tensor, Tensor], None]
"""Called with a layer's number, the router's probabilities ``[n, N]`` fp32 and the chosen experts ``[n, k]``."""


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up are one matrix of ``2 x intermediate`` rows, gate first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, H] -> [n, H]``."""
        return swiglu(x, self.gate_up.weight, self.down.weight)


class ExpertPair(nn.Module):
    """The frozen public FFN, one expert, and the expert's router row; the public row is zero.

    ``y = softmax([0, row . x])_0 * public(x) + softmax([0, row . x])_1 * expert(x)``, router in fp32. The expert and row may be fp32
    masters while the rest is bf16.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.public = SwiGLU(config)
        self.expert = SwiGLU(config)
        self.row = nn.Parameter(torch.zeros(config.hidden_size))

    def router_logit(self, x: Tensor) -> Tensor:
        """``row . x``: ``[n, H] -> [n]`` fp32."""
        return x.float() @ self.row.float()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, H]`` -> the mix ``[n, H]`` and the router logits ``[n]``."""
        logit = self.router_logit(x)
        share = torch.sigmoid(logit)[:, None]
        weights = (self.public.gate_up.weight, self.public.down.weight, self.expert.gate_up.weight, self.expert.down.weight)
        return swiglu_pair(x, share, *weights), logit


class LowRankExpert(nn.Module):
    """The factors of an expert's three matrices: ``W = W_public + B A`` with ``A`` of ``rank`` rows and ``B`` of ``rank`` columns."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj_a, self.gate_proj_b = _factors(inner, hidden, rank)
        self.up_proj_a, self.up_proj_b = _factors(inner, hidden, rank)
        self.down_proj_a, self.down_proj_b = _factors(hidden, inner, rank)

    def factors(self) -> tuple[Tensor, ...]:
        """``A`` and ``B`` of gate, up and down."""
        return self.gate_proj_a, self.gate_proj_b, self.up_proj_a, self.up_proj_b, self.down_proj_a, self.down_proj_b

    @torch.no_grad()
    def init(self, generator: torch.Generator) -> None:
        """Draw every ``A`` from ``N(0, 1 / columns)`` and set every ``B`` to zero, so that the expert is the public FFN."""
        for name, factor in self.named_parameters():
            if name.endswith("_b"):
                factor.zero_()
            else:
                factor.copy_(torch.randn(factor.shape, generator=generator) * factor.shape[1] ** -0.5)


def _factors(out: int, into: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.zeros(rank, into)), nn.Parameter(torch.zeros(out, rank))


class LowRankPair(nn.Module):
    """As :class:`ExpertPair` with an expert of low-rank differences to the public FFN, whose products are made once for both."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.public = SwiGLU(config)
        self.expert = LowRankExpert(config, rank)
        self.row = nn.Parameter(torch.zeros(config.hidden_size))

    def router_logit(self, x: Tensor) -> Tensor:
        """``row . x``: ``[n, H] -> [n]`` fp32."""
        return x.float() @ self.row.float()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[n, H]`` -> the mix ``[n, H]`` and the router logits ``[n]``."""
        logit = self.router_logit(x)
        share = torch.sigmoid(logit)[:, None]
        return low_rank_pair(x, share, self.public.gate_up.weight, self.public.down.weight, *self.expert.factors()), logit


class Mixture(nn.Module):
    """``N`` experts and ``N`` router rows: softmax over all allowed rows in fp32, then top-k, no renormalisation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(SwiGLU(config) for _ in range(config.num_experts))
        self.rows = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.top_k = config.num_experts_per_tok

    def route(self, x: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``[n, H]`` -> probabilities ``[n, N]``, the chosen experts' weights ``[n, k]`` (both fp32) and numbers ``[n, k]``.

        An excluded row is minus infinity before the softmax, which gives the probabilities of a checkpoint without that expert.
        """
        logits = x.float() @ self.rows.float().t()
        top_k = self.top_k
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
            top_k = min(top_k, int(allowed.sum()))
        probabilities = torch.softmax(logits, dim=-1)
        weights, picks = probabilities.topk(top_k, dim=-1)
        return probabilities, weights, picks

    def forward(self, x: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``[n, H]`` -> the mix ``[n, H]``, the probabilities ``[n, N]`` and the choice ``[n, k]``."""
        probabilities, weights, picks = self.route(x, allowed)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if picks.shape[1] == len(self.experts):
                out += expert(x) * probabilities[:, number, None].to(x.dtype)
                continue
            tokens, place = (picks == number).nonzero(as_tuple=True)
            if tokens.numel():
                out.index_add_(0, tokens, expert(x[tokens]) * weights[tokens, place, None].to(x.dtype))
        return out, probabilities, picks


def check_allowed(allowed: Tensor, num_experts: int) -> None:
    """Refuse a choice of experts that leaves no model.

    Raises:
        UsageError: not one flag per expert, or the public expert (number 0) excluded.
    """
    if allowed.dtype != torch.bool or tuple(allowed.shape) != (num_experts,):
        raise UsageError(f"The choice of experts must be {num_experts} flags, one per expert.")
    if not bool(allowed.any()):
        raise UsageError("Every expert is excluded; at least the public one must stay.")
    if not bool(allowed[0]):
        raise UsageError("The public expert (number 0) cannot be excluded: it is the anchor's own feed-forward network.")


FeedForward = SwiGLU | ExpertPair | LowRankPair | Mixture
