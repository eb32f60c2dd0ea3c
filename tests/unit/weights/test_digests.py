from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from common.errors import DigestError, InterruptedByUserError, LayoutError, LimitError, NotFoundError
from common.formats.limits import CHUNK_BYTES
from common.weights import digests
from common.weights.digests import HashingReader, digest_file, open_regular, read_small
from common.weights.parallel import Meter, map_threads


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1_048_577, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 12_345])
def test_whole_and_chunks_are_those_of_the_bytes(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    digest = digest_file(tmp_path / "file")
    chunks = tuple(sha(content[at : at + CHUNK_BYTES]) for at in range(0, size, CHUNK_BYTES))
    assert (digest.size, digest.sha256, digest.chunks) == (size, sha(content), chunks)
    assert digest_file(tmp_path / "file", chunks=False).chunks == ()


def test_a_reader_hashes_what_it_gives_out(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    part = hashlib.sha256()
    with open_regular(tmp_path / "file") as descriptor:
        reader = HashingReader(descriptor, "file")
        assert reader.take(10) == content[:10]
        reader.feed(1_500_000, part)
        digest = reader.finish()
    assert digest.sha256 == sha(content)
    assert part.hexdigest() == sha(content[10:1_500_010])


def test_links_folders_and_fifos_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "folder", "fifo"):
        with pytest.raises(LayoutError, match=name):
            digest_file(tmp_path / name)
    with pytest.raises(NotFoundError, match="nothing"):
        digest_file(tmp_path / "nothing")


def test_a_file_that_shrinks_or_grows_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with open_regular(path) as descriptor:
        reader = HashingReader(descriptor, "file")
        path.write_bytes(b"x" * 50)
        with pytest.raises(DigestError, match="shorter"):
            reader.finish()
    with open_regular(path) as descriptor:
        reader = HashingReader(descriptor, "file")
        path.write_bytes(b"x" * 60)
        with pytest.raises(DigestError, match="changed"):
            reader.finish()


def test_small_files_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert read_small(tmp_path / "file", 11) == b"x" * 11
    with pytest.raises(LimitError):
        read_small(tmp_path / "file", 10)


def test_one_failure_stops_the_other_threads(tmp_path: Path) -> None:
    meter = Meter()
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise DigestError("first")
        while True:
            meter.add(1)

    with pytest.raises(DigestError, match="first"):
        map_threads(work, range(100), meter)
    assert len(begun) < 100
    with pytest.raises(InterruptedByUserError):
        meter.add(1)


def test_blocks_divide_chunks() -> None:
    assert CHUNK_BYTES % digests.BLOCK_BYTES == 0
