"""Tracing a model's tensors: what each must be, from the manifests of the anchor and experts alone (``docs/formats.md``, section 6).

Slot 0 and everything shared are the anchor's tensors, slot ``i`` those of expert ``i``, and row ``i`` of a layer's router is the one
row tensor of slot ``i``. The matrices of a low-rank expert are those whose digests its owner signed as materialised: they are compared,
never computed. A model's own manifest decides nothing here: it is compared with what follows from the signed ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from common.errors import ElmgroveError, ModelMismatchError
from common.formats.hfconfig import loads_config
from common.formats.layout import INDEX_NAME, ROUTER_NAME
from common.formats.manifest import AnchorManifest, Architecture, ExpertManifest, ExpertSlot, ModelManifest, TensorEntry
from common.formats.safetensors import DTYPE_BYTES
from common.weights.digests import open_regular, read_exactly
from common.weights.index import read_header
from common.weights.plan import ANCHOR_FILE, ROUTER_FILE, encode_index, expert_file, model_tensor_name
from common.weights.template import CONFIG_NAME, COPIED_FILES, FfnTensor, expert_ffn

__all__ = ["Parts", "TracedTensor", "config_faults", "file_faults", "router_faults", "table_faults", "trace"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model says it is made of: signed manifests, and who signed the anchor's."""

    anchor: AnchorManifest
    operator: str
    experts: tuple[tuple[ExpertSlot, ExpertManifest], ...]


@dataclass(frozen=True, slots=True)
class TracedTensor:
    """One tensor a model must have. ``pieces`` are the SHA-256 of its bytes, or of each of its rows, with who signed them."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def signer(self) -> str:
        """Who signed it; for a router, all of them are meant."""
        return self.pieces[0][1] if len(self.pieces) == 1 else "the anchor's and experts' owners"


def trace(parts: Parts) -> dict[str, TracedTensor]:
    """Every tensor of the model, by name."""
    found = {tensor.name: tensor for tensor in _trace_slots(parts)}
    rows = {
        entry.name: entry for entry in parts.anchor.tensors if entry.file == ROUTER_NAME and len(entry.shape) == 2 and entry.shape[0] == 1
    }
    packages = [({entry.name: entry for entry in manifest.tensors}, _signer(slot)) for slot, manifest in parts.experts]
    for name, entry in rows.items():
        if not all(name in table for table, _ in packages):
            continue
        pieces = ((entry.sha256, parts.operator), *((table[name].sha256, signer) for table, signer in packages))
        found[name] = TracedTensor(name, ROUTER_FILE, entry.dtype, (len(pieces), entry.shape[1]), pieces)
    return found


def _trace_slots(parts: Parts) -> Iterator[TracedTensor]:
    for entry in parts.anchor.tensors:
        if entry.file != ROUTER_NAME:
            yield _moved(entry, 0, ANCHOR_FILE, parts.operator)
    for slot, manifest in parts.experts:
        for tensor in expert_ffn(manifest, parts.anchor).values():
            yield _moved(tensor, slot.slot, expert_file(slot), _signer(slot))


def _moved(entry: TensorEntry | FfnTensor, slot: int, file: str, signer: str) -> TracedTensor:
    return TracedTensor(model_tensor_name(entry.name, slot), file, entry.dtype, entry.shape, ((entry.sha256, signer),))


def _signer(slot: ExpertSlot) -> str:
    return f"{slot.owner} (expert {slot.name} version {slot.version})"


def table_faults(manifest: ModelManifest, traced: Mapping[str, TracedTensor]) -> list[ElmgroveError]:
    """Where a model's tensor table is not what its parts give; router bytes are looked at by :func:`router_faults`."""
    faults: list[ElmgroveError] = []
    seen: set[str] = set()
    for entry in manifest.tensors:
        where = f"Tensor {entry.name} of {entry.file}"
        expected = traced.get(entry.name)
        if expected is None:
            faults.append(ModelMismatchError(f"{where} belongs neither to the anchor nor to any expert."))
        elif entry.name in seen or entry.file != expected.file:
            faults.append(ModelMismatchError(f"{where} belongs in {expected.file} and nowhere else."))
        elif (entry.dtype, entry.shape) != (expected.dtype, expected.shape):
            forms = f"is {entry.dtype} {list(entry.shape)} where {expected.dtype} {list(expected.shape)} belongs"
            faults.append(ModelMismatchError(f"{where} {forms}."))
        elif len(expected.pieces) == 1 and entry.sha256 != expected.pieces[0][0]:
            faults.append(ModelMismatchError(f"{where} differs from the one {expected.signer} signed."))
        seen.add(entry.name)
    faults += [
        ModelMismatchError(f"Tensor {name} of {traced[name].file}, which {traced[name].signer} signed, is missing.")
        for name in sorted(traced.keys() - seen)
    ]
    return faults


