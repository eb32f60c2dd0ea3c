"""The plan of an assembly: which bytes of which file go where (``docs/formats.md``, section 6; Hugging Face's FlexOlmo layout).

One file holds what all experts share and the anchor's FFN as expert 0, one file each further expert, and one the routers, so
taking an expert out leaves every other expert's bytes alone. No file holds a tensor that the index does not place in it:
loaders take such a stray for the real one without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from common.errors import DigestError, UsageError
from common.formats.hfconfig import flex_olmo_config, loads_config
from common.formats.layout import INDEX_NAME, ROUTER_NAME, expert_ffn_name, router_row_name, split_dense_ffn
from common.formats.limits import MAX_DOCUMENT_BYTES
from common.formats.manifest import AnchorManifest, ExpertSlot, LowRankKind, Manifest, TensorEntry
from common.formats.safetensors import TensorSpan, encode_header
from common.weights.digests import read_small
from common.weights.index import read_header
from common.weights.sources import AnchorSource, ExpertSource, Source
from common.weights.template import CONFIG_NAME, COPIED_FILES, anchor_weight_files, check_template, expert_ffn, expert_parts

__all__ = [
    "ANCHOR_FILE",
    "ROUTER_FILE",
    "AssemblyPlan",
    "OutputFile",
    "Piece",
    "check_request",
    "encode_index",
    "expert_file",
    "expert_slots",
    "model_tensor_name",
    "plan_assembly",
]

ANCHOR_FILE: Final = "model-anchor.safetensors"
ROUTER_FILE: Final = "model-router.safetensors"

ManifestT = TypeVar("ManifestT", bound=Manifest)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes of a source file, the SHA-256 that its manifest gives for them, and what they are, for messages."""

    path: Path
    offset: int
    length: int
    sha256: str
    origin: str


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to write: ``head``, then ``pieces`` one after the other. ``tensors`` are its spans if it is a safetensors file."""

    name: str
    head: bytes
    pieces: tuple[Piece, ...]
    tensors: tuple[TensorSpan, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + sum(piece.length for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class AssemblyPlan:
    """Everything that decides the bytes of an assembled model."""

    consortium: str
    anchor: str
    experts: tuple[ExpertSlot, ...]
    top_k: int
    licence: str
    files: tuple[OutputFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest and signature."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of a source: the dtype and shape that the manifest gives it, and where it lies."""

    dtype: str
    shape: tuple[int, ...]
    piece: Piece


def expert_file(slot: ExpertSlot) -> str:
    """Name of the file that holds one expert's FFN."""
    return f"model-expert-{slot.slot:03d}-{slot.name}.safetensors"


def expert_slots(experts: Sequence[ExpertSource]) -> tuple[ExpertSlot, ...]:
    """The slots that experts fill, in the order given, from 1."""
    return tuple(
        ExpertSlot(
            slot=index, name=source.manifest.name, version=source.manifest.version, owner=source.manifest.owner, manifest=source.digest
        )
        for index, source in enumerate(experts, 1)
    )


def model_tensor_name(name: str, slot: int) -> str:
    """Name in the model of a tensor that is called ``name`` in the anchor (slot 0) or in an expert package."""
    split = split_dense_ffn(name)
    return name if split is None else expert_ffn_name(split[0], slot, split[1])


