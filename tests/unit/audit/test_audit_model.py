from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.audit.models import audit_model
from common.audit.report import AuditReport
from common.errors import (
    DigestError,
    LayoutError,
    LogError,
    NotFoundError,
    NotLoggedError,
    SignerError,
)
from common.formats.fields import format_time
from common.formats.layout import expert_ffn_name, router_row_name
from common.formats.manifest import RESERVED_NAMES, ModelManifest
from common.formats.statements import ModelAssembled
from common.formats.strictjson import parse_document
from common.trust.oms import sign_resources
from common.weights.contents import build_tables, encode_manifest
from common.weights.index import list_folder
from common.weights.sources import in_folder
from tests.support.tiny_consortium import TinyConsortium
from tests.support.tiny_weights import Tensor, read_safetensors, write_safetensors

LAW, MEDICINE, ROUTER = "model-expert-001-law.safetensors", "model-expert-002-medicine.safetensors", "model-router.safetensors"


def audit(grove: TinyConsortium, folder: Path) -> AuditReport:
    return audit_model(folder, grove.root, log=grove.log)


def codes(report: AuditReport) -> set[str]:
    return {fault.code for fault in report.faults}


@pytest.fixture
def grove(tmp_path: Path) -> TinyConsortium:
    """A consortium of its own to every test, in which the operator may misbehave."""
    grove = TinyConsortium(tmp_path / "grove")
    grove.admit("anna")
    grove.admit("bert")
    grove.publish_anchor()
    grove.contribute("anna", "law")
    grove.contribute("bert", "medicine")
    return grove


def packages(grove: TinyConsortium) -> tuple[Path, Path]:
    return grove.folder / "packages" / "law-v1", grove.folder / "packages" / "medicine-v1"


def forge(grove: TinyConsortium, change: Callable[[Path], None], fields: dict[str, object] | None = None) -> Path:
    """The operator assembles, changes the folder, and signs and logs the result as if nothing had happened."""
    folder = grove.assemble(*packages(grove), log=False)
    change(folder)
    honest = parse_document(ModelManifest, (folder / "manifest.json").read_bytes()).model_dump(mode="json", by_alias=True)
    names = [name for name in list_folder(folder) if name not in RESERVED_NAMES]
    kept = {key: honest[key] for key in ("schema", "consortium", "anchor", "experts", "top_k", "licence")}
    raw, manifest = encode_manifest(ModelManifest, build_tables(in_folder(folder), names), kept | (fields or {}))
    (folder / "manifest.json").write_bytes(raw)
    resources = {"manifest.json": hashlib.sha256(raw).hexdigest()} | {entry.name: entry.sha256 for entry in manifest.files}
    (folder / "model.sig").write_bytes(sign_resources(resources, "model", grove.operator.key, grove.operator.certificate))
    grove.log_model(raw)
    return folder


