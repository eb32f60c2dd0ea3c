"""The log's writer against the strict reader of ``common/translog``: growth, proofs, crashes, full disks, several writers."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import LogError, NotFoundError, SignatureError, StorageError, UsageError
from common.translog.checkpoint import verify_checkpoint
from common.translog.cosignature import cosign, witness_vkey
from common.translog.merkle import leaf_hash, root_hash, verify_consistency
from common.translog.note import encode_vkey
from common.translog.proof import verify_receipt
from common.translog.reader import FolderReader, read_log
from coordinator.log.view import LogView
from coordinator.log.writer import LogWriter

ORIGIN = "elmgrove/grove/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VKEY = encode_vkey(ORIGIN, KEY.public_key())


def _writer(folder: Path) -> LogWriter:
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    return LogWriter(folder, VKEY, KEY, ORIGIN)


def _append(writer: LogWriter, *entries: bytes) -> int:
    with writer.exclusive():
        return writer.append(entries, [b"document of " + entry for entry in entries[:2]])


def _entries(first: int, count: int) -> list[bytes]:
    return [f"entry {index}".encode() for index in range(first, first + count)]


@pytest.mark.parametrize("steps", [[1], [1, 1, 1], [255, 1, 1], [256, 256], [300, 1, 700], [1, 255, 256, 513]])
def test_what_is_written_is_a_log_that_the_strict_reader_accepts(tmp_path: Path, steps: list[int]) -> None:
    writer, expected = _writer(tmp_path), []
    for count in steps:
        assert _append(writer, *_entries(len(expected), count)) == len(expected)
        expected += _entries(len(expected), count)
        assert list(read_log(FolderReader(tmp_path), VKEY).entries) == expected


def test_partial_files_go_when_the_full_one_is_there(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    _append(writer, *_entries(0, 250))
    for index in range(250, 258):
        _append(writer, *_entries(index, 1))
    assert not (tmp_path / "tile/0/000.p").exists()
    assert sorted(path.name for path in (tmp_path / "tile/0/001.p").iterdir()) == ["1", "2"]
    assert (tmp_path / "tile/1/000.p/1").stat().st_size == 32


def test_every_receipt_and_every_consistency_proof_holds(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    checkpoints = []
    for index in range(40):
        _append(writer, *_entries(index, 1))
        checkpoints.append(verify_checkpoint(writer.checkpoint, VKEY))
    for index in range(40):
        receipt = writer.receipt(index)
        assert verify_receipt(receipt.proof, f"entry {index}".encode(), VKEY).index == index
        proof, note = writer.consistency(index + 1)
        verify_consistency(index + 1, 40, proof, checkpoints[index].root, verify_checkpoint(note, VKEY).root)
    with pytest.raises(NotFoundError):
        writer.receipt(40)
    with pytest.raises(UsageError):
        writer.consistency(41)
    with pytest.raises(UsageError):
        writer.consistency(0)


def test_a_restarted_writer_goes_on_with_the_same_log(tmp_path: Path) -> None:
    for start in (0, 100, 300):
        writer = _writer(tmp_path)
        _append(writer, *_entries(start, 100 if start == 0 else 200))
    assert read_log(FolderReader(tmp_path), VKEY).checkpoint.size == 500


def test_a_view_sees_what_another_process_appended(tmp_path: Path) -> None:
    writer, view = _writer(tmp_path), LogView(tmp_path, VKEY)
    for count in (3, 4):
        _append(writer, *_entries(writer.size, count))
        view.refresh()
        assert view.entries(0, view.size) == writer.entries(0, writer.size)
        assert view.document(__import__("hashlib").sha256(b"document of entry 0").hexdigest()) == b"document of entry 0"


class _CrashError(BaseException):
    """Not an ``Exception``: nothing may handle it, as nothing handles a power cut."""


def _die_after(survives: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let ``survives`` steps that reach the disk (flushes and renames) happen, and nothing after them. Returns the list of those done."""
    done: list[str] = []

    def dying(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def step(*arguments: Any, **options: Any) -> Any:
            if len(done) >= survives:
                raise _CrashError
            done.append(name)
            return real(*arguments, **options)

        return step

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, dying(name))
    return done


