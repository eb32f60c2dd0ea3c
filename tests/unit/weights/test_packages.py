from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from common.audit.packages import audit_package
from common.errors import (
    CertificateError,
    DigestError,
    ElmgroveError,
    FormatError,
    LayoutError,
    NonFiniteError,
    NotFoundError,
    SafetensorsError,
    SignatureError,
    SignerError,
)
from common.formats.layout import dense_ffn_name
from common.formats.manifest import ExpertManifest
from common.formats.strictjson import parse_document
from common.weights.packages import (
    check_contents,
    check_finite,
    content_faults,
    inspect_package,
    verify_anchor,
    verify_expert_documents,
    verify_model,
    verify_package,
)
from common.weights.sources import in_folder
from tests.support.signing import sign_folder
from tests.support.tiny_consortium import TinyConsortium
from tests.support.tiny_manifests import expert_manifest
from tests.support.tiny_weights import read_safetensors, write_expert_files, write_safetensors

NAME = dense_ffn_name(1, "gate_proj")


@pytest.fixture(scope="module")
def grove(tmp_path_factory: pytest.TempPathFactory) -> TinyConsortium:
    grove = TinyConsortium(tmp_path_factory.mktemp("grove"))
    grove.admit("anna")
    grove.admit("bert")
    grove.publish_anchor()
    grove.package("anna", "law", parts=2)
    return grove


@pytest.fixture
def package(grove: TinyConsortium, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grove.folder / "packages" / "law-v1", tmp_path / "law-v1"))


def test_an_honest_package_is_verified(grove: TinyConsortium, package: Path) -> None:
    verified = verify_package(package, grove.root, at=grove.now, owner="elmgrove://grove/owners/anna")
    assert verified.signer.uri == verified.manifest.owner == "elmgrove://grove/owners/anna"
    assert verified.manifest_bytes == (package / "manifest.json").read_bytes()
    assert set(verified.resources) | {"model.sig"} == {path.name for path in package.iterdir()}


def test_an_honest_anchor_and_model_are_verified(grove: TinyConsortium, package: Path) -> None:
    assert verify_anchor(grove.anchor, grove.root, grove.now).digest == grove.anchor_digest
    model = grove.assemble(package, out="m", log=False)
    assert verify_model(model, grove.root, grove.now).manifest.experts[0].name == "law"


def test_any_flipped_byte_of_a_package_is_found(grove: TinyConsortium, package: Path) -> None:
    for path in sorted(package.iterdir()):
        honest = path.read_bytes()
        for at in {0, 7, 8, len(honest) // 2, len(honest) - 1}:
            for bit in (1, 0x80):
                path.write_bytes(honest[:at] + bytes([honest[at] ^ bit]) + honest[at + 1 :])
                with pytest.raises(ElmgroveError):
                    verify_package(package, grove.root, at=grove.now)
        path.write_bytes(honest)
    verify_package(package, grove.root, at=grove.now)


def test_a_changed_tensor_is_named_with_its_file_and_signer(grove: TinyConsortium, package: Path) -> None:
    tensors = read_safetensors(package / "part-0001.safetensors")
    dtype, shape, raw = tensors[NAME]
    tensors[NAME] = (dtype, shape, bytes([raw[0] ^ 1]) + raw[1:])
    write_safetensors(package / "part-0001.safetensors", tensors)
    expected = rf"Tensor {NAME} of part-0001\.safetensors differs from the one elmgrove://grove/owners/anna signed\."
    with pytest.raises(DigestError, match=expected):
        verify_package(package, grove.root, at=grove.now)


def test_every_fault_is_listed(grove: TinyConsortium, package: Path) -> None:
    manifest = parse_document(ExpertManifest, (package / "manifest.json").read_bytes())
    tensors = read_safetensors(package / "part-0000.safetensors")
    first = next(iter(tensors))
    dtype, shape, raw = tensors.pop(first)
    tensors["renamed"] = (dtype, shape, raw)
    write_safetensors(package / "part-0000.safetensors", tensors)
    (package / "privacy.json").unlink()
    texts = [str(fault) for fault in content_faults(manifest, in_folder(package), "Anna")]
    assert any(f"{first} of part-0000.safetensors, which Anna signed, is missing" in text for text in texts)
    assert any("renamed of part-0000.safetensors is not among those Anna signed" in text for text in texts)
    assert "privacy.json is missing." in texts


def test_equal_bytes_under_another_shape_or_dtype_are_found(grove: TinyConsortium, package: Path) -> None:
    tensors = read_safetensors(package / "part-0001.safetensors")
    dtype, shape, raw = tensors[NAME]
    tensors[NAME] = (dtype, shape[::-1], raw)
    write_safetensors(package / "part-0001.safetensors", tensors)
    with pytest.raises(DigestError, match=r"is F32 \[16, 24\] where .*anna signed F32 \[24, 16\]"):
        verify_package(package, grove.root, at=grove.now)


def test_a_truncated_file_is_found(grove: TinyConsortium, package: Path) -> None:
    path = package / "part-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DigestError, match=r"part-0001\.safetensors has \d+ bytes where"):
        verify_package(package, grove.root, at=grove.now)


def test_two_swapped_files_are_found(grove: TinyConsortium, package: Path) -> None:
    first, second = package / "part-0000.safetensors", package / "part-0001.safetensors"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(DigestError):
        verify_package(package, grove.root, at=grove.now)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "part-0002.safetensors"])
