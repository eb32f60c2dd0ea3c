"""Invitations, blobs, uploads and arriving chunks, on a real database and real files."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import ConfigError, DigestError, InvitationRefusedError, NotFoundError, ProtocolError, StorageError, UnavailableError
from common.formats.limits import CHUNK_BYTES
from common.formats.manifest import FileEntry
from coordinator.store.arrivals import Arrivals, ChunkWriter
from coordinator.store.audit import AuditTrail
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.invitations import Invitations
from coordinator.store.uploads import UploadRecord, Uploads

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state.db")


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def test_of_many_who_spend_one_token_at_once_one_wins(database: Database) -> None:
    invitations = Invitations(database)
    invitations.add("token", "anna", created=NOW, expires=NOW + timedelta(days=1))

    def spend(_: int) -> str | None:
        try:
            return invitations.spend("token", at=NOW)
        except InvitationRefusedError:
            return None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(spend, range(16)))
    assert results.count("anna") == 1
    assert invitations.spent_on("token") == "anna"


def test_a_token_is_refused_when_unknown_expired_or_spent_and_works_again_when_given_back(database: Database) -> None:
    invitations = Invitations(database)
    invitations.add("token", "anna", created=NOW, expires=NOW + timedelta(hours=1))
    with pytest.raises(InvitationRefusedError):
        invitations.spend("other", at=NOW)
    with pytest.raises(InvitationRefusedError):
        invitations.spend("token", at=NOW + timedelta(hours=1))
    assert invitations.spent_on("token") is None
    assert invitations.spend("token", at=NOW) == "anna"
    with pytest.raises(InvitationRefusedError):
        invitations.spend("token", at=NOW)
    invitations.give_back("token")
    assert invitations.spend("token", at=NOW) == "anna"


def test_the_database_holds_no_token(database: Database, tmp_path: Path) -> None:
    Invitations(database).add("very-secret-token", "anna", created=NOW, expires=NOW)
    database.close()
    assert b"very-secret-token" not in b"".join(path.read_bytes() for path in tmp_path.glob("state.db*"))


def test_a_database_of_another_version_is_refused(tmp_path: Path, database: Database) -> None:
    from sqlalchemy import text

    with database.begin() as connection:
        connection.execute(text("PRAGMA user_version = 99"))
    database.close()
    with pytest.raises(ConfigError, match="schema 99"):
        Database(tmp_path / "state.db")


def test_a_database_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Database(tmp_path / "missing" / "state.db")


def test_blobs_are_linked_read_and_discarded(tmp_path: Path) -> None:
    blobs, raw = Blobs(tmp_path / "blobs"), os.urandom(3000)
    source = tmp_path / "file"
    source.write_bytes(raw)
    assert blobs.adopt(source, _digest(raw))
    assert not blobs.adopt(source, _digest(raw))
    assert blobs.path(_digest(raw)).samefile(source)
    assert b"".join(blobs.read(_digest(raw), 100, 2500, 1000)) == raw[100:2600]
    assert [len(piece) for piece in blobs.read(_digest(raw), 0, 3000, 1024)] == [1024, 1024, 952]
    blobs.discard([_digest(raw)])
    with pytest.raises(NotFoundError):
        next(blobs.read(_digest(raw), 0, 1, 1))
    with pytest.raises(NotFoundError):
        blobs.path("../../state.db")


def test_adopting_across_file_systems_copies_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs, source = Blobs(tmp_path / "blobs"), tmp_path / "file"
    source.write_bytes(b"content")

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert blobs.adopt(source, _digest(b"content"))
    assert blobs.path(_digest(b"content")).read_bytes() == b"content"
    with pytest.raises(DigestError):
        blobs.adopt(source, _digest(b"something else"))
    assert [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [_digest(b"content")]


CONTENT = os.urandom(CHUNK_BYTES + 1000)
ENTRY = FileEntry(
    name="part-0000.safetensors",
    size=len(CONTENT),
    sha256=_digest(CONTENT),
    chunks=(_digest(CONTENT[:CHUNK_BYTES]), _digest(CONTENT[CHUNK_BYTES:])),
)


@pytest.fixture
def uploads(database: Database, tmp_path: Path) -> Uploads:
    (tmp_path / "uploads").mkdir()
    return Uploads(database, tmp_path / "uploads")


def _create(uploads: Uploads, manifest: str = "0" * 64) -> UploadRecord:
    return uploads.create(owner="anna", manifest=manifest, expert="tides", version=1, files=[ENTRY], documents=(b"m", b"s"), at=NOW)


def _begin(arrivals: Arrivals, record: UploadRecord) -> ChunkWriter:
    writer = arrivals.begin(record, [ENTRY], (0, 1))
    assert writer is not None
    return writer


def test_a_chunk_is_known_once_it_is_whole_and_right(uploads: Uploads) -> None:
    record = _create(uploads)
    arrivals = Arrivals(uploads)
    with _begin(arrivals, record) as writer:
        writer.write(0, CONTENT[CHUNK_BYTES:][:600])
        assert not writer.complete
        writer.write(600, CONTENT[CHUNK_BYTES:][600:])
        assert writer.complete
        assert uploads.chunks(record.id) == set()
        writer.finish()
    assert uploads.chunks(record.id) == {(0, 1)}
    assert (uploads.folder(record.id) / ENTRY.name).read_bytes()[CHUNK_BYTES:] == CONTENT[CHUNK_BYTES:]
    assert [(found.id, received) for found, received in uploads.open_of("anna")] == [(record.id, 1000)]


def test_a_wrong_chunk_is_refused_and_stays_missing(uploads: Uploads) -> None:
    record = _create(uploads)
    with _begin(Arrivals(uploads), record) as writer:
        writer.write(0, bytes(1000))
        with pytest.raises(DigestError):
            writer.finish()
    assert uploads.chunks(record.id) == set()


@pytest.mark.parametrize(("offset", "data"), [(1, b"x"), (0, b""), (0, bytes(1001)), (2**31, b"x")])
def test_pieces_out_of_order_or_bounds_are_refused(uploads: Uploads, offset: int, data: bytes) -> None:
    with _begin(Arrivals(uploads), _create(uploads)) as writer, pytest.raises(ProtocolError):
        writer.write(offset, data)


@pytest.mark.parametrize("key", [(1, 0), (0, 2), (2**32 - 1, 2**32 - 1)])
def test_chunks_that_the_manifest_does_not_have_are_refused(uploads: Uploads, key: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError):
        Arrivals(uploads).begin(_create(uploads), [ENTRY], key)


def test_a_later_stream_takes_a_chunk_over_from_a_dead_one(uploads: Uploads) -> None:
    record, arrivals = _create(uploads), Arrivals(uploads)
    with _begin(arrivals, record) as old:
        old.write(0, bytes(500))
        with _begin(arrivals, record) as new:
            new.write(0, CONTENT[CHUNK_BYTES:])
            with pytest.raises(ProtocolError, match="taken"):
                old.write(500, bytes(500))
            new.finish()
        with pytest.raises(ProtocolError, match="taken"):
            old.write(500, bytes(500))
    assert (uploads.folder(record.id) / ENTRY.name).read_bytes()[CHUNK_BYTES:] == CONTENT[CHUNK_BYTES:]


def test_nobody_writes_to_a_sealed_upload(uploads: Uploads) -> None:
    record, arrivals = _create(uploads), Arrivals(uploads)
    with _begin(arrivals, record) as writer:
        arrivals.seal(record.id)
        with pytest.raises(ProtocolError):
            writer.write(0, CONTENT[CHUNK_BYTES:])
        with pytest.raises(ProtocolError, match="committed"):
            arrivals.begin(record, [ENTRY], (0, 0))
        with pytest.raises(UnavailableError, match="committed"):
            arrivals.seal(record.id)
    arrivals.unseal(record.id)
    with _begin(arrivals, record) as writer:
        writer.write(0, CONTENT[CHUNK_BYTES:])
        writer.finish()


def test_many_streams_that_fight_for_one_chunk_leave_the_right_bytes(uploads: Uploads) -> None:
    record, arrivals = _create(uploads), Arrivals(uploads)
    tail, barrier = CONTENT[CHUNK_BYTES:], threading.Barrier(6)

    def fight(lies: bool) -> str:
        barrier.wait()
        for _ in range(500):
            try:
                writer = arrivals.begin(record, [ENTRY], (0, 1))
                if writer is None:
                    return "there already"
                with writer:
                    writer.write(0, bytes(500) if lies else tail[:500])
                    writer.write(500, bytes(500) if lies else tail[500:])
                    writer.finish()
                    return "written"
            except (ProtocolError, DigestError):
                continue
        return "gave up"

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(fight, [True, False] * 3))
    assert results.count("written") == 1
    assert results.index("written") % 2 == 1
    assert "gave up" not in results
    assert (uploads.folder(record.id) / ENTRY.name).read_bytes()[CHUNK_BYTES:] == tail


def test_space_is_reserved_or_nothing_is_left(uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space"):
        _create(uploads)
    assert list((tmp_path / "uploads").iterdir()) == []
    assert uploads.open_of("anna") == []


def test_one_manifest_has_one_upload_and_anothers_is_invisible(uploads: Uploads) -> None:
    record = _create(uploads)
    assert uploads.find("anna", "0" * 64) == record
    assert uploads.find("bert", "0" * 64) is None
    with pytest.raises(NotFoundError):
        uploads.get(record.id, "bert")


def test_clearing_takes_old_uploads_and_strays_and_keeps_the_rest(uploads: Uploads, tmp_path: Path) -> None:
    old, kept = _create(uploads), _create(uploads, "1" * 64)
    uploads.add_chunk(kept.id, (0, 0), CHUNK_BYTES, at=NOW + timedelta(days=2))
    (tmp_path / "uploads" / ("f" * 32)).mkdir()
    assert uploads.clear(untouched_since=NOW + timedelta(days=1)) == 2
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [kept.id]
    assert uploads.find("anna", old.manifest) is None
    assert uploads.chunks(kept.id) == {(0, 0)}


def test_the_audit_trail_is_one_json_line_per_event(tmp_path: Path) -> None:
    import json

    trail = AuditTrail(tmp_path / "audit.jsonl")
    trail.record("invited", owner="anna", nothing=None)
    trail.refused("upload", StorageError("two\nlines"), owner="bert")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["invited", "upload"]
    assert "nothing" not in lines[0]
    assert lines[1]["refused"] == "storage"
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o077 == 0