@pytest.mark.parametrize("survives", range(0, 30, 2))
def test_a_crash_at_any_step_leaves_a_valid_log_that_can_be_continued(
    tmp_path: Path, survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _writer(tmp_path)
    _append(writer, *_entries(0, 254))
    done = _die_after(survives, monkeypatch)
    died = False
    try:
        _append(writer, *_entries(254, 3))
    except _CrashError:
        died = True
    monkeypatch.undo()
    size = read_log(FolderReader(tmp_path), VKEY).checkpoint.size
    published = done.count("replace") + done.count("rename") == 8  # two documents, two bundles, three tiles; the checkpoint last
    assert size == (257 if published else 254)
    assert died == (survives < 28)  # 27 flushes and renames in all
    after = _writer(tmp_path)
    _append(after, b"something else")
    log = read_log(FolderReader(tmp_path), VKEY)
    assert log.entries == (*_entries(0, size), b"something else")


@pytest.mark.parametrize("fails_at", range(6))
def test_a_full_disk_at_any_write_leaves_log_and_writer_as_they_were(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _writer(tmp_path)
    _append(writer, *_entries(0, 3))
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space"):
        _append(writer, b"too much")
    monkeypatch.undo()
    assert writer.size == 3
    assert read_log(FolderReader(tmp_path), VKEY).checkpoint.size == 3
    assert list(tmp_path.rglob("*.tmp")) == []
    _append(writer, b"later")
    assert read_log(FolderReader(tmp_path), VKEY).entries == (*_entries(0, 3), b"later")


def _append_many(folder: str, name: str, count: int) -> None:
    writer = _writer(Path(folder))
    for index in range(count):
        _append(writer, f"{name} {index}".encode())


def test_two_processes_write_one_history(tmp_path: Path) -> None:
    _writer(tmp_path)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(str(tmp_path), name, 15)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    entries = read_log(FolderReader(tmp_path), VKEY).entries
    for name in (b"a", b"b"):
        assert [entry for entry in entries if entry.startswith(name)] == [b"%s %d" % (name, index) for index in range(15)]
    assert len(entries) == 30


def test_an_older_copy_put_back_is_noticed(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "log")
    _append(writer, b"one")
    shutil.copytree(tmp_path / "log", tmp_path / "old")
    _append(writer, b"two")
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "old").rename(tmp_path / "log")
    with pytest.raises(LogError, match="old copy"):
        _append(writer, b"three")


@pytest.mark.parametrize("name", ["checkpoint", "tile/entries/000.p/5"])
def test_a_damaged_log_is_not_continued(tmp_path: Path, name: str) -> None:
    _append(_writer(tmp_path), *_entries(0, 5))
    raw = bytearray((tmp_path / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(Exception, match=r".") as caught:
        _append(_writer(tmp_path), b"more")
    assert type(caught.value).__module__ == "common.errors"


def test_a_damaged_document_is_not_given_out(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    _append(writer, b"one")
    [path] = (tmp_path / "documents").iterdir()
    path.write_bytes(b"other")
    with pytest.raises(LogError, match="damaged"):
        writer.document(path.name)
    for odd in ("../checkpoint", "", "0" * 63, "0" * 64):
        with pytest.raises(NotFoundError):
            writer.document(odd)


def test_opening_a_long_log_reads_its_right_edge_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _writer(tmp_path)
    _append(writer, *_entries(0, 70_000))
    assert (tmp_path / "tile/2/000.p/1").stat().st_size == 32
    read: list[str] = []
    real = Path.read_bytes

    def counting(path: Path) -> bytes:
        read.append(str(path.relative_to(tmp_path)))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", counting)
    view = LogView(tmp_path, VKEY)
    view.refresh()
    assert read == ["checkpoint", "tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]
    receipt = view.receipt(12_345)
    assert verify_receipt(receipt.proof, b"entry 12345", VKEY).checkpoint.size == 70_000
    proof, note = view.consistency(54_321)
    old = root_hash([leaf_hash(entry) for entry in _entries(0, 54_321)])
    verify_consistency(54_321, 70_000, proof, old, verify_checkpoint(note, VKEY).root)
    assert len(read) < 16
    assert view.entries(69_998, 80_000) == _entries(69_998, 2)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tile/0/001.p/144", "do not have the root"),
        ("tile/1/000.p/1", "do not have the root"),
        ("tile/entries/000", "does not hold the entries"),
        ("tile/0/000", "does not hold the entries|does not lead"),
    ],
)
def test_damage_is_noticed_where_it_is_read(tmp_path: Path, name: str, says: str) -> None:
    _append(_writer(tmp_path), *_entries(0, 400))
    path = tmp_path / name
    raw = bytearray(path.read_bytes())
    raw[17] ^= 1
    path.write_bytes(raw)
    view = LogView(tmp_path, VKEY)
    with pytest.raises(LogError, match=says):
        view.refresh()
        view.receipt(5)


def test_a_damaged_tile_does_not_look_like_a_fork(tmp_path: Path) -> None:
    _append(_writer(tmp_path), *_entries(0, 400))
    path = tmp_path / "tile/0/000"
    raw = bytearray(path.read_bytes())
    raw[32 * 77] ^= 1
    path.write_bytes(raw)
    view = LogView(tmp_path, VKEY)
    view.refresh()
    with pytest.raises(LogError, match="damaged"):
        view.consistency(70)


def test_another_log_under_the_same_key_is_not_followed(tmp_path: Path) -> None:
    _append(_writer(tmp_path / "one"), *_entries(0, 5))
    _append(_writer(tmp_path / "two"), *_entries(1, 9))
    view = LogView(tmp_path / "one", VKEY)
    view.refresh()
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "two").rename(tmp_path / "one")
    with pytest.raises(LogError, match="replaced by another"):
        view.refresh()
    assert view.size == 5


# --- cosignatures ------------------------------------------------------------------------------------------------------------------

WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(32))
WITNESS_VKEY = witness_vkey("elmgrove/grove/witness/anna", WITNESS)


def _line(writer: LogWriter, hour: int = 12) -> str:
    return cosign(writer.checkpoint, "elmgrove/grove/witness/anna", WITNESS, datetime(2026, 11, 1, hour, tzinfo=UTC))


@pytest.mark.parametrize("survives", range(4))
def test_a_crash_while_cosigning_leaves_the_checkpoint_with_or_without_the_line(
    tmp_path: Path, survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _writer(tmp_path)
    _append(writer, *_entries(0, 3))
    bare, line = writer.checkpoint, _line(writer)
    done = _die_after(survives, monkeypatch)
    died = False
    try:
        with writer.exclusive():
            writer.cosign(3, line, WITNESS_VKEY)
    except _CrashError:
        died = True
    monkeypatch.undo()
    assert died == (survives < 3)
    found = (tmp_path / "checkpoint").read_bytes()
    assert found == (bare + line.encode() if len(done) >= 2 else bare)
    after = _writer(tmp_path)
    with after.exclusive():
        assert after.cosign(3, line, WITNESS_VKEY)
    assert read_log(FolderReader(tmp_path), VKEY).note == bare + line.encode()
    _append(after, b"next")
    assert b"witness" not in read_log(FolderReader(tmp_path), VKEY).note


def test_a_cosignature_is_for_the_checkpoint_of_its_size_and_replaces_an_older_one(tmp_path: Path) -> None:
    writer, view = _writer(tmp_path), LogView(tmp_path, VKEY)
    _append(writer, *_entries(0, 3))
    bare, early, late = writer.checkpoint, _line(writer, 11), _line(writer, 13)
    with writer.exclusive():
        assert not writer.cosign(2, early, WITNESS_VKEY)
        assert writer.cosign(3, late, WITNESS_VKEY)
        assert writer.cosign(3, early, WITNESS_VKEY), "a newer line is there"
    view.refresh()
    assert (view.checkpoint, view.size) == (bare + late.encode(), 3)
    assert verify_receipt(view.receipt(1).proof, b"entry 1", VKEY).index == 1
    with pytest.raises(SignatureError), writer.exclusive():
        writer.cosign(3, early.replace("anna", "ben"), WITNESS_VKEY)
    assert (tmp_path / "checkpoint").read_bytes() == bare + late.encode()


def test_another_program_that_changes_the_checkpoint_under_the_lock_is_noticed(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    _append(writer, *_entries(0, 3))
    line = _line(writer)
    with writer.exclusive():
        (tmp_path / "checkpoint").write_bytes(writer.checkpoint + line.encode())
        with pytest.raises(LogError, match="another program"):
            writer.cosign(3, _line(writer, 13), WITNESS_VKEY)
