from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ArchitectureError, FormatError, LayoutError, TemplateError, WrongAnchorError
from common.formats.layout import INDEX_NAME, ROUTER_NAME, dense_ffn_name, factor_names, router_row_name
from common.formats.manifest import ExpertManifest, LowRankKind, MaterialisedTensor
from common.formats.strictjson import parse_document
from common.weights.packages import check_template
from common.weights.sources import AnchorSource
from common.weights.template import expert_ffn
from tests.support.tiny_manifests import CONSORTIUM, anchor_manifest, expert_manifest, kind_of, make_anchor, make_expert
from tests.support.tiny_weights import (
    Tensor,
    TinyShape,
    read_safetensors,
    write_anchor_files,
    write_expert_files,
    write_low_rank_files,
    write_safetensors,
)


@pytest.fixture
def anchor(tmp_path: Path) -> AnchorSource:
    return make_anchor(tmp_path / "anchor")


def changed(tmp_path: Path, anchor: AnchorSource, file: str, change: object) -> ExpertManifest:
    """The manifest of a package in which ``change`` has been made to the tensors of one file."""
    folder = tmp_path / "expert"
    write_expert_files(folder)
    tensors = read_safetensors(folder / file)
    change(tensors)  # type: ignore[operator]
    write_safetensors(folder / file, tensors)
    return ExpertManifest.model_validate_json(expert_manifest(folder, anchor.digest, name="law"))


def rename(old: str, new: str) -> object:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def test_an_honest_expert_fits(tmp_path: Path, anchor: AnchorSource) -> None:
    expert = make_expert(tmp_path / "law", anchor, "law", parts=2)
    check_template(expert.manifest, anchor.manifest, anchor_digest=anchor.digest)


