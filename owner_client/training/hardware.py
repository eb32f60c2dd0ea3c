"""What the machine decides about a run: device, type to compute in, tokens at once, compilation, and the peak that MFU is a share of."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from common.errors import UsageError
from common.modeling.config import ModelConfig
from owner_client.training.settings import TrainSettings

__all__ = ["decide", "device_type", "peak_flops", "threads_per_process"]

logger = logging.getLogger(__name__)

_PROBE_HIDDEN = 512  # below this width bf16 on a CPU gains nothing, whatever the products alone do
_PROBE_GAIN = 1.5  # how much faster a bf16 product must be
_COMPILED_SECONDS = 300.0  # of arithmetic at the CPU's best rate; compiling takes about ten
_CPU_MICRO_TOKENS = 8192  # more at once is not faster
_ACTIVATION_SHARE = 0.4  # of a GPU's memory
_PROBE_ROWS, _PROBE_SIDE = 2048, 1024
_PEAKS: Mapping[str, float] = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
    "V100": 125e12,
}
"""Dense bf16 (V100: fp16) FLOPs per second by a part of the device's name, from the makers' data sheets; the first match counts."""


def device_type(settings: TrainSettings) -> str:
    """``"cuda"`` or ``"cpu"``.

    Raises:
        UsageError: CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise UsageError("There is no CUDA device that torch can use; choose the device cpu or auto.")
    return "cuda" if available and settings.device != "cpu" else "cpu"


def decide(settings: TrainSettings, config: ModelConfig, device: str, *, private_tokens: int) -> TrainSettings:
    """The settings with everything that was left to the machine decided; decided once per run, since results depend on it."""
    dtype = settings.dtype if settings.dtype != "auto" else _dtype(config, device)
    return replace(
        settings,
        device="cuda" if device == "cuda" else "cpu",
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        micro_tokens=settings.micro_tokens or _micro_tokens(config, device, settings),
        compile=_wants_compiling(settings, config, device, private_tokens) and _compiles(device),
    )


def _wants_compiling(settings: TrainSettings, config: ModelConfig, device: str, private_tokens: int) -> bool:
    """Whether compiling is asked for, or saves more time than it takes: always on a GPU, on a CPU in a run of some minutes."""
    if settings.compile is not None or device == "cuda":
        return settings.compile is not False
    tokens = settings.total_steps(private_tokens) * settings.batch_tokens
    per_token = (
        config.pair_training_flops_per_token(settings.seq_len)
        if settings.rank is None
        else config.low_rank_pair_training_flops_per_token(settings.rank, settings.seq_len)
    )
    return tokens * per_token / peak_flops(torch.device("cpu"), torch.float32) > _COMPILED_SECONDS


def _dtype(config: ModelConfig, device: str) -> str:
    if device == "cuda":
        return "bfloat16"
    wide = config.hidden_size >= _PROBE_HIDDEN
    return "bfloat16" if wide and _bf16_gain(config.hidden_size, config.intermediate_size) >= _PROBE_GAIN else "float32"


def _seconds(rows: int, inner: int, outer: int, dtype: torch.dtype, device: str) -> float:
    """The best of a few times that a product ``[rows, inner] x [inner, outer]`` takes."""
    x, weight = torch.ones(rows, inner, dtype=dtype, device=device), torch.ones(outer, inner, dtype=dtype, device=device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(x, weight.t())
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def _bf16_gain(hidden: int, inner: int) -> float:
    """How many times faster this CPU multiplies a block of the model's FFN in bf16 than in fp32."""
    return _seconds(512, hidden, inner, torch.float32, "cpu") / _seconds(512, hidden, inner, torch.bfloat16, "cpu")


def _micro_tokens(config: ModelConfig, device: str, settings: TrainSettings) -> int:
    """Tokens whose activations fit: a multiple of the sequence's length."""
    tokens, seq_len = _CPU_MICRO_TOKENS, settings.seq_len
    if device == "cuda":
        of_layer = 12 * config.hidden_size + 6 * config.intermediate_size
        kept = of_layer + config.num_layers * config.hidden_size if settings.checkpoint_layers else config.num_layers * of_layer
        per_token = 2 * kept  # bytes, kept for the backward pass
        tokens = int(_ACTIVATION_SHARE * torch.cuda.get_device_properties(0).total_memory / per_token)
    return max(1, tokens // seq_len) * seq_len


def _compiles(device: str) -> bool:
    """Whether ``torch.compile`` works here; without a C++ compiler or Triton it does not, and training goes on uncompiled."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    problem = "" if any(shutil.which(name) for name in compilers) else "there is no C++ compiler"
    if not problem:
        try:
            torch.compile(torch.nn.functional.silu)(torch.ones(64, device=device))
        except (RuntimeError, OSError, ImportError) as error:
            problem = type(error).__name__
    if problem:
        logger.warning("torch.compile does not work on this machine (%s); training goes on without it.", problem)
    return not problem


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of matrix products: a known GPU's data sheet in bf16, else what a large product reaches in a short probe."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = next((flops for part, flops in _PEAKS.items() if part in name), None)
        if known is not None:
            return known
    side = 8 * _PROBE_SIDE if device.type == "cuda" else _PROBE_SIDE
    rows = 8 * _PROBE_ROWS if device.type == "cuda" else _PROBE_ROWS
    return 2 * rows * side * side / _seconds(rows, side, side, dtype, device.type)


def threads_per_process(processes: int) -> int:
    """CPU threads that each of several processes on this machine may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)
