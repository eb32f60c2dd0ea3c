"""Cutting a full expert down by singular values: the best of its rank, the smallest rank for an error, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import AlreadyExistsError, TemplateError, UsageError
from common.formats.layout import dense_ffn_name, factor_names
from common.modeling.export import save_dense
from common.modeling.loading import expert_tensors, load_expert, load_model, load_pair, router_tensors
from owner_client.training import compress
from owner_client.training.compress import compress_expert
from owner_client.training.package import package_kind, write_tensors

NAME = dense_ffn_name(1, "up_proj")
TRUE_RANK = 5


def package(folder: Path, anchor: Path, *, rank: int = TRUE_RANK, noise: float = 0.0, dtype: torch.dtype = torch.float32) -> Path:
    """A full expert whose differences are of ``rank``, with singular values that fall by half, and ``noise`` of full rank."""
    generator = torch.Generator().manual_seed(3)
    pair = load_pair(anchor, rows_LH=torch.randn(2, 16, generator=generator))
    tensors = expert_tensors(pair)
    for name, tensor in tensors.items():
        out, into = tensor.shape
        left, right = (torch.linalg.qr(torch.randn(size, rank, generator=generator))[0] for size in (out, into))
        tensors[name] = tensor + (left * 0.5 ** torch.arange(rank)) @ right.T + noise * torch.randn(out, into, generator=generator)
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write_tensors(cast, router_tensors(pair, dtype=dtype), folder, privacy=b'{"schema": "elmgrove.privacy/v1", "kept": true}')
    return folder


def best_error(anchor: Path, full: Path, rank: int) -> float:
    """The relative error that no factors of ``rank`` can beat (Eckart, Young, Mirsky)."""
    base, (expert, _) = load_file(anchor / "model.safetensors"), load_expert(full)
    values = torch.stack([torch.linalg.svdvals((tensor - base[name]).double()).square() for name, tensor in expert.items()])
    return float((values[:, rank:].sum() / values.sum()).sqrt())


def test_a_difference_of_that_rank_is_kept_whole(anchor: Path, tmp_path: Path) -> None:
    full = package(tmp_path / "full", anchor)
    made = compress_expert(full, anchor, tmp_path / "low", rank=TRUE_RANK)
    assert made.error < 1e-5
    factors, rows = load_expert(tmp_path / "low")
    expert, full_rows = load_expert(full)
    a, b = (factors[name] for name in factor_names(NAME))
    assert a.shape == (TRUE_RANK, 16)
    torch.testing.assert_close(load_file(anchor / "model.safetensors")[NAME] + b @ a, expert[NAME], atol=1e-5, rtol=0)
    assert torch.equal(rows, full_rows)
    assert json.loads((tmp_path / "low" / "privacy.json").read_bytes())["kept"] is True
    tokens = torch.arange(40)[None]
    whole, low = load_pair(anchor, expert=expert, rows_LH=rows), load_pair(anchor, expert=factors, rows_LH=rows)
    with torch.no_grad():
        torch.testing.assert_close(low(tokens), whole(tokens), atol=1e-4, rtol=1e-4)
        assert float((low(tokens) - load_model(anchor)(tokens)).abs().max()) > 1e-2


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_the_error_is_the_least_there_is(anchor: Path, tmp_path: Path, rank: int) -> None:
    full = package(tmp_path / "full", anchor, noise=0.02)
    made = compress_expert(full, anchor, tmp_path / "low", rank=rank)
    assert made.error == pytest.approx(best_error(anchor, full, rank), abs=1e-5)
    assert len(made.matrices) == 6
    kind = package_kind(tmp_path / "low", anchor)
    assert kind.type == "low_rank"
    assert kind.rank == rank


@pytest.mark.parametrize("error", [0.9, 0.3, 0.1, 0.01])
def test_the_rank_is_the_smallest_for_the_error(anchor: Path, tmp_path: Path, error: float) -> None:
    full = package(tmp_path / "full", anchor, noise=0.01)
    made = compress_expert(full, anchor, tmp_path / "low", error=error)
    assert made.error <= error
    assert made.rank == 1 or best_error(anchor, full, made.rank - 1) > error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_adds_less_than_is_allowed_for_and_counts_in_the_budget(anchor: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    save_dense(load_model(anchor), tmp_path / "anchor", dtype=dtype)
    full = package(tmp_path / "full", tmp_path / "anchor", noise=0.01, dtype=dtype)
    whole = compress_expert(full, tmp_path / "anchor", tmp_path / "all", rank=16)
    allowed = compress._ROUNDING[dtype]
    assert allowed / 2 < whole.error < allowed
    made = compress_expert(full, tmp_path / "anchor", tmp_path / "low", error=0.06)
    assert made.error <= 0.06
    with pytest.raises(UsageError, match="cannot be reached"):
        compress_expert(full, tmp_path / "anchor", tmp_path / "never", error=allowed / 2)


def test_an_expert_that_learned_nothing_becomes_zero_factors(anchor: Path, tmp_path: Path) -> None:
    pair = load_pair(anchor)
    write_tensors(expert_tensors(pair), router_tensors(pair), tmp_path / "full")
    made = compress_expert(tmp_path / "full", anchor, tmp_path / "low", error=0.1)
    assert (made.rank, made.error) == (1, 0.0)
    kind = package_kind(tmp_path / "low", anchor)
    assert kind.type == "low_rank"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either"),
        ({"rank": 2, "error": 0.1}, "either"),
        ({"rank": 0}, "between 1 and 16"),
        ({"rank": 17}, "between 1 and 16"),
        ({"error": 0.0}, "between 0 and 1"),
        ({"error": 1.0}, "between 0 and 1"),
        ({"error": float("nan")}, "between 0 and 1"),
    ],
)
def test_bad_requests(anchor: Path, tmp_path: Path, options: dict[str, float], said: str) -> None:
    full = package(tmp_path / "full", anchor)
    with pytest.raises(UsageError, match=said):
        compress_expert(full, anchor, tmp_path / "low", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "low").exists()


def test_what_is_no_full_expert_is_refused(anchor: Path, tmp_path: Path) -> None:
    full = package(tmp_path / "full", anchor)
    compress_expert(full, anchor, tmp_path / "low", rank=2)
    with pytest.raises(TemplateError, match="must be a full one"):
        compress_expert(tmp_path / "low", anchor, tmp_path / "again", rank=1)
    with pytest.raises(AlreadyExistsError):
        compress_expert(full, anchor, tmp_path / "low", rank=2)
    assert package_kind(full, anchor).type == "full"