def edit(file: str, change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = read_safetensors(folder / file)
        change(tensors)
        write_safetensors(folder / file, tensors)

    return apply


def test_an_honest_model_is_traced_to_its_experts(honest: TinyConsortium) -> None:
    report = audit_model(honest.folder / "model", honest.root, log=honest.log)
    assert report.faults == []
    found = report.as_json()
    assert found["verdict"] == "holds"
    assert found["exit_code"] == 0
    experts = found["experts"]
    assert [(each["slot"], each["name"], each["owner"]) for each in experts] == [  # type: ignore[attr-defined]
        (1, "law", "elmgrove://grove/owners/anna"),
        (2, "medicine", "elmgrove://grove/owners/bert"),
    ]
    assert [each["name"] for each in found["left_out"]] == ["chess"]  # type: ignore[attr-defined]
    assert json.loads(json.dumps(found)) == found


def test_what_became_of_its_experts_is_reported_and_no_fault(honest: TinyConsortium) -> None:
    report = audit_model(honest.folder / "model", honest.root, log=honest.log)
    text = report.as_text()
    assert "medicine version 1 of elmgrove://grove/owners/bert" in text
    assert "withdrawn since entry 9" in text
    assert "It holds." in text
    before = audit_model(honest.folder / "model", honest.root, log=honest.log, at=honest.now.replace(hour=8, minute=9))
    assert not before.faults
    assert "withdrawn" not in before.as_text()


def test_what_is_out_is_said_with_the_reason_and_since_when(tmp_path: Path) -> None:
    grove = TinyConsortium(tmp_path / "grove")
    for owner in ("anna", "bert", "cara", "dora"):
        grove.admit(owner)
    grove.publish_anchor()
    law, medicine = grove.contribute("anna", "law"), grove.contribute("bert", "medicine")
    grove.contribute("cara", "chess")
    grove.contribute("dora", "music")
    grove.withdraw("bert", medicine)
    grove.revoke("dora")
    digest = hashlib.sha256((law / "manifest.json").read_bytes()).hexdigest()
    newer = grove.contribute("anna", "law", version=2, supersedes=digest)
    grove.assemble(newer, out="model")
    grove.contribute("cara", "poems")
    report = audit(grove, grove.folder / "model")
    assert not report.faults
    out = {(each["name"], each["version"]): each["why"] for each in report.as_json()["left_out"]}  # type: ignore[attr-defined]
    times = [json.loads(entry)["time"] for entry in grove.entries]
    assert out == {
        ("law", 1): f"superseded since entry 12 ({times[12]})",
        ("medicine", 1): f"withdrawn since entry 10 ({times[10]})",
        ("chess", 1): f"not included, though in force since entry 8 ({times[8]}); now in force",
        ("music", 1): f"revoked since entry 11 ({times[11]})",
        ("poems", 1): f"accepted after the model was assembled, entry 14 ({times[14]}); in force",
    }
    assert f"entry 13 ({times[13]}), from anchor base" in report.as_text()


def test_a_model_without_experts_holds(grove: TinyConsortium) -> None:
    report = audit(grove, grove.assemble(out="alone", top_k=1))
    assert not report.faults
    assert len(report.as_json()["left_out"]) == 2  # type: ignore[arg-type]


def test_a_changed_tensor_is_named_with_its_owner(honest: TinyConsortium, copy: Path) -> None:
    name = expert_ffn_name(1, 1, "up_proj")

    def flip(tensors: dict[str, Tensor]) -> None:
        dtype, shape, raw = tensors[name]
        tensors[name] = (dtype, shape, bytes([raw[0] ^ 1]) + raw[1:])

    edit(LAW, flip)(copy / "model")
    report = audit_model(copy / "model", honest.root, log=honest.log)
    expected = f"Tensor {name} of {LAW} differs from the one elmgrove://grove/owners/anna (expert law version 1) signed."
    assert [str(fault) for fault in report.faults] == [expected]
    assert isinstance(report.faults[0], DigestError)


def test_a_tensor_swapped_between_two_honest_experts_is_found_though_the_operator_signed_it(grove: TinyConsortium) -> None:
    first, second = expert_ffn_name(0, 1, "down_proj"), expert_ffn_name(0, 2, "down_proj")

    def swap(folder: Path) -> None:
        law, medicine = read_safetensors(folder / LAW), read_safetensors(folder / MEDICINE)
        law[first], medicine[second] = medicine[second], law[first]
        write_safetensors(folder / LAW, law)
        write_safetensors(folder / MEDICINE, medicine)

    report = audit(grove, forge(grove, swap))
    assert codes(report) == {"model-mismatch"}
    texts = " ".join(str(fault) for fault in report.faults)
    assert f"Tensor {first} of {LAW} differs from the one elmgrove://grove/owners/anna (expert law version 1) signed." in texts
    assert f"Tensor {second} of {MEDICINE} differs" in texts


def test_a_stray_tensor_in_a_shard_is_found(grove: TinyConsortium) -> None:
    stray = expert_ffn_name(0, 0, "gate_proj")
    report = audit(grove, forge(grove, edit(LAW, lambda tensors: tensors.update({stray: tensors[expert_ffn_name(0, 1, "gate_proj")]}))))
    assert f"Tensor {stray} of {LAW} belongs in model-anchor.safetensors and nowhere else." in [str(fault) for fault in report.faults]


def test_a_renamed_and_a_missing_tensor_are_found(grove: TinyConsortium) -> None:
    name = expert_ffn_name(0, 1, "gate_proj")
    report = audit(grove, forge(grove, edit(LAW, lambda tensors: tensors.update({"model.extra": tensors.pop(name)}))))
    texts = [str(fault) for fault in report.faults]
    assert f"Tensor model.extra of {LAW} belongs neither to the anchor nor to any expert." in texts
    assert any(f"Tensor {name} of {LAW}" in text and "is missing" in text for text in texts)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_changed_router_row_is_named_with_its_owner(grove: TinyConsortium, row: int) -> None:
    name = router_row_name(1)

    def change(tensors: dict[str, Tensor]) -> None:
        dtype, shape, raw = tensors[name]
        width = len(raw) // 3
        changed = bytearray(raw)
        changed[row * width] ^= 1
        tensors[name] = (dtype, shape, bytes(changed))

    report = audit(grove, forge(grove, edit(ROUTER, change)))
    signer = ["elmgrove://grove/operator", "elmgrove://grove/owners/anna (expert law", "elmgrove://grove/owners/bert (expert medicine"][row]
    assert len(report.faults) == 1
    assert str(report.faults[0]).startswith(f"Row {row} of {name} of {ROUTER} differs from the one {signer}")


def test_rows_in_another_order_are_found(grove: TinyConsortium) -> None:
    name = router_row_name(0)

    def swap(tensors: dict[str, Tensor]) -> None:
        dtype, shape, raw = tensors[name]
        width = len(raw) // 3
        tensors[name] = (dtype, shape, raw[:width] + raw[2 * width :] + raw[width : 2 * width])

    assert len(audit(grove, forge(grove, edit(ROUTER, swap))).faults) == 2


def test_a_missing_router_row_is_found(grove: TinyConsortium) -> None:
    name = router_row_name(0)
    report = audit(grove, forge(grove, edit(ROUTER, lambda t: t.update({name: ("F32", (2, 16), t[name][2][: 2 * 64])}))))
    assert any("is F32 [2, 16] where F32 [3, 16] belongs" in str(fault) for fault in report.faults)
    report = audit(grove, grove.folder / "model")
    assert codes(report) == {"model-mismatch"}


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{}"), ("generation_config.json", b"{}"), ("model.safetensors.index.json", b"{}"), ("extra.json", b"{}")],
)
def test_other_files_must_follow_from_the_anchor(grove: TinyConsortium, name: str, content: bytes) -> None:
    report = audit(grove, forge(grove, lambda folder: (folder / name).write_bytes(content) and None))
    assert codes(report) == {"model-mismatch"}
    assert name in str(report.faults[0])


