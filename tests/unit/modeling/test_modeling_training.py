"""Training the pair: the losses are those of stock transformers, and the benchmarks of it run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from common.modeling.model import CausalLM
from tests.bench import gpu
from tests.bench.training import CONFIG, loss_curves, our_model, our_step

_TINY = replace(CONFIG, hidden_size=32, intermediate_size=48, vocab_size=512, num_layers=2, max_position_embeddings=64)


def test_losses_are_those_of_stock_transformers() -> None:
    curves = loss_curves(_TINY, steps=25, batch=(2, 64), lr=5e-3)
    assert max(abs(mine - theirs) for mine, theirs in curves) < 1e-4
    assert curves[-1][0] < curves[0][0] - 0.2


def test_a_low_rank_expert_learns() -> None:
    model = our_model(_TINY, torch.float32, rank=4)
    frozen = model.layers[0].mlp.public.down.weight.clone()
    step = our_step(model, lr=1e-2)
    tokens = torch.arange(64).repeat(2, 1) % 8
    losses = [float(step(tokens)) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.2
    assert torch.equal(model.layers[0].mlp.public.down.weight, frozen)


def test_needed_flops_count_the_factors_instead_of_the_expert() -> None:
    full, low = CONFIG.pair_training_flops_per_token(), CONFIG.low_rank_pair_training_flops_per_token(32)
    assert (full, low) == (58_720_256, 36_372_480)
    assert CONFIG.pair_training_flops_per_token(512) == 62_914_560
    assert CONFIG.low_rank_pair_training_flops_per_token(32, 512) - low == 62_914_560 - full
    counted = sum(p.numel() for p in CausalLM(CONFIG, kind="pair", rank=32).layers[0].mlp.expert.parameters())
    per_rank = low - CONFIG.low_rank_pair_training_flops_per_token(31)
    first_layer_saves = 2 * (2 * CONFIG.hidden_size)
    assert per_rank == 6 * 3 * 2 * counted // 32 - first_layer_saves


def test_the_gpu_benchmark_runs_at_tiny_shapes(tmp_path: Path) -> None:
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")])
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert [each["name"] for each in results] == [
        "full expert", "full expert, checkpointed", "rank 4", "transformers, eager experts, autocast",
    ]  # fmt: skip
    assert all(each["tokens_per_s"] > 0 for each in results)
