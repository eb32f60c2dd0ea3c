"""Materialising a low-rank matrix by the normative recipe beside a BLAS product, which is faster and not the same on every machine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from common.formats.layout import FFN_MATRICES, dense_ffn_name, factor_names
from common.lowrank.materialise import low_rank_matrices, materialised_digests
from tests.bench.harness import Result, paired

_HIDDEN, _INNER, _RANK = 2048, 5504, 256  # a layer of half the width of a 7B model, rank an eighth of it


def materialise_vs_blas() -> Result:
    """One bf16 layer: read, multiply out, round and hash, beside ``W + B @ A`` in fp32 by torch on the same threads."""
    with tempfile.TemporaryDirectory(prefix="elmgrove-bench-") as name:
        folder = Path(name)
        base, factors = _layer()
        save_file(base, folder / "model.safetensors")
        save_file(factors, folder / "part-0000.safetensors")
        matrices = low_rank_matrices([folder / "model.safetensors"], [folder / "part-0000.safetensors"])

        def ours() -> float:
            began = time.perf_counter()
            materialised_digests(matrices)
            return time.perf_counter() - began

        def blas() -> float:
            began = time.perf_counter()
            for matrix, weight in base.items():
                a, b = (factors[factor].float() for factor in factor_names(matrix))
                torch.addmm(weight.float(), b, a).to(torch.bfloat16)
            return time.perf_counter() - began

        flops = 2 * 3 * _HIDDEN * _INNER * _RANK / 1e9
        return paired(
            ours, blas, work=flops, unit="GFLOP/s", other_name="torch.addmm in fp32 (neither hashes nor is the same everywhere)", runs=3
        )


def _layer() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.02).to(torch.bfloat16)

    base, factors = {}, {}
    for matrix in FFN_MATRICES:
        out, into = (_HIDDEN, _INNER) if matrix == "down_proj" else (_INNER, _HIDDEN)
        name = dense_ffn_name(0, matrix)
        first, second = factor_names(name)
        base[name] = draw(out, into)
        factors |= {first: draw(_RANK, into), second: draw(out, _RANK)}
    return base, factors
