"""Anchor training: it learns, goes on after a stop with the same bits, and what it writes is stock transformers' own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import AlreadyExistsError, DataError, InterruptedByUserError, TextFieldError, UsageError
from common.modeling.loading import load_model
from coordinator.compute.anchor_training import _rate, train_anchor
from coordinator.compute.optimizer import Optimizer
from coordinator.compute.presets import PRESETS, AnchorSettings, Preset, preset
from tests.unit.compute.small_models import SETTINGS, topics, write_rows

ROOT = Path(__file__).resolve().parents[3]


def same_weights(one: Path, other: Path) -> bool:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_it_learns(small: Preset, text_file: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
        if label == "Training the anchor":
            seen.append((done, total))

    out = tmp_path / "anchor"
    result = train_anchor([str(text_file)], out_dir=out, preset=small, progress=progress)
    assert result.loss < math.log(small.vocab_size) - 0.5
    assert seen[-1] == (result.steps, result.steps)
    assert result.parameters == sum(tensor.numel() for tensor in load_file(out / "model.safetensors").values())
    assert not (tmp_path / "anchor.partial").exists()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small: Preset, text_file: Path, anchor: Path, tmp_path: Path) -> None:
    train_anchor([str(text_file)], out_dir=tmp_path / "again", preset=small)
    assert same_weights(anchor, tmp_path / "again")
    assert (anchor / "tokenizer.json").read_bytes() == (tmp_path / "again/tokenizer.json").read_bytes()
    train_anchor([str(text_file)], out_dir=tmp_path / "other", preset=small, settings=replace(SETTINGS, seed=1))
    assert not same_weights(anchor, tmp_path / "other")


def test_stopped_by_a_signal_it_goes_on_bit_for_bit(small: Preset, text_file: Path, anchor: Path, tmp_path: Path) -> None:
    out = tmp_path / "anchor"

    def stop_at(step: int) -> object:
        def progress(label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
            if label == "Training the anchor" and done == step:
                signal.raise_signal(signal.SIGINT if step < 10 else signal.SIGTERM)

        return progress

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for step in (7, 13):
        with pytest.raises(InterruptedByUserError, match=f"after step {step} "):
            train_anchor([str(text_file)], out_dir=out, preset=small, progress=stop_at(step))  # type: ignore[arg-type]  # a progress sink
        assert not out.exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    train_anchor([str(text_file)], out_dir=out, preset=small)
    assert same_weights(anchor, out)
    assert not (tmp_path / "anchor.partial").exists()


def test_killed_it_goes_on_from_its_last_checkpoint(small: Preset, text_file: Path, anchor: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no time to save; the checkpoint of step 5 or 10 and the metrics up to it count."""
    script = (
        "import os, sys, signal; from dataclasses import replace; from pathlib import Path\n"
        "from coordinator.compute.anchor_training import train_anchor; from coordinator.compute.presets import preset\n"
        "from tests.unit.compute.small_models import SETTINGS\n"
        "small = replace(preset('nano'), hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=2, vocab_size=512,"
        " max_positions=64, settings=SETTINGS)\n"
        "def progress(label, done, total, unit, figures=None):\n"
        "    if label == 'Training the anchor' and done == 12: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_anchor([sys.argv[1]], out_dir=Path(sys.argv[2]), preset=small, progress=progress)\n"
    )
    out = tmp_path / "anchor"
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", script, str(text_file), str(out)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    metrics = (tmp_path / "anchor.partial/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 13))
    train_anchor([str(text_file)], out_dir=out, preset=small)
    assert same_weights(anchor, out)


def test_another_run_is_not_overwritten(small: Preset, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "anchor"

    def stop(label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
        if label == "Training the anchor":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedByUserError):
        train_anchor([str(text_file)], out_dir=out, preset=small, progress=stop)
    with pytest.raises(UsageError, match="other text or settings"):
        train_anchor([str(text_file)], out_dir=out, preset=small, settings=replace(SETTINGS, lr=1e-3))
    checkpoint = tmp_path / "anchor.partial/checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be read"):
        train_anchor([str(text_file)], out_dir=out, preset=small)


