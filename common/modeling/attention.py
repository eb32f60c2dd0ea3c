"""Causal self-attention of OLMo 2 (``modeling_olmo2.py`` of transformers is the oracle): QK-norm, rotary positions, documents, cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.errors import UsageError
from common.modeling.config import ModelConfig
from common.modeling.kernels import attend, linear, rms_norm, rotate

__all__ = ["Attention", "KVCache", "Positions", "RMSNorm"]


class RMSNorm(nn.Module):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size] -> [..., size]`` in the dtype of ``x``."""
        return rms_norm(x, self.weight, self.eps)


class KVCache:
    """Keys and values of the tokens seen so far, for generation; room for ``capacity`` tokens of each of ``batch`` sequences."""

    def __init__(self, config: ModelConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (config.num_layers, 2, batch, config.num_kv_heads, capacity, config.head_dim)
        self._store = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``[B, KV, T, D]`` keys and values of one layer and return all of them, ``[B, KV, length + T, D]``.

        Raises:
            UsageError: more tokens than the capacity.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise UsageError(f"The text is longer than the {self.capacity} tokens that were made room for.")
        store = self._store[layer]
        store[0, :, :, self.length : end] = k
        store[1, :, :, self.length : end] = v
        return store[0, :, :, :end], store[1, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` as seen, once every layer has been updated."""
        self.length += tokens


class Positions:
    """What all layers share about one batch: rotary tables ``[T, D/2]`` and the attention mask, made once.

    Positions do not restart at a document's start: rotary attention depends only on differences of positions, and the mask leaves no
    pair of tokens of different documents, so restarting would change nothing but rounding.
    """

    def __init__(self, config: ModelConfig, tokens_BT: Tensor, segments_BT: Tensor | None, past: int) -> None:
        length = tokens_BT.shape[1]
        if past + length > config.max_position_embeddings:
            raise UsageError(f"A sequence of {past + length} tokens is longer than the model's {config.max_position_embeddings}.")
        device = tokens_BT.device
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        angles = torch.arange(past, past + length, dtype=torch.float32, device=device)[:, None] * (1.0 / config.rope_theta**exponents)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.mask = _mask(length, past, segments_BT, device)
        self.causal = self.mask is None and length > 1
        self._masks: dict[torch.dtype, Tensor] = {}

    def mask_for(self, dtype: torch.dtype) -> Tensor | None:
        """The mask to add to scores of ``dtype``: zero where attention is allowed, minus infinity elsewhere; made once."""
        if self.mask is None:
            return None
        if dtype not in self._masks:
            self._masks[dtype] = torch.zeros_like(self.mask, dtype=dtype).masked_fill_(~self.mask, float("-inf"))
        return self._masks[dtype]


def _mask(length: int, past: int, segments_BT: Tensor | None, device: torch.device) -> Tensor | None:
    """Boolean ``[1 or B, 1, T, past + T]``, true where attention is allowed; None when plain causal attention says it all."""
    if segments_BT is not None:
        if past:
            raise UsageError("Documents cannot be packed together with a cache.")
        if bool((segments_BT[:, :1] == segments_BT).all()):
            return None
        same = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
        return same & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if past and length > 1:
        return torch.ones(1, 1, length, past + length, dtype=torch.bool, device=device).tril(past)
    return None


class Attention(nn.Module):
    """Multi-head attention with RMSNorm over the whole query and key projections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, kv = config.hidden_size, config.kv_size
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, kv, bias=False)
        self.v_proj = nn.Linear(hidden, kv, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.q_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.k_norm = RMSNorm(kv, config.rms_norm_eps)
        self.head_dim = config.head_dim
        self.groups = config.num_heads // config.num_kv_heads

    def forward(self, x: Tensor, positions: Positions, layer: int, cache: KVCache | None) -> Tensor:
        """``[B, T, H] -> [B, T, H]``."""
        batch, length, _ = x.shape
        split = (batch, length, -1, self.head_dim)
        q = rotate(self.q_norm(linear(x, self.q_proj.weight)).view(split), positions.cos, positions.sin).transpose(1, 2)
        k = rotate(self.k_norm(linear(x, self.k_proj.weight)).view(split), positions.cos, positions.sin).transpose(1, 2)
        v = linear(x, self.v_proj.weight).view(split).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        if self.groups > 1:
            k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        mixed = attend(q.to(k.dtype), k, v.to(k.dtype), positions.mask_for(k.dtype), causal=positions.causal)
        return linear(mixed.transpose(1, 2).reshape(batch, length, -1).to(x.dtype), self.o_proj.weight)
