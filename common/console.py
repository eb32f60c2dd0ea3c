"""What the three command lines share: one exit per error class, tables, JSON, and progress on a terminal or in plain lines."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TextIO

import click

from common.errors import ElmgroveError, InterruptedByUserError

__all__ = ["TerminalProgress", "emit", "emit_json", "format_bytes", "format_seconds", "interruptible", "run_cli", "table"]

logger = logging.getLogger(__name__)

_PLAIN_INTERVAL = 10.0  # seconds between lines when the output is not a terminal
_TERMINAL_INTERVAL = 0.1  # seconds between repaints on a terminal


def emit(text: str = "", *, error: bool = False) -> None:
    """Print one line for the person at the terminal."""
    click.echo(text, err=error)


def emit_json(value: object) -> None:
    """Print ``value`` as one JSON document for a script."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def format_bytes(count: float) -> str:
    """``1536`` -> ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_seconds(seconds: float) -> str:
    """``75`` -> ``"1:15"``; hours are added when needed."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align ``rows`` under ``header``; columns whose cells all look like numbers are set flush right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    numeric = [bool(rows) and all(_looks_numeric(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(_pad(row[i], widths[i], numeric[i]) for i in range(len(header))).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _looks_numeric(text: str) -> bool:
    return text in {"", "-"} or text.replace(".", "", 1).replace(",", "").removeprefix("-").removeprefix("+").removesuffix("%").isdigit()


class TerminalProgress:
    """A ``ProgressSink``: one repainted line on a terminal, a plain line every ten seconds otherwise."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._label = ""
        self._started = 0.0
        self._first = 0
        self._shown = 0.0
        self._lock = threading.Lock()

    def __call__(self, label: str, done: int, total: int, unit: str, figures: Mapping[str, str] | None = None) -> None:
        """See :class:`common.progress.ProgressSink`."""
        if self._quiet:
            return
        with self._lock:
            now = time.monotonic()
            if label != self._label:
                self._label, self._started, self._first = label, now, done
                self._shown = 0.0 if self._terminal else now
            finished = total > 0 and done >= total
            interval = _TERMINAL_INTERVAL if self._terminal else _PLAIN_INTERVAL
            if not finished and now - self._shown < interval:
                return
            self._shown = now
            self._paint(self._line(now, done, total, unit, figures), finished)
            if finished:
                self._label = ""

    def _line(self, now: float, done: int, total: int, unit: str, figures: Mapping[str, str] | None) -> str:
        elapsed = now - self._started
        show = format_bytes if unit == "bytes" else "{:,.0f}".format
        counted = f"{show(done)} of {show(total)}" if total else show(done)
        parts = [self._label, counted if unit == "bytes" else f"{counted} {unit}"]
        if total:
            parts.insert(1, f"{100 * done / total:3.0f}%")
        parts += [f"{name} {text}" for name, text in (figures or {}).items()]
        moved = done - self._first
        if total and moved > 0 and done < total:
            parts.append(f"{format_seconds(elapsed * (total - done) / moved)} left")
        elif total and done >= total:
            parts.append(f"in {format_seconds(elapsed)}")
        return "  ".join(parts)

    def _paint(self, line: str, finished: bool) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if finished else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C does, so that ``finally`` blocks run and partial work is cleared away."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_cli(command: click.Command, *, name: str) -> None:
    """Run a command line and end the process: expected failures become one line and their exit code, a traceback means a bug."""
    try:
        with interruptible():
            command.main(prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        emit(f"{name}: {InterruptedByUserError.public} What was finished is kept; run the command again to go on.", error=True)
        sys.exit(InterruptedByUserError.exit_code)
    except ElmgroveError as error:
        emit(f"{name}: {error}", error=True)
        logger.debug("%s", error.code, exc_info=error)
        sys.exit(error.exit_code)
