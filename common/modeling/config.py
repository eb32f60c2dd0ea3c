"""The sizes of a model, read from the ``config.json`` of transformers 4.57 and 5.x (source: ``Olmo2Config``, ``FlexOlmoConfig``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.errors import ArchitectureError

__all__ = ["ModelConfig"]

# The two classes differ in almost every default, so a field that a config.json leaves out means something else in each.
_DEFAULTS: dict[str, dict[str, object]] = {
    "Olmo2ForCausalLM": {
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "pad_token_id": 1,
        "eos_token_id": 50279,
    },
    "FlexOlmoForCausalLM": {
        "vocab_size": 100352,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "pad_token_id": 100277,
        "eos_token_id": 100257,
        "num_experts": 7,
        "num_experts_per_tok": 5,
    },
}
_SHARED_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
_MODEL_TYPES = {"olmo2": "Olmo2ForCausalLM", "flex_olmo": "FlexOlmoForCausalLM"}
# feature -> the only value this implementation computes
_ONLY = {"hidden_act": "silu", "attention_bias": False, "norm_topk_prob": False, "clip_qkv": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of an OLMo-2-style model; ``num_experts == 1`` is the dense ``Olmo2ForCausalLM``, more is ``FlexOlmoForCausalLM``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    num_experts: int = 1
    num_experts_per_tok: int = 1

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ArchitectureError(f"The model's {name} must be at least 1.")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ArchitectureError("The hidden size must be an even multiple of the number of attention heads.")
        if self.num_heads % self.num_kv_heads:
            raise ArchitectureError("The number of attention heads must be a multiple of the number of key/value heads.")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ArchitectureError("The number of active experts must be between 1 and the number of experts.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_size(self) -> int:
        """Width of the key and of the value projection."""
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_hf(cls, config: Mapping[str, object]) -> ModelConfig:
        """Read a parsed ``config.json``.

        Every field that is absent takes the default of the class that the file names, which differ between the two.

        Raises:
            ArchitectureError: another architecture, or a feature that this implementation does not compute.
        """
        architecture = _architecture(config)
        _refuse_unsupported(config)
        fields = {**_SHARED_DEFAULTS, **_DEFAULTS[architecture], **config, "rope_theta": _rope_theta(config, architecture)}
        heads = _integer(fields, "num_attention_heads")
        head_dim = config.get("head_dim")
        if head_dim is not None and head_dim != _integer(fields, "hidden_size") // max(1, heads):
            raise ArchitectureError("The model has a head_dim that is not hidden size / heads, which is not supported.")
        mixture = architecture == "FlexOlmoForCausalLM"
        return cls(
            vocab_size=_integer(fields, "vocab_size"),
            hidden_size=_integer(fields, "hidden_size"),
            intermediate_size=_integer(fields, "intermediate_size"),
            num_layers=_integer(fields, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=heads if config.get("num_key_value_heads") is None else _integer(fields, "num_key_value_heads"),
            max_position_embeddings=_integer(fields, "max_position_embeddings"),
            rope_theta=_number(fields, "rope_theta"),
            rms_norm_eps=_number(fields, "rms_norm_eps"),
            tie_word_embeddings=fields["tie_word_embeddings"] is True,
            bos_token_id=_token(fields, "bos_token_id"),
            eos_token_id=_token(fields, "eos_token_id"),
            pad_token_id=_token(fields, "pad_token_id"),
            num_experts=_integer(fields, "num_experts") if mixture else 1,
            num_experts_per_tok=_integer(fields, "num_experts_per_tok") if mixture else 1,
        )

    def as_dense(self) -> ModelConfig:
        """The same sizes with one expert."""
        return replace(self, num_experts=1, num_experts_per_tok=1)

    def num_params(self) -> int:
        """Number of parameters, tied embeddings counted once, the router of a mixture included."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        router = self.num_experts * self.hidden_size if self.num_experts > 1 else 0
        layer = self._attention_params() + self.num_experts * self.expert_params_per_layer() + router
        norms = 2 * self.hidden_size + self.hidden_size + self.kv_size
        return embeddings + self.num_layers * (layer + norms) + self.hidden_size

    def expert_params_per_layer(self) -> int:
        """Number of parameters of one expert's FFN in one layer."""
        return 3 * self.hidden_size * self.intermediate_size

    def flops_per_token(self) -> int:
        """Matrix-product FLOPs of one token's forward pass with ``num_experts_per_tok`` experts, without the attention scores."""
        active = self._attention_params() + self.num_experts_per_tok * self.expert_params_per_layer()
        return 2 * (self.num_layers * active + self.vocab_size * self.hidden_size)

    def pair_training_flops_per_token(self, seq_len: int = 0) -> int:
        """Matrix-product FLOPs that training one expert pair needs: forward, input gradients, and weight gradients of one expert.

        Args:
            seq_len: count the causal attention scores of sequences of this length too.
        """
        ffn, attention, head = self.expert_params_per_layer(), self._attention_params(), self.vocab_size * self.hidden_size
        forward = self.num_layers * (attention + 2 * ffn) + head
        inputs = (self.num_layers - 1) * (attention + 2 * ffn) + self.hidden_size * self.intermediate_size + head
        return 2 * (forward + inputs + self.num_layers * ffn + self._score_products(seq_len))

    def low_rank_pair_training_flops_per_token(self, rank: int, seq_len: int = 0) -> int:
        """As :meth:`pair_training_flops_per_token` for an expert of low-rank differences: one full FFN, and its factors three times."""
        ffn, attention, head = self.expert_params_per_layer(), self._attention_params(), self.vocab_size * self.hidden_size
        factors = 3 * rank * (self.hidden_size + self.intermediate_size)
        forward = self.num_layers * (attention + ffn + factors) + head
        first = self.hidden_size * self.intermediate_size + rank * (self.hidden_size + 3 * self.intermediate_size)
        inputs = (self.num_layers - 1) * (attention + ffn + factors) + first + head
        return 2 * (forward + inputs + self.num_layers * factors + self._score_products(seq_len))

    def _score_products(self, seq_len: int) -> int:
        """Multiplications a token of causal attention over half a sequence on average: two forward, four backward above layer 0."""
        return seq_len * self.hidden_size * (self.num_layers + 2 * (self.num_layers - 1))

    def _attention_params(self) -> int:
        return 2 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * self.kv_size


