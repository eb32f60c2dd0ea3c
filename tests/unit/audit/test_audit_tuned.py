"""Models with tuned routers: named as tuned when the log says so, refused when it does not, traced in everything else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from common.audit.models import audit_model
from common.audit.report import AuditReport
from common.errors import AlreadyExistsError, DigestError, NonFiniteError, TemplateError
from common.formats.layout import expert_ffn_name, router_row_name
from common.trust.oms import sign_resources
from common.weights.packages import verify_model
from common.weights.tuned import write_tuned
from tests.support.tiny_consortium import TinyConsortium
from tests.support.tiny_weights import read_safetensors, write_safetensors

ROUTER, LAW = "model-router.safetensors", "model-expert-001-law.safetensors"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TinyConsortium:
    grove = TinyConsortium(tmp_path_factory.mktemp("tuned"))
    grove.admit("anna")
    grove.admit("bert")
    grove.publish_anchor()
    grove.assemble(grove.contribute("anna", "law"), grove.contribute("bert", "medicine"))
    grove.tune(grove.folder / "model", "law")
    return grove


@pytest.fixture
def grove(tmp_path: Path) -> TinyConsortium:
    grove = TinyConsortium(tmp_path / "grove")
    grove.admit("anna")
    grove.publish_anchor()
    grove.assemble(grove.contribute("anna", "law"))
    return grove


def audit(grove: TinyConsortium, folder: Path) -> AuditReport:
    return audit_model(folder, grove.root, log=grove.log)


def said(report: AuditReport) -> str:
    return " ".join(str(fault) for fault in report.faults)


def test_a_logged_tuning_holds_and_is_named(shared: TinyConsortium) -> None:
    report = audit(shared, shared.folder / "tuned")
    assert report.faults == []
    layers = shared.shape.layers
    assert (
        f"TUNED by the operator, entry 7 ({json.loads(shared.entries[7])['time']}): {2 * layers} of {3 * layers} rows" in report.as_text()
    )
    found = report.as_json()
    tuned = found["tuned"]
    assert isinstance(tuned, dict)
    assert (found["entry"], tuned["entry"], tuned["changed_rows"]) == (7, 7, 2 * layers)
    assert tuned["base"] == audit(shared, shared.folder / "model").as_json()["manifest"]
    assert [use["expert"] for use in tuned["proxies"]] == ["law"]
    assert json.loads(json.dumps(found)) == found


def test_the_model_it_was_made_from_is_not_tuned(shared: TinyConsortium) -> None:
    report = audit(shared, shared.folder / "model")
    assert report.faults == []
    assert "tuned" not in report.as_json()
    assert "TUNED" not in report.as_text()


def test_before_it_was_logged_it_does_not_hold(shared: TinyConsortium) -> None:
    report = audit_model(shared.folder / "tuned", shared.root, log=shared.log, at=shared.now.replace(minute=shared.now.minute - 1))
    assert {fault.code for fault in report.faults} == {"not-logged", "model-mismatch"}


def test_rows_without_a_logged_tuning_are_refused(grove: TinyConsortium) -> None:
    report = audit(grove, grove.tune(grove.folder / "model", log=False))
    assert "no entry for the tuning of this model" in said(report)
    assert f"Row 1 of {router_row_name(0)} of {ROUTER} differs from the one elmgrove://grove/owners/anna" in said(report)


def test_a_tuning_logged_as_an_assembly_is_refused(grove: TinyConsortium) -> None:
    folder = grove.tune(grove.folder / "model", log=False)
    grove.log_model((folder / "manifest.json").read_bytes())
    report = audit(grove, folder)
    assert "disagree about whether" in said(report)
    assert "Row 1 of" in said(report)


def test_a_tuning_that_names_another_base_is_refused(grove: TinyConsortium) -> None:
    grove.assemble(out="alone", top_k=1)
    alone = verify_model(grove.folder / "alone", grove.root, grove.now).digest
    folder = grove.tune(grove.folder / "model", log=False)
    grove.log_tuned((folder / "manifest.json").read_bytes(), alone)
    assert "disagree about whether, and from what" in said(audit(grove, folder))


def test_everything_but_rows_is_traced_in_a_tuned_model_too(grove: TinyConsortium) -> None:
    model = grove.folder / "model"
    tensors = read_safetensors(model / LAW)
    name = expert_ffn_name(0, 1, "up_proj")
    dtype, shape, raw = tensors[name]
    folder = grove.tune(model)
    write_safetensors(folder / LAW, tensors | {name: (dtype, shape, bytes([raw[0] ^ 1]) + raw[1:])})
    assert f"Tensor {name} of {LAW} differs from the one elmgrove://grove/owners/anna" in said(audit(grove, folder))


def test_a_byte_of_a_tuned_row_changed_afterwards_is_found(grove: TinyConsortium) -> None:
    folder = grove.tune(grove.folder / "model")
    content = bytearray((folder / ROUTER).read_bytes())
    content[-1] ^= 1
    (folder / ROUTER).write_bytes(content)
    assert {fault.code for fault in audit(grove, folder).faults} == {"digest"}


def rows_of(grove: TinyConsortium) -> dict[str, bytes]:
    return {name: raw for name, (_, _, raw) in read_safetensors(grove.folder / "model" / ROUTER).items()}


def write(grove: TinyConsortium, rows: dict[str, bytes], out: Path) -> bytes:
    model = verify_model(grove.folder / "model", grove.root, grove.now)
    return write_tuned(model, rows, out, sign=lambda names: sign_resources(names, "x", grove.operator.key, grove.operator.certificate))


def test_writing_refuses_what_is_no_router_and_leaves_nothing(shared: TinyConsortium, tmp_path: Path) -> None:
    rows = rows_of(shared)
    first = router_row_name(0)
    for bad in ({name: raw for name, raw in rows.items() if name != first}, rows | {first: rows[first][:-4]}, rows | {"more": b""}):
        with pytest.raises(TemplateError):
            write(shared, bad, tmp_path / "out")
    with pytest.raises(NonFiniteError, match=first):
        write(shared, rows | {first: rows[first][:-4] + struct.pack("<f", float("nan"))}, tmp_path / "out")
    with pytest.raises(AlreadyExistsError):
        write(shared, rows, shared.folder / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_while_it_is_copied_is_noticed(grove: TinyConsortium, tmp_path: Path) -> None:
    model = verify_model(grove.folder / "model", grove.root, grove.now)
    path = grove.folder / "model" / LAW
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestError, match="changed while it was being copied"):
        write_tuned(model, rows_of(grove), tmp_path / "out", sign=lambda _names: b"")
    assert [path.name for path in tmp_path.iterdir()] == ["grove"]


def test_the_same_rows_give_the_same_bytes(shared: TinyConsortium, tmp_path: Path) -> None:
    rows = rows_of(shared)
    assert write(shared, rows, tmp_path / "a") == write(shared, rows, tmp_path / "b")
    base, copy = shared.folder / "model", tmp_path / "a"
    assert all(
        (base / path.name).read_bytes() == path.read_bytes() for path in copy.iterdir() if path.name not in {"manifest.json", "model.sig"}
    )
