"""A whole run: it learns, the anchor stays, the package files are right, and stopping changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import (
    AlreadyExistsError,
    ArchitectureError,
    DataError,
    LayoutError,
    NonFiniteError,
    TextFieldError,
    UsageError,
)
from common.modeling.loading import load_expert, load_model, load_pair
from owner_client.training.run import TrainResult, train_expert
from owner_client.training.settings import TrainSettings
from tests.support.training_settings import QUICK

_ROOT = Path(__file__).resolve().parents[3]
_SETTINGS = dataclasses.replace(QUICK, steps=30, micro_tokens=96, eval_every=7, patience=9)


def _train(anchor: Path, private: Path, place: Path, settings: TrainSettings = _SETTINGS, **more: object) -> TrainResult:
    return train_expert(anchor, [str(private)], run_dir=place / "run", out_dir=place / "out", settings=settings, **more)


@pytest.fixture(scope="module")
def trained(anchor: Path, private: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    """An uninterrupted run and its folder."""
    place = tmp_path_factory.mktemp("trained")
    return _train(anchor, private, place), place


def _same_package(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_the_pair_learns_and_the_anchor_stays(anchor: Path, trained: tuple[TrainResult, Path]) -> None:
    result, _ = trained
    private, public = result.perplexity["private"], result.perplexity["public"]
    assert private["pair"].value < 0.6 * private["anchor"].value
    assert private["pair"].tokens == private["anchor"].tokens > 100
    assert public["pair"].value < public["anchor"].value
    expert, rows = load_expert(result.files)
    before = load_file(anchor / "model.safetensors")
    assert set(expert) == {name for name in before if ".mlp." in name}
    assert all(not torch.equal(expert[name], before[name]) for name in expert)
    start = load_file(trained[1] / "run" / "rows.safetensors")["rows"]
    assert all(not torch.equal(rows[layer], start[layer]) for layer in range(2))
    pair = load_pair(anchor, expert=expert, rows_LH=rows)
    frozen = {name: value for name, value in pair.state_dict().items() if ".mlp." not in name}
    reference = load_model(anchor).state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in frozen.items())


def test_package_files(trained: tuple[TrainResult, Path]) -> None:
    result, _ = trained
    assert sorted(path.name for path in result.files.iterdir()) == ["part-0000.safetensors", "privacy.json", "router.safetensors"]
    rows = load_file(result.files / "router.safetensors")
    assert {name: tuple(row.shape) for name, row in rows.items()} == {
        f"model.layers.{layer}.mlp.gate.weight": (1, 16) for layer in range(2)
    }
    privacy = json.loads((result.files / "privacy.json").read_text())
    assert privacy == {"schema": "elmgrove.privacy/v1", "self_audit": "not-performed", "differential_privacy": "none"}
    assert all(isinstance(value, str | int) and not isinstance(value, bool) for value in result.summary.values())
    assert result.summary["steps"] == 30


def test_metrics_are_one_line_a_step(trained: tuple[TrainResult, Path]) -> None:
    lines = [json.loads(line) for line in (trained[1] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert sum(line["loss"] for line in lines[-5:]) / 5 < lines[0]["loss"] - 0.3


def test_same_seed_same_bytes(anchor: Path, private: Path, trained: tuple[TrainResult, Path], tmp_path: Path) -> None:
    assert _same_package(_train(anchor, private, tmp_path).files, trained[0].files)
    other = _train(anchor, private, tmp_path / "other", dataclasses.replace(_SETTINGS, seed=1))
    assert not _same_package(other.files, trained[0].files)


_SCRIPT = """
import sys, dataclasses
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from common.errors import ElmgroveError
from owner_client.training.run import train_expert
from owner_client.training.settings import TrainSettings
settings = TrainSettings(**eval(sys.argv[5]))
def progress(label, done, total, unit, figures=None):
    if label == "Training":
        print(done, flush=True)
import owner_client.training.metrics as metrics
metrics._REPORT_SECONDS = 0.0
try:
    place = Path(sys.argv[4])
    train_expert(
        Path(sys.argv[2]), [sys.argv[3]], run_dir=place / "run", out_dir=place / "out", settings=settings, progress=progress
    )
