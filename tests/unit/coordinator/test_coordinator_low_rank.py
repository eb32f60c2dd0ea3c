"""Low-rank experts through the coordinator's use cases: admitted only when the factors give what was signed, assembled with full ones."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from common.audit.models import audit_model
from common.audit.packages import audit_package
from common.errors import (
    AlreadyExistsError,
    DigestError,
    ElmgroveError,
    MaterialisationError,
    NonFiniteError,
    StorageError,
    TemplateError,
    UsageError,
)
from common.formats.layout import dense_ffn_name, factor_names
from common.formats.manifest import ExpertManifest, LowRankKind
from common.formats.strictjson import parse_document
from coordinator.usecases.assemble import assemble_model
from coordinator.usecases.withdraw import withdraw_expert
from tests.support.coordinator_world import CONSORTIUM, Grove, Member
from tests.support.tiny_manifests import expert_manifest, kind_of, sha256
from tests.support.tiny_weights import TINY, read_safetensors, write_low_rank_files, write_safetensors

NAME = dense_ffn_name(1, "up_proj")


@pytest.fixture
def anchor(grove: Grove) -> str:
    return grove.publish()


def low_rank(grove: Grove, member: Member, folder: Path, anchor: str, *, name: str = "law", seed: int = 3, **update: object) -> Path:
    """A signed package of random factors; ``update`` changes what its kind says."""
    write_low_rank_files(folder, TINY, rank=2, seed=seed)
    kind = kind_of(grove.folder / "checkpoint-base", folder).model_copy(update=update)
    return seal(member, folder, anchor, kind, name)


def seal(member: Member, folder: Path, anchor: str, kind: LowRankKind, name: str = "law") -> Path:
    expert_manifest(folder, anchor, name=name, owner=member.name, consortium=CONSORTIUM, kind=kind)
    return member.sign(folder)


def kind_in(package: Path) -> LowRankKind:
    kind = parse_document(ExpertManifest, (package / "manifest.json").read_bytes()).kind
    assert isinstance(kind, LowRankKind)
    return kind


def refused(grove: Grove, member: Member, package: Path, kind: type[ElmgroveError], match: str) -> None:
    entries = grove.coordinator.ledger.state().size
    with pytest.raises(kind, match=match):
        grove.push(member, package)
    assert grove.debris() == []
    assert grove.coordinator.ledger.state().size == entries


def test_a_mixed_model_is_assembled_and_audited(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    grove.push(anna, anna.package(tmp_path / "full", anchor, name="tides"))
    package = low_rank(grove, anna, tmp_path / "low", anchor)
    grove.push(anna, package)
    model = assemble_model(grove.coordinator, tmp_path / "model")
    assert [slot.name for slot in model.experts] == ["tides", "law"]
    tensors = read_safetensors(tmp_path / "model" / "model-expert-002-law.safetensors")
    for entry in kind_in(package).materialised:
        assert sha256(tensors[entry.name.replace(".mlp.", ".mlp.experts.2.")][2]) == entry.sha256
    root, log = grove.coordinator.root, grove.home.log
    audit_model(tmp_path / "model", root, log=log).raise_first()
    report = audit_package(package, root, log=log)
    report.raise_first()
    assert report.facts["kind"] == {"type": "low_rank", "rank": 2}


def test_the_auditor_names_a_materialised_tensor_that_is_not_the_signed_one(
    grove: Grove, anna: Member, anchor: str, tmp_path: Path
) -> None:
    grove.push(anna, low_rank(grove, anna, tmp_path / "low", anchor))
    assemble_model(grove.coordinator, tmp_path / "model")
    path = tmp_path / "model" / "model-expert-001-law.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    report = audit_model(tmp_path / "model", grove.coordinator.root, log=grove.home.log)
    with pytest.raises(DigestError, match=r"owners/anna \(expert law version 1\)"):
        report.raise_first()


def test_materialised_once_kept_while_in_force_and_made_again_when_damaged(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    package = low_rank(grove, anna, tmp_path / "low", anchor)
    grove.push(anna, package)
    first = assemble_model(grove.coordinator, tmp_path / "one")
    [made] = grove.home.materialised.iterdir()
    stamp = made.stat().st_mtime_ns
    second = assemble_model(grove.coordinator, tmp_path / "two")
    assert made.stat().st_mtime_ns == stamp
    made.chmod(0o644)
    made.write_bytes(made.read_bytes()[:-1] + b"\x01")
    third = assemble_model(grove.coordinator, tmp_path / "three")
    assert first.digest == second.digest == third.digest
    abandoned, fresh = grove.home.materialised / ".old.tmp", grove.home.materialised / ".new.tmp"
    abandoned.touch()
    fresh.touch()
    os.utime(abandoned, (time.time() - 2 * 24 * 3600,) * 2)
    withdraw_expert(grove.coordinator, grove.owner("anna"), anna.withdrawal("law", sha256((package / "manifest.json").read_bytes())))
    assemble_model(grove.coordinator, tmp_path / "without")
    assert list(grove.home.materialised.iterdir()) == [fresh]


@pytest.mark.parametrize(("out", "top_k", "kind"), [("low", None, AlreadyExistsError), ("model", 9, UsageError)])
def test_a_request_that_cannot_be_is_refused_before_anything_is_materialised(
    grove: Grove, anna: Member, anchor: str, tmp_path: Path, out: str, top_k: int | None, kind: type[ElmgroveError]
) -> None:
    grove.push(anna, low_rank(grove, anna, tmp_path / "low", anchor))
    with pytest.raises(kind):
        assemble_model(grove.coordinator, tmp_path / out, top_k=top_k)
    assert not grove.home.materialised.exists()


def test_a_damaged_anchor_is_the_operators_trouble_and_keeps_the_upload(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    package = low_rank(grove, anna, tmp_path / "low", anchor)
    manifest = grove.coordinator.ledger.state().anchors[anchor].manifest
    weights = next(entry for entry in manifest.files if entry.name == "model.safetensors")
    blob = grove.coordinator.blobs.path(weights.sha256)
    good, spoilt = blob.read_bytes(), read_safetensors(blob)
    dtype, shape, raw = spoilt[NAME]
    blob.chmod(0o644)
    write_safetensors(blob, spoilt | {NAME: (dtype, shape, b"\x00" + raw[1:])})
    with pytest.raises(StorageError, match=f"{NAME} of the anchor"):
        grove.push(anna, package)
    assert len(grove.coordinator.uploads.open_of("anna")) == 1
    blob.write_bytes(good)
    grove.push(anna, package)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_another_digest_than_the_factors_give(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    low_rank(grove, anna, tmp_path / "low", anchor)
    honest = kind_in(tmp_path / "low").materialised
    lies = tuple(entry.model_copy(update={"sha256": "0" * 64}) if entry.name == NAME else entry for entry in honest)
    refused(grove, anna, low_rank(grove, anna, tmp_path / "low", anchor, materialised=lies), MaterialisationError, NAME)


def test_digests_of_other_factors(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    other = kind_in(low_rank(grove, anna, tmp_path / "other", anchor, seed=4))
    refused(grove, anna, low_rank(grove, anna, tmp_path / "low", anchor, materialised=other.materialised), MaterialisationError, "layers.0")


def test_a_table_that_lacks_a_tensor_and_a_rank_that_is_not_the_factors(grove: Grove, anna: Member, anchor: str, tmp_path: Path) -> None:
    low_rank(grove, anna, tmp_path / "low", anchor)
    short = kind_in(tmp_path / "low").materialised[1:]
    refused(grove, anna, low_rank(grove, anna, tmp_path / "low", anchor, materialised=short), TemplateError, "lacks the digest")
    refused(grove, anna, low_rank(grove, anna, tmp_path / "low", anchor, rank=3), TemplateError, "lora_A")


@pytest.mark.parametrize(("first", "second"), [(float("nan"), 1.0), (3e38, 3e38)])
def test_factors_that_are_not_finite_or_multiply_out_to_infinity(
    grove: Grove, anna: Member, anchor: str, tmp_path: Path, first: float, second: float
) -> None:
    kind = kind_in(low_rank(grove, anna, tmp_path / "low", anchor))
    for name, value in zip(factor_names(NAME), (first, second), strict=True):
        path = next(part for part in (tmp_path / "low").glob("part-*") if name in read_safetensors(part))
        dtype, shape, raw = read_safetensors(path)[name]
        write_safetensors(path, read_safetensors(path) | {name: (dtype, shape, struct.pack("<f", value) + raw[4:])})
    refused(grove, anna, seal(anna, tmp_path / "low", anchor, kind), NonFiniteError, "up_proj")
