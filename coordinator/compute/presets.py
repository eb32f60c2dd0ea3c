"""Named sizes of anchors, from one for a laptop's minutes to OLMo 2 7B (arXiv 2501.00656, table 1), with the settings to train them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.errors import UsageError

__all__ = ["PRESETS", "AnchorSettings", "Preset", "preset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorSettings:
    """How an anchor is trained."""

    tokens: int
    """Tokens seen in all; more than the text holds means several epochs."""
    seq_len: int
    batch_tokens: int
    """Tokens of one optimizer step, a multiple of ``seq_len``."""
    micro_tokens: int = 16_384
    """Tokens computed at once; larger steps are made of several of these."""
    lr: float
    """Peak learning rate of AdamW: of embeddings, head and norms, and of everything without ``matrix_lr``."""
    matrix_lr: float = 0.0
    """Peak learning rate of Muon, which then trains the matrices inside the layers; 0 leaves them to AdamW."""
    warmup: float = 0.02
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear"] = "linear"
    """How the learning rate falls to ``final_lr`` of its peak."""
    final_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    z_loss: float = 1e-5
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; the weights themselves are kept in float32. ``auto`` takes bfloat16 where a short probe finds it faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        if self.seq_len < 2 or self.batch_tokens < self.seq_len or self.batch_tokens % self.seq_len:
            raise UsageError("A step must hold a whole number of sequences of at least two tokens.")
        if self.tokens < self.batch_tokens:
            raise UsageError(f"{self.tokens} tokens are less than one step of {self.batch_tokens}.")
        if min(self.lr, self.clip, self.checkpoint_every) <= 0 or not 0 <= self.warmup < 1:
            raise UsageError("Learning rate, clipping and checkpoint interval must be positive, and the warm-up a share below 1.")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Sizes of an OLMo-2-style model, its tokenizer, and how to train it."""

    name: str
    summary: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    settings: AnchorSettings


def _nano() -> Preset:
    return Preset(
        name="nano",
        summary="2 million parameters: the demo's, two minutes on two cores",
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        vocab_size=4096,
        max_positions=256,
        rope_theta=10_000.0,
        settings=AnchorSettings(tokens=1_048_576, seq_len=256, batch_tokens=2048, lr=0.012, matrix_lr=0.02, checkpoint_every=200),
    )


def _tiny() -> Preset:
    return Preset(
        name="tiny",
        summary="11 million parameters: an afternoon on a CPU, minutes on a GPU",
        hidden_size=256,
        intermediate_size=768,
        num_layers=8,
        num_heads=4,
        num_kv_heads=4,
        vocab_size=8192,
        max_positions=512,
        rope_theta=10_000.0,
        settings=AnchorSettings(tokens=50_000_000, seq_len=512, batch_tokens=16_384, lr=3e-3),
    )


def _small() -> Preset:
    return Preset(
        name="small",
        summary="52 million parameters: one GPU, under an hour",
        hidden_size=512,
        intermediate_size=1536,
        num_layers=12,
        num_heads=8,
        num_kv_heads=8,
        vocab_size=16_384,
        max_positions=1024,
        rope_theta=100_000.0,
        settings=AnchorSettings(tokens=1_000_000_000, seq_len=1024, batch_tokens=131_072, micro_tokens=32_768, lr=2e-3),
    )


def _base() -> Preset:
    return Preset(
        name="base",
        summary="146 million parameters: one large GPU, some hours",
        hidden_size=768,
        intermediate_size=2048,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        vocab_size=40_960,
        max_positions=2048,
        rope_theta=500_000.0,
        settings=AnchorSettings(tokens=3_000_000_000, seq_len=2048, batch_tokens=262_144, micro_tokens=32_768, lr=1.5e-3),
    )


def _seven_billion() -> Preset:
    return Preset(
        name="7b",
        summary="the sizes of OLMo 2 7B, for reference: such an anchor is published, not trained here",
        hidden_size=4096,
        intermediate_size=11_008,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        vocab_size=100_352,
        max_positions=4096,
        rope_theta=500_000.0,
        settings=AnchorSettings(tokens=1_000_000_000_000, seq_len=4096, batch_tokens=4_194_304, micro_tokens=8192, lr=9e-4),
    )


PRESETS: Mapping[str, Preset] = {each.name: each for each in (_nano(), _tiny(), _small(), _base(), _seven_billion())}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none; the message names those there are.
    """
    if name not in PRESETS:
        raise UsageError(f"There is no preset {name!r}. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
