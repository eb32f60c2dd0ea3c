"""Evaluation against a direct computation with stock transformers, its rule of what is scored, and the router's load."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import ArchitectureError, DataError, TextFieldError, UsageError
from coordinator.compute.evaluation import EvaluationReport, evaluate
from coordinator.compute.windows import IGNORED, document_windows, scoring_batches
from tests.unit.compute.small_models import make_mixture, topics, write_rows


@pytest.fixture(scope="module")
def report(anchor: Path, mixture: Path, held_out: Path, text_file: Path) -> EvaluationReport:
    domains = [("held-out", [str(held_out)]), ("seen", [str(text_file)])]
    return evaluate([("anchor", anchor), ("mixture", mixture)], domains, max_tokens=3000)


def direct(folder: Path, texts: list[str], window: int) -> tuple[float, int, int]:
    """Nats, tokens and bytes by transformers alone: one window at a time."""
    transformers = pytest.importorskip("transformers")
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    nll, tokens, size = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        size += len(text.encode()) - len(tokenizer.decode(ids[:1]).encode())
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([ids[start : start + window + 1]])
            with torch.no_grad():
                logits = model(piece[:, :-1]).logits[0]
            nll += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
            tokens += piece.shape[1] - 1
    return nll, tokens, size


@pytest.mark.parametrize("name", ["anchor", "mixture"])
def test_figures_are_those_of_stock_transformers(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(name)
    texts = [text[:700] for text in topics()[40:46]]
    texts.append("naïve ☃ — übung " * 12)
    data = write_rows(tmp_path / "data.jsonl.gz", texts)
    score = evaluate([("m", folder)], [("d", [str(data)])], max_tokens=10**6, max_document_tokens=10**6).score("m", "d")
    nll, tokens, size = direct(folder, texts, 64)
    assert (score.tokens, score.bytes, score.documents) == (tokens, size, len(texts))
    assert score.nll == pytest.approx(nll, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nll / size / math.log(2), rel=1e-5)


def test_every_token_but_the_first_is_scored_once() -> None:
    documents = [list(range(1, 20)), [5], [7, 8], list(range(100, 109))]
    targets: list[int] = []
    for batch in scoring_batches(documents, seq_len=4, batch_tokens=12):
        assert batch.tokens.size <= 12
        targets += [int(token) for token in batch.targets[batch.targets != IGNORED]]
        for row in range(len(batch.documents)):
            ids = documents[batch.documents[row]]
            real = batch.is_token[row]
            place = ids.index(int(batch.tokens[row, 0]))
            assert list(batch.tokens[row][real]) == ids[place : place + int(real.sum())]
    assert sorted(targets) == sorted(token for ids in documents for token in ids[1:])


def test_windows_meet_without_overlap() -> None:
    windows = document_windows(list(range(10)), 4)
    assert [list(window) for window in windows] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9]]
    assert document_windows([1], 4) == []


def test_all_models_see_the_same_text(report: EvaluationReport) -> None:
    for domain in report.domains:
        one, other = (report.score(model, domain) for model in report.models)
        assert (one.documents, one.tokens, one.bytes) == (other.documents, other.tokens, other.bytes)
        assert one.tokens <= 3000
    assert report.same_tokenizer


def test_intervals_hold_the_estimate(report: EvaluationReport) -> None:
    for score in report.scores:
        assert score.perplexity_low <= score.perplexity <= score.perplexity_high
        assert score.bits_per_byte_low <= score.bits_per_byte <= score.bits_per_byte_high
        if score.model == "anchor":
            assert (score.difference, score.difference_low, score.difference_high) == (0.0, 0.0, 0.0)
        else:
            assert score.difference_low <= score.difference <= score.difference_high
            # The same documents are drawn for both models, so the difference is known better than either.
            assert score.difference_high - score.difference_low < score.bits_per_byte_high - score.bits_per_byte_low


def test_limits_of_tokens_hold_per_document_and_in_all(anchor: Path, held_out: Path) -> None:
    score = evaluate([("m", anchor)], [("d", [str(held_out)])], max_tokens=500, max_document_tokens=100).score("m", "d")
    assert score.documents == 5
    assert score.tokens <= 500


def test_router_load_is_that_of_stock_transformers(report: EvaluationReport, mixture: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = [text[:300] for text in topics()[50:53]]
    data = write_rows(tmp_path / "data.jsonl.gz", texts)
    load = evaluate([("m", mixture)], [("d", [str(data)])], max_document_tokens=60).loads[0]
    model, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(mixture), transformers.AutoTokenizer.from_pretrained(mixture)
    inputs: dict[int, list[torch.Tensor]] = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_pre_hook(lambda _, args, layer=layer: inputs.setdefault(layer, []).append(args[0].flatten(0, 1)))
    for text in texts:
        ids = tokenizer(text)["input_ids"][:60]
        with torch.no_grad():
            model(torch.tensor([ids[:-1]]))
    for layer, block in enumerate(model.model.layers):
        probabilities = torch.softmax(torch.cat(inputs[layer]) @ block.mlp.gate.weight.T, dim=-1)
        active = torch.nn.functional.one_hot(probabilities.topk(2, dim=-1).indices, 3).sum(1).double().mean(0)
        np.testing.assert_allclose(load.probability[layer], probabilities.mean(0).detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(load.active[layer], active.numpy(), atol=0.02)
    assert load.experts == ["public", "code", "law"]
    assert sum(load.mean_probability) == pytest.approx(1.0)
    assert [each.model for each in report.loads] == ["mixture", "mixture"]


def test_different_tokenizers_are_noticed(anchor: Path, held_out: Path, tmp_path: Path) -> None:
    other = make_mixture(anchor, tmp_path / "other", names=["a"], top_k=1)
    document = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(document))  # the same tokenizer in other bytes is not taken for the same
    report = evaluate([("one", anchor), ("two", other)], [("d", [str(held_out)])], max_tokens=500)
    assert not report.same_tokenizer
    assert report.score("one", "d").bytes == report.score("two", "d").bytes


def test_the_report_for_scripts(report: EvaluationReport) -> None:
    value = json.loads(json.dumps(report.to_dict()))
    assert value["schema"] == "elmgrove.evaluation/v1"
    product = math.prod(report.score("mixture", domain).perplexity for domain in report.domains)
    assert value["geometric_means"]["mixture"] == pytest.approx(math.sqrt(product))
    assert len(value["scores"]) == 4
    with pytest.raises(KeyError):
        report.score("nobody", "seen")


def test_bad_requests(anchor: Path, held_out: Path, tmp_path: Path) -> None:
    data = [("d", [str(held_out)])]
    with pytest.raises(UsageError, match="at least one model"):
        evaluate([], data)
    with pytest.raises(UsageError, match="name of its own"):
        evaluate([("m", anchor), ("m", anchor)], data)
    with pytest.raises(UsageError, match="do not fit"):
        evaluate([("m", anchor)], data, seq_len=65)
    with pytest.raises(ArchitectureError):
        evaluate([("m", tmp_path)], data)
    with pytest.raises(TextFieldError):
        evaluate([("m", anchor)], data, text_field="body")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError):
        evaluate([("m", anchor)], [("d", [str(empty)])])
    with pytest.raises(DataError, match="two tokens"):
        evaluate([("m", anchor)], [("d", [str(write_rows(tmp_path / "short.jsonl.gz", ["a"]))])])
