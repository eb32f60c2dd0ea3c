"""Jointly trained mixtures: upcycled from the anchor (arXiv 2212.05055), and Branch-Train-MiX of dense experts (arXiv 2403.07816)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.modeling.config import ModelConfig
from common.modeling.model import CausalLM

__all__ = ["branch_train_mix", "load_mixture", "save_mixture", "upcycled"]

_ROUTER_STD = 0.02


def _mixture(config: ModelConfig, experts: int, top_k: int) -> CausalLM:
    return CausalLM(replace(config, num_experts=experts, num_experts_per_tok=top_k), kind="mixture")


@torch.no_grad()
def branch_train_mix(models: Sequence[CausalLM], *, top_k: int, seed: int) -> CausalLM:
    """A mixture with the FFN of every model as an expert, the mean of all other weights, and small random router rows."""
    mixture = _mixture(models[0].config, len(models), top_k)
    generator = torch.Generator().manual_seed(seed)
    states = [dict(model.named_parameters()) for model in models]
    for name, parameter in mixture.named_parameters():
        if name.endswith(".mlp.rows"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * _ROUTER_STD)
        elif ".mlp.experts." in name:
            layer, _, rest = name.partition(".experts.")
            number, _, weight = rest.partition(".")
            parameter.copy_(states[int(number)][f"{layer}.{weight}"])
        else:
            parameter.copy_(torch.stack([state[name] for state in states]).mean(0))
    return mixture


def upcycled(anchor: CausalLM, *, experts: int, top_k: int, seed: int) -> CausalLM:
    """A mixture whose experts are all copies of the anchor's FFN."""
    return branch_train_mix([anchor] * experts, top_k=top_k, seed=seed)


def save_mixture(model: CausalLM, path: Path) -> None:
    """Write all parameters under the model's own names."""
    tensors: Mapping[str, Tensor] = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(dict(tensors), path)


def load_mixture(path: Path, config: ModelConfig, *, experts: int, top_k: int) -> CausalLM:
    """What :func:`save_mixture` wrote; ``config`` has the sizes of the anchor."""
    model = _mixture(config, experts, top_k)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)
