"""`make demo` from its first line to its last, on small text and few tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.domains import DOMAINS, write_domains
from tests.support.programs import ROOT, environment

DEMO = ROOT / "deploy" / "demo" / "run.py"


def run_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *map(str, arguments)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def test_the_demo_runs_to_the_end_and_leaves_a_summary(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_domains(data, limit=150_000)
    done = run_demo("--out", out, "--data", data, "--anchor-tokens", 20_480, "--expert-tokens", 8_192)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["perplexity"]) == {"anchor", "pair-code", "pair-heads", "all", "without-code"}
    assert set(summary["perplexity"]["all"]) == {"public", *DOMAINS}
    for name in ("model", "model_without", "root", "log", "report"):
        assert Path(summary[name]).exists(), name
    assert all(Path(path, "model.sig").exists() for path in summary["packages"].values())
    assert "elmgrove-owner push code" in done.stdout
    assert "FlexOlmoForCausalLM" in done.stdout
    again = run_demo("--out", data, "--data", data)
    assert again.returncode == 10
    assert "was not made by the demo" in again.stderr
    assert (data / "code.train.jsonl.gz").exists()


def test_a_folder_without_public_text_is_explained(tmp_path: Path) -> None:
    done = run_demo("--out", tmp_path / "out", "--data", tmp_path)
    assert done.returncode == 10
    assert "public.train.jsonl.gz" in done.stderr
