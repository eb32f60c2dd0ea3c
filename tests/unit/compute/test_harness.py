"""The harness on a real small mixture with task files of our own: figures against a direct computation, and no network."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import ArchitectureError, DataError, MissingExtraError, NotFoundError, UsageError
from coordinator.compute.harness import run_harness
from tests.support.programs import ROOT, environment

QUESTIONS = [
    {"question": f"Which statement ends loop number {number}?", "choices": ["break", "the import system", "lambda"], "answer": number % 3}
    for number in range(6)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}} Answer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
metadata:
  version: 2.0
"""


def write_tasks(folder: Path) -> Path:
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for name, file in (("quiz", data), ("lost", folder / "nowhere.jsonl")):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=file, cache=folder.parent / "cache"))
    return folder


def lm_eval(*arguments: object, offline: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.cli.main", "lm-eval", *map(str, arguments)]
    wall = ["unshare", "--net"] if offline else []
    variables = environment() | {"PYTHONPATH": ":".join((str(ROOT), *(path for path in sys.path if path)))}
    return subprocess.run([*wall, *command], capture_output=True, text=True, check=False, cwd=ROOT, env=variables, timeout=280)


def direct_accuracy(folder: Path) -> float:
    """The choice with the largest log-likelihood, by stock transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in QUESTIONS:
        context = f"Question: {row['question']} Answer:"
        scores = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            whole = tokenizer(f"{context} {choice}")["input_ids"]
            start = len(tokenizer(context)["input_ids"])
            window = whole[-64:]
            with torch.no_grad():
                losses = torch.log_softmax(model(torch.tensor([window[:-1]])).logits[0], dim=-1)
            kept = len(whole) - start
            scores.append(float(losses.gather(1, torch.tensor(window[1:])[:, None])[-kept:].sum()))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(QUESTIONS)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (0.6 GB, the extra 'eval')")
def test_a_local_task_without_a_network(mixture: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    can_unshare = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode == 0
    out = tmp_path / "figures.json"
    done = lm_eval(mixture, "--tasks", "quiz", "--include-path", tasks, "--device", "cpu", "--json", "--json-out", out, offline=can_unshare)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == json.loads(out.read_text())
    [score] = found["scores"]
    assert (score["task"], score["metric"], score["filter"], score["samples"]) == ("quiz", "acc", "none", 6)
    assert score["value"] == pytest.approx(direct_accuracy(mixture))
    assert found["versions"] == {"quiz": "2.0"}
    assert found["limit"] is None


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (0.6 GB, the extra 'eval')")
def test_tasks_that_cannot_be_run(mixture: Path, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    (tasks / "odd.yaml").write_text("task: odd\ndataset_path: json\noutput_type: nonsense\n")
    for name, error, said in (("quizz", NotFoundError, "quiz"), ("lost", DataError, "nowhere.jsonl"), ("odd", DataError, "task files")):
        done = lm_eval(mixture, "--tasks", name, "--include-path", tasks, "--json-out", tmp_path / "never.json")
        assert done.returncode == error.exit_code, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "never.json").exists()


def test_what_is_wrong_before_the_harness_is_needed(anchor: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"config\.json"):
        run_harness(tmp_path, ["quiz"])
    with pytest.raises(UsageError, match="at least one task"):
        run_harness(anchor, [])
    with pytest.raises(NotFoundError, match="no folder"):
        run_harness(anchor, ["quiz"], include_path=tmp_path / "no")


def test_without_the_harness_the_extra_is_named(anchor: Path) -> None:
    script = "import sys; sys.modules['lm_eval'] = None\nfrom coordinator.cli.main import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script, "lm-eval", str(anchor), "--tasks", "x"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == MissingExtraError.exit_code, done.stderr
    assert "elmgrove[eval]" in done.stderr
    assert "Traceback" not in done.stderr
