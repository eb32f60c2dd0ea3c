"""How an expert's time ends, and what each end does to later assemblies, to the audit of an older model, and to stored bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from click.testing import CliRunner

import coordinator.usecases.assemble as assemble_module
from common.audit.models import audit_model
from common.errors import WithdrawnError
from common.formats.fields import format_time, utc_now
from coordinator.cli.main import cli
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.revoke import revoke_owner
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import Grove, Member


def _withdraw(grove: Grove, anna: Member, digest: str, anchor: str) -> None:
    withdraw_expert(grove.coordinator, grove.owner("anna"), anna.withdrawal("tides", digest))


def _revoke(grove: Grove, anna: Member, digest: str, anchor: str) -> None:
    revoke_owner(grove.coordinator, "anna", reason="left")


def _supersede(grove: Grove, anna: Member, digest: str, anchor: str) -> None:
    grove.push(anna, anna.package(grove.folder / "second", anchor, version=2, supersedes=digest, seed=2))


ENDS: dict[str, Callable[[Grove, Member, str, str], None]] = {"withdrawn": _withdraw, "revoked": _revoke, "superseded": _supersede}


@pytest.mark.parametrize("status", ENDS)
def test_an_end_closes_later_assemblies_and_leaves_older_models_explained(grove: Grove, status: str) -> None:
    anna, ben, anchor = grove.join("anna"), grove.join("ben"), grove.publish()
    grove.push(anna, anna.package(grove.folder / "package", anchor))
    grove.push(ben, ben.package(grove.folder / "other", anchor, name="moss", seed=3))
    assemble_model(grove.coordinator, grove.folder / "before")
    before = grove.coordinator.ledger.state().experts["tides"][0]
    ENDS[status](grove, anna, before.digest, anchor)
    after = assemble_model(grove.coordinator, grove.folder / "after")
    assert [(slot.name, slot.version) for slot in after.experts] == ([("tides", 2)] if status == "superseded" else []) + [("moss", 1)]
    if status != "superseded":
        with pytest.raises(WithdrawnError, match=status):
            assemble_model(grove.coordinator, grove.folder / "never", include=["tides"])
        assert not (grove.folder / "never").exists()
    report = audit_model(grove.folder / "before", grove.coordinator.root, log=grove.home.log)
    assert report.faults == []
    assert any(status in check.detail and "tides version 1" in check.detail for check in report.checks)
    assert all(grove.coordinator.blobs.has(entry.sha256) for entry in before.manifest.files), "the retention time has only begun"


def test_an_expert_past_its_time_enters_no_model_and_its_terms_are_shown(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, anchor = grove.join("anna"), grove.publish()
    limit = utc_now() + timedelta(hours=1)
    package = anna.package(grove.folder / "package", anchor)
    manifest = json.loads((package / "manifest.json").read_bytes())
    manifest |= {"licence": "research only", "permitted_uses": ["teaching", "triage"], "not_after": format_time(limit)}
    (package / "manifest.json").write_text(json.dumps(manifest))
    grove.push(anna, anna.sign(package))
    home = str(grove.home.path)
    said = f"licence research only, permitted uses: teaching; triage, not after {format_time(limit)}"
    assert f"tides version 1: {said}" in CliRunner().invoke(cli, ["experts", "--home", home]).output
    assert f"tides: {said}" in CliRunner().invoke(cli, ["assemble", str(grove.folder / "model"), "--home", home, "-q"]).output
    monkeypatch.setattr(assemble_module, "utc_now", lambda: limit + timedelta(seconds=1))
    with pytest.raises(WithdrawnError, match="not in force"):
        assemble_model(grove.coordinator, grove.folder / "late", include=["tides"])
