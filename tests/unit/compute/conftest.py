"""Small real models for the compute room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.compute.anchor_training import train_anchor
from coordinator.compute.presets import Preset, preset
from tests.unit.compute.small_models import SETTINGS, make_mixture, topics, write_rows


@pytest.fixture(scope="session")
def small() -> Preset:
    return replace(
        preset("nano"),
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        vocab_size=512,
        max_positions=64,
        settings=SETTINGS,
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("text") / "public.jsonl.gz", topics()[:30])


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("text") / "valid.jsonl.gz", [text[:1500] for text in topics()[30:42]])


@pytest.fixture(scope="session")
def anchor(small: Preset, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("anchor") / "checkpoint"
    train_anchor([str(text_file)], out_dir=folder, preset=small)
    return folder


@pytest.fixture(scope="session")
def mixture(anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experts, the anchor's and two that differ from it; two active."""
    return make_mixture(anchor, tmp_path_factory.mktemp("mixture") / "model", names=["code", "law"], top_k=2)