def test_a_surplus_file_is_refused(grove: TinyConsortium, package: Path, name: str) -> None:
    (package / name).write_bytes(b"x")
    with pytest.raises(LayoutError, match=name):
        verify_package(package, grove.root, at=grove.now)


def test_a_link_in_place_of_a_file_is_refused(grove: TinyConsortium, package: Path, tmp_path: Path) -> None:
    shutil.move(package / "router.safetensors", tmp_path / "elsewhere")
    (package / "router.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LayoutError, match="router"):
        verify_package(package, grove.root, at=grove.now)


@pytest.mark.parametrize("name", ["manifest.json", "model.sig", "privacy.json"])
def test_a_missing_file_is_refused(grove: TinyConsortium, package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises((LayoutError, NotFoundError), match=name):
        verify_package(package, grove.root, at=grove.now)


def test_another_owners_signature_is_refused(grove: TinyConsortium, package: Path) -> None:
    bert = grove.owners["bert"]
    (package / "model.sig").write_bytes(sign_folder(package, bert.key, bert.certificate))
    with pytest.raises(SignerError, match="must be signed by elmgrove://grove/owners/anna"):
        verify_package(package, grove.root, at=grove.now)


def test_another_owners_package_is_refused_where_one_owners_is_expected(grove: TinyConsortium, package: Path) -> None:
    with pytest.raises(SignerError, match="not from elmgrove://grove/owners/bert"):
        verify_package(package, grove.root, at=grove.now, owner="elmgrove://grove/owners/bert")


def test_a_foreign_root_is_refused(grove: TinyConsortium, package: Path, tmp_path: Path) -> None:
    other = TinyConsortium(tmp_path / "other", found=False)
    with pytest.raises(CertificateError):
        verify_package(package, other.root, at=grove.now)


def test_a_key_under_a_transport_certificate_cannot_sign(grove: TinyConsortium, package: Path) -> None:
    party = grove.party("anna", "elmgrove://grove/owners/anna", ("transport",))
    (package / "model.sig").write_bytes(sign_folder(package, party.key, party.certificate))
    with pytest.raises(CertificateError):
        verify_package(package, grove.root, at=grove.now)


def test_an_expired_or_future_certificate_is_refused(grove: TinyConsortium, package: Path) -> None:
    for moment in (grove.now + timedelta(days=800), grove.now - timedelta(days=1)):
        with pytest.raises(CertificateError):
            verify_package(package, grove.root, at=moment)


def test_a_signature_over_another_manifest_or_file_list_is_refused(grove: TinyConsortium, package: Path) -> None:
    anna = grove.owners["anna"]
    manifest = (package / "manifest.json").read_bytes()
    (package / "note.txt").write_text("x")
    bundle = sign_folder(package, anna.key, anna.certificate)
    with pytest.raises(DigestError, match=r"disagree about note\.txt"):
        verify_expert_documents(bundle, manifest, grove.root, at=grove.now)
    with pytest.raises(DigestError, match=r"manifest\.json differs"):
        verify_expert_documents(bundle, manifest + b" ", grove.root, at=grove.now)


def test_a_bundle_of_another_kind_is_refused(grove: TinyConsortium, package: Path) -> None:
    shutil.copy(grove.anchor / "model.sig", package / "model.sig")
    with pytest.raises(DigestError, match=r"manifest\.json"):
        verify_package(package, grove.root, at=grove.now)
    with pytest.raises(FormatError):
        verify_package(grove.anchor, grove.root, at=grove.now)


def test_a_broken_signature_is_a_signature_error(grove: TinyConsortium, package: Path) -> None:
    text = (package / "model.sig").read_text()
    at = text.index('"payload":"') + 40
    (package / "model.sig").write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    with pytest.raises(SignatureError):
        verify_package(package, grove.root, at=grove.now)


def test_signed_malformed_weights_are_refused(grove: TinyConsortium, tmp_path: Path) -> None:
    write_expert_files(tmp_path / "p")
    (tmp_path / "p" / "part-0000.safetensors").write_bytes(b"\x80\x04\x95" + bytes(100))
    with pytest.raises(SafetensorsError, match="part-0000"):
        expert_manifest(tmp_path / "p", grove.anchor_digest, name="law")


def test_inspection_needs_no_signature_and_finds_what_changed(package: Path) -> None:
    (package / "model.sig").unlink()
    assert inspect_package(package).manifest.name == "law"
    (package / "privacy.json").write_text("{}")
    with pytest.raises(DigestError, match=r"privacy\.json"):
        inspect_package(package)
    (package / "privacy.json").write_text("[]")
    manifest = parse_document(ExpertManifest, (package / "manifest.json").read_bytes())
    with pytest.raises(DigestError):
        check_contents(manifest, in_folder(package), "anyone")


def test_a_privacy_report_must_be_an_object(grove: TinyConsortium, tmp_path: Path) -> None:
    write_expert_files(tmp_path / "p")
    (tmp_path / "p" / "privacy.json").write_text("[]")
    with pytest.raises(FormatError, match=r"privacy\.json"):
        expert_manifest(tmp_path / "p", grove.anchor_digest, name="law")


@pytest.fixture
def contradictory(grove: TinyConsortium, package: Path) -> Path:
    """The owner signs a manifest that gives one tensor another digest than its bytes have; everything else is as it must be."""
    manifest = json.loads((package / "manifest.json").read_bytes())
    entry = next(entry for entry in manifest["tensors"] if entry["name"] == NAME)
    entry["sha256"] = "0" * 64
    (package / "manifest.json").write_text(json.dumps(manifest))
    (package / "model.sig").unlink()
    anna = grove.owners["anna"]
    (package / "model.sig").write_bytes(sign_folder(package, anna.key, anna.certificate))
    return package


def test_a_signed_tensor_table_is_compared_with_the_bytes_where_it_is_relied_on(grove: TinyConsortium, contradictory: Path) -> None:
    """The files are the owner's, so verification holds; what a table of false digests cannot do is pass admission."""
    assert verify_package(contradictory, grove.root, at=grove.now).manifest.name == "law"
    with pytest.raises(DigestError, match=f"Tensor {NAME} of part-0001.safetensors differs"):
        verify_package(contradictory, grove.root, at=grove.now, tensors=True)


def test_the_auditor_finds_a_false_tensor_table_when_asked_for_tensors(grove: TinyConsortium, contradictory: Path) -> None:
    assert audit_package(contradictory, grove.root, at=grove.now).faults == []
    report = audit_package(contradictory, grove.root, at=grove.now, tensors=True)
    assert [str(fault) for fault in report.faults] == [
        f"Tensor {NAME} of part-0001.safetensors differs from the one elmgrove://grove/owners/anna signed."
    ]


def test_nan_in_a_package_is_named(grove: TinyConsortium, package: Path) -> None:
    manifest = parse_document(ExpertManifest, (package / "manifest.json").read_bytes())
    check_finite(manifest, in_folder(package))
    tensors = read_safetensors(package / "part-0001.safetensors")
    dtype, shape, raw = tensors[NAME]
    tensors[NAME] = (dtype, shape, raw[:-4] + b"\0\0\xc0\x7f")
    write_safetensors(package / "part-0001.safetensors", tensors)
    with pytest.raises(NonFiniteError, match=NAME):
        check_finite(manifest, in_folder(package))


@pytest.mark.parametrize("kind", ["package", "anchor", "model", "tuned model"])
def test_the_stock_tool_accepts_every_kind_of_folder_and_refuses_it_with_one_bit_changed(
    grove: TinyConsortium, package: Path, tmp_path: Path, kind: str
) -> None:
    """As it is run by a person: the installed program, in a process of its own."""
    pytest.importorskip("model_signing")
    made = {"package": lambda: package, "anchor": lambda: grove.anchor, "model": lambda: grove.assemble(package, out="stock", log=False)}
    made["tuned model"] = lambda: grove.tune(grove.assemble(package, out="untuned", log=False), out="tuned", log=False)
    folder = Path(shutil.copytree(made[kind](), tmp_path / "folder"))
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", "verify", "certificate", str(folder)]
    command += ["--signature", str(folder / "model.sig"), "--certificate_chain", str(grove.root_pem)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    raw = largest.read_bytes()
    largest.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "mismatch" in done.stderr.lower()) == (1, True), done.stdout + done.stderr
