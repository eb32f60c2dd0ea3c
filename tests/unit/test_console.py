"""The command lines' shared behaviour: exit codes, tables, progress lines."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.console import TerminalProgress, format_bytes, format_seconds, table

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, signal, time, click
from common.console import run_cli, emit
from common.errors import DigestError
@click.group()
def app(): pass
@app.command()
def fail(): raise DigestError("part-0000 differs")
@app.command()
def bug(): raise RuntimeError("oops")
@app.command()
def wait():
    try:
        emit("ready")
        time.sleep(30)
    finally: emit("cleaned")
run_cli(app, name="prog")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_an_expected_failure_is_one_line_and_its_exit_code() -> None:
    done = run("fail")
    assert (done.returncode, done.stderr) == (64, "prog: part-0000 differs\n")


def test_a_bug_shows_a_traceback() -> None:
    done = run("bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_wrong_command_line_is_exit_code_two() -> None:
    assert run("nosuch").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_clean_up_and_end_with_130(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, "wait"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, complaints = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output == "cleaned\n"
    assert "Interrupted" in complaints
    assert "Traceback" not in complaints


def test_numbers_stand_flush_right() -> None:
    assert table(["name", "ppl"], [["a", "9.5"], ["bcd", "120.0"]]).splitlines() == [
        "name    ppl",
        "----  -----",
        "a       9.5",
        "bcd   120.0",
    ]


def test_plain_progress_prints_the_end_and_nothing_sooner_than_worth_a_line() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(stream)
    for step in range(101):
        progress("train", step, 100, "steps", {"loss": "3.1"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[-1].startswith("train  100%  100 of 100 steps  loss 3.1")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB")])
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3700, "1:01:40")])
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
