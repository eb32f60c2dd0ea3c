from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

import pytest

from common.errors import AlreadyExistsError, DigestError, ElmgroveError, StorageError, TemplateError, UsageError, WrongAnchorError
from common.formats.layout import INDEX_NAME, ROUTER_NAME, dense_ffn_name, expert_ffn_name, router_row_name
from common.formats.manifest import ModelManifest
from common.formats.strictjson import parse_document
from common.weights.assembly import AnchorSource, ExpertSource, anchor_source, digest_assembly, expert_source, plan_assembly, write_assembly
from common.weights.contents import content_faults
from common.weights.copying import COPY_METHODS, copy_range
from common.weights.parallel import Meter
from common.weights.sources import in_folder
from tests.support import tiny_weights
from tests.support.owner_world import write_cheap_anchor, write_cheap_expert
from tests.support.tiny_manifests import anchor_manifest, expert_manifest, make_anchor, make_expert
from tests.support.tiny_weights import TINY, TinyShape, read_safetensors

ROOT = Path(__file__).parents[3]


@pytest.fixture
def anchor(tmp_path: Path) -> AnchorSource:
    return make_anchor(tmp_path / "anchor")


def experts_of(tmp_path: Path, anchor: AnchorSource, *names: str, shape: TinyShape = TINY, parts: int = 1) -> list[ExpertSource]:
    return [make_expert(tmp_path / name, anchor, name, shape, seed=at, parts=parts) for at, name in enumerate(names, 1)]


def assemble(anchor: AnchorSource, experts: list[ExpertSource], out: Path, top_k: int = 1) -> bytes:
    return write_assembly(plan_assembly(anchor, experts, top_k, "Apache-2.0"), out)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def all_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    files = sorted(folder.glob("model-*.safetensors"))
    merged = [item for file in files for item in read_safetensors(file).items()]
    assert len({name for name, _ in merged}) == len(merged), "a tensor stands in two files"
    return dict(merged)


def test_every_tensor_of_the_model_is_a_tensor_of_a_source(tmp_path: Path, anchor: AnchorSource) -> None:
    experts = experts_of(tmp_path, anchor, "law", "medicine", parts=2)
    assemble(anchor, experts, tmp_path / "out")
    model = all_tensors(tmp_path / "out")
    base = read_safetensors(tmp_path / "anchor" / "model.safetensors")
    expected = {}
    for name, tensor in base.items():
        moved = name.replace(".mlp.", ".mlp.experts.0.")
        expected[moved] = tensor
    for slot, source in enumerate(("law", "medicine"), 1):
        for part in ("part-0000.safetensors", "part-0001.safetensors"):
            for name, tensor in read_safetensors(tmp_path / source / part).items():
                expected[name.replace(".mlp.", f".mlp.experts.{slot}.")] = tensor
    for layer in range(2):
        name = router_row_name(layer)
        rows = [read_safetensors(tmp_path / folder / ROUTER_NAME)[name] for folder in ("anchor", "law", "medicine")]
        expected[name] = ("F32", (3, 16), b"".join(raw for _, _, raw in rows))
    assert model == expected


def test_leaving_an_expert_out_gives_the_assembly_without_it(tmp_path: Path, anchor: AnchorSource) -> None:
    law, medicine = experts_of(tmp_path, anchor, "law", "medicine")
    assemble(anchor, [law], tmp_path / "never")
    assemble(anchor, [law, medicine], tmp_path / "both")
    assemble(anchor, [law], tmp_path / "without")
    assert folder_bytes(tmp_path / "without") == folder_bytes(tmp_path / "never")
    assert folder_bytes(tmp_path / "both") != folder_bytes(tmp_path / "without")
    shared = {"model-anchor.safetensors", "model-expert-001-law.safetensors", "tokenizer.json"}
    both, without = folder_bytes(tmp_path / "both"), folder_bytes(tmp_path / "without")
    assert all(both[name] == without[name] for name in shared)