def plan_assembly(
    anchor: AnchorSource,
    experts: Sequence[ExpertSource],
    top_k: int,
    licence: str,
    *,
    materialised: Mapping[str, Path] | None = None,
) -> AssemblyPlan:
    """Plan the ``FlexOlmoForCausalLM`` folder of an anchor and experts. Reads headers and ``config.json``, no weights.

    Args:
        anchor: slot 0 and everything shared.
        experts: slots 1, 2, ... in this order; may be empty.
        top_k: experts active for each token, the anchor's counted.
        licence: of the assembled model, for its manifest.
        materialised: where the full matrices of each low-rank expert lie, by the expert's digest: in a file that ``common/lowrank``
            wrote, or in that expert's file of a model. Their bytes are compared with the digests that the expert's owner signed.

    Returns:
        The plan; the same sources in the same order give an equal plan wherever their files lie.

    Raises:
        UsageError: ``top_k`` is not between 1 and the number of experts with the anchor's, an expert occurs twice, or a low-rank
            expert is not materialised.
        WrongAnchorError, TemplateError, LayoutError: an expert does not fit the anchor.
        ArchitectureError: the anchor's configuration cannot be expressed.
        DigestError: a file's header or ``config.json`` is not what the manifest says.
        SafetensorsError, NotFoundError, StorageError: a source file cannot be read.
    """
    check_request(anchor, experts, top_k)
    slots = expert_slots(experts)
    anchor_rows = _tensors(anchor, [ROUTER_NAME], "the anchor")
    rows = [_tensors(source, [ROUTER_NAME], _origin(source)) for source in experts]
    weights = _tensors(anchor, anchor_weight_files(entry.name for entry in anchor.manifest.files), "the anchor")
    tensor_files = [_tensor_file(ANCHOR_FILE, 0, weights)]
    for slot, source in zip(slots, experts, strict=True):
        tensor_files.append(_tensor_file(expert_file(slot), slot.slot, _expert_tensors(source, slot, anchor.manifest, materialised or {})))
    tensor_files.append(_router_file([anchor_rows, *rows], anchor.manifest.architecture.num_hidden_layers))
    config = flex_olmo_config(loads_config(_read_checked(anchor, CONFIG_NAME)), num_experts=len(experts) + 1, top_k=top_k)
    placed = [(span, file.name) for file in tensor_files for span in file.tensors]
    files = [
        *tensor_files,
        OutputFile(name=CONFIG_NAME, head=config, pieces=()),
        OutputFile(name=INDEX_NAME, head=encode_index((span.name, file, span.end - span.start) for span, file in placed), pieces=()),
        *_copied_files(anchor),
    ]
    return AssemblyPlan(
        consortium=anchor.manifest.consortium,
        anchor=anchor.digest,
        experts=slots,
        top_k=top_k,
        licence=licence,
        files=tuple(sorted(files, key=lambda file: file.name)),
    )


def check_request(anchor: AnchorSource, experts: Sequence[ExpertSource], top_k: int) -> None:
    """Refuse what no plan can be made of, from the manifests alone.

    Raises:
        UsageError: ``top_k`` is not between 1 and the number of experts with the anchor's, or an expert occurs twice.
        WrongAnchorError, TemplateError, LayoutError: an expert does not fit the anchor.
    """
    if not 1 <= top_k <= len(experts) + 1:
        raise UsageError(f"top-k is {top_k}; with {len(experts)} experts and the anchor's own it must be between 1 and {len(experts) + 1}.")
    names = [source.manifest.name for source in experts]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"Expert {twice} is named twice; a model holds one version of an expert.")
    for source in experts:
        check_template(source.manifest, anchor.manifest, anchor_digest=anchor.digest)


def _origin(source: ExpertSource) -> str:
    return f"expert {source.manifest.name} version {source.manifest.version}"


def _tensors(source: Source[ManifestT], files: Iterable[str], origin: str) -> dict[str, _Tensor]:
    """The tensors of some files of a source, in the order in which they lie."""
    table: defaultdict[str, dict[str, TensorEntry]] = defaultdict(dict)
    for entry in source.manifest.tensors:
        table[entry.file][entry.name] = entry
    found: dict[str, _Tensor] = {}
    for file in files:
        path = source.resolve(file)
        spans = read_header(path).tensors
        if {(span.name, span.dtype, span.shape) for span in spans} != {(e.name, e.dtype, e.shape) for e in table[file].values()}:
            raise DigestError(f"The tensors of {file} of {origin} are not those of its manifest.")
        for span in spans:
            entry = table[file][span.name]
            piece = Piece(path, span.start, span.end - span.start, entry.sha256, f"tensor {span.name} of {origin}")
            found[span.name] = _Tensor(entry.dtype, entry.shape, piece)
    return found


