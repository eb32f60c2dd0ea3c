"""The loop's parts: gradient accumulation, held-out measurements, early stopping, prefetching, memory maps, the compiler's absence."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.errors import UsageError
from common.modeling.loading import load_expert, load_pair, read_config
from common.textdata.packing import IGNORED, Batch
from common.textdata.tokens import open_token_file
from owner_client.training.early_stopping import EarlyStopping
from owner_client.training.hardware import decide, peak_flops
from owner_client.training.prefetch import Prefetcher, StepBatch, step_batch
from owner_client.training.run import TrainResult, train_expert
from owner_client.training.trainer import frozen_digest
from tests.support.training_settings import QUICK

SETTINGS = dataclasses.replace(QUICK, steps=12, router_refit=False, eval_every=2)


def _train(anchor: Path, private: Path, place: Path, **changes: Any) -> TrainResult:
    settings = dataclasses.replace(SETTINGS, **changes)
    return train_expert(anchor, [str(private)], run_dir=place / "run", out_dir=place / "out", settings=settings)


def _lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def test_accumulated_pieces_are_one_big_batch(anchor: Path, private: Path, tmp_path: Path) -> None:
    """Pieces of unequal size, with auxiliary losses whose sums must be divided by the whole step too."""
    changes = {"z_loss": 1e-3, "router_z_loss": 1e-2}
    _train(anchor, private, tmp_path / "whole", micro_tokens=256, **changes)
    _train(anchor, private, tmp_path / "pieces", micro_tokens=96, **changes)
    whole, pieces = _lines(tmp_path / "whole"), _lines(tmp_path / "pieces")
    assert len(whole) == len(pieces) == 12
    for one, other in zip(whole, pieces, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_every_step_tells_its_pace_and_some_the_held_out_losses(anchor: Path, private: Path, tmp_path: Path) -> None:
    result = _train(anchor, private, tmp_path)
    lines = _lines(tmp_path)
    assert all(0 <= line["wait_ms"] <= line["step_ms"] and 0 < line["mfu"] < 1.5 for line in lines)
    assert [line["step"] for line in lines if "heldout_private" in line] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["heldout_private"] == result.perplexity["private"]["pair"].nats
    assert lines[-1]["heldout_public"] == result.perplexity["public"]["pair"].nats
    assert lines[1]["heldout_private"] > lines[-1]["heldout_private"]
    assert result.cost is not None
    assert result.cost.steps == 12
    assert 0 < result.cost.peak_memory_bytes < 2**34
    assert json.loads((tmp_path / "run" / "cost.json").read_text()) == dataclasses.asdict(result.cost)


def test_early_stopping_keeps_the_best_step(anchor: Path, private: Path, tmp_path: Path) -> None:
    """A learning rate that does harm after a few steps: the run ends early, and the package is the best measured step's."""
    changes = {"steps": 60, "lr": 3.0, "schedule": "constant", "patience": 2}
    result = _train(anchor, private, tmp_path, **changes)
    losses = {line["step"]: line["heldout_private"] for line in _lines(tmp_path) if "heldout_private" in line}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 4 < 60
    assert result.perplexity["private"]["pair"].nats == losses[best]
    [kept] = (tmp_path / "run" / "checkpoints").glob("best-*")
    assert kept.name == f"best-{best:08d}"
    weights = load_file(kept / "state.safetensors")
    packaged = load_file(result.files / "part-0000.safetensors")
    assert torch.equal(packaged["model.layers.0.mlp.down_proj.weight"], weights["param.layers.0.mlp.expert.down.weight"])
    assert result.summary["steps"] == 60, "which step was best was measured on private text"
    again = train_expert(
        anchor,
        [str(private)],
        run_dir=tmp_path / "run",
        out_dir=tmp_path / "again",
        settings=dataclasses.replace(SETTINGS, **changes),
    )
    assert again.cost is None
    assert (again.files / "part-0000.safetensors").read_bytes() == (result.files / "part-0000.safetensors").read_bytes()


def test_rows_are_refitted_to_the_step_that_is_kept(anchor: Path, private: Path, tmp_path: Path) -> None:
    """The same harmful run with and without the refit: one expert, and rows that differ."""
    changes = {"steps": 60, "lr": 3.0, "schedule": "constant", "patience": 2}
    kept = _train(anchor, private, tmp_path / "kept", **changes)
    refitted = _train(anchor, private, tmp_path / "refitted", router_refit=True, **changes)
    expert, rows = load_expert(kept.files)
    other, other_rows = load_expert(refitted.files)
    assert all(torch.equal(tensor, other[name]) for name, tensor in expert.items())
    assert all(not torch.equal(rows[layer], other_rows[layer]) for layer in range(2))
    [state] = (tmp_path / "kept" / "run" / "checkpoints").glob("best-*")
    assert torch.equal(rows[1], load_file(state / "state.safetensors")["param.layers.1.mlp.row"])


