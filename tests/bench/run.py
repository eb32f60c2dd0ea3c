"""``make bench``: runs the benchmarks and writes ``bench.json``; each stands beside its alternative or its physical limit."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import emit, table

BENCHMARKS = {
    "assembly_vs_cp": "tests.bench.assembly:assembly_vs_cp",
    "assembly_rss_mb": "tests.bench.assembly:assembly_rss_mb",
    "verify_vs_sha256": "tests.bench.verify:verify_vs_sha256",
    "verify_vs_model_signing": "tests.bench.verify:verify_vs_model_signing",
    "sign_vs_model_signing": "tests.bench.verify:sign_vs_model_signing",
    "log_append_per_s": "tests.bench.log:log_append_per_s",
    "log_proof_ms": "tests.bench.log:log_proof_ms",
    "log_submit_vs_verify": "tests.bench.log:log_submit_vs_verify",
    "materialise_vs_blas": "tests.bench.lowrank:materialise_vs_blas",
    "train_vs_transformers": "tests.bench.train:train_vs_transformers",
    "train_vs_transformers_bf16": "tests.bench.train:train_vs_transformers_bf16",
    "train_vs_matmul_bound": "tests.bench.train:train_vs_matmul_bound",
    "train_vs_matmul_bound_bf16": "tests.bench.train:train_vs_matmul_bound_bf16",
    "low_rank_vs_full": "tests.bench.train:low_rank_vs_full",
    "train_loss_vs_transformers": "tests.bench.train:train_loss_vs_transformers",
}


def main() -> None:
    """Run all benchmarks, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--only", choices=sorted(BENCHMARKS))
    options = parser.parse_args()
    names = [options.only] if options.only else list(BENCHMARKS)
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.only and options.out.exists() else {}
    for name in names:
        module, function = BENCHMARKS[name].split(":")
        emit(f"{name} ...", error=True)
        results[name] = getattr(importlib.import_module(module), function)().as_json()
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rows = [[name, *_cells(result)] for name, result in results.items()]
    emit(table(["benchmark", "ours", "other", "unit", "ratio", "spread", "beside"], rows))


def _cells(result: dict[str, Any]) -> list[str]:
    low, high = result["spread"]
    return [
        f"{result['ours']:,.1f}", f"{result['other']:,.1f}", result["unit"], f"{result['ratio']:.2f}", f"{low:.2f}-{high:.2f}",
        result["other_name"],
    ]  # fmt: skip


if __name__ == "__main__":
    main()
