"""What a command line says when an optional part of the distribution is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import MissingExtraError
from tests.support.programs import ROOT, environment


@pytest.mark.parametrize(
    ("program", "missing", "arguments", "extra"),
    [
        ("coordinator.cli.main", "sqlalchemy", ["invite", "anna"], "coordinator"),
        ("coordinator.cli.main", "grpc", ["serve"], "coordinator"),
        ("coordinator.cli.main", "torch", ["generate", ".", "--prompt", "x"], "train"),
        ("coordinator.cli.main", "torch", ["anchor", "train", "--data", "x", "--out", "y"], "train"),
        ("owner_client.cli.main", "grpc", ["status"], "owner"),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, program: str, missing: str, arguments: list[str], extra: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None\nfrom {program} import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == MissingExtraError.exit_code, done.stderr
    assert f"elmgrove[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