UP, DOWN, ROW = dense_ffn_name(0, "up_proj"), dense_ffn_name(1, "down_proj"), router_row_name(1)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("part-0000.safetensors", lambda t: t.pop(UP), "up_proj.weight is missing"),
        ("part-0000.safetensors", rename(UP, "model.norm.weight"), "up_proj.weight is missing"),
        ("part-0000.safetensors", lambda t: t.update({"lm_head.weight": t[UP]}), "lm_head.weight does not belong"),
        ("part-0000.safetensors", lambda t: t.update({DOWN: ("F32", (24, 16), t[DOWN][2])}), r"is F32 \[24, 16\] where F32 \[16, 24\]"),
        ("part-0000.safetensors", lambda t: t.update({UP: ("BF16", (24, 16), t[UP][2][:768])}), r"is BF16 \[24, 16\] where F32"),
        ("router.safetensors", lambda t: t.pop(ROW), "gate.weight is missing"),
        ("router.safetensors", lambda t: t.update({ROW: ("F32", (2, 16), t[ROW][2] * 2)}), r"is F32 \[2, 16\]"),
        ("router.safetensors", lambda t: t.update({ROW: ("F32", (16,), t[ROW][2])}), r"is F32 \[16\]"),
    ],
)
def test_other_tensors_do_not_fit(tmp_path: Path, anchor: AnchorSource, file: str, change: object, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        check_template(changed(tmp_path, anchor, file, change), anchor.manifest)


def test_a_row_among_the_parts_does_not_fit(tmp_path: Path, anchor: AnchorSource) -> None:
    folder = tmp_path / "expert"
    write_expert_files(folder)
    part, router = read_safetensors(folder / "part-0000.safetensors"), read_safetensors(folder / ROUTER_NAME)
    part[ROW] = router.pop(ROW)
    write_safetensors(folder / "part-0000.safetensors", part)
    write_safetensors(folder / ROUTER_NAME, router)
    manifest = ExpertManifest.model_validate_json(expert_manifest(folder, anchor.digest, name="law"))
    with pytest.raises(TemplateError, match=r"lies in part-0000\.safetensors, where it does not belong"):
        check_template(manifest, anchor.manifest)


def test_the_same_tensor_in_two_parts_does_not_fit(tmp_path: Path, anchor: AnchorSource) -> None:
    folder = tmp_path / "expert"
    write_expert_files(folder, parts=2)
    first, second = (read_safetensors(folder / f"part-000{part}.safetensors") for part in (0, 1))
    second[UP] = first[UP]
    write_safetensors(folder / "part-0001.safetensors", second)
    manifest = ExpertManifest.model_validate_json(expert_manifest(folder, anchor.digest, name="law"))
    with pytest.raises(FormatError, match="twice"):
        check_template(manifest, anchor.manifest)


def test_another_anchor_or_consortium_is_refused(tmp_path: Path, anchor: AnchorSource) -> None:
    expert = make_expert(tmp_path / "law", anchor, "law").manifest
    with pytest.raises(WrongAnchorError):
        check_template(expert, anchor.manifest, anchor_digest="0" * 64)
    with pytest.raises(WrongAnchorError):
        check_template(expert.model_copy(update={"consortium": "other"}), anchor.manifest)


# --- low rank -------------------------------------------------------------------------------------------------------


A, B = factor_names(UP)


def low_rank(tmp_path: Path, anchor: AnchorSource, change: object = None, *, rank: int = 2, **kind: object) -> ExpertManifest:
    """The manifest of a low-rank package after ``change`` to its first part, with its kind as it was before, but for ``kind``."""
    folder = tmp_path / "low"
    write_low_rank_files(folder, rank=rank, parts=1)
    honest = kind_of(tmp_path / "anchor", folder)
    if change is not None:
        tensors = read_safetensors(folder / "part-0000.safetensors")
        change(tensors)  # type: ignore[operator]
        write_safetensors(folder / "part-0000.safetensors", tensors)
    raw = expert_manifest(folder, anchor.digest, name="law", kind=honest.model_copy(update=kind))
    return parse_document(ExpertManifest, raw)


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_an_honest_low_rank_expert_fits(tmp_path: Path, anchor: AnchorSource, rank: int) -> None:
    check_template(low_rank(tmp_path, anchor, rank=rank), anchor.manifest, anchor_digest=anchor.digest)


def swap(tensors: dict[str, Tensor]) -> None:
    tensors[A], tensors[B] = tensors[B], tensors[A]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(A), r"up_proj\.lora_A\.weight is missing"),
        (lambda t: t.pop(B), r"up_proj\.lora_B\.weight is missing"),
        (lambda t: t.update({UP: ("F32", (24, 16), bytes(1536))}), r"up_proj\.weight does not belong"),
        (swap, r"lora_A\.weight is F32 \[24, 2\] where F32 \[2, 16\]"),
        (lambda t: t.update({A: ("F32", (3, 16), bytes(192))}), r"lora_A\.weight is F32 \[3, 16\]"),
        (lambda t: t.update({B: ("F32", (24, 1), bytes(96))}), r"lora_B\.weight is F32 \[24, 1\]"),
        (lambda t: t.update({A: ("BF16", (2, 16), bytes(64))}), r"lora_A\.weight is BF16"),
    ],
)
def test_other_factors_do_not_fit(tmp_path: Path, anchor: AnchorSource, change: object, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        check_template(low_rank(tmp_path, anchor, change), anchor.manifest)


def test_a_rank_that_is_not_the_factors_does_not_fit(tmp_path: Path, anchor: AnchorSource) -> None:
    with pytest.raises(TemplateError, match=r"lora_A\.weight is F32 \[2, 16\] where F32 \[3, 16\]"):
        check_template(low_rank(tmp_path, anchor, rank=2).model_copy(update={"kind": kind_with(tmp_path, rank=3)}), anchor.manifest)
    with pytest.raises(TemplateError, match="rank 16 at most"):
        check_template(low_rank(tmp_path, anchor, rank=17), anchor.manifest)


def kind_with(tmp_path: Path, **update: object) -> LowRankKind:
    return kind_of(tmp_path / "anchor", tmp_path / "low").model_copy(update=update)


def test_a_full_expert_may_not_call_itself_low_rank_nor_the_reverse(tmp_path: Path, anchor: AnchorSource) -> None:
    full, low = make_expert(tmp_path / "full", anchor, "law").manifest, low_rank(tmp_path, anchor)
    with pytest.raises(TemplateError, match="lora_A"):
        check_template(full.model_copy(update={"kind": low.kind}), anchor.manifest)
    with pytest.raises(TemplateError, match="is missing"):
        check_template(low.model_copy(update={"kind": full.kind}), anchor.manifest)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table[1:], "lacks the digest of"),
        (lambda table: (*table, MaterialisedTensor(name="model.norm.weight", sha256="0" * 64)), "gives a digest of"),
    ],
)
def test_the_table_of_materialised_tensors_is_that_of_the_anchor(
    tmp_path: Path, anchor: AnchorSource, change: Callable[[tuple[MaterialisedTensor, ...]], object], reason: str
) -> None:
    low_rank(tmp_path, anchor)
    table = kind_with(tmp_path).materialised
    with pytest.raises(TemplateError, match=reason):
        check_template(low_rank(tmp_path, anchor, materialised=change(table)), anchor.manifest)


def test_what_an_expert_gives_a_model(tmp_path: Path, anchor: AnchorSource) -> None:
    full, low = make_expert(tmp_path / "full", anchor, "law").manifest, low_rank(tmp_path, anchor)
    assert isinstance(low.kind, LowRankKind)
    assert {tensor.name: tensor.sha256 for tensor in expert_ffn(low, anchor.manifest).values()} == {
        entry.name: entry.sha256 for entry in low.kind.materialised
    }
    forms = [{(tensor.name, tensor.dtype, tensor.shape) for tensor in expert_ffn(each, anchor.manifest).values()} for each in (full, low)]
    assert forms[0] == forms[1]
    short = low.model_copy(update={"kind": low.kind.model_copy(update={"materialised": low.kind.materialised[1:]})})
    with pytest.raises(TemplateError, match="lacks the digest"):
        expert_ffn(short, anchor.manifest)


