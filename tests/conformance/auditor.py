"""The auditor's command line as real processes: each is forked from one that has imported the program, so a hundred cost a second."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import ROOT, environment

_NURSERY = """
import json, os, sys
from common.audit.cli import main
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in ((1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.argv = ["elmgrove-audit", *request["arguments"]]
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        else:
            code = 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """A command that ended: its exit code, and all it printed."""

    code: int
    out: str
    err: str


class Auditor:
    """``elmgrove-audit``; made by :func:`auditor`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, arguments: Sequence[str]) -> Done:
        out, err = self._folder / "out", self._folder / "err"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": list(arguments), "out": str(out), "err": str(err)}) + "\n")
        self._process.stdin.flush()
        return Done(int(self._process.stdout.readline()), out.read_text(), err.read_text())


@contextmanager
def auditor(folder: Path) -> Iterator[Auditor]:
    """The program, ready to be called; ``folder`` takes what it prints."""
    with subprocess.Popen(
        [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    ) as process:
        yield Auditor(process, folder)
        assert process.stdin is not None
        process.stdin.close()
