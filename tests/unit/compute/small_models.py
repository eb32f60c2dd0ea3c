"""Real small models for the compute room's tests: trained for a few steps on Python's own documentation, and mixtures of them."""

from __future__ import annotations

import gzip
import json
import pydoc_data.topics
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from coordinator.compute.presets import AnchorSettings

SETTINGS = AnchorSettings(
    tokens=12_288, seq_len=64, batch_tokens=512, lr=1e-2, matrix_lr=0.02, dtype="float32", device="cpu", checkpoint_every=5
)


def write_rows(path: Path, texts: list[str], *, field: str = "text") -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({field: text}) + "\n" for text in texts)
    return path


def topics() -> list[str]:
    return [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 400]


def make_mixture(anchor: Path, folder: Path, *, names: list[str], top_k: int) -> Path:
    folder.mkdir()
    config = json.loads((anchor / "config.json").read_text())
    generators = {slot: torch.Generator().manual_seed(hash_name(name)) for slot, name in enumerate(names, start=1)}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(anchor / "model.safetensors").items():
        if ".mlp." not in name:
            tensors[name] = tensor
            continue
        tensors[name.replace(".mlp.", ".mlp.experts.0.")] = tensor.clone()
        for slot, generator in generators.items():
            tensors[name.replace(".mlp.", f".mlp.experts.{slot}.")] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
    for layer in range(config["num_hidden_layers"]):
        rows = [torch.zeros(1, config["hidden_size"])]
        rows += [torch.randn(1, config["hidden_size"], generator=generator) * 0.3 for generator in generators.values()]
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = torch.cat(rows)
    config.update(
        architectures=["FlexOlmoForCausalLM"],
        model_type="flex_olmo",
        num_experts=len(names) + 1,
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(
        json.dumps({"experts": [{"slot": slot, "name": name} for slot, name in enumerate(names, start=1)]})
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(anchor / name, folder / name)
    return folder


def hash_name(name: str) -> int:
    return int.from_bytes(name.encode()[:6], "big")