def test_bytes_do_not_depend_on_where_or_under_which_name_files_lie(tmp_path: Path, anchor: AnchorSource) -> None:
    [law] = experts_of(tmp_path, anchor, "law", parts=3)
    blobs = tmp_path / "blobs"
    blobs.mkdir()

    def store(folder: Path, manifest: object) -> object:
        table = {entry.name: entry.sha256 for entry in manifest.files}  # type: ignore[attr-defined]
        for name, digest in table.items():
            shutil.copy(folder / name, blobs / digest)
        return lambda name: blobs / table[name]

    stored_anchor = anchor_source((tmp_path / "anchor" / "manifest.json").read_bytes(), store(tmp_path / "anchor", anchor.manifest))
    stored_law = expert_source((tmp_path / "law" / "manifest.json").read_bytes(), store(tmp_path / "law", law.manifest))
    first = assemble(anchor, [law], tmp_path / "one", top_k=2)
    second = assemble(stored_anchor, [stored_law], tmp_path / "elsewhere" / "two", top_k=2)
    assert first == second
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "elsewhere" / "two")


def test_manifest_agrees_with_the_folder_and_names_the_experts(tmp_path: Path, anchor: AnchorSource) -> None:
    experts = experts_of(tmp_path, anchor, "law", "medicine")
    raw = assemble(anchor, experts, tmp_path / "out", top_k=2)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == raw
    manifest = parse_document(ModelManifest, raw)
    assert content_faults(manifest, in_folder(tmp_path / "out"), "nobody") == []
    assert {entry.name for entry in manifest.files} | {"manifest.json"} == set(folder_bytes(tmp_path / "out"))
    assert [(slot.slot, slot.name, slot.manifest) for slot in manifest.experts] == [
        (1, "law", experts[0].digest),
        (2, "medicine", experts[1].digest),
    ]
    assert (manifest.anchor, manifest.top_k) == (anchor.digest, 2)


