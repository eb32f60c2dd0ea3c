"""Hugging Face configurations: defaults are written out as transformers fills them, and what FlexOlmo cannot express is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ArchitectureError, FormatError
from common.formats.hfconfig import architecture_of, flex_olmo_config, loads_config, olmo2_config
from common.formats.layout import dense_ffn_name, ffn_names, olmo2_shapes, split_dense_ffn

SMALL: dict[str, Any] = {
    "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500000, "rms_norm_eps": 1e-6,
    "dtype": "bfloat16", "eos_token_id": 3, "pad_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip


def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle for its own defaults")
    theirs = transformers.Olmo2Config().to_dict()
    ours = olmo2_config({"model_type": "olmo2"})
    assert ours.pop("rope_theta") == 10_000
    assert ours.pop("dtype") == "float32"
    assert ours == {key: theirs[key] for key in ours}


def test_assembled_configuration_is_what_transformers_reads(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle for its own configuration")
    (tmp_path / "config.json").write_bytes(flex_olmo_config(SMALL, num_experts=3, top_k=2))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config).__name__ == "FlexOlmoConfig"
    assert (config.num_experts, config.num_experts_per_tok, config.norm_topk_prob) == (3, 2, False)
    assert config.rope_parameters["rope_theta"] == 500_000
    same = ("vocab_size", "hidden_size", "num_key_value_heads", "rms_norm_eps", "eos_token_id", "pad_token_id", "tie_word_embeddings")
    assert {key: getattr(config, key) for key in same} == {key: SMALL[key] for key in same}


def test_assembled_configuration_has_the_same_bytes_for_the_same_settings() -> None:
    turned = dict(reversed(list(SMALL.items())))
    raw = flex_olmo_config(SMALL, num_experts=3, top_k=2)
    assert raw == flex_olmo_config(turned, num_experts=3, top_k=2)
    assert json.loads(raw)["architectures"] == ["FlexOlmoForCausalLM"]


def test_theta_is_found_in_either_place() -> None:
    newer = {key: value for key, value in SMALL.items() if key != "rope_theta"} | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000}
    }
    assert olmo2_config(newer) == olmo2_config(SMALL)


def test_architecture_of_a_configuration() -> None:
    found = architecture_of(SMALL)
    assert (found.hidden_size, found.num_hidden_layers, found.num_key_value_heads, found.dtype) == (16, 2, 2, "BF16")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "llama"}, "must be an Olmo2ForCausalLM"),
        ({"architectures": ["OlmoeForCausalLM"]}, "OlmoeForCausalLM"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "[Rr]o"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1.0}}, "[Rr]o"),
        ({"rope_theta": float("nan")}, "rope_theta is not"),
        ({"rope_theta": 10**400}, "rope_theta is not"),
        ({"rope_theta": 0}, "rope_theta is not"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "[Rr]o"),
        ({"dtype": ["float32"]}, "dtype must be one of"),
        ({"hidden_act": "gelu"}, "activation must be silu"),
        ({"attention_bias": True}, "Attention bias"),
        ({"attention_dropout": 0.1}, "attention dropout"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"hidden_size": 0}, "hidden_size is not"),
        ({"hidden_size": 2**25}, "hidden_size is not"),
        ({"hidden_size": "16"}, "hidden_size is not"),
        ({"vocab_size": True}, "vocab_size is not"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is not"),
        ({"num_attention_heads": 3}, "do not divide"),
        ({"num_key_value_heads": 3}, "do not divide"),
    ],
)
def test_unsupported_anchor(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        olmo2_config(SMALL | change)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"\xff", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":-Infinity}', b"[" * 100_000, b'{"a":' * 5000, b" " * (1 << 20) + b"{}"],
)
def test_broken_configuration_is_our_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        loads_config(raw)


VALUES = st.none() | st.booleans() | st.integers(-5, 99) | st.text(max_size=4) | st.floats() | st.lists(st.integers(0, 3), max_size=2)


@given(st.dictionaries(st.sampled_from([*SMALL, "rope_scaling", "rope_parameters", "hidden_act", "torch_dtype"]), VALUES, max_size=4))
def test_any_configuration_is_taken_or_our_error(change: dict[str, Any]) -> None:
    try:
        settings = olmo2_config(SMALL | change)
    except ArchitectureError:
        return
    assert settings["hidden_size"] % settings["num_attention_heads"] == 0


def test_tensor_names_and_shapes_of_an_anchor() -> None:
    shapes = olmo2_shapes(architecture_of(SMALL), tied=False)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (8, 16)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (16, 24)
    assert shapes["lm_head.weight"] == (64, 16)
    assert "lm_head.weight" not in olmo2_shapes(architecture_of(SMALL), tied=True)
    assert set(ffn_names(2)) == {name for name in shapes if split_dense_ffn(name)}
    assert [split_dense_ffn(dense_ffn_name(7, "up_proj")), split_dense_ffn("model.layers.01.mlp.up_proj.weight")] == [(7, "up_proj"), None]
