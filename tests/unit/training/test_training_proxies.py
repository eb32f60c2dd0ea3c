"""Choosing proxies: greedy MAP against determinants computed whole, and documents of a known kind in a mixed public sample."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from common.errors import DataError, UsageError
from common.formats.proxies import text_digest
from owner_client.training.dpp import greedy_map, similarity
from owner_client.training.proxies import ProxySettings, choose_proxies


def kernel(points: torch.Tensor) -> torch.Tensor:
    return torch.exp(-torch.cdist(points, points).square())


def best_next(points: torch.Tensor, log_relevance: torch.Tensor, chosen: list[int]) -> int:
    """The greedy choice by the definition: the largest log det of the weighted kernel."""
    relevance = log_relevance.exp()
    whole = relevance[:, None] * kernel(points) * relevance[None]
    gains = {}
    for number in set(range(len(points))) - set(chosen):
        index = [*chosen, number]
        gains[number] = float(torch.linalg.slogdet(whole[index][:, index])[1])
    return max(gains, key=lambda number: gains[number])


def test_every_choice_is_the_greedy_one() -> None:
    generator = torch.Generator().manual_seed(1)
    points = similarity(torch.randn(30, 4, generator=generator))
    log_relevance = torch.nn.functional.logsigmoid(2 * torch.randn(30, generator=generator, dtype=torch.float64))
    chosen = greedy_map(log_relevance, points, 12)
    for length in range(12):
        assert chosen[length] == best_next(points, log_relevance, chosen[:length])


def test_more_documents_than_features_can_be_chosen_and_repetitions_cannot() -> None:
    points = similarity(torch.randn(20, 3, generator=torch.Generator().manual_seed(2)))
    assert sorted(greedy_map(torch.zeros(20), points, 20)) == list(range(20))
    doubled = torch.cat((points, points))
    chosen = greedy_map(torch.zeros(40), doubled, 40)
    assert len({number % 20 for number in chosen}) == len(chosen) == 20


def test_tiny_relevances_lose_no_digits() -> None:
    points = similarity(torch.randn(25, 4, generator=torch.Generator().manual_seed(3)))
    relevance = torch.nn.functional.logsigmoid(torch.linspace(-3, 3, 25, dtype=torch.float64))
    assert greedy_map(relevance, points, 10) == greedy_map(relevance - 400.0, points, 10)


def test_the_kernels_width_follows_the_median_distance() -> None:
    values = kernel(similarity(torch.randn(200, 8, generator=torch.Generator().manual_seed(4))))
    assert float(values[~torch.eye(200, dtype=torch.bool)].median()) == pytest.approx(torch.exp(torch.tensor(-1.0)).item(), abs=0.02)
    assert torch.equal(similarity(torch.ones(1, 4)), similarity(torch.ones(1, 4)))
    assert bool(torch.isfinite(similarity(torch.ones(3, 4))).all())


CODE = [f"def g{number}(y, z):\n    return y[{number * 3}] - z * {number}\n" for number in range(24)]
PROSE = [f"The river number {number} runs through a quiet valley to the sea, past {number * 7} farms." for number in range(96)]
SMALL = ProxySettings(count=12, candidates=60)


@pytest.fixture
def published(anchor: Path, tmp_path: Path) -> Path:
    """The anchor with a public sample of prose and a little code, two pieces of which come twice."""
    folder = Path(shutil.copytree(anchor, tmp_path / "published"))
    mixed = [text for pair in itertools.zip_longest(PROSE, CODE) for text in pair if text is not None]
    with gzip.open(folder / "public-sample.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in [*mixed, CODE[0], CODE[1]])
    return folder


def test_proxies_of_code_are_the_public_code(published: Path, private: Path) -> None:
    code, prose = {text_digest(text) for text in CODE}, {text_digest(text) for text in PROSE}
    chosen = choose_proxies(published, [str(private)], SMALL)
    digests = [proxy.sha256 for proxy in chosen]
    assert len(set(digests)) == 12
    assert set(digests) <= code
    assert min(proxy.relevance for proxy in chosen) > 0.5
    everything = choose_proxies(published, [str(private)], ProxySettings(count=200, candidates=200))
    assert {proxy.sha256 for proxy in everything} <= code | prose
    assert len({proxy.sha256 for proxy in everything}) == len(everything)
    assert digests == [proxy.sha256 for proxy in choose_proxies(published, [str(private)], SMALL)]


def test_without_public_or_private_text_there_is_nothing_to_choose(published: Path, private: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": f"note {number}"}) + "\n" for number in range(5)))
    with pytest.raises(DataError, match="only 5 private documents"):
        choose_proxies(published, [str(few)], SMALL)
    (published / "public-sample.jsonl.gz").unlink()
    with pytest.raises(UsageError, match="no sample of public text"):
        choose_proxies(published, [str(private)], SMALL)


@pytest.mark.parametrize("changes", [{"count": 0}, {"count": 50, "candidates": 49}, {"tokens": 1}, {"private_documents": 3}, {"seed": -1}])
def test_impossible_settings(changes: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        ProxySettings(**changes)