def test_index_places_exactly_the_tensors_that_lie_in_each_file(tmp_path: Path, anchor: AnchorSource) -> None:
    assemble(anchor, experts_of(tmp_path, anchor, "law", "medicine"), tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    lying = {name: file.name for file in (tmp_path / "out").glob("*.safetensors") for name in read_safetensors(file)}
    assert index["weight_map"] == lying
    assert index["metadata"]["total_size"] == sum(len(raw) for _, _, raw in all_tensors(tmp_path / "out").values())


def test_signature_covers_every_file_and_is_in_the_folder(tmp_path: Path, anchor: AnchorSource) -> None:
    seen: dict[str, str] = {}

    def sign(resources: dict[str, str]) -> bytes:
        seen.update(resources)
        return b"signature"

    write_assembly(plan_assembly(anchor, [], 1, "MIT"), tmp_path / "out", sign=sign)
    found = folder_bytes(tmp_path / "out")
    assert found.pop("model.sig") == b"signature"
    assert seen == {name: hashlib.sha256(raw).hexdigest() for name, raw in found.items()}


def test_a_changed_source_is_named_and_leaves_no_folder(tmp_path: Path, anchor: AnchorSource) -> None:
    [law] = experts_of(tmp_path, anchor, "law")
    part = tmp_path / "law" / "part-0000.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-1] ^= 1
    part.write_bytes(raw)
    with pytest.raises(DigestError, match=r"model\.layers\.1\.mlp\.down_proj\.weight of expert law"):
        assemble(anchor, [law], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"anchor", "law"}


def test_a_failing_signer_leaves_no_folder(tmp_path: Path, anchor: AnchorSource) -> None:
    def sign(_resources: object) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_assembly(plan_assembly(anchor, [], 1, "MIT"), tmp_path / "out", sign=sign)
    assert {path.name for path in tmp_path.iterdir()} == {"anchor"}


def test_an_interruption_while_copying_leaves_no_folder(tmp_path: Path, anchor: AnchorSource) -> None:
    def stop(_label: str, done: int, _total: int, _unit: str, figures: object = None) -> None:
        if done > 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_assembly(plan_assembly(anchor, [], 1, "MIT"), tmp_path / "out", progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"anchor"}


def test_a_full_disk_is_said_and_leaves_no_folder(tmp_path: Path, anchor: AnchorSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(StorageError, match="No space is left"):
        assemble(anchor, [], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"anchor"}


def test_an_existing_folder_is_kept(tmp_path: Path, anchor: AnchorSource) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(AlreadyExistsError):
        assemble(anchor, [], tmp_path / "out")


@pytest.mark.parametrize("top_k", [0, 3, -1])
def test_top_k_outside_the_experts_is_refused(tmp_path: Path, anchor: AnchorSource, top_k: int) -> None:
    with pytest.raises(UsageError, match="between 1 and 2"):
        plan_assembly(anchor, experts_of(tmp_path, anchor, "law"), top_k, "MIT")


def test_the_same_expert_twice_is_refused(tmp_path: Path, anchor: AnchorSource) -> None:
    [law] = experts_of(tmp_path, anchor, "law")
    with pytest.raises(UsageError, match="law is named twice"):
        plan_assembly(anchor, [law, law], 1, "MIT")


def test_an_expert_for_another_anchor_is_refused(tmp_path: Path, anchor: AnchorSource) -> None:
    other = make_anchor(tmp_path / "other", seed=9)
    [law] = experts_of(tmp_path, other, "law")
    with pytest.raises(WrongAnchorError):
        plan_assembly(anchor, [law], 1, "MIT")


def test_an_expert_of_other_sizes_is_refused(tmp_path: Path, anchor: AnchorSource) -> None:
    [law] = experts_of(tmp_path, anchor, "law", shape=TinyShape(inner=32))
    with pytest.raises(TemplateError, match="where F32"):
        plan_assembly(anchor, [law], 1, "MIT")


@pytest.mark.parametrize("method", COPY_METHODS)
def test_every_way_of_copying_copies_the_range(tmp_path: Path, method: object) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(content)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb", buffering=0) as target:
        target.write(b"head")
        copy_range(source.fileno(), target.fileno(), 1234, 2_500_000, meter=Meter(), methods=[method])  # type: ignore[list-item]
    assert (tmp_path / "target").read_bytes() == b"head" + content[1234 : 1234 + 2_500_000]


def test_copying_falls_back_when_the_kernel_refuses(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 1000)

    def refuse(*_arguments: int) -> int:
        raise OSError(18, "cross-device")

    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb", buffering=0) as target:
        copy_range(source.fileno(), target.fileno(), 0, 1000, meter=Meter(), methods=[refuse, COPY_METHODS[2]])
    assert (tmp_path / "target").read_bytes() == b"x" * 1000


def test_copying_past_the_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 10)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb", buffering=0) as target, pytest.raises(DigestError):
        copy_range(source.fileno(), target.fileno(), 0, 11, meter=Meter())


def test_a_sharded_and_tied_anchor_assembles(tmp_path: Path) -> None:
    shape = TinyShape(tied=True, dtype="BF16", layers=3)
    anchor = make_anchor(tmp_path / "anchor", shape, shards=4)
    assemble(anchor, experts_of(tmp_path, anchor, "law", shape=shape), tmp_path / "out", top_k=2)
    model = all_tensors(tmp_path / "out")
    assert "lm_head.weight" not in model
    source = read_safetensors(tmp_path / "anchor" / "model-00002-of-00004.safetensors")
    for name, tensor in source.items():
        assert model[name.replace(".mlp.", ".mlp.experts.0.")] == tensor


def test_a_progress_sink_hears_of_every_byte(tmp_path: Path, anchor: AnchorSource) -> None:
    heard: list[tuple[str, int, int]] = []
    plan = plan_assembly(anchor, experts_of(tmp_path, anchor, "law"), 1, "MIT")

    def sink(label: str, done: int, total: int, _unit: str, figures: object = None) -> None:
        heard.append((label, done, total))

    write_assembly(plan, tmp_path / "out", progress=sink)
    assert ("Assembling out", plan.size, plan.size) in heard
    assert heard[-1] == ("Verifying out", plan.size, plan.size)


def cheap_bytes(rng: random.Random, _dtype: str, size: Sequence[int], *, around: float = 0.0) -> bytes:
    return rng.randbytes(2) * prod(size)


def test_memory_stays_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_weights, "random_bytes", cheap_bytes)
    shape = TinyShape(hidden=1024, inner=4096, layers=3, vocab=512, dtype="BF16")
    tiny_weights.write_anchor_files(tmp_path / "a", shape, moments=False)
    anchor_manifest(tmp_path / "a")
    script = """
import re, sys
from pathlib import Path
from common.weights.assembly import anchor_source, plan_assembly, write_assembly
folder = Path(sys.argv[1])
write_assembly(plan_assembly(anchor_source((folder / "a/manifest.json").read_bytes(), folder / "a"), [], 1, "MIT"), folder / "tiny")
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=ROOT, capture_output=True, text=True)
    assert (tmp_path / "tiny" / "model-anchor.safetensors").stat().st_size > 90_000_000
    assert int(done.stdout) < 80_000, "KiB, of which the interpreter and pydantic take 45,000"


@pytest.mark.parametrize("count", [13])
def test_stock_transformers_gives_the_logits_of_the_mixture(tmp_path: Path, count: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = TinyShape()
    anchor = make_anchor(tmp_path / "anchor", shape)
    names = [f"expert-{index}" for index in range(1, count)]
    experts = experts_of(tmp_path, anchor, *names)
    assemble(anchor, experts, tmp_path / "out", top_k=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "anchor", attn_implementation="eager")
    assert type(model).__name__ == "FlexOlmoForCausalLM"
    _mix_by_hand(torch, dense, tmp_path, ["anchor", *names], top_k=3)
    tokens = torch.arange(24).reshape(2, 12) % shape.vocab
    with torch.no_grad():
        ours, theirs = dense(tokens).logits, model(tokens).logits
    assert torch.isfinite(theirs).all()
    assert (ours - theirs).abs().max() < 2e-5
    with torch.no_grad():
        alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "anchor", attn_implementation="eager")(tokens).logits
    assert (alone - theirs).abs().max() > 1e-2, "the experts change nothing, so the test proves nothing"


def _mix_by_hand(torch: object, dense: object, folder: Path, sources: list[str], *, top_k: int) -> None:
    """Replace each layer's FFN by the mixture written down directly: softmax over all rows, the top k, no renormalisation."""
    frombuffer, float32 = torch.frombuffer, torch.float32  # type: ignore[attr-defined]

    def load(path: Path) -> dict[str, object]:
        return {name: frombuffer(bytearray(raw), dtype=float32).reshape(size) for name, (_, size, raw) in read_safetensors(path).items()}

    weights = [load(folder / name / ("model.safetensors" if name == "anchor" else "part-0000.safetensors")) for name in sources]
    rows = [load(folder / name / ROUTER_NAME) for name in sources]
    silu = torch.nn.functional.silu  # type: ignore[attr-defined]
    for layer, block in enumerate(dense.model.layers):  # type: ignore[attr-defined]
        gate = torch.cat([row[router_row_name(layer)] for row in rows])  # type: ignore[attr-defined]

        def mixture(x: object, gate: object = gate, layer: int = layer) -> object:
            share = (x @ gate.T).softmax(-1)  # type: ignore[operator,attr-defined]
            kept = share.topk(top_k, dim=-1)
            active = torch.zeros_like(share).scatter(-1, kept.indices, kept.values)  # type: ignore[attr-defined]
            total = 0
            for expert, table in enumerate(weights):
                up, down = table[dense_ffn_name(layer, "up_proj")], table[dense_ffn_name(layer, "down_proj")]
                hidden = silu(x @ table[dense_ffn_name(layer, "gate_proj")].T) * (x @ up.T)  # type: ignore[attr-defined,operator]
                total = total + active[..., expert : expert + 1] * (hidden @ down.T)  # type: ignore[attr-defined]
            return total

        block.mlp.forward = mixture


