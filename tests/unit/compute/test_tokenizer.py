"""The anchor's tokenizer: lossless, reproducible, and read by stock transformers as it is by us."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, UsageError
from common.textdata.tokens import Tokenizer, load_tokenizer
from coordinator.compute.tokenizer import END_OF_TEXT, train_tokenizer
from tests.unit.compute.small_models import topics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    assert train_tokenizer(topics()[:20], folder, vocab_size=600, max_length=128) == 600
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@given(text=st.text(max_size=200))
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    if END_OF_TEXT not in text and "<|pad|>" not in text:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_it_compresses_its_language(tokenizer: Tokenizer) -> None:
    text = topics()[25]
    assert len(tokenizer.encode(text)) < 0.6 * len(text.encode())


def test_the_same_text_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(topics()[:20], tmp_path, vocab_size=600, max_length=128)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_stock_transformers_gives_the_same_numbers(folder: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    stock = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (topics()[30], "  naïve ☃ 12345\n\n\tint x = 1; "):
        assert stock(text)["input_ids"] == tokenizer.encode(text)
    assert (stock.eos_token_id, stock.pad_token, stock.model_max_length) == (tokenizer.eos_id, "<|pad|>", 128)


def test_little_text_gives_a_smaller_vocabulary(tmp_path: Path) -> None:
    assert train_tokenizer(["aaa bbb"], tmp_path, vocab_size=4096, max_length=8) < 300


def test_no_text_and_no_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train_tokenizer([], tmp_path, vocab_size=600, max_length=8)
    with pytest.raises(UsageError, match="258"):
        train_tokenizer(["text"], tmp_path, vocab_size=257, max_length=8)
    assert list(tmp_path.iterdir()) == []