def router_faults(folder: Path, traced: Mapping[str, TracedTensor]) -> list[ElmgroveError]:
    """Where a row of a router is not the one that its slot's owner signed, from the bytes.

    Raises:
        SafetensorsError, LimitError, NotFoundError, LayoutError, DigestError, StorageError: the router file cannot be read.
    """
    path = folder / ROUTER_FILE
    spans = {span.name: span for span in read_header(path).tensors}
    faults: list[ElmgroveError] = []
    with open_regular(path) as descriptor:
        for name, tensor in traced.items():
            span = spans.get(name)
            if tensor.file != ROUTER_FILE or span is None or (span.dtype, span.shape) != (tensor.dtype, tensor.shape):
                continue  # table_faults has said so
            width = tensor.size // len(tensor.pieces)
            for row, (digest, signer) in enumerate(tensor.pieces):
                if hashlib.sha256(read_exactly(descriptor, ROUTER_FILE, width, span.start + row * width)).hexdigest() != digest:
                    faults.append(ModelMismatchError(f"Row {row} of {name} of {ROUTER_FILE} differs from the one {signer} signed."))
    return faults


def file_faults(manifest: ModelManifest, parts: Parts, traced: Mapping[str, TracedTensor]) -> list[ElmgroveError]:
    """Where a model's other files are not those that follow from its parts: surplus, missing, or another index or tokenizer."""
    copied = {entry.name: entry.sha256 for entry in parts.anchor.files if entry.name in COPIED_FILES}
    index = encode_index((tensor.name, tensor.file, tensor.size) for tensor in traced.values())
    known = copied | {INDEX_NAME: hashlib.sha256(index).hexdigest()}
    needed = known.keys() | {tensor.file for tensor in traced.values()} | {CONFIG_NAME}
    found = {entry.name: entry.sha256 for entry in manifest.files}
    faults: list[ElmgroveError] = [ModelMismatchError(f"The model lacks {name}.") for name in sorted(needed - found.keys())]
    faults += [
        ModelMismatchError(f"The model holds {name}, which neither anchor nor experts give.") for name in sorted(found.keys() - needed)
    ]
    for name in sorted(known.keys() & found.keys()):
        if found[name] != known[name]:
            origin = "the index of its tensors" if name == INDEX_NAME else f"the one {parts.operator} signed with the anchor"
            faults.append(ModelMismatchError(f"{name} differs from {origin}."))
    return faults


def config_faults(raw: bytes, architecture: Architecture, *, num_experts: int, top_k: int) -> list[ElmgroveError]:
    """Where a model's ``config.json`` contradicts what its manifests say about sizes, experts and top-k.

    Raises:
        FormatError: it is no JSON object.
    """
    config = loads_config(raw)
    sizes = architecture.model_dump(mode="json", exclude={"model_type", "dtype"})
    expected: dict[str, object] = {
        **sizes,
        "model_type": "flex_olmo",
        "architectures": ["FlexOlmoForCausalLM"],
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": False,
    }
    return [
        ModelMismatchError(f"{CONFIG_NAME}: {key} is {str(config.get(key))[:60]} where {value} belongs.")
        for key, value in expected.items()
        if config.get(key) != value or isinstance(config.get(key), bool) != isinstance(value, bool)
    ]
