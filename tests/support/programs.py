"""The three command lines as real processes, for tests that stand outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_MAINS = {"coordinator": "coordinator.cli.main", "owner": "owner_client.cli.main", "audit": "common.audit.cli"}


def command(program: str, *arguments: object) -> list[str]:
    """The command line of ``coordinator``, ``owner`` or ``audit``."""
    return [sys.executable, "-c", f"from {_MAINS[program]} import main; main()", *map(str, arguments)]


def environment() -> dict[str, str]:
    """What the processes see: nothing of this machine's own homes or passphrases."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(program: str, *arguments: object, expect: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and check its exit code; a traceback is never right."""
    done = subprocess.run(
        command(program, *arguments), capture_output=True, text=True, timeout=timeout, check=False, env=environment(), cwd=ROOT
    )
    assert done.returncode == expect, f"exit code {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_json(program: str, *arguments: object) -> Any:
    """Run a reading command with ``--json``."""
    return json.loads(run(program, *arguments, "--json").stdout)


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a command that the test will interrupt."""
    return subprocess.Popen(
        command(program, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )


def free_ports() -> int:
    """A port that is free and whose successor is free."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
    raise AssertionError("no two neighbouring ports are free")


@contextlib.contextmanager
def serving(home: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """``serve`` until the block ends; it must stop cleanly on SIGTERM."""
    process = start("coordinator", "serve", "--home", home)
    try:
        _await_port(process, port)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=30)
    assert "Traceback" not in complaints, complaints


def _await_port(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the coordinator never answered")