def test_what_transformers_saves_in_shards_becomes_an_anchor_and_a_mixture_without_a_missing_weight(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = TinyShape(dtype="BF16", tied=True, layers=3)
    config = transformers.Olmo2Config(**{key: value for key, value in shape.config.items() if key not in {"architectures", "model_type"}})
    saved = transformers.Olmo2ForCausalLM(config).to(torch.bfloat16)
    tiny_weights.write_anchor_files(tmp_path / "anchor", shape)
    (tmp_path / "anchor" / "model.safetensors").unlink()
    saved.save_pretrained(tmp_path / "anchor", max_shard_size="6KB")
    assert len(list((tmp_path / "anchor").glob("model-*-of-*.safetensors"))) > 2
    anchor = anchor_source(anchor_manifest(tmp_path / "anchor"), tmp_path / "anchor")
    assemble(anchor, experts_of(tmp_path, anchor, "law", "medicine", shape=shape), tmp_path / "out", top_k=2)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.model.layers[2].self_attn.k_proj.weight, saved.model.layers[2].self_attn.k_proj.weight)
    assert model.config.rope_parameters["rope_theta"] == 20000.0
    assert (model.config.rms_norm_eps, model.config.eos_token_id, model.config.num_experts_per_tok) == (3e-6, 2, 2)


