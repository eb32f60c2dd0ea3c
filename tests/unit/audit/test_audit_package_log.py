from __future__ import annotations

import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from common.audit.logs import audit_log
from common.audit.packages import audit_package
from common.errors import (
    CertificateError,
    FormatError,
    LogError,
    LogInconsistentError,
    NotFoundError,
    NotLoggedError,
    RevokedError,
    TemplateError,
)
from common.formats.fields import format_time
from common.translog.tiles import encode_entries, entries_path, parse_entries, tile_path
from tests.support.signing import sign_folder
from tests.support.tiny_consortium import TinyConsortium
from tests.support.tiny_manifests import expert_manifest
from tests.support.tiny_weights import TinyShape, write_expert_files


@pytest.fixture
def grove(tmp_path: Path) -> TinyConsortium:
    grove = TinyConsortium(tmp_path / "grove")
    grove.admit("anna")
    grove.publish_anchor()
    grove.contribute("anna", "law")
    return grove


def law_of(grove: TinyConsortium) -> Path:
    return grove.folder / "packages" / "law-v1"


# --- packages -----------------------------------------------------------------------------------------------------------


def test_an_honest_package_holds_with_and_without_a_log(grove: TinyConsortium) -> None:
    assert not audit_package(law_of(grove), grove.root, at=grove.now).faults
    report = audit_package(law_of(grove), grove.root, log=grove.log)
    assert not report.faults
    assert report.facts["signer"] == "elmgrove://grove/owners/anna"
    assert (report.facts["entry"], report.facts["expert"], report.facts["version"]) == (3, "law", 1)
    assert "accepted by entry 3" in report.as_text()
    assert "in force" in report.as_text()


def test_an_anchor_is_audited_as_one(grove: TinyConsortium) -> None:
    report = audit_package(grove.anchor, grove.root, log=grove.log)
    assert not report.faults
    assert report.facts["signer"] == "elmgrove://grove/operator"


def test_after_expiry_the_log_time_counts(grove: TinyConsortium) -> None:
    late = grove.now + timedelta(days=800)
    assert [type(fault) for fault in audit_package(law_of(grove), grove.root, at=late).faults] == [CertificateError]
    assert not audit_package(law_of(grove), grove.root, log=grove.log).faults


def test_a_package_that_the_log_never_took_is_found(grove: TinyConsortium) -> None:
    report = audit_package(grove.package("anna", "other"), grove.root, log=grove.log)
    assert [type(fault) for fault in report.faults] == [NotLoggedError]


def test_a_second_signature_over_a_logged_manifest_is_found(grove: TinyConsortium) -> None:
    again = grove.party("anna", "elmgrove://grove/owners/anna", ("signing",))
    (law_of(grove) / "model.sig").write_bytes(sign_folder(law_of(grove), again.key, again.certificate))
    report = audit_package(law_of(grove), grove.root, log=grove.log)
    assert any("not the signature that the log took with entry 3" in str(fault) for fault in report.faults)


def test_withdrawal_and_supersession_are_reported_and_revocation_fails(grove: TinyConsortium) -> None:
    first = law_of(grove)
    grove.contribute("anna", "law", version=2, supersedes=audit_package(first, grove.root, at=grove.now).facts["manifest"])  # type: ignore[arg-type]
    report = audit_package(first, grove.root, log=grove.log)
    assert not report.faults
    assert "superseded since entry 4" in report.as_text()
    second = grove.folder / "packages" / "law-v2"
    at = grove.now
    grove.revoke("anna")
    assert [type(fault) for fault in audit_package(second, grove.root, log=grove.log).faults] == [RevokedError]
    assert not audit_package(second, grove.root, log=grove.log, at=at).faults


def test_withdrawal_is_reported(grove: TinyConsortium) -> None:
    grove.withdraw("anna", law_of(grove))
    report = audit_package(law_of(grove), grove.root, log=grove.log)
    assert not report.faults
    assert "withdrawn since entry 4" in report.as_text()


def test_a_foreign_root_is_found(grove: TinyConsortium, tmp_path: Path) -> None:
    other = TinyConsortium(tmp_path / "other")
    assert [type(fault) for fault in audit_package(law_of(grove), other.root, at=grove.now).faults] == [CertificateError]
    assert [type(fault) for fault in audit_log(grove.log, other.root).faults] == [LogError]