def test_early_stopping_needs_held_out_text(anchor: Path, private: Path, tmp_path: Path) -> None:
    for changes in ({"eval_every": 0}, {"heldout": 0.0}):
        with pytest.raises(UsageError, match="held-out"):
            dataclasses.replace(SETTINGS, patience=1, **changes)
    with pytest.raises(UsageError, match="held out"):
        _train(anchor, private, tmp_path, patience=1, heldout=1e-9)


def test_early_stopping_counts() -> None:
    state = EarlyStopping(2)
    assert [state.note(step, loss) for step, loss in enumerate((3.0, 2.0, 2.0), start=1)] == [True, True, False]
    assert not state.stopped
    other = EarlyStopping(2)
    other.restore(state.facts())
    assert other == state
    other.note(4, 2.5)
    assert other.stopped
    assert (other.best_step, other.best_loss) == (2, 2.0)
    assert not EarlyStopping(0).note(1, 1.0)


def _batch() -> Batch:
    tokens = np.arange(6 * 4).reshape(6, 4)
    targets = tokens + 1
    targets[4, 2] = IGNORED
    return Batch(tokens, targets, np.zeros((6, 4), dtype=np.int64))


def test_processes_share_a_step_without_loss() -> None:
    shares = [step_batch(_batch(), rank=rank, ranks=2, micro_size=2, pin=False) for rank in range(2)]
    assert [[len(micro.tokens) for micro in share.micro] for share in shares] == [[2, 1], [2, 1]]
    joined = torch.cat([micro.tokens for share in shares for micro in share.micro])
    assert torch.equal(joined, torch.from_numpy(_batch().tokens))
    assert [share.scored for share in shares] == [23, 23]


def test_prefetching_keeps_order_and_hands_on_errors() -> None:
    made: list[int] = []

    def make(step: int) -> StepBatch:
        if step == 7:
            raise ValueError("the file is gone")
        made.append(step)
        return StepBatch([], step)

    with Prefetcher(make, first=3, last=9) as batches:
        assert [batches.next()[0].scored for _ in range(4)] == [3, 4, 5, 6]
        with pytest.raises(ValueError, match="the file is gone"):
            batches.next()
    with Prefetcher(make, first=0, last=7) as batches:
        assert batches.next()[0].scored == 0
    assert len(made) <= 4 + 5, "no more than two steps are prepared ahead"
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_tokens_stay_on_the_disk(anchor: Path, private: Path, tmp_path: Path) -> None:
    _train(anchor, private, tmp_path, steps=1)
    tokens = open_token_file(tmp_path / "run" / "tokens" / "private-train").tokens
    assert isinstance(tokens, np.memmap)
    assert not tokens.flags.writeable


def test_a_changed_frozen_tensor_is_noticed(anchor: Path) -> None:
    model = load_pair(anchor)
    before = frozen_digest(model)
    with torch.no_grad():
        model.layers[0].mlp.expert.down.weight.add_(1.0)  # type: ignore[union-attr]  # a pair
    assert frozen_digest(model) == before
    with torch.no_grad():
        model.norm.weight[0] += 1e-6
    assert frozen_digest(model) != before


def test_the_peak_is_measured() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_long_runs_compile_by_themselves_and_short_ones_do_not(anchor: Path) -> None:
    config = read_config(anchor)
    short, long = (dataclasses.replace(SETTINGS, steps=steps, batch_tokens=4096) for steps in (1, 10**7))
    for settings, expected in ((short, False), (long, True), (dataclasses.replace(long, compile=False), False)):
        for rank in (None, 4):
            assert decide(dataclasses.replace(settings, rank=rank), config, "cpu", private_tokens=1).compile is expected


def test_checkpointed_layers_change_no_byte_and_may_be_chosen_midway(anchor: Path, private: Path, tmp_path: Path) -> None:
    plain = _train(anchor, private, tmp_path / "plain")
    shutil.copytree(tmp_path / "plain" / "run", tmp_path / "again" / "run")
    shutil.rmtree(tmp_path / "again" / "run" / "checkpoints" / "step-00000012")
    again = _train(anchor, private, tmp_path / "again", checkpoint_layers=True)
    assert again.cost is not None
    assert (again.files / "part-0000.safetensors").read_bytes() == (plain.files / "part-0000.safetensors").read_bytes()


def test_without_a_compiler_training_goes_on(
    anchor: Path, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert _train(anchor, private, tmp_path, compile=True, steps=1).files.is_dir()
    assert "goes on without it" in caplog.text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["decided"]["compile"] is False