def _architecture(config: Mapping[str, object]) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str):
        architecture = named[0]
    else:
        architecture = _MODEL_TYPES.get(str(config.get("model_type")), str(config.get("model_type")))
    if architecture not in _DEFAULTS:
        raise ArchitectureError(
            f"The model is of architecture {architecture!r}; only Olmo2ForCausalLM and FlexOlmoForCausalLM are supported."
        )
    return architecture


def _refuse_unsupported(config: Mapping[str, object]) -> None:
    for name, only in _ONLY.items():
        if name in config and config[name] != only:
            raise ArchitectureError(f"The model has {name} = {config[name]!r}; only {only!r} is supported.")
    scaling = config.get("rope_scaling")
    if scaling and not (isinstance(scaling, Mapping) and scaling.get("rope_type", scaling.get("type")) == "default"):
        raise ArchitectureError("The model scales its rotary positions (rope_scaling), which is not supported.")
    if config.get("sliding_window") is not None or config.get("quantization_config") is not None:
        raise ArchitectureError("The model uses sliding windows or quantised weights, which are not supported.")


def _rope_theta(config: Mapping[str, object], architecture: str) -> object:
    nested = config.get("rope_parameters")
    if nested is None:
        return config.get("rope_theta", _DEFAULTS[architecture]["rope_theta"])
    if not isinstance(nested, Mapping) or nested.get("rope_type", "default") != "default":
        raise ArchitectureError("The model's rope_parameters are not of type 'default', which is not supported.")
    return nested.get("rope_theta", config.get("rope_theta", _DEFAULTS[architecture]["rope_theta"]))


def _integer(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArchitectureError(f"The model's {name} is {value!r}, not a whole number.")
    return value


def _number(fields: Mapping[str, object], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ArchitectureError(f"The model's {name} is {value!r}, not a positive number.")
    return float(value)


def _token(fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    if isinstance(value, list) and value:
        value = value[0]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ArchitectureError(f"The model's {name} is {value!r}, not a token number.")
    return value