@pytest.mark.parametrize(
    "change",
    [
        {"num_experts_per_tok": 3},
        {"num_experts": 2},
        {"norm_topk_prob": True},
        {"norm_topk_prob": 0},
        {"hidden_size": 32},
        {"model_type": "olmo2"},
    ],
)
def test_a_configuration_that_contradicts_the_manifests_is_found(grove: TinyConsortium, change: dict[str, object]) -> None:
    def rewrite(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))

    report = audit(grove, forge(grove, rewrite))
    assert codes(report) == {"model-mismatch"}
    assert next(iter(change)) in str(report.faults[0])


def test_another_rope_theta_is_found(grove: TinyConsortium) -> None:
    def rewrite(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))

    report = audit(grove, forge(grove, rewrite))
    assert [str(fault) for fault in report.faults] == ["config.json is not the one that the anchor's configuration gives."]


def test_a_log_without_the_anchors_configuration_is_found(grove: TinyConsortium) -> None:
    folder = grove.assemble(*packages(grove))
    (grove.log / "documents" / hashlib.sha256((grove.anchor / "config.json").read_bytes()).hexdigest()).unlink()
    assert codes(audit(grove, folder)) == {"log"}


def test_a_model_that_was_never_logged_is_found(grove: TinyConsortium) -> None:
    report = audit(grove, grove.assemble(*packages(grove), log=False))
    assert [type(fault) for fault in report.faults] == [NotLoggedError]


def test_an_expert_that_was_never_logged_is_found(grove: TinyConsortium) -> None:
    law, _ = packages(grove)
    model = grove.assemble(law, grove.package("anna", "secret"), log=False)
    report = audit(grove, model)
    assert any("never accepted expert secret version 1" in str(fault) for fault in report.faults)


def test_using_a_withdrawn_expert_breaks_the_log(grove: TinyConsortium) -> None:
    law, medicine = packages(grove)
    grove.withdraw("bert", medicine)
    report = audit(grove, grove.assemble(law, medicine))
    assert [type(fault) for fault in report.faults] == [LogError]
    assert "medicine" in str(report.faults[0])


def test_a_manifest_that_names_other_parts_than_its_log_entry_is_found(grove: TinyConsortium) -> None:
    model = grove.assemble(*packages(grove), log=False, top_k=1)
    raw = (model / "manifest.json").read_bytes()
    manifest = parse_document(ModelManifest, raw)
    digest = hashlib.sha256(raw).hexdigest()
    statement = ModelAssembled(
        schema="elmgrove.model-assembled/v1",
        consortium=grove.name,
        created=format_time(grove.now),
        manifest=digest,
        anchor=manifest.anchor,
        experts=manifest.experts,
        top_k=2,
        log_size=len(grove.entries),
    )
    grove.append("model-assembled", f"model/{digest[:16]}", grove.state(statement, grove.operator))
    assert [str(fault) for fault in audit(grove, model).faults] == [
        "The model's manifest names other parts than the log's entry for its assembly."
    ]


def test_a_model_signed_by_an_owner_is_refused(grove: TinyConsortium) -> None:
    model = grove.assemble(*packages(grove))
    manifest = parse_document(ModelManifest, (model / "manifest.json").read_bytes())
    anna = grove.owners["anna"]
    resources = {"manifest.json": hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()}
    resources |= {entry.name: entry.sha256 for entry in manifest.files}
    (model / "model.sig").write_bytes(sign_resources(resources, "model", anna.key, anna.certificate))
    assert [type(fault) for fault in audit(grove, model).faults] == [SignerError]


def test_a_surplus_file_is_found(grove: TinyConsortium) -> None:
    model = grove.assemble(*packages(grove))
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    report = audit(grove, model)
    assert [type(fault) for fault in report.faults] == [LayoutError]


def test_missing_folders_end_the_audit(grove: TinyConsortium, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        audit_model(tmp_path / "nothing", grove.root, log=grove.log)
    with pytest.raises(NotFoundError):
        audit_model(grove.anchor, grove.root, log=tmp_path / "nothing")
