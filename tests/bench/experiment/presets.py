"""Sizes of the experiment: the anchor's, the text's and the training's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.compute.presets import AnchorSettings, Preset

__all__ = ["PRESETS", "Sizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """One preset of the experiment. All training, of baselines too, is in steps of ``batch_tokens`` and sequences of ``seq_len``."""

    name: str
    anchor: Preset
    pair_tokens: int
    """Tokens that each owner trains its expert pair on, public ones included."""
    proxies: int
    """Public documents that every owner names for router tuning."""
    tuning_tokens: int
    """Tokens of every joint step after training: of the router, or of BTX's whole mixture."""
    eval_tokens: int
    """Per domain of the validation files."""
    tune_tokens: int
    """Per domain of training documents held out for choosing temperatures and learning rates."""
    sample_bytes: int
    """Of public text that is published with the anchor."""
    public_slice: float = 0.15
    """Share of every private domain's documents that is public: the anchor trains on it, the owner does not."""
    tune_share: float = 0.04
    """Share of the other training documents that nobody trains on."""
    moe_top_k: int = 2
    """Active experts of the mixtures that are trained jointly."""
    seeds: tuple[int, ...] = (1, 2, 3)
    anchor_seed: int | None = None
    """Train one anchor with this seed for all seeds; by default every seed trains its own."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.anchor.settings.batch_tokens

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        return self.anchor.settings.seq_len


def _anchor(name: str, hidden: int, inner: int, layers: int, vocab: int, settings: AnchorSettings) -> Preset:
    return Preset(
        name=name,
        summary="the experiment's",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        vocab_size=vocab,
        max_positions=settings.seq_len,
        rope_theta=10_000.0,
        settings=settings,
    )


_TRAINING = AnchorSettings(
    tokens=4_194_304, seq_len=256, batch_tokens=2048, lr=0.012, matrix_lr=0.02, dtype="float32", device="cpu", checkpoint_every=200
)

PRESETS = {
    "smoke": Sizes(
        name="smoke",
        anchor=_anchor("smoke", 32, 64, 2, 512, replace(_TRAINING, tokens=16_384, seq_len=64, batch_tokens=1024)),
        pair_tokens=8192,
        proxies=4,
        tuning_tokens=4096,
        eval_tokens=800,
        tune_tokens=400,
        sample_bytes=1_000_000,
        tune_share=0.1,
        seeds=(1,),
    ),
    "small": Sizes(
        name="small",
        anchor=_anchor("small", 128, 512, 4, 1024, _TRAINING),
        pair_tokens=262_144,
        proxies=100,
        tuning_tokens=131_072,
        eval_tokens=20_000,
        tune_tokens=4_000,
        sample_bytes=4_000_000,
        anchor_seed=1,
    ),
    "full": Sizes(
        name="full",
        anchor=_anchor("full", 256, 1024, 6, 8192, replace(_TRAINING, tokens=33_554_432, seq_len=512, batch_tokens=4096)),
        pair_tokens=2_097_152,
        proxies=500,
        tuning_tokens=1_048_576,
        eval_tokens=50_000,
        tune_tokens=10_000,
        sample_bytes=16_000_000,
    ),
}
