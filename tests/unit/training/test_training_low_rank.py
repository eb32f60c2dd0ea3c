"""Training a low-rank expert: what is packaged is what was trained, the anchor stays, and a run goes on with its rank."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import AlreadyExistsError, TemplateError, UsageError
from common.formats.layout import factor_names, ffn_names, part_name
from common.lowrank.materialise import low_rank_matrices, write_materialised
from common.modeling.loading import load_expert, load_model, load_pair
from owner_client.training.package import package_kind
from owner_client.training.run import train_expert
from owner_client.training.settings import TrainSettings

RANK = 2
QUICK = TrainSettings(
    rank=RANK,
    steps=12,
    batch_tokens=512,
    seq_len=32,
    router="random",
    public_share=0.0,
    eval_tokens=512,
    dtype="float32",
    device="cpu",
    lr=2e-2,
)


@pytest.fixture(scope="module")
def trained(anchor: Path, private: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("low")
    result = train_expert(anchor, [str(private)], run_dir=folder / "run", out_dir=folder / "files", settings=QUICK)
    assert result.perplexity["private"]["pair"].nats < result.perplexity["private"]["anchor"].nats - 0.1
    return result.files


def test_the_package_holds_factors_and_no_full_matrix(trained: Path) -> None:
    tensors, rows = load_expert(trained)
    assert set(tensors) == {factor for name in ffn_names(2) for factor in factor_names(name)}
    assert {len(tensors[factor_names(name)[0]]) for name in ffn_names(2)} == {RANK}
    assert all(float(tensors[factor_names(name)[1]].abs().max()) > 0 for name in ffn_names(2))
    assert rows.shape == (2, 16)


def test_the_pair_from_the_package_is_the_pair_of_the_materialised_expert(trained: Path, anchor: Path, tmp_path: Path) -> None:
    kind = package_kind(trained, anchor)
    assert kind.type == "low_rank"
    assert kind.rank == RANK
    expected = {entry.name: entry.sha256 for entry in kind.materialised}
    matrices = low_rank_matrices([anchor / "model.safetensors"], [trained / part_name(0)])
    write_materialised(matrices, tmp_path / "whole.safetensors", expected)
    factors, rows = load_expert(trained)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        low = load_pair(anchor, expert=factors, rows_LH=rows)(tokens)
        full = load_pair(anchor, expert=load_file(tmp_path / "whole.safetensors"), rows_LH=rows)(tokens)
        public = load_model(anchor)(tokens)
    torch.testing.assert_close(low, full, atol=1e-4, rtol=1e-4)
    assert float((low - public).abs().max()) > 1e-2


def test_a_stopped_run_ends_with_the_same_bytes(trained: Path, anchor: Path, private: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, checkpoint_every=4)
    shutil.copytree(trained.parent / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    whole = train_expert(anchor, [str(private)], run_dir=tmp_path / "run", out_dir=tmp_path / "whole", settings=settings)
    shutil.rmtree(sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1])
    again = train_expert(anchor, [str(private)], run_dir=tmp_path / "run", out_dir=tmp_path / "again", settings=settings)
    assert again.cost is not None
    for files in (whole.files, again.files):
        assert (files / part_name(0)).read_bytes() == (trained / part_name(0)).read_bytes()


def test_a_fresh_low_rank_pair_is_the_anchor_and_repeats_with_its_seed(anchor: Path) -> None:
    tokens = torch.arange(32)[None]
    pair, again, other = (load_pair(anchor, rank=3, seed=seed) for seed in (1, 1, 2))
    with torch.no_grad():
        torch.testing.assert_close(pair(tokens), load_model(anchor)(tokens), atol=1e-5, rtol=1e-5)
    first, second, third = (dict(each.named_parameters())["layers.1.mlp.expert.down_proj_a"] for each in (pair, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    trainable = {name for name, parameter in pair.named_parameters() if parameter.requires_grad}
    assert all(".mlp.expert." in name or name.endswith(".mlp.row") for name in trainable)


def test_a_run_of_another_rank_is_not_continued(trained: Path, anchor: Path, private: Path, tmp_path: Path) -> None:
    settings = TrainSettings(rank=RANK + 1, steps=12, batch_tokens=512, seq_len=32, router="random", public_share=0.0, device="cpu")
    with pytest.raises(AlreadyExistsError, match="other settings"):
        train_expert(anchor, [str(private)], run_dir=trained.parent / "run", out_dir=tmp_path / "x", settings=settings)


def test_ranks_that_cannot_be(anchor: Path) -> None:
    with pytest.raises(UsageError, match="rank must be above 0"):
        TrainSettings(rank=0)
    with pytest.raises(UsageError, match="rank 16 at most"):
        TrainSettings(rank=17).for_width(16)
    for rank in (0, 17):
        with pytest.raises(UsageError, match="between 1 and 16"):
            load_pair(anchor, rank=rank)


def test_factors_that_do_not_fit_are_refused(trained: Path, anchor: Path) -> None:
    tensors, rows = load_expert(trained)
    name = factor_names("model.layers.1.mlp.up_proj.weight")[1]
    with pytest.raises(TemplateError, match="missing or does not belong"):
        load_pair(anchor, expert={key: value for key, value in tensors.items() if key != name}, rows_LH=rows)
    with pytest.raises(TemplateError, match=r"has shape \[24, 1\] where \[24, 2\] belongs"):
        load_pair(anchor, expert=tensors | {name: tensors[name][:, :1]}, rows_LH=rows)