except ElmgroveError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def _start(anchor: Path, private: Path, place: Path) -> subprocess.Popen[str]:
    arguments = [str(_ROOT), str(anchor), str(private), str(place), repr(dataclasses.asdict(_SETTINGS))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_ends_with_the_same_bytes(
    anchor: Path, private: Path, trained: tuple[TrainResult, Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with _start(anchor, private, tmp_path) as process:
        _wait_for_step(process, 6)
        process.send_signal(number)
        assert process.wait(60) == code
    assert not (tmp_path / "out").exists()
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if not path.name.startswith("."))
    assert checkpoints
    assert int(checkpoints[-1].removeprefix("step-")) < 30
    (tmp_path / "run" / "checkpoints" / ".step-00000003.left-by-a-kill.partial").mkdir()
    result = _train(anchor, private, tmp_path)
    assert _same_package(result.files, trained[0].files)
    assert not list((tmp_path / "run").rglob(".*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))
    assert result.perplexity == trained[0].perplexity


def test_another_run_in_the_same_folder_is_refused(anchor: Path, private: Path, trained: tuple[TrainResult, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[1] / "run", tmp_path / "run")
    with pytest.raises(AlreadyExistsError, match="other settings"):
        _train(anchor, private, tmp_path, dataclasses.replace(_SETTINGS, lr=2e-3))
    assert not (tmp_path / "out").exists()
    _train(anchor, private, tmp_path, dataclasses.replace(_SETTINGS, lr=2e-3), fresh=True)
    with pytest.raises(AlreadyExistsError):
        _train(anchor, private, tmp_path)


def test_a_damaged_checkpoint_is_refused(anchor: Path, private: Path, trained: tuple[TrainResult, Path], tmp_path: Path) -> None:
    shutil.copytree(trained[1] / "run", tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        _train(anchor, private, tmp_path)


@pytest.mark.parametrize("router", ["discriminant", "hidden-mean", "random"])
def test_frozen_rows_stay_as_fitted(anchor: Path, private: Path, tmp_path: Path, router: str) -> None:
    settings = dataclasses.replace(_SETTINGS, router=router, router_train=False, router_refit=False, steps=3)
    result = _train(anchor, private, tmp_path, settings)
    assert torch.equal(load_expert(result.files)[1], load_file(tmp_path / "run" / "rows.safetensors")["rows"])


def test_an_anchor_without_public_text(anchor: Path, private: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(anchor, tmp_path / "anchor")
    (bare / "public-sample.jsonl.gz").unlink()
    with pytest.raises(UsageError, match="public share of 0"):
        _train(bare, private, tmp_path)
    result = _train(bare, private, tmp_path, dataclasses.replace(_SETTINGS, public_share=0.0, steps=3))
    assert set(result.perplexity) == {"private"}
    assert float(load_expert(result.files)[1].norm()) > 0
    (bare / "router.safetensors").unlink()
    with pytest.raises(LayoutError, match="published"):
        _train(bare, private, tmp_path / "again", dataclasses.replace(_SETTINGS, public_share=0.0))


def test_bf16_keeps_fp32_masters(anchor: Path, private: Path, tmp_path: Path) -> None:
    result = _train(anchor, private, tmp_path, dataclasses.replace(_SETTINGS, dtype="bfloat16"))
    assert result.perplexity["private"]["pair"].value < 0.7 * result.perplexity["private"]["anchor"].value
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "state.safetensors"
    assert {value.dtype for name, value in load_file(newest).items() if name.startswith("param.")} == {torch.float32}


def test_muon_learns_and_goes_on_bit_for_bit(anchor: Path, private: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(_SETTINGS, optimizer="muon", lr=4e-2, steps=20)
    whole = _train(anchor, private, tmp_path / "whole", settings)
    assert whole.perplexity["private"]["pair"].value < 0.6 * whole.perplexity["private"]["anchor"].value
    shutil.copytree(tmp_path / "whole" / "run", tmp_path / "again" / "run")
    checkpoints = sorted((tmp_path / "again" / "run" / "checkpoints").glob("step-*"))
    shutil.rmtree(checkpoints[-1])
    assert {name.split(".")[0] for name in load_file(checkpoints[0] / "state.safetensors")} >= {"momentum", "exp_avg", "param"}
    assert _same_package(_train(anchor, private, tmp_path / "again", settings).files, whole.files)


def test_bad_input(anchor: Path, private: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for bad, error in ((tmp_path / "empty.jsonl", DataError), (tmp_path / "absent.jsonl", DataError)):
        with pytest.raises(error):
            _train(anchor, bad, tmp_path)
    with pytest.raises(TextFieldError, match="text"):
        _train(anchor, private, tmp_path, text_field="body")
    with pytest.raises(UsageError, match="64"):
        _train(anchor, private, tmp_path, dataclasses.replace(_SETTINGS, seq_len=128, micro_tokens=None))
    other = shutil.copytree(anchor, tmp_path / "llama")
    (other / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ArchitectureError, match="Llama"):
        _train(other, private, tmp_path)
    assert not (tmp_path / "out").exists()


def test_divergence_is_told(anchor: Path, private: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="learning rate"):
        _train(anchor, private, tmp_path, dataclasses.replace(_SETTINGS, lr=1e38, schedule="constant", warmup=0))
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(anchor: Path, private: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        train_expert(anchor, [str(private)], run_dir=tmp_path / "file" / "run", out_dir=tmp_path / "out", settings=_SETTINGS)
