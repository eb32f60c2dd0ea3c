"""Names of tensors and files that follow from Hugging Face's Olmo2 and FlexOlmo layouts; no other module spells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from common.formats.manifest import Architecture

__all__ = [
    "FFN_MATRICES",
    "INDEX_NAME",
    "PRIVACY_NAME",
    "PUBLIC_SAMPLE_NAME",
    "ROUTER_NAME",
    "TOKENIZER_FILES",
    "dense_ffn_name",
    "expert_ffn_name",
    "factor_names",
    "ffn_names",
    "input_mean_name",
    "input_second_moment_name",
    "is_factor_name",
    "olmo2_shapes",
    "part_name",
    "router_row_name",
    "split_dense_ffn",
]

FFN_MATRICES: Final = ("gate_proj", "up_proj", "down_proj")
ROUTER_NAME: Final = "router.safetensors"
PRIVACY_NAME: Final = "privacy.json"
PUBLIC_SAMPLE_NAME: Final = "public-sample.jsonl.gz"
INDEX_NAME: Final = "model.safetensors.index.json"
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

_DENSE_FFN = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.mlp\.(gate_proj|up_proj|down_proj)\.weight")


def dense_ffn_name(layer: int, matrix: str) -> str:
    """Olmo2 name of one FFN matrix: ``[I, H]`` for gate and up, ``[H, I]`` for down."""
    return f"model.layers.{layer}.mlp.{matrix}.weight"


def expert_ffn_name(layer: int, expert: int, matrix: str) -> str:
    """FlexOlmo name, as it stands on disk, of one FFN matrix of one expert."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight"


def router_row_name(layer: int) -> str:
    """Name of a layer's router: ``[1, H]`` in a package or anchor, ``[N, H]`` in an assembled model."""
    return f"model.layers.{layer}.mlp.gate.weight"


def input_mean_name(layer: int) -> str:
    """Mean of a layer's router inputs over public text, ``[H]`` float32."""
    return f"model.layers.{layer}.mlp.gate.input_mean"


def input_second_moment_name(layer: int) -> str:
    """Uncentred second moment of a layer's router inputs over public text, ``[H, H]`` float32 (``[H]``, its diagonal, above H = 2048)."""
    return f"model.layers.{layer}.mlp.gate.input_second_moment"


def ffn_names(num_layers: int) -> Iterator[str]:
    """Olmo2 names of all FFN matrices, layer by layer: exactly the tensors of a full expert."""
    for layer in range(num_layers):
        for matrix in FFN_MATRICES:
            yield dense_ffn_name(layer, matrix)


def factor_names(name: str) -> tuple[str, str]:
    """PEFT's names of the factors ``A`` and ``B`` of the low-rank difference to the FFN matrix ``name``: ``[r, in]`` and ``[out, r]``."""
    stem = name.removesuffix(".weight")
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def is_factor_name(name: str) -> bool:
    """Whether ``name`` is one that :func:`factor_names` gives for some matrix."""
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def split_dense_ffn(name: str) -> tuple[int, str] | None:
    """``(layer, matrix)`` if ``name`` is an Olmo2 FFN matrix, else ``None``."""
    match = _DENSE_FFN.fullmatch(name)
    return (int(match.group(1)), match.group(2)) if match else None


def part_name(index: int) -> str:
    """``part-0000.safetensors``, ``part-0001.safetensors`` ..."""
    return f"part-{index:04d}.safetensors"


def olmo2_shapes(architecture: Architecture, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an ``Olmo2ForCausalLM`` checkpoint; ``tied`` leaves ``lm_head.weight`` out, as on disk."""
    hidden, inner, vocab = architecture.hidden_size, architecture.intermediate_size, architecture.vocab_size
    keys = hidden // architecture.num_attention_heads * architecture.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    in_layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_norm": (hidden,),
        "self_attn.k_norm": (keys,),
        "post_attention_layernorm": (hidden,),
        "post_feedforward_layernorm": (hidden,),
    }
    for layer in range(architecture.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in in_layer.items()}
        shapes |= {dense_ffn_name(layer, matrix): (inner, hidden) for matrix in ("gate_proj", "up_proj")}
        shapes[dense_ffn_name(layer, "down_proj")] = (hidden, inner)
    return shapes
