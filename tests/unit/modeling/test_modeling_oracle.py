"""Logits of stock transformers and of our modules agree within 1e-5 in fp32, read and written, for every variant of the layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from common.modeling.config import ModelConfig
from common.modeling.export import save_dense
from common.modeling.loading import load_expert, load_model, load_pair
from common.modeling.model import CausalLM

Make = Callable[..., tuple[Any, Path]]
_VARIANTS = [{}, {"num_key_value_heads": 2}, {"tie_word_embeddings": True}, {"num_key_value_heads": 1, "tie_word_embeddings": True}]
_LIMIT = 1e-5


def _gap(stock: Any, ours: CausalLM, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        expected = stock(tokens).logits
        assert expected.abs().max() > 0.5
        return float((ours(tokens) - expected).abs().max())


@pytest.mark.parametrize("changes", _VARIANTS)
def test_dense_folder_of_transformers(stock_dense: Make, tokens: torch.Tensor, changes: dict[str, Any]) -> None:
    stock, folder = stock_dense(**changes)
    ours = load_model(folder)
    assert _gap(stock, ours, tokens) < _LIMIT
    assert ours.config.num_params() == sum(parameter.numel() for parameter in ours.parameters())


@pytest.mark.parametrize("changes", [*_VARIANTS, {"num_experts_per_tok": 4}, {"num_experts_per_tok": 1}, {"num_experts": 12}])
def test_mixture_folder_of_transformers(stock_mixture: Make, tokens: torch.Tensor, changes: dict[str, Any]) -> None:
    stock, folder = stock_mixture(**changes)
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in load_file(folder / "model.safetensors")
    assert _gap(stock, load_model(folder), tokens) < _LIMIT


@pytest.mark.parametrize("changes", _VARIANTS)
def test_our_dense_folder_in_transformers(stock_dense: Make, tokens: torch.Tensor, tmp_path: Path, changes: dict[str, Any]) -> None:
    ours = load_model(stock_dense(rope_parameters={"rope_theta": 4321.0, "rope_type": "default"}, rms_norm_eps=3e-6, **changes)[1])
    save_dense(ours, tmp_path / "written")
    stock, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert stock.config.rope_parameters["rope_theta"] == 4321.0
    assert _gap(stock.eval(), ours, tokens) < _LIMIT


def test_sharded_folder(stock_mixture: Make, tokens: torch.Tensor, tmp_path: Path) -> None:
    stock, _ = stock_mixture()
    stock.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert _gap(stock, load_model(tmp_path / "sharded"), tokens) < _LIMIT


def test_pair_is_the_two_expert_mixture(stock_dense: Make, tokens: torch.Tensor, tmp_path: Path) -> None:
    """The pair's mix with a zero public row is what transformers computes from the assembled two-expert folder."""
    _, folder = stock_dense()
    dense = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    expert = {name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in dense.items() if ".mlp." in name}
    rows = torch.randn(3, 32, generator=generator)
    tensors = {name: value for name, value in dense.items() if ".mlp." not in name}
    for name in expert:
        tensors[name.replace(".mlp.", ".mlp.experts.0.")] = dense[name]
        tensors[name.replace(".mlp.", ".mlp.experts.1.")] = expert[name]
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = torch.stack([torch.zeros(32), rows[layer]])
    config = transformers.Olmo2Config.from_pretrained(folder).to_dict() | {"num_experts": 2, "num_experts_per_tok": 2}
    for key in ("model_type", "architectures"):
        config.pop(key)
    transformers.FlexOlmoConfig(**config, architectures=["FlexOlmoForCausalLM"]).save_pretrained(tmp_path / "two")
    save_file(tensors, tmp_path / "two" / "model.safetensors", metadata={"format": "pt"})
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two").eval()
    pair = load_pair(folder, expert=expert, rows_LH=rows)
    assert _gap(stock, pair, tokens) < _LIMIT
    assert _gap(stock, load_model(tmp_path / "two"), tokens) < _LIMIT
    assert _gap(stock, load_model(folder), tokens) > 0.1


def test_package_round_trip(stock_dense: Make, tokens: torch.Tensor, tmp_path: Path) -> None:
    from common.modeling.loading import expert_tensors, router_tensors

    _, folder = stock_dense()
    pair = load_pair(folder, rows_LH=torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
    for parameter in pair.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(1.5)
    save_file(expert_tensors(pair), tmp_path / "part-0000.safetensors")
    save_file(router_tensors(pair), tmp_path / "router.safetensors")
    expert, rows = load_expert(tmp_path)
    again = load_pair(folder, expert=expert, rows_LH=rows)
    assert torch.equal(again(tokens), pair(tokens))


def test_config_of_transformers_4() -> None:
    """Fields at the top level, as transformers 4.57 writes them, and absent fields with each class's own defaults."""
    dense = ModelConfig.from_hf({"architectures": ["Olmo2ForCausalLM"], "rope_theta": 500000, "rope_scaling": None})
    assert (dense.rope_theta, dense.rms_norm_eps, dense.max_position_embeddings, dense.pad_token_id) == (500000.0, 1e-5, 2048, 1)
    mixture = ModelConfig.from_hf({"model_type": "flex_olmo"})
    assert (mixture.rope_theta, mixture.rms_norm_eps, mixture.num_experts, mixture.num_experts_per_tok) == (500000.0, 1e-6, 7, 5)
    for kind, config in ((transformers.Olmo2Config(), "Olmo2ForCausalLM"), (transformers.FlexOlmoConfig(), "FlexOlmoForCausalLM")):
        assert ModelConfig.from_hf({"architectures": [config]}) == ModelConfig.from_hf({**kind.to_dict(), "architectures": [config]})
