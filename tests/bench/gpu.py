"""``make bench-gpu``: expert training at 7B layer shapes in bf16, beside stock transformers: tokens/s, MFU and peak memory."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from common.console import emit, table
from common.modeling.config import ModelConfig
from tests.bench.training import CONFIG, Step, our_model, our_step, stock_model, stock_step, timed

_SHAPES = ModelConfig(
    vocab_size=50304,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=4,
    num_heads=32,
    num_kv_heads=32,
    max_position_embeddings=4096,
    rope_theta=500_000.0,
    rms_norm_eps=1e-6,
)
_TINY = replace(CONFIG, hidden_size=32, intermediate_size=48, vocab_size=97, num_layers=2, max_position_embeddings=64)
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 FLOP/s, from NVIDIA's data sheets
_WARM_UP, _RUNS = 3, 10
_RANK_SHARE = 8  # hidden size over rank


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    make: Callable[[], Step]
    needed: int  # FLOPs a token


def _cases(config: ModelConfig, device: str, *, compiled: bool) -> list[_Case]:
    rank = config.hidden_size // _RANK_SHARE

    def ours(rank: int | None, again: bool) -> Step:
        model = our_model(config, torch.bfloat16, rank=rank, device=device)
        model.checkpoint_layers = again
        if compiled:
            model.compile_for_training()
        return our_step(model)

    seq_len = config.max_position_embeddings
    full, low = config.pair_training_flops_per_token(seq_len), config.low_rank_pair_training_flops_per_token(rank, seq_len)
    return [
        _Case("full expert", lambda: ours(None, False), full),
        _Case("full expert, checkpointed", lambda: ours(None, True), full),
        _Case(f"rank {rank}", lambda: ours(rank, False), low),
        _Case("transformers, eager experts, autocast", lambda: stock_step(stock_model(config, device=device), torch.bfloat16), full),
    ]


def _measure(case: _Case, tokens: Tensor, peak: float | None) -> dict[str, str | float | None]:
    """One case: median tokens/s, needed FLOP/s over the device's peak, and the largest memory in GB."""
    cuda = tokens.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = case.make()

    def synchronised(tokens: Tensor) -> Tensor:
        loss = step(tokens)
        return loss.cpu()

    for _ in range(_WARM_UP):
        synchronised(tokens)
    rate = tokens.numel() / statistics.median(timed(synchronised, tokens) for _ in range(_RUNS))
    memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    mfu = None if peak is None else round(rate * case.needed / peak, 4)
    return {"name": case.name, "tokens_per_s": round(rate, 1), "mfu": mfu, "peak_gb": None if memory is None else round(memory, 2)}


def main(arguments: list[str] | None = None) -> None:
    """Measure every case, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.json"), help="where the figures go")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU: shows that the script runs, measures nothing")
    parser.add_argument("--layers", type=int, default=_SHAPES.num_layers, help="layers of the model")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense bf16 peak, where its name is not known")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny runs the script at tiny shapes on the CPU")
    device, config = ("cpu", _TINY) if options.tiny else ("cuda", replace(_SHAPES, num_layers=options.layers))
    name = "cpu" if options.tiny else torch.cuda.get_device_name()
    peak = options.peak_tflops * 1e12 if options.peak_tflops else next((rate for key, rate in _PEAKS.items() if key in name), None)
    tokens = torch.randint(0, config.vocab_size, (options.batch, config.max_position_embeddings), device=device)
    results = [_measure(case, tokens, peak) for case in _cases(config, device, compiled=not options.tiny)]
    options.out.write_text(json.dumps({"device": name, "results": results}, indent=2) + "\n", encoding="utf-8")
    emit(table(["case", "tokens/s", "MFU", "peak GB"], [[str(value) for value in each.values()] for each in results]))


if __name__ == "__main__":
    main()
