"""Writing files: the old content or the new, never a part, and a full disk leaves nothing behind."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import AlreadyExistsError, StorageError, UsageError
from common.files import atomic_folder, scratch_folder, storage_errors, write_all, write_atomic

ROOT = Path(__file__).resolve().parents[2]


def test_write_atomic_replaces_whole_and_sets_the_mode(tmp_path: Path) -> None:
    target = tmp_path / "key"
    write_atomic(target, b"old")
    write_atomic(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_exclusive_writing_keeps_what_is_there(tmp_path: Path) -> None:
    target = tmp_path / "key"
    write_atomic(target, b"first", exclusive=True)
    with pytest.raises(AlreadyExistsError, match="key exists"):
        write_atomic(target, b"second", exclusive=True)
    assert target.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["key"]


def test_atomic_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as aside:
        (aside / "a").write_bytes(b"1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_atomic_folder_vanishes_on_failure(tmp_path: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop), atomic_folder(tmp_path / "out") as aside:
        (aside / "a").write_bytes(b"1")
        raise stop
    assert os.listdir(tmp_path) == []


def test_atomic_folder_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AlreadyExistsError), atomic_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "No space"), (errno.EACCES, "Not allowed"), (errno.EIO, "input/output")])
def test_refusals_of_the_system_become_storage_errors(number: int, said: str) -> None:
    with pytest.raises(StorageError, match=said), storage_errors("the model"):
        raise OSError(number, os.strerror(number))


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(FileNotFoundError), storage_errors("the model"):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A real limit of the kernel (RLIMIT_FSIZE gives EFBIG) interrupts the write in the middle."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from common.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: write_atomic(Path(sys.argv[1]) / 'big', b'x' * 1_000_000)\n"
        "except OSError: sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 7
    assert os.listdir(tmp_path) == []


def test_a_scratch_folder_vanishes_however_the_block_ends(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, ".work-") as folder:
        (folder / "a").write_bytes(b"1")
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path, ".work-") as folder:
        (folder / "a").write_bytes(b"1")
        raise KeyboardInterrupt
    with pytest.raises(StorageError), scratch_folder(tmp_path, ".work-"):
        raise OSError(errno.ENOSPC, "full")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["file/out", "file/deep/out", "x" * 300])
def test_an_impossible_place_is_explained(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Cannot write"), atomic_folder(tmp_path / place):
        pass
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("count", [3, 40])
def test_many_files_are_all_written_or_the_failure_leaves_no_debris(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    files = {tmp_path / "ab"[number % 2] / str(number): b"%d" % number for number in range(count)}
    write_all(files)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == files
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space"):
        write_all(dict.fromkeys(files, b"other"))
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == files
    assert len(list(tmp_path.rglob("*"))) == count + 2
