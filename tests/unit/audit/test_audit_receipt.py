"""Kept receipts: what they prove with the root alone, with the log, and with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.audit.receipts import audit_receipt
from common.audit.report import AuditReport
from common.errors import NotFoundError, UsageError
from common.formats.entries import LogEntry, encode_entry, parse_entry
from common.translog.proof import parse_receipt
from owner_client.daemon.receipts import Claim, check_receipt, store_receipt
from tests.support.tiny_consortium import TinyConsortium


@pytest.fixture
def receipts(honest: TinyConsortium, tmp_path: Path) -> Path:
    """The receipts of an owner's home, written by the owner's own code."""
    for index, name in ((0, "founding"), (3, "admitted"), (4, "anchors/base"), (5, "experts/law-v1"), (9, "withdrawn/medicine")):
        kept = honest.receipt(index, tmp_path / "made" / name)
        raw_entry, proof, document = ((kept / file).read_bytes() for file in ("entry.json", "receipt.tlog-proof", "document.json"))
        entry = parse_entry(raw_entry)
        checked = check_receipt(raw_entry, proof, Claim(entry.kind, entry.subject, document), honest.vkey)
        store_receipt(tmp_path / "receipts" / name, checked)
    return tmp_path / "receipts"


def codes(report: AuditReport) -> list[str]:
    return [fault.code for fault in report.faults]


@pytest.mark.parametrize("name", ["founding", "admitted", "anchors/base", "experts/law-v1", "withdrawn/medicine"])
def test_every_kept_receipt_holds_with_the_root_alone_and_with_the_log(honest: TinyConsortium, receipts: Path, name: str) -> None:
    alone = audit_receipt(receipts / name, honest.root)
    assert alone.faults == []
    assert "not checked  that the consortium's rules allowed this entry" in alone.as_text()
    assert "from the founding kept with the receipt" in alone.as_text()
    logged = audit_receipt(receipts / name, honest.root, log=honest.log)
    assert logged.faults == []
    assert "its 11 entries follow the rules and continue the receipt's checkpoint" in logged.as_text()


def test_it_says_which_expert_it_stands_for_and_what_became_of_it(honest: TinyConsortium, receipts: Path) -> None:
    report = audit_receipt(receipts / "withdrawn" / "medicine", honest.root, log=honest.log)
    assert "expert-withdrawn of expert/medicine@1" in report.as_text()
    assert "medicine version 1 of elmgrove://grove/owners/bert: withdrawn since entry 9" in report.as_text()
    found = audit_receipt(receipts / "experts" / "law-v1", honest.root, package=honest.folder / "packages" / "law-v1").as_json()
    assert (found["verdict"], found["about"], found["entry"]) == ("holds", "expert/law@1", 5)
    assert found["signer"] == "elmgrove://grove/owners/anna"


def test_the_proof_file_alone_needs_the_log(honest: TinyConsortium, receipts: Path) -> None:
    proof = receipts / "experts" / "law-v1" / "receipt.tlog-proof"
    assert not audit_receipt(proof, honest.root, log=honest.log).faults
    with pytest.raises(UsageError, match="--log"):
        audit_receipt(proof, honest.root)
    with pytest.raises(NotFoundError):
        audit_receipt(receipts / "absent", honest.root)


def test_without_the_founding_and_without_the_log_it_does_not_hold(honest: TinyConsortium, receipts: Path) -> None:
    shutil.rmtree(receipts / "founding")
    report = audit_receipt(receipts / "experts" / "law-v1", honest.root)
    assert codes(report) == ["not-logged"]
    assert "its signature was not checked" in report.as_text()


def test_a_founding_of_another_consortium_is_refused(honest: TinyConsortium, receipts: Path, tmp_path: Path) -> None:
    other = TinyConsortium(tmp_path / "other")
    shutil.rmtree(receipts / "founding")
    other.receipt(0, receipts / "founding")
    assert codes(audit_receipt(receipts / "experts" / "law-v1", honest.root)) == ["log"]
    assert codes(audit_receipt(receipts / "experts" / "law-v1", other.root)) == ["log"]


def test_another_package_is_not_what_it_stands_for(honest: TinyConsortium, receipts: Path) -> None:
    report = audit_receipt(receipts / "experts" / "law-v1", honest.root, package=honest.folder / "packages" / "chess-v1")
    assert codes(report) == ["digest"]


def test_a_changed_package_is_found(honest: TinyConsortium, receipts: Path, copy: Path) -> None:
    part = copy / "packages" / "law-v1" / "part-0001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    assert codes(audit_receipt(receipts / "experts" / "law-v1", honest.root, package=part.parent)) == ["digest"]


def test_a_log_that_was_rolled_back_or_forked_since_is_found(honest: TinyConsortium, receipts: Path, tmp_path: Path) -> None:
    entries, later = list(honest.entries), receipts / "withdrawn" / "medicine"
    try:
        honest.entries = entries[:8]
        rolled_back = audit_receipt(later, honest.root, log=honest.write_log(tmp_path / "short"))
        dropped = parse_entry(entries[9])
        changed = LogEntry.model_validate({**dropped.model_dump(by_alias=True), "time": entry_time(entries[10])})
        honest.entries = [*entries[:9], encode_entry(changed), entries[10]]
        forked = audit_receipt(later, honest.root, log=honest.write_log(tmp_path / "forked"))
    finally:
        honest.entries = entries
    assert codes(rolled_back) == ["log-inconsistent"]
    assert codes(forked) == ["log-inconsistent"]


def entry_time(raw: bytes) -> str:
    return parse_entry(raw).time


def test_a_receipt_of_another_entry_is_refused(honest: TinyConsortium, receipts: Path) -> None:
    law, admitted = receipts / "experts" / "law-v1", receipts / "admitted"
    (law / "receipt.tlog-proof").write_bytes((admitted / "receipt.tlog-proof").read_bytes())
    assert codes(audit_receipt(law, honest.root)) == ["log"]
    (law / "entry.json").write_bytes((admitted / "entry.json").read_bytes())
    assert codes(audit_receipt(law, honest.root)) == ["digest"]
    assert parse_receipt((admitted / "receipt.tlog-proof").read_bytes()).index == 3


@pytest.mark.parametrize("file", ["entry.json", "receipt.tlog-proof", "document.json"])
def test_a_missing_part_is_named(honest: TinyConsortium, receipts: Path, file: str) -> None:
    (receipts / "admitted" / file).unlink()
    report = audit_receipt(receipts / "admitted", honest.root)
    assert codes(report) == ["not-found"]
    assert file in report.as_text()
