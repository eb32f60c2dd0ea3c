"""Deleting what left: only after the retention time, never a digest, never what something else needs, each time with a line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import coordinator.usecases.collect_garbage as garbage_module
from common.audit.logs import audit_log
from common.audit.models import audit_model
from common.formats.manifest import ExpertManifest
from common.formats.strictjson import parse_document
from coordinator.cli.main import cli
from coordinator.config import Retention
from coordinator.service.housekeeping import Housekeeper
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.collect_garbage import collect_garbage
from coordinator.usecases.context import Coordinator
from coordinator.usecases.revoke import revoke_owner
from coordinator.usecases.uploads import accepted_bytes
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import Grove, Member, wait_until


def _keeping(grove: Grove, **settings: int | bool) -> Coordinator:
    config = grove.coordinator.config.model_copy(update={"retention": Retention.model_validate(settings)})
    return dataclasses.replace(grove.coordinator, config=config)


def _blobs(package: Path) -> list[str]:
    return [entry.sha256 for entry in parse_document(ExpertManifest, (package / "manifest.json").read_bytes()).files]


def _withdraw(grove: Grove, member: Member, name: str) -> None:
    newest = grove.coordinator.ledger.state().experts[name][-1]
    withdraw_expert(grove.coordinator, grove.owner(member.name), member.withdrawal(name, newest.digest))


def _here(grove: Grove, package: Path) -> int:
    return sum(grove.coordinator.blobs.has(digest) for digest in _blobs(package))


def test_a_withdrawn_expert_keeps_its_bytes_for_the_retention_time_and_its_digests_for_ever(grove: Grove, anna: Member) -> None:
    package = anna.package(grove.folder / "package", grove.publish())
    grove.push(anna, package)
    model = grove.folder / "model"
    assemble_model(grove.coordinator, model)
    _withdraw(grove, anna, "tides")
    assert collect_garbage(grove.coordinator).deletions == ()
    assert _here(grove, package) == len(_blobs(package))
    documents = sorted((grove.home.log / "documents").iterdir())
    [deletion] = collect_garbage(_keeping(grove, withdrawn_days=0)).deletions
    assert set(deletion.files) == set(_blobs(package))
    assert _here(grove, package) == 0
    assert sorted((grove.home.log / "documents").iterdir()) == documents
    line = json.loads(grove.home.audit.read_text().splitlines()[-1])
    assert (line["event"], line["expert"], line["version"], line["bytes"]) == ("deleted", "tides", 1, deletion.size)
    assert audit_log(grove.home.log, grove.coordinator.root).faults == []
    report = audit_model(model, grove.coordinator.root, log=grove.home.log)
    assert report.faults == [], "an old model is audited against digests, not bytes"
    assert collect_garbage(_keeping(grove, withdrawn_days=0)).deletions == (), "once is enough"


def test_deleted_bytes_no_longer_count_against_the_quota(grove: Grove, anna: Member) -> None:
    grove.push(anna, anna.package(grove.folder / "package", grove.publish()))
    _withdraw(grove, anna, "tides")
    state, owner = grove.coordinator.ledger.state(), grove.owner("anna")
    assert accepted_bytes(grove.coordinator, state, owner) > 0
    collect_garbage(_keeping(grove, withdrawn_days=0))
    assert accepted_bytes(grove.coordinator, state, owner) == 0


def test_a_blob_that_an_expert_in_force_shares_is_kept(grove: Grove, anna: Member) -> None:
    ben, anchor = grove.join("ben"), grove.publish()
    package = anna.package(grove.folder / "one", anchor)
    grove.push(anna, package)
    grove.push(ben, ben.package(grove.folder / "two", anchor, name="moss"))
    _withdraw(grove, anna, "tides")
    assert collect_garbage(_keeping(grove, withdrawn_days=0)).deletions == ()
    assert _here(grove, package) == len(_blobs(package))


def test_superseded_versions_go_only_if_the_operator_says_so_or_the_expert_left(grove: Grove, anna: Member) -> None:
    anchor = grove.publish()
    first = anna.package(grove.folder / "one", anchor)
    grove.push(anna, first)
    digest = grove.coordinator.ledger.state().experts["tides"][-1].digest
    second = anna.package(grove.folder / "two", anchor, version=2, supersedes=digest, seed=2)
    grove.push(anna, second)
    assert collect_garbage(_keeping(grove, withdrawn_days=0)).deletions == ()
    with_superseded = _keeping(grove, withdrawn_days=0, delete_superseded=True)
    assert [each.expert.version for each in collect_garbage(with_superseded, dry_run=True).deletions] == [1]
    revoke_owner(grove.coordinator, "anna", reason="left")
    assert [each.expert.version for each in collect_garbage(_keeping(grove, withdrawn_days=0)).deletions] == [1, 2]
    assert not any(grove.coordinator.blobs.has(digest) for digest in {*_blobs(first), *_blobs(second)})


def test_blobs_that_a_crash_left_go_after_a_day(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    stray = grove.folder / "stray"
    stray.write_bytes(b"left behind")
    digest = "".join(f"{byte:02x}" for byte in range(32))
    grove.coordinator.blobs.adopt(stray, digest)
    assert collect_garbage(grove.coordinator).strays == ()
    monkeypatch.setattr(garbage_module, "_STRAY_SECONDS", -60.0)
    assert collect_garbage(grove.coordinator).strays == (digest,)
    assert not grove.coordinator.blobs.has(digest)


def test_the_command_tells_before_it_deletes(grove: Grove, anna: Member) -> None:
    package = anna.package(grove.folder / "package", grove.publish())
    grove.push(anna, package)
    _withdraw(grove, anna, "tides")
    settings = grove.home.config.read_text().replace("withdrawn_days = 30", "withdrawn_days = 0")
    grove.home.config.write_text(settings)
    home = str(grove.home.path)
    dry = json.loads(CliRunner().invoke(cli, ["gc", "--dry-run", "--json", "--home", home]).output)
    assert [(row["name"], row["status"]) for row in dry["experts"]] == [("tides", "withdrawn")]
    assert _here(grove, package) == len(_blobs(package))
    assert "Deleted" in CliRunner().invoke(cli, ["gc", "--home", home]).output
    assert _here(grove, package) == 0
    assert "Nothing to delete" in CliRunner().invoke(cli, ["gc", "--home", home]).output


def test_a_served_coordinator_does_it_by_itself(grove: Grove, anna: Member) -> None:
    package = anna.package(grove.folder / "package", grove.publish())
    grove.push(anna, package)
    housekeeper = Housekeeper(_keeping(grove, withdrawn_days=0), interval=0.05)
    housekeeper.start()
    try:
        _withdraw(grove, anna, "tides")
        wait_until(lambda: _here(grove, package) == 0)
    finally:
        housekeeper.stop()
