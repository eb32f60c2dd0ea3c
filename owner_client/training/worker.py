"""A process that follows: it waits for the plan of the first process and trains with it (``python -m owner_client.training.worker``)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import NoReturn

from common.console import TerminalProgress
from common.errors import ElmgroveError, InterruptedByUserError
from common.progress import ProgressSink, silent
from owner_client.training.launch import environment_world
from owner_client.training.prepare import Plan
from owner_client.training.rendezvous import await_plan
from owner_client.training.run import TrainResult, result_to_json, train_planned

__all__ = ["follow", "leave", "main"]


def follow(progress: ProgressSink = silent) -> TrainResult:
    """Train as one of several processes, to the plan of the first.

    Raises:
        ElmgroveError: as :func:`owner_client.training.run.train_expert`.
    """
    return train_planned(Plan.from_json(await_plan()), progress)


def _end_with_parent() -> None:
    """Stop like on SIGTERM when the process that started this one is gone and its pipe closed."""

    def watch() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def leave(code: int = 0) -> NoReturn:
    """End the process of a finished follower at once.

    The interpreter is not taken down step by step: threads of the process group's transport may still be releasing tensors then, and one
    that asks for the interpreter's lock at that moment aborts a process whose work is done.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):  # nobody is left to tell
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Follow, tell the result as one line of JSON on standard output, and end the process with the exit code."""
    _end_with_parent()
    named = environment_world()
    speaks = named is not None and named.rank == 0 and "--quiet" not in sys.argv
    try:
        told = result_to_json(follow(TerminalProgress() if speaks else silent))
        code = 0
    except ElmgroveError as error:
        told, code = {"error": error.code, "message": str(error)}, error.exit_code
    except KeyboardInterrupt:
        told, code = {"error": InterruptedByUserError.code, "message": "Stopped as you asked."}, InterruptedByUserError.exit_code
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(told) + "\n")
    leave(code)


if __name__ == "__main__":
    main()
