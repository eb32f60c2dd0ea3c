"""Names of the tensors on disk (as transformers' ``save_pretrained`` writes them) and the parameter, or rows of one, that each fills."""

from __future__ import annotations

from dataclasses import dataclass

from common.formats.layout import FFN_MATRICES, dense_ffn_name, expert_ffn_name, factor_names, router_row_name
from common.modeling.config import ModelConfig

__all__ = ["Slot", "factor_slots", "ffn_slots", "slots"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor of a file belongs: rows ``start`` to ``start + shape[0]`` of the model's parameter ``parameter``."""

    parameter: str
    start: int
    shape: tuple[int, ...]


def ffn_slots(config: ModelConfig, layer: int, module: str, expert: int | None = None) -> dict[str, Slot]:
    """The three FFN matrices of one layer, filling the SwiGLU at ``module``."""
    inner, hidden = config.intermediate_size, config.hidden_size
    places = {
        "gate_proj": Slot(f"{module}.gate_up.weight", 0, (inner, hidden)),
        "up_proj": Slot(f"{module}.gate_up.weight", inner, (inner, hidden)),
        "down_proj": Slot(f"{module}.down.weight", 0, (hidden, inner)),
    }
    return {
        dense_ffn_name(layer, matrix) if expert is None else expert_ffn_name(layer, expert, matrix): slot for matrix, slot in places.items()
    }


def factor_slots(config: ModelConfig, layer: int, module: str, rank: int) -> dict[str, Slot]:
    """The six factors of one layer's low-rank expert, filling the ``LowRankExpert`` at ``module``."""
    places: dict[str, Slot] = {}
    for matrix in FFN_MATRICES:
        out, into = config.intermediate_size, config.hidden_size
        if matrix == "down_proj":
            out, into = into, out
        a, b = factor_names(dense_ffn_name(layer, matrix))
        places |= {a: Slot(f"{module}.{matrix}_a", 0, (rank, into)), b: Slot(f"{module}.{matrix}_b", 0, (out, rank))}
    return places


def slots(config: ModelConfig, kind: str) -> dict[str, Slot]:
    """Every tensor of a checkpoint with these sizes; ``kind`` as in ``CausalLM``, where a pair's public half is a dense checkpoint."""
    hidden = config.hidden_size
    table = {"model.embed_tokens.weight": Slot("embed_tokens.weight", 0, (config.vocab_size, hidden))}
    for layer in range(config.num_layers):
        table |= _layer_slots(config, layer)
        module = f"layers.{layer}.mlp"
        if kind == "mixture":
            for expert in range(config.num_experts):
                table |= ffn_slots(config, layer, f"{module}.experts.{expert}", expert)
            table[router_row_name(layer)] = Slot(f"{module}.rows", 0, (config.num_experts, hidden))
        else:
            table |= ffn_slots(config, layer, f"{module}.public" if kind == "pair" else module)
    table["model.norm.weight"] = Slot("norm.weight", 0, (hidden,))
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = Slot("lm_head.weight", 0, (config.vocab_size, hidden))
    return table


def _layer_slots(config: ModelConfig, layer: int) -> dict[str, Slot]:
    hidden, kv = config.hidden_size, config.kv_size
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_norm": (hidden,),
        "self_attn.k_norm": (kv,),
        "post_attention_layernorm": (hidden,),
        "post_feedforward_layernorm": (hidden,),
    }
    return {f"model.layers.{layer}.{name}.weight": Slot(f"layers.{layer}.{name}.weight", 0, shape) for name, shape in shapes.items()}
