"""Training one expert: tokens per second of our pair beside stock transformers on the same sizes, frozen parameters marked so in both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from common.modeling.config import ModelConfig
from common.modeling.model import CausalLM
from tests.bench.harness import Result, paired

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
BATCH, SEQ_LEN = 4, 512


def train_vs_transformers() -> Result:
    """Our fp32 training step beside the fastest stock setting on a CPU in fp32 (eager experts), same threads, same batch."""
    tokens = torch.randint(0, CONFIG.vocab_size, (BATCH, SEQ_LEN), generator=torch.Generator().manual_seed(1))
    ours, stock = _our_step(tokens), _stock_step(tokens)
    return paired(ours, stock, work=BATCH * SEQ_LEN, unit="tokens/s", other_name="transformers FlexOlmo, eager experts, fp32", runs=5)


def _timed(step: Callable[[], None]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return run


def _our_step(tokens: Tensor) -> Callable[[], float]:
    model = CausalLM(CONFIG, kind="pair")
    model.init_weights(1)
    trainable = {name for name, _ in model.named_parameters() if ".mlp.expert." in name or name.endswith(".mlp.row")}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    targets = torch.roll(tokens, -1, dims=1)

    optimizer = _optimizer(model.parameters())

    def step() -> None:
        model.loss(tokens, targets).backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step)


def _stock_step(tokens: Tensor) -> Callable[[], float]:
    from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

    config = FlexOlmoConfig(
        vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.hidden_size, intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_layers, num_attention_heads=CONFIG.num_heads, num_key_value_heads=CONFIG.num_kv_heads,
        max_position_embeddings=SEQ_LEN, num_experts=2, num_experts_per_tok=2, pad_token_id=None, eos_token_id=0, bos_token_id=None,
        experts_implementation="eager",
    )  # fmt: skip
    model = FlexOlmoForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp." in name)

    optimizer = _optimizer(model.parameters())

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(step)


def _optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-4, weight_decay=0.0, fused=True)
