"""The training steps that benchmarks compare: our pair, our low-rank pair, and stock transformers with frozen parameters marked so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.modeling.config import ModelConfig
from common.modeling.loading import expert_pairs
from common.modeling.model import CausalLM

__all__ = ["CONFIG", "LOW_RANK", "STEPS", "Step", "loss_curves", "our_model", "stock_model"]

CONFIG = ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=1024,
    num_layers=6,
    num_heads=4,
    num_kv_heads=4,
    max_position_embeddings=512,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)
LOW_RANK = CONFIG.hidden_size // 8
_LR, _CLIP = 1e-4, 1.0

Step = Callable[[Tensor], Tensor]
"""One optimizer step on ``[B, T]`` tokens, each the target of the one before; returns the loss."""


def _step(loss: Step, trainable: list[nn.Parameter], lr: float) -> Step:
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0, fused=True)

    def step(tokens: Tensor) -> Tensor:
        value = loss(tokens)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainable, _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def our_model(config: ModelConfig, dtype: torch.dtype, *, rank: int | None = None, device: str = "cpu") -> CausalLM:
    """A pair with random weights as the trainer has it: everything frozen in ``dtype``, expert and row in fp32."""
    model = CausalLM(config, kind="pair", rank=rank)
    model.init_weights(1)
    model.to(dtype).requires_grad_(False)
    for block in model.layers:
        block.mlp.expert.float().requires_grad_(True)
        block.mlp.row = nn.Parameter(block.mlp.row.detach().float())
    return model.to(device)


def our_step(model: CausalLM, *, lr: float = _LR) -> Step:
    """Our step: ``model.loss``, as the trainer calls it."""

    def loss(tokens: Tensor) -> Tensor:
        targets = torch.full_like(tokens, -100)
        targets[:, :-1] = tokens[:, 1:]
        return model.loss(tokens, targets)

    return _step(loss, [each for each in model.parameters() if each.requires_grad], lr)


def stock_model(config: ModelConfig, *, device: str = "cpu") -> Any:
    """The two-expert ``FlexOlmoForCausalLM`` of these sizes with eager experts; only the FFNs require gradients."""
    from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

    torch.manual_seed(1)
    model = FlexOlmoForCausalLM(
        FlexOlmoConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings, rms_norm_eps=config.rms_norm_eps, num_experts=2,
            num_experts_per_tok=2, pad_token_id=None, eos_token_id=0, bos_token_id=None, experts_implementation="eager",
            rope_parameters={"rope_theta": config.rope_theta, "rope_type": "default"},
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp." in name)
    return model.to(device)


def stock_step(model: Any, dtype: torch.dtype, *, lr: float = _LR) -> Step:
    """The stock step, in bf16 under autocast."""

    def loss(tokens: Tensor) -> Tensor:
        wide = dtype == torch.float32
        with contextlib.nullcontext() if wide else torch.autocast(tokens.device.type, dtype):
            value: Tensor = model(input_ids=tokens, labels=tokens).loss
        return value

    return _step(loss, [each for each in model.parameters() if each.requires_grad], lr)


def _ours(dtype: torch.dtype, rank: int | None) -> Step:
    model = our_model(CONFIG, dtype, rank=rank)
    model.compile_for_training()
    return our_step(model)


STEPS: dict[str, Callable[[torch.dtype], Step]] = {
    "ours": lambda dtype: _ours(dtype, None),
    "low_rank": lambda dtype: _ours(dtype, LOW_RANK),
    "stock": lambda dtype: stock_step(stock_model(CONFIG), dtype),
}


def loss_curves(config: ModelConfig, *, steps: int, batch: tuple[int, int], lr: float = 1e-3) -> list[tuple[float, float]]:
    """``(ours, stock)`` losses of fp32 steps from the same weights on the same text, which repeats itself so that it can be learnt.

    The stock model's public expert and row, which it would train, are held by zeroing their gradients.
    """
    stock, ours = stock_model(config), our_model(config, torch.float32)
    _share_weights(stock, ours)
    mine, theirs = our_step(ours, lr=lr), stock_step(stock, torch.float32, lr=lr)
    generator = torch.Generator().manual_seed(2)
    curves = []
    for _ in range(steps):
        tokens = torch.randint(0, max(2, config.vocab_size // 64), batch, generator=generator)
        tokens[:, 1::2] = (tokens[:, ::2] * 7 + 1) % config.vocab_size
        curves.append((float(mine(tokens)), float(theirs(tokens))))
    return curves


@torch.no_grad()
def _share_weights(stock: Any, ours: CausalLM) -> None:
    """Give ours the stock weights, with both experts apart and the public row zero."""
    state, wanted = stock.state_dict(), ours.state_dict()
    for layer, pair in enumerate(expert_pairs(ours)):
        experts, gate = stock.model.layers[layer].mlp.experts, stock.model.layers[layer].mlp.gate.weight
        gate[0].zero_()
        for number, ffn in enumerate((pair.public, pair.expert)):
            ffn.gate_up.weight.copy_(experts.gate_up_proj[number])
            ffn.down.weight.copy_(experts.down_proj[number])
        pair.row.copy_(gate[1])
        for parameter in (experts.gate_up_proj, experts.down_proj, gate):
            parameter.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0], device=grad.device), 0.0))
    for name in wanted:
        if ".mlp." not in name:
            wanted[name].copy_(state[name if name.startswith("lm_head") else f"model.{name}"])


def timed(step: Step, tokens: Tensor) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step(tokens)
    return time.perf_counter() - began
