"""Several real processes with gloo: the losses of one process, checkpoints for any number of processes, and no process left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import LostProcessError, UsageError
from common.modeling.loading import load_expert
from owner_client.training.run import TrainResult, train_expert
from tests.support.training_settings import QUICK

SETTINGS = dataclasses.replace(QUICK, micro_tokens=96, eval_every=6, patience=9)


def _train(anchor: Path, private: Path, place: Path, *, processes: int, **changes: Any) -> TrainResult:
    settings = dataclasses.replace(SETTINGS, **changes)
    run, out = place / "run", place / "out"
    return train_expert(anchor, [str(private)], run_dir=run, out_dir=out, settings=settings, processes=processes)


def _losses(place: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(anchor: Path, private: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    """The run of one process."""
    place = tmp_path_factory.mktemp("alone")
    return _train(anchor, private, place, processes=1), place


def _same(one: TrainResult, other: TrainResult) -> None:
    """Equal packages but for the order of sums."""
    expert, rows = load_expert(one.files)
    other_expert, other_rows = load_expert(other.files)
    assert expert.keys() == other_expert.keys()
    for name, tensor in expert.items():
        torch.testing.assert_close(tensor, other_expert[name], rtol=0, atol=1e-4)
    torch.testing.assert_close(rows, other_rows, rtol=0, atol=1e-4)
    assert one.summary == other.summary
    for text, row in one.perplexity.items():
        assert row["pair"].nats == pytest.approx(other.perplexity[text]["pair"].nats, abs=1e-4)
        assert row["pair"].tokens == other.perplexity[text]["pair"].tokens


def test_two_processes_train_what_one_does(anchor: Path, private: Path, alone: tuple[TrainResult, Path], tmp_path: Path) -> None:
    result = _train(anchor, private, tmp_path, processes=2)
    assert _losses(tmp_path) == pytest.approx(_losses(alone[1]), abs=1e-4)
    _same(result, alone[0])
    newest = tmp_path / "run" / "checkpoints" / "step-00000016"
    assert sorted(path.suffix for path in newest.iterdir()) == [".json", ".safetensors", ".safetensors"], "each process writes its part"


def test_two_processes_train_a_low_rank_expert_by_muon(anchor: Path, private: Path, tmp_path: Path) -> None:
    changes = {"rank": 4, "optimizer": "muon", "lr": 2e-2}
    alone = _train(anchor, private, tmp_path / "alone", processes=1, **changes)
    together = _train(anchor, private, tmp_path / "together", processes=2, checkpoint_layers=True, **changes)
    assert _losses(tmp_path / "together") == pytest.approx(_losses(tmp_path / "alone"), abs=1e-4)
    _same(together, alone)


def _children() -> dict[int, int]:
    """Rank to number of our worker processes."""
    found = {}
    for pid in (Path("/proc/self/task") / str(os.getpid()) / "children").read_text().split():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [variable.removeprefix(b"RANK=") for variable in variables if variable.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0])] = int(pid)
    return found


def _kill_after_a_checkpoint(place: Path, rank: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((place / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.005)
    os.kill(_children()[rank], signal.SIGKILL)


def test_a_killed_process_ends_the_others_and_one_process_goes_on(anchor: Path, private: Path, tmp_path: Path) -> None:
    changes = {"steps": 200, "eval_every": 0, "patience": 0}
    killer = threading.Thread(target=_kill_after_a_checkpoint, args=(tmp_path, 1))
    killer.start()
    with pytest.raises(LostProcessError, match=r"Process 1 of 2 was ended by SIGKILL.*go on from the last checkpoint"):
        _train(anchor, private, tmp_path, processes=2, **changes)
    killer.join()
    assert _children() == {}
    assert not (tmp_path / "out").exists()
    assert len(_losses(tmp_path)) < 200
    shutil.copytree(tmp_path / "run", tmp_path / "straight" / "run", ignore=shutil.ignore_patterns("checkpoints"))
    _train(anchor, private, tmp_path, processes=1, **changes)
    _train(anchor, private, tmp_path / "straight", processes=1, **changes)
    assert len(_losses(tmp_path)) == 200
    assert _losses(tmp_path) == pytest.approx(_losses(tmp_path / "straight"), abs=2e-3)


def test_two_processes_go_on_with_what_one_began(anchor: Path, private: Path, alone: tuple[TrainResult, Path], tmp_path: Path) -> None:
    shutil.copytree(alone[1] / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000016")
    _same(_train(anchor, private, tmp_path, processes=2), alone[0])
    assert _losses(tmp_path) == pytest.approx(_losses(alone[1]), abs=1e-4)


def test_a_step_that_cannot_be_divided_is_refused(anchor: Path, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="8 sequences cannot be divided evenly over 3"):
        _train(anchor, private, tmp_path, processes=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun"):
        _train(anchor, private, tmp_path, processes=1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="leave out --nproc"):
        _train(anchor, private, tmp_path, processes=2)
    assert not (tmp_path / "run").exists()
