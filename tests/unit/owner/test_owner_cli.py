"""The command line from outside: help for everything, exit codes, and no torch or gRPC where none is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from owner_client.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
CLI = "from owner_client.cli.main import main; main()"


def run(*arguments: str, home: Path | None = None, code: str = CLI) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "ELMGROVE_OWNER_HOME": str(home or "/nonexistent/home"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
    assert f"elmgrove-owner {command}" in done.stdout
    assert "--home DIR" in done.stdout
    assert "--json" in done.stdout


def test_the_overview_lists_every_command_without_importing_it() -> None:
    code = CLI.replace("main()", "import atexit; atexit.register(lambda: print('GRPC', 'grpc' in sys.modules)); main()")
    done = run("--help", code="import sys; " + code)
    assert all(command in done.stdout for command in COMMANDS)
    assert "GRPC False" in done.stdout


@pytest.mark.parametrize("command", [["pull"], ["status"], ["push", "x"], ["withdraw", "x"], ["train", "--data", "x", "--name", "x"]])
def test_without_a_home_everything_says_to_join(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, home=tmp_path / "empty")
    assert done.returncode == 17
    assert "elmgrove-owner join" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("invitation", ["hello", "elmgrove1-abc-00000000", "elmgrove1-" + "A" * 400])
def test_a_damaged_invitation_has_its_own_code_and_leaves_nothing(tmp_path: Path, invitation: str) -> None:
    done = run("join", invitation, home=tmp_path / "home")
    assert done.returncode == 24
    assert "operator" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("module", "command", "extra"), [("grpc", ["status"], "owner"), ("grpc", ["train", "--help"], "owner")])
def test_a_missing_extra_is_named(module: str, command: list[str], extra: str) -> None:
    done = run(*command, code=f"import sys; sys.modules[{module!r}] = None; " + CLI)
    assert done.returncode == 19
    assert f"elmgrove[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    assert run("pull", "--frobnicate").returncode == 2


def test_no_command_but_train_reaches_torch_and_review_reaches_no_network() -> None:
    code = (
        "import sys, importlib\n"
        "import owner_client.cli.review, owner_client.keys.keystore\n"
        "assert 'grpc' not in sys.modules, 'review loads gRPC'\n"
        "for name in ('enrol', 'anchors', 'push', 'withdraw', 'status', 'versions', 'outbox'):\n"
        "    importlib.import_module('owner_client.daemon.' + name)\n"
        "for name in ('join', 'pull', 'push', 'status', 'withdraw', 'train'):\n"
        "    importlib.import_module('owner_client.cli.' + name)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in {'torch', 'numpy', 'transformers'} or m.startswith('owner_client.data')]\n"
        "assert not bad, bad\n"
    )
    done = run(code=code)
    assert done.returncode == 0, done.stderr