def test_it_trains_outside_the_main_thread(small: Preset, text_file: Path, tmp_path: Path) -> None:
    """Signals can be handled in the main thread only; a job runner's thread must still train."""
    short = replace(SETTINGS, tokens=1024)
    thread = threading.Thread(
        target=train_anchor, args=([str(text_file)],), kwargs={"out_dir": tmp_path / "a", "preset": small, "settings": short}
    )
    thread.start()
    thread.join()
    assert (tmp_path / "a/config.json").exists()


def test_bfloat16_and_micro_batches_train_too(small: Preset, text_file: Path, tmp_path: Path) -> None:
    whole = train_anchor([str(text_file)], out_dir=tmp_path / "whole", preset=small)
    split = train_anchor([str(text_file)], out_dir=tmp_path / "split", preset=small, settings=replace(SETTINGS, micro_tokens=128))
    half = train_anchor([str(text_file)], out_dir=tmp_path / "half", preset=small, settings=replace(SETTINGS, dtype="bfloat16"))
    assert split.loss == pytest.approx(whole.loss, rel=0.02)
    assert half.loss == pytest.approx(whole.loss, rel=0.03)


def test_stock_transformers_loads_it_with_the_same_logits(anchor: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = topics()[3][:300]
    tokenizer = transformers.AutoTokenizer.from_pretrained(anchor)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    stock = transformers.AutoModelForCausalLM.from_pretrained(anchor)
    assert type(stock).__name__ == "Olmo2ForCausalLM"
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :48]
    with torch.no_grad():
        expected, ours = stock(ids).logits, load_model(anchor)(ids)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_the_end_token_is_the_models(anchor: Path) -> None:
    config = json.loads((anchor / "config.json").read_text())
    tokens = {token["content"]: token["id"] for token in json.loads((anchor / "tokenizer.json").read_text())["added_tokens"]}
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokens["<|endoftext|>"], tokens["<|pad|>"])


@pytest.mark.parametrize(
    ("content", "error"), [("", DataError), ('{"text": ""}\n', DataError), ('{"body": "x"}\n', TextFieldError), ("{", DataError)]
)
def test_unusable_text_is_refused_and_leaves_no_model(content: str, error: type[Exception], small: Preset, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(content)
    with pytest.raises(error):
        train_anchor([str(data)], out_dir=tmp_path / "anchor", preset=small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_too_little_text_for_one_sequence(small: Preset, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl.gz", ["ab"])
    with pytest.raises(DataError, match="at least one sequence"):
        train_anchor([str(data)], out_dir=tmp_path / "anchor", preset=small)


def test_an_existing_target_is_not_touched(small: Preset, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExistsError):
        train_anchor([str(text_file)], out_dir=tmp_path, preset=small)
    assert list(tmp_path.iterdir()) == []


def test_presets() -> None:
    assert preset("nano") is PRESETS["nano"]
    with pytest.raises(UsageError, match="nano, tiny"):
        preset("huge")
    for each in PRESETS.values():
        assert each.settings.seq_len <= each.max_positions
        assert each.hidden_size % each.num_heads == 0
        assert each.settings.steps >= 1


@pytest.mark.parametrize("change", [{"tokens": 10}, {"batch_tokens": 100}, {"lr": 0.0}, {"warmup": 1.0}, {"seq_len": 1}])
def test_settings_that_make_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        replace(SETTINGS, **change)  # type: ignore[arg-type]  # a dict of mixed fields


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_rises_then_falls(schedule: str) -> None:
    settings = AnchorSettings(tokens=1000, seq_len=10, batch_tokens=10, lr=1.0, warmup=0.1, schedule=schedule, final_lr=0.1)  # type: ignore[arg-type]
    rates = [_rate(settings, step) for step in range(settings.steps)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.02)


def test_gradients_that_are_not_finite_change_nothing() -> None:
    model = torch.nn.Linear(3, 3, bias=False)
    optimizer = Optimizer(model, SETTINGS)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full((3, 3), math.nan)
    assert math.isnan(optimizer.step(1.0))
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