@pytest.mark.parametrize(
    ("name", "content"), [("part-0002.safetensors", b""), ("extra.bin", b"x"), ("README.md", b"x"), ("model.safetensors", b"")]
)
def test_a_package_holds_nothing_else(tmp_path: Path, anchor: AnchorSource, name: str, content: bytes) -> None:
    write_expert_files(tmp_path / "expert")
    (tmp_path / "expert" / name).write_bytes(content)
    with pytest.raises(LayoutError, match=name):
        expert_manifest(tmp_path / "expert", anchor.digest, name="law")


@pytest.mark.parametrize("name", ["part-0000.safetensors", "router.safetensors", "privacy.json"])
def test_a_package_lacks_nothing(tmp_path: Path, anchor: AnchorSource, name: str) -> None:
    write_expert_files(tmp_path / "expert")
    (tmp_path / "expert" / name).unlink()
    with pytest.raises(LayoutError, match=f"lacks {name}"):
        expert_manifest(tmp_path / "expert", anchor.digest, name="law")


def test_an_owner_of_another_consortium_cannot_be_written_into_a_manifest(tmp_path: Path, anchor: AnchorSource) -> None:
    write_expert_files(tmp_path / "expert")
    with pytest.raises(FormatError):
        expert_manifest(tmp_path / "expert", anchor.digest, name="law", owner="Anna Ä")
    with pytest.raises(FormatError, match="name"):
        expert_manifest(tmp_path / "expert", anchor.digest, name="Law!", consortium=CONSORTIUM)


def test_an_anchor_of_another_architecture_is_refused(tmp_path: Path) -> None:
    write_anchor_files(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM"):
        anchor_manifest(tmp_path / "a")


@pytest.mark.parametrize("key", ["num_hidden_layers", "intermediate_size", "vocab_size", "num_key_value_heads"])
def test_an_anchor_whose_configuration_lies_is_refused(tmp_path: Path, key: str) -> None:
    write_anchor_files(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {key: config[key] * 2}))
    with pytest.raises(ArchitectureError, match="configuration describes"):
        anchor_manifest(tmp_path / "a")


def test_an_anchor_with_stray_router_tensors_is_refused(tmp_path: Path) -> None:
    write_anchor_files(tmp_path / "a")
    router = read_safetensors(tmp_path / "a" / ROUTER_NAME)
    write_safetensors(tmp_path / "a" / ROUTER_NAME, router | {"surprise": ("F32", (1,), bytes(4))})
    with pytest.raises(ArchitectureError, match="surprise"):
        anchor_manifest(tmp_path / "a")
    router.pop(router_row_name(0))
    write_safetensors(tmp_path / "a" / ROUTER_NAME, router)
    with pytest.raises(ArchitectureError, match="public row of layer 0"):
        anchor_manifest(tmp_path / "a")


def test_an_anchor_without_moments_or_in_shards_is_fine(tmp_path: Path) -> None:
    write_anchor_files(tmp_path / "a", moments=False)
    anchor_manifest(tmp_path / "a")
    write_anchor_files(tmp_path / "b", TinyShape(tied=True, dtype="BF16"), shards=3)
    anchor_manifest(tmp_path / "b")


def test_shards_must_be_whole_and_agree_with_the_index(tmp_path: Path) -> None:
    write_anchor_files(tmp_path / "a", shards=3)
    index = json.loads((tmp_path / "a" / INDEX_NAME).read_text())
    index["weight_map"]["lm_head.weight"] = "model-00003-of-00003.safetensors"
    index["weight_map"]["model.norm.weight"] = "model-00003-of-00003.safetensors"
    (tmp_path / "a" / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(LayoutError, match="does not place every tensor"):
        anchor_manifest(tmp_path / "a")
    (tmp_path / "a" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(LayoutError, match="complete set of shards"):
        anchor_manifest(tmp_path / "a")


def test_a_forgotten_index_or_pickle_is_refused(tmp_path: Path) -> None:
    write_anchor_files(tmp_path / "a", shards=2)
    (tmp_path / "a" / INDEX_NAME).unlink()
    with pytest.raises(LayoutError, match="if, and only if"):
        anchor_manifest(tmp_path / "a")
    write_anchor_files(tmp_path / "b")
    (tmp_path / "b" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(LayoutError, match="pytorch_model"):
        anchor_manifest(tmp_path / "b")