def test_expert_names_are_hugging_faces() -> None:
    assert expert_ffn_name(3, 11, "up_proj") == "model.layers.3.mlp.experts.11.up_proj.weight"


def test_only_documented_errors_for_unreadable_sources(tmp_path: Path, anchor: AnchorSource) -> None:
    [law] = experts_of(tmp_path, anchor, "law")
    (tmp_path / "law" / "part-0000.safetensors").unlink()
    with pytest.raises(ElmgroveError):
        plan_assembly(anchor, [law], 1, "MIT")


def test_the_manifest_is_known_without_writing_the_model(tmp_path: Path, anchor: AnchorSource) -> None:
    plan = plan_assembly(anchor, experts_of(tmp_path, anchor, "law", "medicine", parts=2), 2, "Apache-2.0")
    before = sorted(tmp_path.rglob("*"))
    raw = digest_assembly(plan)
    assert sorted(tmp_path.rglob("*")) == before
    assert raw == write_assembly(plan, tmp_path / "out")


def test_the_manifest_of_files_of_several_chunks_is_known_too(tmp_path: Path) -> None:
    shape = TinyShape(hidden=512, inner=2048, layers=2, vocab=64)
    write_cheap_anchor(tmp_path / "anchor", shape)
    tiny_weights.write_anchor_files(tmp_path / "small", TinyShape(hidden=512, inner=4, layers=2, vocab=4), moments=False)
    shutil.copy(tmp_path / "small" / ROUTER_NAME, tmp_path / "anchor" / ROUTER_NAME)
    anchor = anchor_source(anchor_manifest(tmp_path / "anchor"), tmp_path / "anchor")
    write_cheap_expert(tmp_path / "law", shape, seed=3)
    expert = expert_source(expert_manifest(tmp_path / "law", anchor.digest, name="law"), tmp_path / "law")
    plan = plan_assembly(anchor, [expert], 2, "Apache-2.0")
    raw = digest_assembly(plan)
    assert [len(entry.chunks) for entry in parse_document(ModelManifest, raw).files if entry.size > 2**24] == [2, 2]
    assert raw == write_assembly(plan, tmp_path / "out")


def test_a_changed_source_is_named_without_writing_too(tmp_path: Path, anchor: AnchorSource) -> None:
    experts = experts_of(tmp_path, anchor, "law")
    part = tmp_path / "law" / "part-0000.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DigestError, match=r"down_proj\.weight of expert law version 1"):
        digest_assembly(plan_assembly(anchor, experts, 1, "Apache-2.0"))
