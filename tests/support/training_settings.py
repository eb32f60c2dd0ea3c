"""Settings that train the tiny anchor of the tests in a second."""

from __future__ import annotations

from owner_client.training.settings import TrainSettings

QUICK = TrainSettings(
    optimizer="adamw",
    public_share=0.3,
    steps=16,
    batch_tokens=256,
    seq_len=32,
    lr=1e-2,
    warmup=2,
    router_tokens=1024,
    eval_tokens=1024,
    heldout=0.1,
    checkpoint_every=4,
    device="cpu",
)
