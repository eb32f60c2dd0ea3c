"""Tiny random anchors and experts as real folders: safetensors written byte by byte, no tensor library."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from common.formats.layout import (
    INDEX_NAME,
    PRIVACY_NAME,
    ROUTER_NAME,
    factor_names,
    ffn_names,
    input_mean_name,
    input_second_moment_name,
    olmo2_shapes,
    part_name,
    router_row_name,
)
from common.formats.manifest import Architecture
from common.formats.safetensors import DTYPE_BYTES, encode_header, parse_header, parse_length

Tensor = tuple[str, tuple[int, ...], bytes]  # dtype, shape, bytes

_HF_DTYPE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class TinyShape:
    """Sizes of a tiny Olmo2."""

    hidden: int = 16
    inner: int = 24
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 48
    dtype: str = "F32"
    tied: bool = False

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            model_type="olmo2",
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            dtype=self.dtype,
        )

    @property
    def config(self) -> dict[str, object]:
        return {
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 64,
            "rope_theta": 20000.0,
            "rms_norm_eps": 3e-6,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": self.tied,
            "dtype": _HF_DTYPE[self.dtype],
        }


TINY = TinyShape()


def random_bytes(rng: random.Random, dtype: str, shape: Sequence[int], *, around: float = 0.0) -> bytes:
    """Values in ``around`` plus or minus 0.3, as ``dtype``."""
    values = [around + rng.uniform(-0.3, 0.3) for _ in range(prod(shape))]
    if dtype == "F16":
        return struct.pack(f"<{len(values)}e", *values)
    wide = struct.pack(f"<{len(values)}f", *values)
    return wide if dtype == "F32" else b"".join(wide[at + 2 : at + 4] for at in range(0, len(wide), 4))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the order given."""
    head, _ = encode_header([(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()])
    path.write_bytes(head + b"".join(raw for _, _, raw in tensors.values()))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file."""
    raw = path.read_bytes()
    length = parse_length(raw[:8], len(raw))
    header = parse_header(raw[8 : 8 + length], len(raw))
    return {span.name: (span.dtype, span.shape, raw[span.start : span.end]) for span in header.tensors}


def write_anchor_files(folder: Path, shape: TinyShape = TINY, *, seed: int = 0, shards: int = 1, moments: bool = True) -> None:
    """The files of an anchor without manifest and signature."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, size in olmo2_shapes(shape.architecture, tied=shape.tied).items():
        tensors[name] = (shape.dtype, size, random_bytes(rng, shape.dtype, size, around=1.0 if "norm" in name else 0.0))
    names = list(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        files = {name: f"model-{at % shards + 1:05d}-of-{shards:05d}.safetensors" for at, name in enumerate(names)}
        for file in sorted(set(files.values())):
            write_safetensors(folder / file, {name: tensors[name] for name in names if files[name] == file})
        total = sum(len(raw) for _, _, raw in tensors.values())
        (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(shape.config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "public-sample.jsonl.gz").write_bytes(b"")
    router: dict[str, Tensor] = {}
    for layer in range(shape.layers):
        width = DTYPE_BYTES[shape.dtype]
        router[router_row_name(layer)] = (shape.dtype, (1, shape.hidden), bytes(width * shape.hidden))
        if moments:
            mean, second = (shape.hidden,), (shape.hidden, shape.hidden)
            router[input_mean_name(layer)] = ("F32", mean, random_bytes(rng, "F32", mean))
            router[input_second_moment_name(layer)] = ("F32", second, random_bytes(rng, "F32", second))
    write_safetensors(folder / ROUTER_NAME, router)


def write_expert_files(folder: Path, shape: TinyShape = TINY, *, seed: int = 1, parts: int = 1) -> None:
    """The files of an expert package without manifest and signature."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = olmo2_shapes(shape.architecture, tied=shape.tied)
    names = list(ffn_names(shape.layers))
    per_part = -(-len(names) // parts)
    for part in range(parts):
        chosen = names[part * per_part : (part + 1) * per_part]
        write_safetensors(
            folder / part_name(part), {name: (shape.dtype, shapes[name], random_bytes(rng, shape.dtype, shapes[name])) for name in chosen}
        )
    _write_rest(folder, shape, rng)


def write_low_rank_files(folder: Path, shape: TinyShape = TINY, *, rank: int = 2, seed: int = 1, parts: int = 2) -> None:
    """The files of a low-rank package without manifest and signature."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = olmo2_shapes(shape.architecture, tied=shape.tied)
    tensors: dict[str, Tensor] = {}
    for name in ffn_names(shape.layers):
        (out, into), (a, b) = shapes[name], factor_names(name)
        tensors[a] = (shape.dtype, (rank, into), random_bytes(rng, shape.dtype, (rank, into)))
        tensors[b] = (shape.dtype, (out, rank), random_bytes(rng, shape.dtype, (out, rank)))
    names, per_part = list(tensors), -(-len(tensors) // parts)
    for part in range(parts):
        chosen = names[part * per_part : (part + 1) * per_part]
        write_safetensors(folder / part_name(part), {name: tensors[name] for name in chosen})
    _write_rest(folder, shape, rng)


def _write_rest(folder: Path, shape: TinyShape, rng: random.Random) -> None:
    row = (1, shape.hidden)
    write_safetensors(
        folder / ROUTER_NAME,
        {router_row_name(layer): (shape.dtype, row, random_bytes(rng, shape.dtype, row)) for layer in range(shape.layers)},
    )
    (folder / PRIVACY_NAME).write_text('{"schema": "elmgrove.privacy/v1", "audits": []}')
