"""Small random stock models of transformers, saved as folders: the oracle of this room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def _randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
        else:
            parameter.data = 0.5 + torch.rand(parameter.shape, generator=generator)


@pytest.fixture
def stock_dense(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Makes ``(Olmo2ForCausalLM, folder)`` with the given changes to the sizes."""

    def make(**changes: object) -> tuple[Any, Path]:
        model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**{**_SIZES, **changes})).eval()
        _randomise(model)
        model.save_pretrained(tmp_path / "dense")
        return model, tmp_path / "dense"

    return make


@pytest.fixture
def stock_mixture(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """Makes ``(FlexOlmoForCausalLM, folder)``, four experts of which two are active unless changed."""

    def make(**changes: object) -> tuple[Any, Path]:
        sizes = {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, **changes}
        model = transformers.FlexOlmoForCausalLM(transformers.FlexOlmoConfig(**sizes)).eval()
        _randomise(model)
        model.save_pretrained(tmp_path / "mixture")
        return model, tmp_path / "mixture"

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 97, (2, 23), generator=torch.Generator().manual_seed(3))
