"""Reading text: every kind of file, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DataError, MissingExtraError, TextFieldError
from common.textdata.readers import expand, read_texts


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


_JSONL = b'{"text": "one"}\n\n{"id": 3, "text": "zw\xc3\xb6lf\\n12"}\n{"text": " \\n"}\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", _JSONL, ["one", "zwölf\n12"]),
        ("a.jsonl.gz", _JSONL, ["one", "zwölf\n12"]),
        ("A.JSONL", _JSONL, ["one", "zwölf\n12"]),
        ("a.txt", b"\xef\xbb\xbfone\ndocument\n", ["one\ndocument\n"]),
        ("a.csv", b'id,text\r\n1,"one, and\nmore"\r\n\r\n2,two\r\n', ["one, and\nmore", "two"]),
        ("a.csv.gz", b"text\none\n", ["one"]),
        ("a.jsonl", b'{"text": "half a \\ud83d pair"}', ["half a ? pair"]),
    ],
)
def test_reads(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    assert list(read_texts([_write(tmp_path / name, content)])) == expected


def test_skipped_documents_are_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, str]] = []
    path = _write(tmp_path / "a.jsonl", _JSONL)
    list(read_texts([path], on_skip=lambda file, row, reason: told.append((file.name, row, reason))))
    assert told == [("a.jsonl", 4, "empty")]


_SECRET = "very private words"


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": "very private words', "line 2"),
        ("a.jsonl", b'["very private words"]', "line 1"),
        ("a.jsonl", b'{"text": "fine"}\n\xff very private words', "line 2"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.jsonl", b"", "a.jsonl"),
        ("a.jsonl", b"\n\n", "a.jsonl"),
        ("a.txt", b"   \n", "a.txt"),
        ("a.txt", b"fine\nvery private words \xff", "line 2"),
        ("a.csv", b'text\nfine\n"very private words', "line 3"),
        ("a.csv", b"id,text\n1,very,private words\n", "line 2"),
        ("a.csv", b"text\nfine\nvery private words\xff\n", "line"),
        ("a.csv", b"", "a.csv"),
    ],
)
def test_bad_files_are_named_and_not_quoted(tmp_path: Path, name: str, content: bytes, where: str) -> None:
    with pytest.raises(DataError, match=where) as caught:
        list(read_texts([_write(tmp_path / name, content)]))
    assert "private" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"body": "very private words", "id": 1}'),
        ("a.csv", b"body,id\nvery private words,1\n"),
        ("a.jsonl", b'{"text": null, "body": 1}'),
    ],
)
def test_missing_field_names_the_fields_there_are(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(TextFieldError, match="body") as caught:
        list(read_texts([_write(tmp_path / name, content)]))
    assert "private" not in str(caught.value)


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"text": "x" * 5000}).encode())
    for name, raw in (
        ("cut.jsonl.gz", whole[:-9]),
        ("not.jsonl.gz", b"plain text"),
        ("flipped.jsonl.gz", whole[:20] + b"\x00" + whole[21:]),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DataError, match=name):
            list(read_texts([tmp_path / name]))


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("absent.jsonl", "folder.jsonl"):
        with pytest.raises(DataError, match=name):
            list(read_texts([tmp_path / name]))


def test_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        with pytest.raises(MissingExtraError, match="pyarrow"):
            list(read_texts([tmp_path / "a.parquet"]))
        return
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(read_texts([tmp_path / "a.parquet"]))
    parquet.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "b.parquet")
    assert list(read_texts([tmp_path / "b.parquet"])) == ["one", "two"]
    with pytest.raises(TextFieldError, match="text"):
        list(read_texts([tmp_path / "b.parquet"], text_field="body"))


def test_expand(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.jsonl", "sub/c.csv.gz", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    names = [path.name for path in expand([str(tmp_path)])]
    assert names == ["a.jsonl", "b.txt", "c.csv.gz"]
    assert [path.name for path in expand([str(tmp_path / "*.txt"), str(tmp_path / "b.txt")])] == ["b.txt"]
    for bad in (str(tmp_path / "*.parquet"), str(tmp_path / "absent"), str(tmp_path / "notes.md")):
        with pytest.raises(DataError):
            expand([bad])
    with pytest.raises(DataError):
        expand([])


@settings(max_examples=150, deadline=None)
@given(
    raw=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: json.dumps({"text": text}).encode())),
    suffix=st.sampled_from([".jsonl", ".jsonl.gz", ".csv", ".txt", ".csv.gz"]),
)
def test_any_bytes_give_text_or_a_documented_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    path.write_bytes(raw)
    try:
        texts = list(read_texts([path]))
    except DataError:
        return
    assert texts
    assert all(text.strip() for text in texts)
    for text in texts:
        text.encode()
