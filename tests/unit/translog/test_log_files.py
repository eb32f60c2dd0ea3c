"""Tiles, entry bundles and whole logs as the coordinator writes them: every file is needed, and every change of one is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FormatError, LogError, NotFoundError, StorageError
from common.formats.limits import MAX_ENTRY_BYTES
from common.translog.checkpoint import Checkpoint, log_origin, sign_checkpoint
from common.translog.merkle import leaf_hash, root_hash
from common.translog.note import encode_vkey
from common.translog.reader import FolderReader, load_document, read_first_entry, read_log
from common.translog.tiles import encode_entries, entries_path, parse_entries, tile_path, tiles_for
from coordinator.log.writer import LogWriter

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = log_origin("grove")
VKEY = encode_vkey(NAME, KEY.public_key())
SIZE = 600  # two full bundles and a partial one; one level-1 tile
ENTRIES = [b"entry %d" % number for number in range(SIZE)]


# --- names -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "path"),
    [
        (0, "000"), (5, "005"), (67, "067"), (999, "999"), (1000, "x001/000"), (1_234_067, "x001/x234/067"),
        (123_456_789, "x123/x456/789"), (1_000_000_000, "x001/x000/x000/000"),
    ],
)  # fmt: skip
def test_paths_are_those_of_the_specification(index: int, path: str) -> None:
    assert tile_path(0, index) == f"tile/0/{path}"
    assert tile_path(63, index, 1) == f"tile/63/{path}.p/1"
    assert entries_path(index) == f"tile/entries/{path}"
    assert entries_path(index, 255) == f"tile/entries/{path}.p/255"


@pytest.mark.parametrize(("level", "index", "width"), [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (0, 0, -1)])
def test_no_such_tile(level: int, index: int, width: int) -> None:
    with pytest.raises(FormatError):
        tile_path(level, index, width)
    if 0 <= level < 64:
        with pytest.raises(FormatError):
            entries_path(index, width)


def test_tiles_of_the_specifications_example() -> None:
    tiles = list(tiles_for(70_000))
    assert [tile for tile in tiles if tile[0] == 0] == [*((0, index, 256) for index in range(273)), (0, 273, 112)]
    assert [tile for tile in tiles if tile[0] > 0] == [(1, 0, 256), (1, 1, 17), (2, 0, 1)]


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        (0, []), (1, [(0, 0, 1)]), (255, [(0, 0, 255)]), (256, [(0, 0, 256), (1, 0, 1)]), (257, [(0, 0, 256), (0, 1, 1), (1, 0, 1)]),
        (512, [(0, 0, 256), (0, 1, 256), (1, 0, 2)]),
    ],
)  # fmt: skip
def test_tiles_at_the_bounds_of_a_tile(size: int, tiles: list[tuple[int, int, int]]) -> None:
    assert list(tiles_for(size)) == tiles


# --- entry bundles -----------------------------------------------------------------------------------------------------------------


def test_bundle_is_lengths_and_entries() -> None:
    assert encode_entries([b"ab", b"c"]) == b"\x00\x02ab\x00\x01c"
    assert parse_entries(b"\x00\x02ab\x00\x01c") == [b"ab", b"c"]
    assert parse_entries(b"") == []
    longest = [b"x" * MAX_ENTRY_BYTES] * 256
    assert parse_entries(encode_entries(longest)) == longest


@pytest.mark.parametrize("entry", [b"", b"x" * (MAX_ENTRY_BYTES + 1)])
def test_entries_too_short_or_too_long(entry: bytes) -> None:
    with pytest.raises(FormatError):
        encode_entries([b"a", entry])
    with pytest.raises(FormatError):
        parse_entries(b"\x00\x01a" + len(entry).to_bytes(2, "big") + entry)


@pytest.mark.parametrize("raw", [b"\x00", b"\x00\x02a", b"\x00\x01a\x00", b"\x00\x01a" * 257, b"\xff\xff" + b"a" * 65_535])
def test_malformed_bundle(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_entries(raw)


@given(raw=st.binary(max_size=300) | st.lists(st.binary(min_size=1, max_size=9), max_size=5).map(encode_entries))
def test_random_bundles_have_one_reading_or_none(raw: bytes) -> None:
    try:
        entries = parse_entries(raw)
    except FormatError:
        return
    assert encode_entries(entries) == raw


# --- a whole log -------------------------------------------------------------------------------------------------------------------


def write(folder: Path, sizes: list[int]) -> Path:
    """A log that grew to each of these sizes in turn, as the coordinator writes it."""
    folder.mkdir()
    writer = LogWriter(folder, VKEY, KEY, NAME)
    begin = 0
    for size in sizes:
        with writer.exclusive():
            writer.append(ENTRIES[begin:size], [b"document %d" % size])
        begin = size
    return folder


@dataclass
class Written:
    folder: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = write(tmp_path_factory.mktemp("log") / "log", [1, 256, 300, SIZE])
    needed = ["checkpoint", *(tile_path(*tile) for tile in tiles_for(SIZE)), entries_path(0), entries_path(1), entries_path(2, SIZE - 512)]
    return Written(folder, {path: (folder / path).read_bytes() for path in needed})


@dataclass
class MemoryReader:
    files: dict[str, bytes]

    def fetch(self, path: str) -> bytes:
        if path not in self.files:
            raise NotFoundError(path)
        return self.files[path]


def test_log_as_the_coordinator_writes_it(written: Written) -> None:
    log = read_log(FolderReader(written.folder), VKEY)
    assert list(log.entries) == ENTRIES
    assert (log.checkpoint.size, log.checkpoint.root) == (SIZE, root_hash([leaf_hash(entry) for entry in ENTRIES]))
    assert log.note == (written.folder / "checkpoint").read_bytes()
    assert read_first_entry(FolderReader(written.folder)) == ENTRIES[0]


def test_log_keeps_no_partial_file_that_a_full_one_replaces(written: Written) -> None:
    names = {str(path.relative_to(written.folder)) for path in written.folder.rglob("*.p")}
    assert names == {"tile/0/002.p", "tile/1/000.p", "tile/entries/002.p"}


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512])
def test_logs_at_the_bounds_of_a_tile(tmp_path: Path, size: int) -> None:
    assert len(read_log(FolderReader(write(tmp_path / "log", [size])), VKEY).entries) == size


def test_each_missing_file_is_named(written: Written) -> None:
    for name in written.files:
        files = {path: raw for path, raw in written.files.items() if path != name}
        with pytest.raises(LogError, match=f"lacks its file {name.split('.p/')[0]}"):
            read_log(MemoryReader(files), VKEY)


def _changes(raw: bytes) -> Iterator[bytes]:
    for place in {0, 1, 2, len(raw) // 2, len(raw) - 1}:
        yield raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
    yield from (raw[:-1], raw + b"\x00", raw[:-32], raw + bytes(32), b"", raw + raw)


def test_each_changed_file_is_noticed(written: Written) -> None:
    for name, raw in written.files.items():
        for changed in _changes(raw):
            with pytest.raises(LogError):
                read_log(MemoryReader(written.files | {name: changed}), VKEY)


def test_entry_too_many_in_a_partial_bundle_is_noticed(written: Written) -> None:
    name = entries_path(2, SIZE - 512)
    longer = written.files[name] + encode_entries([b"hidden"])
    with pytest.raises(LogError, match=name):
        read_log(MemoryReader(written.files | {name: longer}), VKEY)


def test_full_files_may_stand_for_the_partial_ones_they_replace(written: Written, tmp_path: Path) -> None:
    earlier = Checkpoint(NAME, 300, root_hash([leaf_hash(entry) for entry in ENTRIES[:300]]))
    files = dict(written.files) | {"checkpoint": sign_checkpoint(earlier, KEY)}
    files[tile_path(1, 0, 1)] = files.pop(tile_path(1, 0, 2))[:32]
    assert list(read_log(MemoryReader(files), VKEY).entries) == ENTRIES[:300]
    for name in (entries_path(1), tile_path(0, 1)):
        with pytest.raises(LogError):
            read_log(MemoryReader(files | {name: files[name][: len(files[name]) // 2]}), VKEY)


def test_swapped_and_replayed_checkpoints_are_noticed(written: Written) -> None:
    root = root_hash([leaf_hash(entry) for entry in ENTRIES])
    for wrong in (Checkpoint(NAME, SIZE + 1, root), Checkpoint(NAME, SIZE - 1, root), Checkpoint(NAME, SIZE, bytes(32))):
        with pytest.raises(LogError):
            read_log(MemoryReader(written.files | {"checkpoint": sign_checkpoint(wrong, KEY)}), VKEY)


def test_log_of_another_key_or_a_malformed_one(written: Written) -> None:
    other = encode_vkey(NAME, Ed25519PrivateKey.generate().public_key())
    for vkey in (other, "nonsense"):
        with pytest.raises(LogError, match="checkpoint"):
            read_log(MemoryReader(written.files), vkey)


def test_unsigned_reading_takes_the_first_bundle_whatever_the_checkpoint_claims(written: Written) -> None:
    endless = sign_checkpoint(Checkpoint(NAME, 2**63 - 1, bytes(32)), KEY)
    assert read_first_entry(MemoryReader({"checkpoint": endless, entries_path(0): written.files[entries_path(0)]})) == ENTRIES[0]
    with pytest.raises(LogError, match="malformed"):
        read_first_entry(MemoryReader(written.files | {"checkpoint": b"nonsense"}))
    empty = sign_checkpoint(Checkpoint(NAME, 0, root_hash([])), KEY)
    with pytest.raises(LogError, match="no entries"):
        read_first_entry(MemoryReader({"checkpoint": empty}))


def test_empty_log_has_no_entries() -> None:
    note = sign_checkpoint(Checkpoint(NAME, 0, root_hash([])), KEY)
    assert read_log(MemoryReader({"checkpoint": note}), VKEY).entries == ()


# --- the folder --------------------------------------------------------------------------------------------------------------------


def test_documents_are_found_by_their_digest(written: Written) -> None:
    reader = FolderReader(written.folder)
    names = sorted(path.name for path in (written.folder / "documents").iterdir())
    assert len(names) == 4
    assert {load_document(reader, name) for name in names} == {b"document %d" % size for size in (1, 256, 300, SIZE)}
    with pytest.raises(LogError, match="lacks its file"):
        load_document(reader, "0" * 64)


def test_changed_document_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / ("0" * 64)).write_bytes(b"something else")
    with pytest.raises(LogError, match="does not have its digest"):
        load_document(FolderReader(tmp_path), "0" * 64)


def test_folder_reader_takes_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(1 << 30)
    reader = FolderReader(tmp_path)
    assert reader.fetch("real") == b"x"
    before = len(os.listdir("/proc/self/fd"))
    for name, error in (("link", StorageError), ("folder", LogError), ("pipe", LogError), ("sparse", LogError)):
        with pytest.raises(error):
            reader.fetch(name)
    for name in ("none", "real/below"):
        with pytest.raises(NotFoundError):
            reader.fetch(name)
    assert len(os.listdir("/proc/self/fd")) == before, "a file was left open"
