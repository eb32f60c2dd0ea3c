"""Rebuilding: the parts that the log names give the model again, byte for byte, and whatever is missing or different is named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.audit.rebuild import audit_rebuild
from common.audit.report import AuditReport
from common.errors import AlreadyExistsError, NotFoundError
from common.trust.certificates import TrustRoot
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import CONSORTIUM, Grove, Member
from tests.support.tiny_consortium import TinyConsortium
from tests.support.tiny_manifests import expert_manifest, kind_of, sha256
from tests.support.tiny_weights import write_low_rank_files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def codes(report: AuditReport) -> list[str]:
    return [fault.code for fault in report.faults]


def rebuild(grove: TinyConsortium, files: Path, *, model: str = "model", out: Path | None = None) -> AuditReport:
    return audit_rebuild(files / model, grove.root, log=files / "log", blobs=[files / "packages", files / "anchor"], out=out)


def test_the_same_model_comes_out_again(honest: TinyConsortium, tmp_path: Path) -> None:
    report = rebuild(honest, honest.folder, out=tmp_path / "again")
    assert report.faults == []
    assert contents(tmp_path / "again") == contents(honest.folder / "model")


def test_comparing_alone_writes_nothing(honest: TinyConsortium, copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    report = rebuild(honest, copy)
    assert report.faults == []
    assert "the one that was logged" in report.as_text()
    assert sorted(copy.rglob("*")) == before


def test_an_output_that_exists_is_left_alone(honest: TinyConsortium, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    with pytest.raises(AlreadyExistsError):
        rebuild(honest, honest.folder, out=tmp_path / "again")
    with pytest.raises(NotFoundError, match="blobs"):
        audit_rebuild(honest.folder / "model", honest.root, log=honest.log, blobs=[tmp_path])


def test_a_changed_part_is_named_and_nothing_is_written(honest: TinyConsortium, copy: Path, tmp_path: Path) -> None:
    part = copy / "packages" / "law-v1" / "part-0001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    for out in (None, tmp_path / "again"):
        report = rebuild(honest, copy, out=out)
        assert codes(report) == ["digest"]
        assert "down_proj.weight of expert law version 1" in report.as_text()
    assert not (tmp_path / "again").exists()
    assert not list(tmp_path.glob(".again*"))


def test_a_changed_model_is_found_though_its_parts_are_well(honest: TinyConsortium, copy: Path) -> None:
    shard = copy / "model" / "model-expert-001-law.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    report = rebuild(honest, copy)
    assert codes(report) == ["digest"]
    assert "ok    rebuilt" in report.as_text()


def test_a_withdrawn_experts_deleted_bytes_are_explained(honest: TinyConsortium, copy: Path) -> None:
    shutil.rmtree(copy / "packages" / "medicine-v1")
    report = rebuild(honest, copy)
    assert codes(report) == ["withdrawn"]
    assert "withdrawn since entry 9" in report.as_text()
    assert not rebuild(honest, copy, model="later").faults
    shutil.rmtree(copy / "packages" / "law-v1")
    assert codes(rebuild(honest, copy, model="later")) == ["not-found"]


def test_a_missing_anchor_is_named(honest: TinyConsortium, copy: Path) -> None:
    (copy / "anchor" / "tokenizer.json").unlink()
    report = rebuild(honest, copy)
    assert codes(report) == ["not-found"]
    assert "tokenizer.json of anchor base" in report.as_text()


def test_a_model_that_was_not_logged_is_not_rebuilt(tmp_path: Path) -> None:
    grove = TinyConsortium(tmp_path / "grove")
    grove.admit("anna")
    grove.publish_anchor()
    grove.assemble(grove.contribute("anna", "law"), log=False)
    assert codes(rebuild(grove, grove.folder)) == ["not-logged"]


def test_a_tuned_model_is_rebuilt_but_for_its_rows(tmp_path: Path) -> None:
    grove = TinyConsortium(tmp_path / "grove")
    grove.admit("anna")
    grove.publish_anchor()
    grove.assemble(grove.contribute("anna", "law"))
    grove.tune(grove.folder / "model", "law")
    report = rebuild(grove, grove.folder, model="tuned", out=tmp_path / "again")
    assert report.faults == []
    assert "come from training and cannot be rebuilt" in report.as_text()
    expected = contents(grove.folder / "model")
    del expected["model.sig"]
    assert contents(tmp_path / "again") == expected


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Grove]:
    world = Grove(tmp_path)
    yield world
    world.close()


def low_rank(world: Grove, member: Member, anchor: str) -> Path:
    folder = world.folder / "law"
    write_low_rank_files(folder)
    kind = kind_of(world.folder / "checkpoint-base", folder)
    expert_manifest(folder, anchor, name="law", owner=member.name, consortium=CONSORTIUM, kind=kind)
    return member.sign(folder)


def test_from_a_coordinators_own_store_with_a_low_rank_expert(coordinator: Grove, tmp_path: Path) -> None:
    anna, anchor = coordinator.join("anna"), coordinator.publish()
    coordinator.push(anna, anna.package(tmp_path / "tides", anchor))
    law = low_rank(coordinator, anna, anchor)
    coordinator.push(anna, law)
    model = tmp_path / "model"
    assemble_model(coordinator.coordinator, model)
    home, root = coordinator.home, TrustRoot.from_pem(coordinator.home.root.read_bytes())
    for blobs, place in ((home.path, "materialised"), (home.blobs, "the model itself")):
        report = audit_rebuild(model, root, log=home.log, blobs=[blobs])
        assert report.faults == []
        assert f"law: its full matrices are taken from {place}" in report.as_text()
    assert not audit_rebuild(model, root, log=home.log, blobs=[home.blobs], out=tmp_path / "again").faults
    assert contents(tmp_path / "again") == contents(model)
    withdraw_expert(
        coordinator.coordinator, coordinator.owner("anna"), anna.withdrawal("law", sha256((law / "manifest.json").read_bytes()))
    )
    router = sha256((law / "router.safetensors").read_bytes())
    (home.blobs / "sha256" / router[:2] / router).unlink()
    assert codes(audit_rebuild(model, root, log=home.log, blobs=[home.blobs])) == ["withdrawn"]
