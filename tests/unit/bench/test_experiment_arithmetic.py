"""The experiment's own arithmetic: FLOPs, splits, ensembles, soups and tables, against plain recomputation."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from common.modeling.config import ModelConfig
from common.modeling.model import CausalLM
from tests.bench.experiment.baselines import btm
from tests.bench.experiment.baselines.mixtures import branch_train_mix, upcycled
from tests.bench.experiment.baselines.soup import Ingredients, prefix_weights, score_weighted_soup
from tests.bench.experiment.data import prepare_corpus, write_texts
from tests.bench.experiment.flops import Budget, Costs
from tests.bench.experiment.scoring import ScoredText, score_text
from tests.bench.experiment.table import markdown

SEVEN_BILLION = ModelConfig(
    vocab_size=100_352, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32, num_kv_heads=32,
    max_position_embeddings=4096, rope_theta=500_000.0, rms_norm_eps=1e-6,
)  # fmt: skip
SMALL = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2,
    max_position_embeddings=32, rope_theta=10_000.0, rms_norm_eps=1e-6,
)  # fmt: skip


def dense(seed: int) -> CausalLM:
    model = CausalLM(SMALL, kind="dense").eval().requires_grad_(False)
    model.init_weights(seed, std=0.5)
    return model


def windows(count: int = 5, length: int = 12) -> ScoredText:
    generator = np.random.default_rng(3)
    return ScoredText([generator.integers(0, 64, size=length + 1 - number) for number in range(count)], 100)


def test_flops_are_the_published_accounting_at_seven_billion() -> None:
    costs = Costs(SEVEN_BILLION)
    all_of_it = (costs.full_training(), costs.pair_training(), costs.full_training(2), costs.full_training(4))
    assert [round(value / 1e9, 1) for value in all_of_it] == [41.3, 53.5, 67.3, 119.2]
    assert costs.pair_training(rank=512) < costs.pair_training()


def test_every_training_costs_the_same() -> None:
    budget = Budget(Costs(SEVEN_BILLION), domains=6, pair_tokens=262_144)
    dense_experts = 6 * budget.dense_expert_tokens * budget.costs.full_training()
    mixture = budget.mixture_tokens(2) * budget.costs.full_training(2)
    everything = budget.dense_all_tokens * budget.costs.full_training()
    assert [dense_experts, mixture, everything] == pytest.approx([budget.total] * 3, rel=1e-5)
    assert budget.mixture_tokens(2, 2.0) * budget.costs.full_training(2) == pytest.approx(2 * budget.total, rel=1e-5)


def texts_of(path: Path) -> set[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return {json.loads(line)["text"] for line in stream}


def test_no_document_is_in_two_parts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("public", "law", "poems"):
        write_texts(source / f"{name}.train.jsonl.gz", [f"{name} text {number}" for number in range(400)])
        write_texts(source / f"{name}.valid.jsonl.gz", [f"{name} held out"])
    corpus = prepare_corpus(source, tmp_path, public_slice=0.1, tune_share=0.05)
    parts = [corpus.mix(), *(corpus.training(name) for name in corpus.domains), *(corpus.scored(name, "tune") for name in corpus.names)]
    held = [texts_of(path) for path in parts]
    assert all(held)
    assert not any(first & second for first, second in itertools.combinations(held, 2))
    assert sum(map(len, held)) == 1200
    slices = [text for text in held[0] if not text.startswith("public")]
    assert 40 < len(slices) < 130
    assert prepare_corpus(source, tmp_path / "again", public_slice=0.1, tune_share=0.05).digest == corpus.digest


def test_a_folder_without_public_text_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "law.train.jsonl.gz", ["text"])
    with pytest.raises(DataError, match=r"public\.train"):
        prepare_corpus(tmp_path, tmp_path / "out", public_slice=0.1, tune_share=0.05)


def test_btm_is_the_bayes_mixture() -> None:
    text = windows()
    losses = np.random.default_rng(1).gamma(2.0, size=(3, sum(text.lengths)))
    start = 0
    expected = []
    for length in text.lengths:
        posterior = np.full(3, 1 / 3)
        for position in range(start, start + length):
            likelihood = np.exp(-losses[:, position])
            expected.append(-np.log(posterior @ likelihood))
            posterior = posterior * likelihood / (posterior @ likelihood)
        start += length
    assert btm.ensemble(losses, text, top_k=3, temperature=1.0) == pytest.approx(np.asarray(expected))
    bounded = btm.ensemble_from_prefix(losses, text, prefix=4, top_k=3, temperature=1.0)
    assert bounded == pytest.approx(np.asarray(expected))


def test_one_model_is_left_after_the_prefix() -> None:
    text = windows()
    losses = np.random.default_rng(1).gamma(2.0, size=(3, sum(text.lengths)))
    routed = btm.route_by_prefix(losses, text, prefix=4)
    bounded = btm.ensemble_from_prefix(losses, text, prefix=4, top_k=1, temperature=1.0)
    best = losses[:, :4].sum(1).argmin()
    assert routed[: text.lengths[0]] == pytest.approx(losses[best, : text.lengths[0]])
    assert bounded[4 : text.lengths[0]] == pytest.approx(losses[best, 4 : text.lengths[0]])


def test_a_soup_with_all_weight_on_one_model_is_that_model() -> None:
    models, text = [dense(1), dense(2)], windows()
    alone = [score_text(model, text) for model in models]
    weights = prefix_weights(np.stack(alone), text, prefix=4, temperature=1e-4)
    assert set(weights.round().flatten()) == {0.0, 1.0}
    mixed = score_weighted_soup(Ingredients(models), weights, text)
    picks = np.repeat(weights.argmax(-1), text.lengths)
    assert mixed == pytest.approx(np.where(picks == 0, *alone), abs=1e-4)


def test_a_uniform_soup_is_the_mean_of_the_weights() -> None:
    models = [dense(1), dense(2)]
    mean = Ingredients(models).mix(torch.tensor([0.5, 0.5]))
    assert torch.allclose(mean.head_weight, (models[0].head_weight + models[1].head_weight) / 2)


def test_an_upcycled_mixture_is_the_anchor() -> None:
    anchor, text = dense(1), windows()
    mixture = upcycled(anchor, experts=4, top_k=2, seed=0).eval()
    # The weights of two of four equal experts do not sum to 1, which the norm behind the FFN undoes up to its epsilon.
    assert score_text(mixture, text) == pytest.approx(score_text(anchor, text), abs=2e-3)


def test_branch_train_mix_keeps_ffns_and_averages_the_rest() -> None:
    models = [dense(1), dense(2)]
    mixture = branch_train_mix(models, top_k=2, seed=0)
    states, found = [dict(model.named_parameters()) for model in models], dict(mixture.named_parameters())
    assert torch.equal(found["layers.1.mlp.experts.1.down.weight"], states[1]["layers.1.mlp.down.weight"])
    query = "layers.0.self_attn.q_proj.weight"
    assert torch.allclose(found[query], (states[0][query] + states[1][query]) / 2)
    assert float(found["layers.0.mlp.rows"].detach().abs().max()) > 0


def test_the_table_has_mean_spread_and_gap() -> None:
    def entry(name: str, group: str, seed: int, law: float, public: float) -> dict[str, object]:
        scores = {"law": {"nats": law, "bits_per_byte": law / 2}, "public": {"nats": public, "bits_per_byte": 1.0}}
        return {"name": name, "group": group, "seed": seed, "scores": scores, "training": 1.0, "inference": 2.5}

    rows = []
    for seed, shift in ((1, 0.0), (2, 0.2)):
        rows += [
            entry("anchor", "reference", seed, 4.0 + shift, 3.0),
            entry("dense law", "single", seed, 3.0 + shift, 3.5),
            entry("FlexOlmo", "ours", seed, 3.2 + shift, 3.01),
        ]
    text = markdown({"domains": ["law"], "rows": rows})
    line = next(line for line in text.splitlines() if line.startswith("| FlexOlmo"))
    mean = "3.300 ± 0.141"
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "FlexOlmo", mean, mean, "1.650 ± 0.071", "80.0% ± 0.0%", "+0.010 ± 0.000", "1.00x", "2.50x",
    ]  # fmt: skip
