"""A tiny published anchor, two domains of text, and settings that train in a second."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from common.formats.layout import input_mean_name, input_second_moment_name, router_row_name
from common.modeling.config import ModelConfig
from common.modeling.export import save_dense
from common.modeling.loading import load_model
from common.modeling.model import CausalLM, Taps
from common.textdata.tokens import load_tokenizer

_CONFIG = ModelConfig(
    vocab_size=264,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    max_position_embeddings=64,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    eos_token_id=256,
)
_PUBLIC = [f"The river number {number} runs through a quiet valley to the sea, past {number * 7} farms." for number in range(120)]
_PRIVATE = [f"def f{number}(x):\n    return x[{number}] * {number + 3} - {{}}\n" for number in range(150)]


def _tokenizer(folder: Path) -> None:
    vocab = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def _moments(folder: Path) -> dict[str, torch.Tensor]:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    inputs: list[list[torch.Tensor]] = [[] for _ in range(_CONFIG.num_layers)]
    for text in _PUBLIC[:40]:
        model.hidden(torch.tensor([tokenizer.encode(text)[:64]]), taps=Taps(ffn_input=lambda layer, x: inputs[layer].append(x)))
    tensors = {}
    for layer, pieces in enumerate(inputs):
        x = torch.cat(pieces)
        tensors[router_row_name(layer)] = torch.zeros(1, 16)
        tensors[input_mean_name(layer)] = x.mean(0)
        tensors[input_second_moment_name(layer)] = x.t() @ x / len(x)
    return tensors


@pytest.fixture(scope="session")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published anchor; random, so that there is much to learn."""
    folder = tmp_path_factory.mktemp("published") / "anchor"
    model = CausalLM(_CONFIG)
    model.init_weights(0, std=0.1)
    save_dense(model, folder)
    _tokenizer(folder)
    with gzip.open(folder / "public-sample.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in _PUBLIC)
    save_file(_moments(folder), folder / "router.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's text."""
    path = tmp_path_factory.mktemp("private") / "code.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in _PRIVATE))
    return path
