"""Training one expert on a CPU: beside stock transformers, beside the rate of matrix products, low-rank beside full, and the losses."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from common.console import emit
from tests.bench.harness import Result, paired, paired_rates
from tests.bench.training import CONFIG, LOW_RANK, loss_curves
from tests.bench.training_worker import BATCH, SEQ_LEN, Worker

_TOKENS = BATCH * SEQ_LEN
_SIDE = 1024  # of the square matrices whose product is the bound
_PRODUCTS = 8
_STEPS = 200
_LIMIT = 1e-3  # nats; what the issue allows the losses to differ by


def _beside(
    ours: Callable[[], float], other: Callable[[], float], workers: list[Worker], result: Callable[..., Result], **how: object
) -> Result:
    try:
        return result(ours, other, **how)
    finally:
        peaks = [f"{worker.close():,.0f}" for worker in workers]
        emit(f"  peak resident size: {' and '.join(peaks)} MB", error=True)


def _vs_transformers(dtype: str, stock: str) -> Result:
    workers = [Worker("ours", dtype), Worker("stock", dtype)]
    name = f"transformers FlexOlmo, {stock}, {torch.get_num_threads()} threads"
    return _beside(workers[0].step, workers[1].step, workers, paired, work=_TOKENS, unit="tokens/s", other_name=name, runs=7)


def train_vs_transformers() -> Result:
    """Our fp32 step beside the fastest stock setting on a CPU in fp32."""
    return _vs_transformers("float32", "eager experts, fp32")


def train_vs_transformers_bf16() -> Result:
    """Our bf16 step beside the fastest stock setting on a CPU in bf16."""
    return _vs_transformers("bfloat16", "eager experts, bf16 autocast")


def _product_rate(dtype: torch.dtype) -> float:
    """Best of some products of two square matrices, in GFLOP/s."""
    a, b = torch.ones(_SIDE, _SIDE, dtype=dtype), torch.ones(_SIDE, _SIDE, dtype=dtype).t()
    best = float("inf")
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best / 1e9


def _vs_bound(dtype: str) -> Result:
    worker = Worker("ours", dtype)
    needed = CONFIG.pair_training_flops_per_token(SEQ_LEN) * _TOKENS / 1e9
    bound = torch.float32 if dtype == "float32" or _product_rate(torch.float32) > _product_rate(torch.bfloat16) else torch.bfloat16
    name = f"products of {_SIDE} x {_SIDE} in {bound}, {torch.get_num_threads()} threads"
    how = {"unit": "needed GFLOP/s", "other_name": name, "runs": 7}
    return _beside(lambda: needed / worker.step(), lambda: _product_rate(bound), [worker], paired_rates, **how)


def train_vs_matmul_bound() -> Result:
    """Share of the rate of fp32 products that the fp32 step reaches, counting only the arithmetic that is needed."""
    return _vs_bound("float32")


def train_vs_matmul_bound_bf16() -> Result:
    """The same in bf16, against the faster of bf16 and fp32 products (a CPU without bf16 instructions multiplies in fp32)."""
    return _vs_bound("bfloat16")


def low_rank_vs_full() -> Result:
    """The step of a low-rank expert beside that of a full one, fp32."""
    workers = [Worker("low_rank", "float32"), Worker("ours", "float32")]
    name = f"full expert, rank {LOW_RANK} against it, fp32, {torch.get_num_threads()} threads"
    return _beside(workers[0].step, workers[1].step, workers, paired, work=_TOKENS, unit="tokens/s", other_name=name, runs=7)


def train_loss_vs_transformers() -> Result:
    """Largest difference of the losses of 200 fp32 steps from the same weights, in millionths of a nat; the other is what is allowed."""
    curves = loss_curves(CONFIG, steps=_STEPS, batch=(1, 256))
    worst = max(abs(mine - theirs) for mine, theirs in curves)
    emit(f"  loss {curves[0][0]:.4f} at the first step, {curves[-1][0]:.4f} at the last", error=True)
    ratio = round(_LIMIT / max(worst, 1e-12), 3)
    name = f"largest difference allowed over {_STEPS} steps"
    return Result(round(worst * 1e6, 3), _LIMIT * 1e6, name, "1e-6 nats", ratio, _STEPS, (ratio, ratio))
