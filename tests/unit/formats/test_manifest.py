"""The three manifests: a good one of each, and one fault at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from common.errors import FormatError
from common.formats.limits import CHUNK_BYTES, MAX_FILES
from common.formats.manifest import AnchorManifest, ExpertManifest, Manifest, ModelManifest
from common.formats.strictjson import canonical_bytes, parse_document

WEIGHTS, ROUTER = "part-0000.safetensors", "router.safetensors"


def file(name: str, size: int = 3) -> dict[str, Any]:
    return {"name": name, "size": size, "sha256": "1" * 64, "chunks": ["2" * 64] * -(-size // CHUNK_BYTES)}


def tensor(name: str, inside: str = WEIGHTS) -> dict[str, Any]:
    return {"name": name, "dtype": "BF16", "shape": [2, 3], "sha256": "3" * 64, "file": inside}


def slot(number: int, name: str = "moss") -> dict[str, Any]:
    return {"slot": number, "name": name, "version": 1, "owner": "elmgrove://grove/owners/anna", "manifest": "4" * 64}


TABLES = {
    "consortium": "grove",
    "files": [file(WEIGHTS), file(ROUTER)],
    "tensors": [tensor("a"), tensor("b"), tensor("a", ROUTER)],
    "licence": "CC-BY-4.0",
}
GOOD: dict[type[Manifest], dict[str, Any]] = {
    AnchorManifest: TABLES
    | {
        "schema": "elmgrove.anchor/v1", "name": "base", "provenance": "public text", "created": "2026-01-31T08:00:00Z",
        "architecture": {
            "model_type": "olmo2", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 32, "dtype": "F32",
        },
    },
    ExpertManifest: TABLES
    | {
        "schema": "elmgrove.expert/v1", "owner": "elmgrove://grove/owners/anna", "name": "moss", "version": 1, "anchor": "5" * 64,
        "kind": {"type": "full"}, "training": {"steps": 10, "learning_rate": "3e-4"}, "permitted_uses": ["research"],
        "not_after": None, "supersedes": None, "created": "2026-01-31T08:00:00Z",
    },
    ModelManifest: TABLES | {"schema": "elmgrove.model/v1", "anchor": "5" * 64, "experts": [slot(1), slot(2, "fern")], "top_k": 3},
}  # fmt: skip
LOW_RANK: dict[str, Any] = {
    "type": "low_rank",
    "rank": 4,
    "materialised": [{"name": "a", "sha256": "7" * 64}, {"name": "b", "sha256": "8" * 64}],
}
KINDS = list(GOOD)
Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("kind", KINDS)
def test_good_manifest_is_read_and_written_the_same(kind: type[Manifest]) -> None:
    manifest = parse_document(kind, json.dumps(GOOD[kind]).encode())
    assert json.loads(canonical_bytes(manifest)) == GOOD[kind]
    assert parse_document(kind, canonical_bytes(manifest)) == manifest


def test_a_manifest_is_not_one_of_another_kind() -> None:
    for kind in KINDS:
        for other in KINDS:
            if kind is not other:
                with pytest.raises(FormatError):
                    parse_document(other, json.dumps(GOOD[kind]).encode())


def _swap(key: str) -> Change:
    return lambda document: document[key].__setitem__(slice(0, 2), document[key][1::-1])


SHARED: list[tuple[str, Change, str]] = [
    ("unknown field", lambda d: d.update(more=1), "more"),
    ("consortium", lambda d: d.update(consortium="Grove"), "consortium"),
    ("no files", lambda d: d.update(files=[]), "files"),
    ("no tensors", lambda d: d.update(tensors=[]), "tensors"),
    ("too many files", lambda d: d.update(files=[file(f"f{n:05d}") for n in range(MAX_FILES + 1)]), "files"),
    ("files out of order", _swap("files"), "files are not in ascending order"),
    ("file twice", lambda d: d["files"].insert(0, d["files"][0]), "files are not in ascending order"),
    ("case twins", lambda d: d["files"].insert(0, file(WEIGHTS.upper())), "distinct names"),
    ("lists itself", lambda d: d["files"].insert(0, file("manifest.json")), "may not list themselves"),
    ("lists its signature", lambda d: d["files"].insert(0, file("model.sig")), "may not list themselves"),
    ("path as name", lambda d: d["files"].insert(0, file("../x")), "files.0.name"),
    ("negative size", lambda d: d["files"][0].update(size=-1), "files.0.size"),
    ("missing chunk", lambda d: d["files"][0].update(size=CHUNK_BYTES + 1), "number of chunks"),
    ("surplus chunk", lambda d: d["files"][0].update(chunks=["2" * 64] * 2), "number of chunks"),
    ("chunk of an empty file", lambda d: d["files"][0].update(size=0), "number of chunks"),
    ("size as text", lambda d: d["files"][0].update(size="3"), "files.0.size"),
    ("tensors out of order", _swap("tensors"), "tensors are not in ascending order"),
    ("tensor twice", lambda d: d["tensors"].insert(0, d["tensors"][0]), "tensors are not in ascending order"),
    ("tensor in no file", lambda d: d["tensors"].append(tensor("z", "z.safetensors")), "file that is not listed"),
    ("dtype", lambda d: d["tensors"][0].update(dtype="I64"), "tensors.0.dtype"),
    ("five dimensions", lambda d: d["tensors"][0].update(shape=[1] * 5), "tensors.0.shape"),
    ("empty dimension", lambda d: d["tensors"][0].update(shape=[0, 3]), "tensors.0.shape.0"),
    ("huge dimension", lambda d: d["tensors"][0].update(shape=[2**41]), "tensors.0.shape.0"),
    ("boolean dimension", lambda d: d["tensors"][0].update(shape=[True, 3]), "tensors.0.shape.0"),
    ("upper-case digest", lambda d: d["files"][0].update(sha256="A" * 64), "files.0.sha256"),
    ("control character", lambda d: d.update(licence="\x1b[2J"), "licence"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "reason"), [pytest.param(change, reason, id=name) for name, change, reason in SHARED])
def test_fault_in_the_tables(kind: type[Manifest], change: Change, reason: str) -> None:
    document = copy.deepcopy(GOOD[kind])
    change(document)
    with pytest.raises(FormatError, match=reason):
        parse_document(kind, json.dumps(document).encode())


OWN: list[tuple[type[Manifest], str, Change, str]] = [
    (AnchorManifest, "schema", lambda d: d.update(schema="elmgrove.anchor/v2"), "schema"),
    (AnchorManifest, "other architecture", lambda d: d["architecture"].update(model_type="llama"), "architecture.model_type"),
    (AnchorManifest, "no layers", lambda d: d["architecture"].update(num_hidden_layers=0), "architecture.num_hidden_layers"),
    (ExpertManifest, "operator as owner", lambda d: d.update(owner="grove"), "owner"),
    (ExpertManifest, "version 0", lambda d: d.update(version=0), "version"),
    (ExpertManifest, "version as text", lambda d: d.update(version="1"), "version"),
    (ExpertManifest, "version 1 supersedes", lambda d: d.update(supersedes="6" * 64), "version 1 supersedes nothing"),
    (ExpertManifest, "version 2 supersedes nothing", lambda d: d.update(version=2), "version 1 supersedes nothing"),
    (ExpertManifest, "kind", lambda d: d.update(kind={"type": "pickle"}), "kind"),
    (ExpertManifest, "full with rank", lambda d: d.update(kind={"type": "full", "rank": 4}), "kind.full.rank"),
    (ExpertManifest, "low rank without rank", lambda d: d.update(kind={"type": "low_rank"}), "kind.low_rank.rank"),
    (ExpertManifest, "rank 0", lambda d: d.update(kind=LOW_RANK | {"rank": 0}), "kind.low_rank.rank"),
    (ExpertManifest, "nothing materialised", lambda d: d.update(kind=LOW_RANK | {"materialised": []}), "kind.low_rank.materialised"),
    (
        ExpertManifest,
        "materialised unsorted",
        lambda d: d.update(kind=LOW_RANK | {"materialised": LOW_RANK["materialised"][::-1]}),
        "ascending",
    ),
    (
        ExpertManifest,
        "materialised twice",
        lambda d: d.update(kind=LOW_RANK | {"materialised": LOW_RANK["materialised"][:1] * 2}),
        "distinct",
    ),
    (
        ExpertManifest,
        "materialised digest",
        lambda d: d.update(kind=LOW_RANK | {"materialised": [{"name": "a", "sha256": "A" * 64}]}),
        "materialised.0.sha256",
    ),
    (ExpertManifest, "nested training", lambda d: d.update(training={"a": {"b": 1}}), "training"),
    (ExpertManifest, "training key", lambda d: d.update(training={"A b": 1}), "training"),
    (ExpertManifest, "time zone", lambda d: d.update(not_after="2027-01-01T00:00:00+01:00"), "not_after"),
    (ExpertManifest, "time missing", lambda d: d.pop("not_after"), "not_after"),
    (ModelManifest, "slot 0", lambda d: d.update(experts=[slot(0), slot(1, "fern")]), "experts.0.slot"),
    (ModelManifest, "slot gap", lambda d: d.update(experts=[slot(1), slot(3, "fern")]), "1, 2, 3"),
    (ModelManifest, "slots out of order", _swap("experts"), "1, 2, 3"),
    (ModelManifest, "expert twice", lambda d: d.update(experts=[slot(1), slot(2)]), "fills two slots"),
    (ModelManifest, "top-k", lambda d: d.update(top_k=4), "top_k exceeds"),
    (ModelManifest, "top-k 0", lambda d: d.update(top_k=0), "top_k"),
]


@pytest.mark.parametrize(("kind", "change", "reason"), [pytest.param(k, c, r, id=f"{k.__name__} {n}") for k, n, c, r in OWN])
def test_fault_of_one_kind(kind: type[Manifest], change: Change, reason: str) -> None:
    document = copy.deepcopy(GOOD[kind])
    change(document)
    with pytest.raises(FormatError, match=reason):
        parse_document(kind, json.dumps(document).encode())


@pytest.mark.parametrize("change", [{"kind": LOW_RANK}, {"version": 2, "supersedes": "6" * 64}, {"training": {}}])
def test_expert_variants_that_are_good(change: dict[str, Any]) -> None:
    parse_document(ExpertManifest, json.dumps(GOOD[ExpertManifest] | change).encode())


def test_model_of_the_anchor_alone_is_good() -> None:
    parse_document(ModelManifest, json.dumps(GOOD[ModelManifest] | {"experts": [], "top_k": 1}).encode())


def test_a_tuned_model_says_what_it_was_made_from_and_any_other_leaves_the_field_out() -> None:
    tuned = parse_document(ModelManifest, json.dumps(GOOD[ModelManifest] | {"tuned_from": "7" * 64}).encode())
    assert tuned.tuned_from == "7" * 64
    assert parse_document(ModelManifest, canonical_bytes(tuned)) == tuned
    untuned = parse_document(ModelManifest, json.dumps(GOOD[ModelManifest]).encode())
    assert untuned.tuned_from is None
    assert b"tuned_from" not in canonical_bytes(untuned)
    with pytest.raises(FormatError, match="leave the field out"):
        parse_document(ModelManifest, json.dumps(GOOD[ModelManifest] | {"tuned_from": None}).encode())


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in _paths(each, (*path, key)))]
