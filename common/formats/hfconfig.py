"""Hugging Face ``config.json`` of anchors and assembled models, read and written without transformers.

Every field that transformers would fill with a class default is written out: Olmo2 and FlexOlmo have different defaults
(rope_theta 10,000 and 500,000, rms_norm_eps 1e-5 and 1e-6, other special tokens), so an omitted field changes the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final, NoReturn

from common.errors import ArchitectureError, FormatError
from common.formats.manifest import Architecture
from common.formats.strictjson import printable

__all__ = ["architecture_of", "flex_olmo_config", "loads_config", "olmo2_config"]

_MAX_CONFIG_BYTES: Final = 1024 * 1024

_OLMO2_DEFAULTS: Final[Mapping[str, Any]] = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "use_cache": True,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 50279,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
"""Defaults of transformers' ``Olmo2Config``; ``num_key_value_heads`` defaults to ``num_attention_heads``, ``rope_theta`` to 10,000."""

_MAX_THETA: Final = 2**53  # largest in use is about 1e9; this bound also keeps infinity and NaN out
_DTYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def loads_config(raw: bytes) -> dict[str, Any]:
    """Parse a ``config.json``. Unlike signed documents it may hold floats.

    Raises:
        FormatError: not a JSON object, too large, a key occurs twice, or a number is NaN or infinite.
    """
    if len(raw) > _MAX_CONFIG_BYTES:
        raise FormatError("config.json is too large.")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError("config.json is not valid JSON.") from error
    if not isinstance(value, dict):
        raise FormatError("config.json is not a JSON object.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError("a number is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def olmo2_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an ``Olmo2ForCausalLM``, every default filled in, in a fixed key order.

    Returns:
        A dict with the keys of ``Olmo2Config`` plus ``num_key_value_heads``, ``rope_theta`` (a float) and ``dtype``.

    Raises:
        ArchitectureError: another architecture, or a feature that FlexOlmo cannot express: rope scaling, attention bias,
            another activation.
    """
    if config.get("model_type") != "olmo2" or config.get("architectures", ["Olmo2ForCausalLM"]) != ["Olmo2ForCausalLM"]:
        found = config.get("architectures") or config.get("model_type")
        raise ArchitectureError(f"An anchor must be an Olmo2ForCausalLM; this folder holds {printable(str(found), 80)}.")
    settings = {key: config.get(key, default) for key, default in _OLMO2_DEFAULTS.items()}
    settings["num_key_value_heads"] = config.get("num_key_value_heads") or settings["num_attention_heads"]
    settings["rope_theta"] = _rope_theta(config)
    settings["dtype"] = config.get("dtype") or config.get("torch_dtype") or "float32"
    _check_supported(settings)
    return settings


def _rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type", "default")) not in ("default", None):
        raise ArchitectureError("Scaled rotary embeddings (rope_scaling) are not supported.")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 0 < theta <= _MAX_THETA:
        raise ArchitectureError("rope_theta is not a positive number.")
    return float(theta)


def _check_supported(settings: Mapping[str, Any]) -> None:
    if settings["hidden_act"] != "silu":
        raise ArchitectureError(f"The activation must be silu, not {printable(str(settings['hidden_act']), 40)}.")
    if settings["attention_bias"] or settings["attention_dropout"]:
        raise ArchitectureError("Attention bias and attention dropout are not supported.")
    if not isinstance(settings["dtype"], str) or settings["dtype"] not in _DTYPES:
        raise ArchitectureError(f"The dtype must be one of {', '.join(_DTYPES)}.")
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**24:
            raise ArchitectureError(f"{key} is not a positive whole number.")
    if settings["hidden_size"] % settings["num_attention_heads"] or settings["num_attention_heads"] % settings["num_key_value_heads"]:
        raise ArchitectureError("hidden_size, num_attention_heads and num_key_value_heads do not divide each other.")


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The anchor manifest's architecture block for a ``config.json``.

    Raises:
        ArchitectureError: as :func:`olmo2_config`.
    """
    settings = olmo2_config(config)
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    return Architecture.model_validate({"model_type": "olmo2", "dtype": _DTYPES[settings["dtype"]], **{key: settings[key] for key in keys}})


def flex_olmo_config(config: Mapping[str, Any], *, num_experts: int, top_k: int) -> bytes:
    """``config.json`` of the ``FlexOlmoForCausalLM`` whose experts share the attention of the Olmo2 ``config``.

    Raises:
        ArchitectureError: as :func:`olmo2_config`.
    """
    settings = olmo2_config(config)
    theta = settings.pop("rope_theta")
    document = {
        "architectures": ["FlexOlmoForCausalLM"],
        "model_type": "flex_olmo",
        **settings,
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")
