"""The experiment end to end at smoke size, on text that this machine holds; its trainer, store and scores by themselves."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ElmgroveError, InterruptedByUserError, UsageError
from common.modeling.loading import load_model
from common.progress import silent
from coordinator.compute.evaluation import evaluate
from tests.bench.experiment import run
from tests.bench.experiment.artefacts import MIXTURE_FILE, Artefacts
from tests.bench.experiment.baselines.mixtures import branch_train_mix, load_mixture, save_mixture, upcycled
from tests.bench.experiment.data import prepare_corpus
from tests.bench.experiment.evaluation import Evaluations
from tests.bench.experiment.presets import PRESETS
from tests.bench.experiment.rows import all_rows
from tests.bench.experiment.store import Desk, Store, Task, run_tasks
from tests.bench.experiment.training import Blend, Recipe, continue_training
from tests.support.domains import write_domains

SIZES = PRESETS["smoke"]
RECIPE = Recipe(lr=0.01, matrix_lr=0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    write_domains(folder)
    return folder


@pytest.fixture(scope="module")
def artefacts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """With an anchor."""
    store = Store(tmp_path_factory.mktemp("experiment"))
    corpus = prepare_corpus(data, store.folder, public_slice=SIZES.public_slice, tune_share=SIZES.tune_share)
    made = Artefacts(store, corpus, SIZES, 1)
    run_tasks(store, [made.anchor], progress=silent)
    return made


def command(artefacts: Artefacts, *more: str) -> list[str]:
    folders = ["--data", str(artefacts.corpus.source), "--out", str(artefacts.store.folder)]
    return [*folders, "--preset", "smoke", "--jobs", "1", "--ablations", "", *more]


def test_the_whole_comparison(artefacts: Artefacts, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(command(artefacts)) == 0
    results = json.loads((artefacts.store.folder / "results.json").read_text())
    rows = {entry["name"]: entry for entry in results["rows"]}
    wanted = {row.name for row in all_rows(artefacts) if row.group != "ablation"}
    assert wanted <= set(rows)
    assert {"anchor", "BTM, full", "prompt routing", "weighted soup", "unrestricted MoE, 2x", "FlexOlmo", "without code"} <= wanted
    assert rows["unrestricted MoE, 1x"]["scores"]["code"]["nats"] < rows["anchor"]["scores"]["code"]["nats"]
    # Removal is exact: without one of two experts the mixture is the other's pair.
    for name in ("code", "heads", "public"):
        without = rows["without heads"]["scores"][name]["nats"]
        assert without == pytest.approx(rows["pair code"]["scores"][name]["nats"], abs=1e-5)
    assert "| FlexOlmo |" in (artefacts.store.folder / "table.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (artefacts.store.folder / "results").iterdir()}
    assert re.search(r"\[(\d+)/\1\] ", capsys.readouterr().err)
    assert run.main(command(artefacts)) == 0
    assert {path: path.stat().st_mtime_ns for path in (artefacts.store.folder / "results").iterdir()} == before
    assert capsys.readouterr().err == ""


def test_ours_can_change_without_the_baselines(artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {row.name: row.task.digest for row in all_rows(artefacts)}
    plain = Artefacts.settings

    def changed(self: Artefacts, overrides: Mapping[str, Any]) -> Any:
        return plain(self, {"clip": 0.5, **overrides})

    monkeypatch.setattr(Artefacts, "settings", changed)
    other = Artefacts(artefacts.store, artefacts.corpus, SIZES, 1)
    moved = {row.name for row in all_rows(other) if row.task.digest != before[row.name]}
    ours = {row.name for row in all_rows(artefacts) if row.group in ("ours", "opt-out", "ablation") or row.name.startswith("pair ")}
    assert moved == ours - {"experts trained without the anchor"}


def test_scores_follow_the_product_s_evaluation(artefacts: Artefacts) -> None:
    scores = Evaluations(artefacts)
    task = scores.dense("anchor", artefacts.anchor)
    run_tasks(artefacts.store, [task], progress=silent)
    domains = [(name, [str(artefacts.corpus.scored(name, "valid"))]) for name in artefacts.corpus.names]
    report = evaluate([("anchor", artefacts.anchor_folder())], domains, max_tokens=SIZES.eval_tokens)
    for name in artefacts.corpus.names:
        found, score = artefacts.store.result(task)["scores"][name], report.score("anchor", name)
        assert sum(scores.texts("valid")[name].lengths) == score.tokens
        assert found["nats"] == pytest.approx(score.nll / score.tokens, rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-5)


# --- the baselines' trainer -------------------------------------------------------------------------------------------


def train(artefacts: Artefacts, model: Any, work: Path, *, steps: int = 6, stop_at: int = 0) -> dict[str, torch.Tensor]:
    work.mkdir(exist_ok=True)

    def progress(_label: str, done: int, _total: int, _unit: str, _figures: object = None) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    blend = Blend(artefacts._blend({"code": 0.5, "public": 0.5}, steps)._sources, [0.5, 0.5], seed=1, total=steps * 4)
    continue_training(
        model, blend, steps=steps, batch_size=4, seq_len=SIZES.seq_len, recipe=RECIPE, work=work, progress=progress, label="training"
    )
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_weight_of_a_mixture_is_trained(artefacts: Artefacts, tmp_path: Path) -> None:
    model = upcycled(load_model(artefacts.anchor_folder()), experts=3, top_k=2, seed=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = train(artefacts, model, tmp_path / "work")
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_only_rows_can_be_trained(artefacts: Artefacts, tmp_path: Path) -> None:
    model = branch_train_mix([load_model(artefacts.anchor_folder())] * 3, top_k=2, seed=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(".mlp.rows"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = train(artefacts, model, tmp_path / "work")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {name for name in before if name.endswith("rows")}


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone")
def test_an_interrupted_training_goes_on_with_the_same_numbers(artefacts: Artefacts, tmp_path: Path) -> None:
    def fresh() -> Any:
        return load_model(artefacts.anchor_folder()).requires_grad_(True)

    whole = train(artefacts, fresh(), tmp_path / "whole")
    with pytest.raises(InterruptedByUserError, match="after step 3 of 6"):
        train(artefacts, fresh(), tmp_path / "parts", stop_at=3)
    resumed = train(artefacts, fresh(), tmp_path / "parts")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# --- the store --------------------------------------------------------------------------------------------------------


def task(name: str, made: list[str], *, needs: tuple[Task, ...] = (), fail: bool = False) -> Task:
    def make(desk: Desk) -> Mapping[str, Any]:
        made.append(name)
        (desk.work / "trace").write_text(name)
        if fail:
            raise ElmgroveError("no")
        (desk.out / "content").write_text(name)
        return {"value": len(made)}

    return Task("test", name, {"name": name}, make, needs)


def test_results_are_made_once_and_after_what_they_need(tmp_path: Path) -> None:
    store, made = Store(tmp_path), list[str]()
    base = task("base", made)
    top = task("top", made, needs=(base,))
    run_tasks(store, [top, base], progress=silent)
    run_tasks(store, [top], progress=silent)
    assert made == ["base", "top"]
    assert store.result(top)["value"] == 2
    assert (store.path(base) / "content").read_text() == "base"
    assert list((tmp_path / "work").iterdir()) == []


def test_a_failure_leaves_its_work_and_no_result(tmp_path: Path) -> None:
    store, made = Store(tmp_path), list[str]()
    broken = task("broken", made, fail=True)
    with pytest.raises(ElmgroveError, match="no"):
        run_tasks(store, [broken], progress=silent)
    assert not store.done(broken)
    assert list((tmp_path / "results").iterdir()) == []
    assert (tmp_path / "work" / broken.name / "trace").exists()


def test_what_a_result_depends_on_is_in_its_name(tmp_path: Path) -> None:
    first, second = task("a", []), task("b", [])
    names = {each.name for each in (first, second, task("c", [], needs=(first,)), task("c", [], needs=(second,)))}
    assert len(names) == 4


def test_a_result_that_another_process_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = Store(tmp_path), list[str]()
    wanted = task("wanted", made)
    monkeypatch.setattr("tests.bench.experiment.store._POLL_SECONDS", 0.05)
    with store.lock(wanted.name, wait=False) as mine:
        assert mine
        waiter = threading.Thread(target=run_tasks, args=(store, [wanted]), kwargs={"progress": silent})
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        assert made == []
    waiter.join(10)
    assert made == ["wanted"]


def test_blends_draw_by_their_shares(artefacts: Artefacts) -> None:
    blend = artefacts._blend({"code": 0.75, "public": 0.25}, 200)
    share = float(np.mean(blend._draws == 0))
    assert 0.7 < share < 0.8
    first, again = blend.window(17), artefacts._blend({"code": 0.75, "public": 0.25}, 200).window(17)
    assert (first.tokens == again.tokens).all()


def test_a_mixture_file_gives_the_same_model(artefacts: Artefacts, tmp_path: Path) -> None:
    anchor = load_model(artefacts.anchor_folder())
    model = upcycled(anchor, experts=3, top_k=2, seed=1).eval()
    save_mixture(model, tmp_path / MIXTURE_FILE)
    loaded = load_mixture(tmp_path / MIXTURE_FILE, anchor.config, experts=3, top_k=2)
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens), loaded(tokens))


def test_bad_arguments_are_one_line(artefacts: Artefacts, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(command(artefacts, "--only", "no such row")) == UsageError.exit_code
    assert run.main(command(artefacts, "--seeds", "one")) == UsageError.exit_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("experiment: ") for line in lines)
