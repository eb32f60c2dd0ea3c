"""Documents out of ``.jsonl[.gz]``, ``.txt[.gz]``, ``.csv[.gz]`` and ``.parquet`` files; messages name files and lines, never content."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from common.errors import DataError, MissingExtraError, TextFieldError

__all__ = ["SkipSink", "expand", "read_texts"]

SkipSink = Callable[[Path, int, str], None]
"""Called with file, line or row number (from 1) and reason for every document that is left out."""

_SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz", ".csv", ".csv.gz", ".parquet")
_MAX_CELL = 1 << 30  # characters; the csv module refuses cells above 131,072 unless told
_MAX_SHOWN_FIELDS = 12  # field names in a message


def expand(specs: Sequence[str]) -> list[Path]:
    """The data files that files, folders (searched through) and globs name, each once, in sorted order per spec.

    Raises:
        DataError: a spec names nothing, or a file of a kind that is not read.
    """
    found: dict[Path, None] = {}
    for spec in specs:
        paths = _matches(spec)
        if not paths:
            raise DataError(f"No data file matches {spec}. Readable kinds: {', '.join(_SUFFIXES)}.")
        found.update(dict.fromkeys(paths))
    if not found:
        raise DataError("No data file was given.")
    return list(found)


def _matches(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
    if path.is_file():
        if not _kind(path):
            raise DataError(f"{spec} is of a kind that is not read. Readable kinds: {', '.join(_SUFFIXES)}.")
        return [path]
    return sorted(file for file in _glob(path) if file.is_file() and _kind(file))


def _glob(pattern: Path) -> list[Path]:
    # Path.glob takes no absolute pattern.
    return sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207


def _kind(path: Path) -> str:
    """The file's kind without ``.gz``, or an empty string."""
    name = path.name.lower()
    return next((suffix.removesuffix(".gz") for suffix in _SUFFIXES if name.endswith(suffix)), "")


def read_texts(paths: Sequence[Path], *, text_field: str = "text", on_skip: SkipSink | None = None) -> Iterator[str]:
    """Yield every document of ``paths`` in order; documents without a visible character are left out and told to ``on_skip``.

    Args:
        paths: data files; a ``.txt`` file is one document.
        text_field: the field or column that holds the text.
        on_skip: hears of left-out documents.

    Raises:
        DataError: a file cannot be read, is not UTF-8, is malformed, or no file has any text.
        TextFieldError: a row has no text under ``text_field``; the message names the fields there are.
        MissingExtraError: a ``.parquet`` file, and pyarrow is not installed.
    """
    any_text = False
    for path in paths:
        for row, text in _rows(path, text_field):
            if text.strip():
                any_text = True
                yield text
            elif on_skip is not None:
                on_skip(path, row, "empty")
    if not any_text:
        raise DataError(f"There is no text in {', '.join(path.name for path in paths[:3])}{' and others' if len(paths) > 3 else ''}.")


def _rows(path: Path, text_field: str) -> Iterator[tuple[int, str]]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet(path, text_field)
        return
    readers = {".jsonl": _jsonl, ".csv": _csv, ".txt": _txt}
    if kind not in readers:
        raise DataError(f"{path.name} is of a kind that is not read. Readable kinds: {', '.join(_SUFFIXES)}.")
    try:
        with _open(path) as stream:
            yield from readers[kind](path, stream, text_field)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged or cut short"
        raise DataError(f"{path.name} cannot be read: {reason}.") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]  # GzipFile reads alike


def _jsonl(path: Path, stream: BinaryIO, text_field: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name}, line {number}: not UTF-8.") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path.name}, line {number}: not valid JSON.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path.name}, line {number}: not a JSON object.")
        yield number, _text_of(path, number, row.get(text_field), text_field, list(row))


def _text_of(path: Path, number: int, value: object, text_field: str, fields: Sequence[str]) -> str:
    if isinstance(value, str):
        # A lone surrogate can be written in JSON but is no text: it has no UTF-8 form.
        return value.encode("utf-8", "replace").decode("utf-8")
    shown = ", ".join(str(field)[:40] for field in fields[:_MAX_SHOWN_FIELDS]) or "none"
    raise TextFieldError(
        f"{path.name}, line {number}: no text under {text_field!r}. The fields are: {shown}. Choose one with --text-field."
    )


def _csv(path: Path, stream: BinaryIO, text_field: str) -> Iterator[tuple[int, str]]:
    csv.field_size_limit(_MAX_CELL)
    rows = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    try:
        header = next(rows, None)
        if header is None:
            return
        if text_field not in header:
            _text_of(path, 1, None, text_field, header)
        column = header.index(text_field)
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(f"{path.name}, line {rows.line_num}: {len(cells)} cells where the header has {len(header)}.")
            yield rows.line_num, cells[column]
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}, after line {rows.line_num}: not UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{path.name}, line {rows.line_num}: not valid CSV.") from error


def _txt(path: Path, stream: BinaryIO, _text_field: str) -> Iterator[tuple[int, str]]:
    raw = stream.read()
    try:
        yield 1, raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}, line {line}: not UTF-8.") from error


def _parquet(path: Path, text_field: str) -> Iterator[tuple[int, str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name} needs pyarrow; install it with: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            fields = list(file.schema_arrow.names)
            if text_field not in fields:
                _text_of(path, 1, None, text_field, fields)
            number = 0
            for batch in file.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield number, _text_of(path, number, value, text_field, fields)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} is not a readable Parquet file.") from error