def test_a_logged_package_of_other_sizes_is_found(grove: TinyConsortium, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    write_expert_files(folder, TinyShape(inner=32))
    expert_manifest(folder, grove.anchor_digest, name="wide")
    anna = grove.owners["anna"]
    (folder / "model.sig").write_bytes(sign_folder(folder, anna.key, anna.certificate))
    grove.accept(folder)
    assert [type(fault) for fault in audit_package(folder, grove.root, log=grove.log).faults] == [TemplateError]


def test_a_missing_folder_or_signature(grove: TinyConsortium, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        audit_package(tmp_path / "nothing", grove.root)
    (law_of(grove) / "model.sig").unlink()
    assert [type(fault) for fault in audit_package(law_of(grove), grove.root, at=grove.now).faults] == [NotFoundError]


# --- logs ---------------------------------------------------------------------------------------------------------------


def test_an_honest_log_holds_and_is_described(honest: TinyConsortium) -> None:
    report = audit_log(honest.log, honest.root)
    assert not report.faults
    assert report.facts["size"] == len(honest.entries)
    assert [entry["kind"] for entry in report.facts["entries"]][:2] == ["consortium-founded", "owner-admitted"]  # type: ignore[attr-defined]
    assert "medicine version 1 of elmgrove://grove/owners/bert: withdrawn" in report.as_text()


def test_an_earlier_checkpoint_is_continued(grove: TinyConsortium, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(grove.checkpoint(2))
    report = audit_log(grove.log, grove.root, since=kept)
    assert not report.faults
    assert report.facts["since_size"] == 2


@pytest.mark.parametrize("kind", ["tile", "entries"])
def test_what_smaller_trees_left_is_compared_too(grove: TinyConsortium, kind: str) -> None:
    """Partial files of earlier checkpoints lie beside those of the newest one."""
    size = len(grove.entries)
    tile, bundle = (grove.log / path(0, 2) for path in (partial(tile_path, 0), entries_path))
    tile.write_bytes((grove.log / tile_path(0, 0, size)).read_bytes()[:64])
    bundle.write_bytes(encode_entries(parse_entries((grove.log / entries_path(0, size)).read_bytes())[:2]))
    assert not audit_log(grove.log, grove.root).faults
    changed = tile if kind == "tile" else bundle
    raw = bytearray(changed.read_bytes())
    raw[-1] ^= 1
    changed.write_bytes(raw)
    faults = audit_log(grove.log, grove.root).faults
    assert [type(fault) for fault in faults] == [LogError]
    assert "/000.p/2 " in str(faults[0])


def test_a_rolled_back_log_is_found(grove: TinyConsortium, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(grove.checkpoint())
    del grove.entries[-1]
    grove.write_log()
    assert not audit_log(grove.log, grove.root).faults
    faults = audit_log(grove.log, grove.root, since=kept).faults
    assert [type(fault) for fault in faults] == [LogInconsistentError]
    assert "rolled back" in str(faults[0])


def test_a_forked_log_is_found(grove: TinyConsortium, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(grove.checkpoint())
    del grove.entries[-1]
    grove.contribute("anna", "history")
    faults = audit_log(grove.log, grove.root, since=kept).faults
    assert [type(fault) for fault in faults] == [LogInconsistentError]
    assert "two histories" in str(faults[0])


def test_a_checkpoint_of_another_log_or_no_checkpoint_is_refused(grove: TinyConsortium, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(TinyConsortium(tmp_path / "other").checkpoint())
    assert [type(fault) for fault in audit_log(grove.log, grove.root, since=kept).faults] == [LogError]
    kept.write_bytes(b"nothing")
    assert [type(fault) for fault in audit_log(grove.log, grove.root, since=kept).faults] == [FormatError]
    with pytest.raises(NotFoundError):
        audit_log(grove.log, grove.root, since=tmp_path / "absent")


def test_a_dropped_entry_a_reordered_log_and_an_empty_folder_are_found(grove: TinyConsortium, tmp_path: Path) -> None:
    entries = list(grove.entries)
    for wrong in (entries[:1] + entries[2:], [entries[0], entries[2], entries[1], entries[3]], [*entries, entries[3]], entries[1:]):
        grove.entries = wrong
        grove.write_log()
        assert audit_log(grove.log, grove.root).faults, len(wrong)
    shutil.rmtree(grove.log)
    grove.log.mkdir()
    assert [type(fault) for fault in audit_log(grove.log, grove.root).faults] == [LogError]
    with pytest.raises(NotFoundError):
        audit_log(tmp_path / "nothing", grove.root)


def test_before_its_first_entry_there_is_no_log(grove: TinyConsortium) -> None:
    report = audit_package(law_of(grove), grove.root, log=grove.log, at=grove.now - timedelta(days=1))
    assert "did not exist" in str(report.faults[0])
    assert format_time(grove.now - timedelta(days=1)) in str(report.faults[0])