def _expert_tensors(source: ExpertSource, slot: ExpertSlot, anchor: AnchorManifest, materialised: Mapping[str, Path]) -> dict[str, _Tensor]:
    """An expert's FFN matrices: in the order in which they lie in its parts or, of low rank, layer by layer."""
    if not isinstance(source.manifest.kind, LowRankKind):
        return _tensors(source, expert_parts(entry.name for entry in source.manifest.files), _origin(source))
    path = materialised.get(source.digest)
    if path is None:
        raise UsageError(f"Expert {source.manifest.name} is of low rank and must be materialised before it is assembled.")
    wanted = expert_ffn(source.manifest, anchor)
    spans = {span.name: span for span in read_header(path).tensors}
    by_model = {model_tensor_name(name, slot.slot): name for name in wanted}
    if spans.keys() == by_model.keys():
        spans = {by_model[name]: span for name, span in spans.items()}
    if {(name, span.dtype, span.shape) for name, span in spans.items()} != {(e.name, e.dtype, e.shape) for e in wanted.values()}:
        raise DigestError(f"The materialised file of {_origin(source)} does not hold the matrices that its manifest names; remove {path}.")
    origin = f"materialised {_origin(source)}"
    found: dict[str, _Tensor] = {}
    for name, entry in wanted.items():
        start, end = spans[name].start, spans[name].end
        found[name] = _Tensor(entry.dtype, entry.shape, Piece(path, start, end - start, entry.sha256, f"tensor {name} of {origin}"))
    return found


def _tensor_file(name: str, slot: int, tensors: dict[str, _Tensor]) -> OutputFile:
    """Source tensors in source order, so that they stay long runs of bytes, with their FFN renamed for ``slot``."""
    forms = [(model_tensor_name(key, slot), item.dtype, item.shape) for key, item in tensors.items()]
    head, header = encode_header(forms)
    return OutputFile(name=name, head=head, pieces=tuple(item.piece for item in tensors.values()), tensors=header.tensors)


def _router_file(rows: Sequence[dict[str, _Tensor]], layers: int) -> OutputFile:
    """``[N, H]`` per layer: row 0 the anchor's, row ``i`` that of slot ``i``."""
    forms: list[tuple[str, str, tuple[int, ...]]] = []
    pieces: list[Piece] = []
    for layer in range(layers):
        name = router_row_name(layer)
        first = rows[0][name]
        forms.append((name, first.dtype, (len(rows), first.shape[1])))
        pieces += [row[name].piece for row in rows]
    head, header = encode_header(forms)
    return OutputFile(name=ROUTER_FILE, head=head, pieces=tuple(pieces), tensors=header.tensors)


def encode_index(tensors: Iterable[tuple[str, str, int]]) -> bytes:
    """``model.safetensors.index.json`` for tensors ``(name, file, size in bytes)``."""
    placed = list(tensors)
    index = {"metadata": {"total_size": sum(size for _, _, size in placed)}, "weight_map": {name: file for name, file, _ in placed}}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("ascii")


def _copied_files(anchor: AnchorSource) -> list[OutputFile]:
    entries = {entry.name: entry for entry in anchor.manifest.files}
    return [
        OutputFile(
            name=name,
            head=b"",
            pieces=(Piece(anchor.resolve(name), 0, entries[name].size, entries[name].sha256, f"{name} of the anchor"),),
        )
        for name in COPIED_FILES
        if name in entries
    ]


def _read_checked(anchor: AnchorSource, name: str) -> bytes:
    raw = read_small(anchor.resolve(name), MAX_DOCUMENT_BYTES)
    expected = next(entry.sha256 for entry in anchor.manifest.files if entry.name == name)
    if hashlib.sha256(raw).hexdigest() != expected:
        raise DigestError(f"{name} of the anchor differs from the one its manifest lists.")
    return raw
