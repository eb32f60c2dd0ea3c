"""Materialising packages: the same bytes in any blocks, assembled as if the full matrices had been uploaded, and nothing half-made."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DigestError, InterruptedByUserError, NonFiniteError, SafetensorsError, StorageError, TemplateError, UsageError
from common.formats.layout import dense_ffn_name, factor_names, ffn_names
from common.formats.manifest import LowRankKind
from common.lowrank import materialise
from common.lowrank.arithmetic import add_product, narrow, widen
from common.lowrank.materialise import low_rank_kind, low_rank_matrices, materialised_digests, source_matrices, write_materialised
from common.weights.assembly import plan_assembly, write_assembly
from common.weights.sources import AnchorSource, ExpertSource, expert_source
from tests.support.tiny_manifests import expert_manifest, kind_of, make_anchor, make_expert, make_low_rank
from tests.support.tiny_weights import TinyShape, read_safetensors, write_low_rank_files, write_safetensors

SHAPES = [TinyShape(), TinyShape(dtype="BF16", hidden=24, inner=40), TinyShape(dtype="F16", layers=3)]
NAME = dense_ffn_name(1, "down_proj")
A, B = factor_names(NAME)


def expected_of(expert: ExpertSource) -> dict[str, str]:
    kind = expert.manifest.kind
    assert isinstance(kind, LowRankKind)
    return {entry.name: entry.sha256 for entry in kind.materialised}


def whole(anchor: AnchorSource, expert: ExpertSource) -> dict[str, bytes]:
    """Every matrix in one block, straight through the arithmetic."""
    base = read_safetensors(anchor.resolve("model.safetensors"))
    factors = {}
    for part in ("part-0000.safetensors", "part-0001.safetensors"):
        factors |= read_safetensors(expert.resolve(part))
    made = {}
    for name in ffn_names(anchor.manifest.architecture.num_hidden_layers):
        (dtype, shape, raw), a, b = base[name], *(factors[factor] for factor in factor_names(name))
        values = widen(raw, dtype).reshape(shape)
        add_product(values, widen(b[2], dtype).reshape(b[1]), widen(a[2], dtype).reshape(a[1]))
        made[name] = narrow(values, dtype)
    return made


@pytest.fixture
def anchor(tmp_path: Path) -> AnchorSource:
    return make_anchor(tmp_path / "anchor")


@pytest.fixture
def low(tmp_path: Path, anchor: AnchorSource) -> ExpertSource:
    return make_low_rank(tmp_path / "low", anchor, "law", rank=3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.dtype)
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_digests_do_not_depend_on_blocks(tmp_path: Path, shape: TinyShape, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    anchor = make_anchor(tmp_path / "anchor", shape, shards=1)
    low = make_low_rank(tmp_path / "low", anchor, "law", shape, rank=5)
    monkeypatch.setattr(materialise, "_BLOCK_VALUES", block)
    digests = materialised_digests(source_matrices(anchor, low))
    assert digests == {name: hashlib.sha256(raw).hexdigest() for name, raw in whole(anchor, low).items()} == expected_of(low)
    write_materialised(source_matrices(anchor, low), tmp_path / "whole.safetensors", digests)
    assert {name: raw for name, (_, _, raw) in read_safetensors(tmp_path / "whole.safetensors").items()} == whole(anchor, low)


def test_factors_change_the_matrices_and_zero_factors_do_not(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    public = {entry.name: entry.sha256 for entry in anchor.manifest.tensors}
    assert all(digest != public[name] for name, digest in expected_of(low).items())
    for part in ("part-0000.safetensors", "part-0001.safetensors"):
        tensors = read_safetensors(tmp_path / "low" / part)
        write_safetensors(
            tmp_path / "low" / part, {n: (d, s, bytes(len(raw)) if "lora_B" in n else raw) for n, (d, s, raw) in tensors.items()}
        )
    assert materialised_digests(source_matrices(anchor, low)) == {name: public[name] for name in expected_of(low)}


def test_a_sharded_anchor_gives_the_same(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    sharded = make_anchor(tmp_path / "sharded", shards=3)
    write_low_rank_files(tmp_path / "again", rank=3)
    assert kind_of(tmp_path / "sharded", tmp_path / "again") == low.manifest.kind
    assert materialised_digests(source_matrices(sharded, low)) != {}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.dtype)
def test_a_mixed_model_is_as_if_the_full_matrices_had_been_uploaded(tmp_path: Path, shape: TinyShape) -> None:
    anchor = make_anchor(tmp_path / "anchor", shape)
    full = make_expert(tmp_path / "full", anchor, "medicine", shape, seed=5)
    low = make_low_rank(tmp_path / "low", anchor, "law", shape, rank=2)
    made = tmp_path / "made.safetensors"
    write_materialised(source_matrices(anchor, low), made, expected_of(low))
    plan = plan_assembly(anchor, [full, low], 2, "Apache-2.0", materialised={low.digest: made})
    write_assembly(plan, tmp_path / "mixed")

    uploaded = tmp_path / "uploaded"
    write_low_rank_files(uploaded, shape, rank=2, parts=1)
    forms = read_safetensors(made)
    write_safetensors(uploaded / "part-0000.safetensors", {name: forms[name] for name in ffn_names(shape.layers)})
    twin = expert_source(expert_manifest(uploaded, anchor.digest, name="law"), uploaded)
    write_assembly(plan_assembly(anchor, [full, twin], 2, "Apache-2.0"), tmp_path / "twin")
    files = {path.name: path.read_bytes() for path in (tmp_path / "mixed").iterdir() if path.name != "manifest.json"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "twin").iterdir() if path.name != "manifest.json"}
    assert read_safetensors(tmp_path / "mixed" / "model-expert-002-law.safetensors").keys() == {
        name.replace(".mlp.", ".mlp.experts.2.") for name in ffn_names(shape.layers)
    }


def test_a_low_rank_expert_must_be_materialised_before_it_is_assembled(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    with pytest.raises(UsageError, match="must be materialised"):
        plan_assembly(anchor, [low], 2, "")
    made = tmp_path / "made.safetensors"
    write_materialised(source_matrices(anchor, low)[1:], made, expected_of(low))
    with pytest.raises(DigestError, match="does not hold the matrices"):
        plan_assembly(anchor, [low], 2, "", materialised={low.digest: made})


def test_a_changed_materialised_file_never_becomes_a_model(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    made = tmp_path / "made.safetensors"
    write_materialised(source_matrices(anchor, low), made, expected_of(low))
    made.chmod(0o644)
    with made.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")
    with pytest.raises(DigestError, match="materialised expert law"):
        write_assembly(plan_assembly(anchor, [low], 2, "", materialised={low.digest: made}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change(path: Path, name: str, value: float) -> None:
    """Overwrite the first value of a tensor of a file."""
    tensors = read_safetensors(path)
    dtype, shape, raw = tensors[name]
    write_safetensors(path, tensors | {name: (dtype, shape, struct.pack("<f", value) + raw[4:])})


def test_a_changed_factor_is_named_and_leaves_no_file(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    change(tmp_path / "low" / "part-0001.safetensors", factor_names(NAME)[0], 0.25)
    (tmp_path / "out").mkdir()
    with pytest.raises(DigestError, match=NAME):
        write_materialised(source_matrices(anchor, low), tmp_path / "out" / "made.safetensors", expected_of(low))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_changed_anchor_is_not_the_owners_fault(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    change(tmp_path / "anchor" / "model.safetensors", NAME, 0.25)
    with pytest.raises(StorageError, match=f"tensor {NAME} of the anchor"):
        materialised_digests(source_matrices(anchor, low))


@pytest.mark.parametrize(("value", "other"), [(3e38, 3e38), (float("nan"), 0.1), (float("inf"), 0.1)])
def test_what_multiplies_out_to_no_number_is_named(
    tmp_path: Path, anchor: AnchorSource, low: ExpertSource, value: float, other: float
) -> None:
    a, b = factor_names(NAME)
    change(tmp_path / "low" / "part-0001.safetensors", a, value)
    change(tmp_path / "low" / "part-0001.safetensors", b, other)
    with pytest.raises(NonFiniteError, match=NAME):
        materialised_digests(source_matrices(anchor, low))


def test_a_sum_that_overflows_on_the_way_is_no_number_though_it_would_come_back(tmp_path: Path, anchor: AnchorSource) -> None:
    write_low_rank_files(tmp_path / "low", rank=2, parts=1)
    path = tmp_path / "low" / "part-0000.safetensors"
    tensors, (a, b) = read_safetensors(path), factor_names(NAME)
    tensors[a] = ("F32", (2, 24), struct.pack("<48f", *[3e38] * 24, *[-3e38] * 24))
    tensors[b] = ("F32", (16, 2), struct.pack("<32f", *[1.5] * 32))
    write_safetensors(path, tensors)
    with pytest.raises(NonFiniteError, match=NAME):
        kind_of(tmp_path / "anchor", tmp_path / "low")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda t: t.pop(A), "two factors, is missing"),
        (lambda t: t.update(more=t[A]), "more is no factor"),
        (lambda t: t.update({A: t[B], B: t[A]}), "where F32"),
        (lambda t: t.update({A: ("F32", (0, 24), b"")}), "no shape that a low-rank expert can have"),
        (lambda t: t.update({A: ("F32", (), bytes(4))}), "no shape that a low-rank expert can have"),
        (lambda t: t.update({A: ("F32", (1, 24), bytes(96)), B: ("F32", (16, 1), bytes(64))}), "ranks 1 to 2"),
    ],
)
def test_files_that_are_no_factors_are_refused(
    tmp_path: Path, anchor: AnchorSource, fault: Callable[[dict[str, object]], object], reason: str
) -> None:
    write_low_rank_files(tmp_path / "low", rank=2, parts=1)
    path = tmp_path / "low" / "part-0000.safetensors"
    tensors = read_safetensors(path)
    fault(tensors)  # type: ignore[arg-type]
    write_safetensors(path, tensors)
    with pytest.raises(TemplateError, match=reason):
        kind_of(tmp_path / "anchor", tmp_path / "low")


def test_a_damaged_file_is_said(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    matrices = source_matrices(anchor, low)
    for cut in (tmp_path / "low" / "part-0000.safetensors", tmp_path / "anchor" / "model.safetensors"):
        whole_file = cut.read_bytes()
        cut.write_bytes(whole_file[: len(whole_file) // 2])
        with pytest.raises(SafetensorsError):
            source_matrices(anchor, low)
        with pytest.raises(DigestError, match="shorter than its header"):
            materialised_digests(matrices)
        cut.write_bytes(whole_file)


def test_a_full_disk_is_said_and_leaves_no_file(
    tmp_path: Path, anchor: AnchorSource, low: ExpertSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _view: object, at: int) -> int:
        if at < 4096:
            return len(_view)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match="No space"):
        write_materialised(source_matrices(anchor, low), tmp_path / "out" / "made.safetensors", expected_of(low))
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_hears_of_every_byte_and_an_interruption_leaves_no_file(tmp_path: Path, anchor: AnchorSource, low: ExpertSource) -> None:
    heard: list[tuple[str, int, int]] = []
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "made.safetensors"
    write_materialised(
        source_matrices(anchor, low),
        target,
        expected_of(low),
        label="Making law",
        progress=lambda label, done, total, _unit: heard.append((label, done, total)),
    )
    total = 6 * 16 * 24 * 4
    assert heard[-1] == ("Making law", total, total)
    target.unlink()

    def interrupt(_label: str, _done: int, _total: int, _unit: str) -> None:
        raise InterruptedByUserError

    with pytest.raises(InterruptedByUserError):
        write_materialised(source_matrices(anchor, low), target, expected_of(low), progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_at_an_eighth_of_the_width_a_package_is_five_times_smaller(tmp_path: Path, dtype: str) -> None:
    """Everything that is uploaded counts, the manifest with its table of digests too."""
    shape = replace(TinyShape(), hidden=64, inner=256, dtype=dtype)
    anchor = make_anchor(tmp_path / "anchor", shape)
    make_expert(tmp_path / "full", anchor, "law", shape)
    make_low_rank(tmp_path / "low", anchor, "law", shape, rank=64 // 8)
    full, low = (sum(path.stat().st_size for path in (tmp_path / name).iterdir()) for name in ("full", "low"))
    assert full / low >= (5 if dtype == "F32" else 4.5)  # of 6.4 by the numbers alone: at 16 KiB a matrix the tables weigh


def test_memory_is_bounded_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(TinyShape(), hidden=64, inner=4096, layers=2, vocab=8)
    anchor = make_anchor(tmp_path / "anchor", shape)
    write_low_rank_files(tmp_path / "low", shape, rank=2)
    matrices = low_rank_matrices([anchor.resolve("model.safetensors")], sorted((tmp_path / "low").glob("part-*")))
    monkeypatch.setattr(materialise, "_BLOCK_VALUES", 4096)
    tracemalloc.start()
    try:
        kind = low_rank_kind(matrices)
        write_materialised(matrices, tmp_path / "made", {entry.name: entry.sha256 for entry in kind.materialised})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "made").stat().st_size > 6 * 2**20
    assert peak < 2 * 2**20
