"""What tensors an anchor must have, and an expert for that anchor: names, shapes and dtypes, nothing left over.

Both follow from the anchor's architecture and tensor table alone, so they are checked on manifests before a byte is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.errors import ArchitectureError, FormatError, LayoutError, TemplateError, WrongAnchorError
from common.formats.layout import (
    INDEX_NAME,
    PRIVACY_NAME,
    PUBLIC_SAMPLE_NAME,
    ROUTER_NAME,
    TOKENIZER_FILES,
    factor_names,
    ffn_names,
    input_mean_name,
    input_second_moment_name,
    olmo2_shapes,
    part_name,
    router_row_name,
)
from common.formats.manifest import AnchorManifest, ExpertManifest, LowRankKind, TensorEntry

__all__ = [
    "CONFIG_NAME",
    "COPIED_FILES",
    "FfnTensor",
    "anchor_weight_files",
    "check_anchor_template",
    "check_template",
    "expert_ffn",
    "expert_parts",
    "is_weights_name",
]

CONFIG_NAME = "config.json"
COPIED_FILES = ("generation_config.json", *TOKENIZER_FILES)
"""Files of an anchor that every model assembled from it carries unchanged."""
_MODEL_FILE = re.compile(r"model(?:-(\d{5})-of-(\d{5}))?\.safetensors")
_ANCHOR_FILES = frozenset({CONFIG_NAME, INDEX_NAME, ROUTER_NAME, PUBLIC_SAMPLE_NAME, *COPIED_FILES})

Form = tuple[str, tuple[int, ...]]  # dtype and shape


@dataclass(frozen=True, slots=True)
class FfnTensor:
    """One FFN matrix as an expert's owner signed it: its Olmo2 name, dtype, shape, and the SHA-256 of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


def is_weights_name(name: str) -> bool:
    """Whether ``name`` is one that Hugging Face gives a checkpoint's weight files."""
    return _MODEL_FILE.fullmatch(name) is not None


def anchor_weight_files(names: Iterable[str]) -> tuple[str, ...]:
    """The checkpoint's weight files among the files of an anchor: one ``model.safetensors``, or all shards of one set.

    Raises:
        LayoutError: there is none, a shard is missing, or two sets are mixed; or a file that an anchor may not hold.
    """
    names = sorted(names)
    surplus = [name for name in names if name not in _ANCHOR_FILES and not is_weights_name(name)]
    if surplus:
        raise LayoutError(f"An anchor may not hold {surplus[0]}.")
    for needed in (CONFIG_NAME, ROUTER_NAME):
        if needed not in names:
            raise LayoutError(f"The anchor lacks {needed}.")
    found = tuple(name for name in names if is_weights_name(name))
    count = len(found)
    sharded = tuple(f"model-{shard:05d}-of-{count:05d}.safetensors" for shard in range(1, count + 1))
    if found != ("model.safetensors",) and (not found or found != sharded):
        raise LayoutError("The anchor's weights are neither one model.safetensors nor one complete set of shards.")
    if (found == sharded) != (INDEX_NAME in names):
        raise LayoutError(f"A checkpoint has {INDEX_NAME} if, and only if, it is made of shards.")
    return found


def check_anchor_template(manifest: AnchorManifest, *, tied: bool) -> None:
    """Check that an anchor's table holds exactly an Olmo2 checkpoint and its router file.

    Args:
        manifest: the anchor's.
        tied: the configuration's ``tie_word_embeddings``: ``lm_head.weight`` is not on disk.

    Raises:
        ArchitectureError: a tensor is missing, surplus, or of another shape or dtype than the configuration says.
        LayoutError: the files are not an anchor's.
    """
    weight_files = set(anchor_weight_files(entry.name for entry in manifest.files))
    dtype = manifest.architecture.dtype
    expected = {name: (dtype, shape) for name, shape in olmo2_shapes(manifest.architecture, tied=tied).items()}
    table = _by_name((entry for entry in manifest.tensors if entry.file in weight_files), "The anchor")
    fault = _difference({name: _form(entry) for name, entry in table.items()}, expected)
    if fault:
        raise ArchitectureError(f"The anchor is not the Olmo2ForCausalLM its configuration describes: {fault}.")
    stray = {entry.file for entry in manifest.tensors} - weight_files - {ROUTER_NAME}
    if stray:
        raise LayoutError(f"The anchor's table places tensors in {min(stray)}.")
    _check_anchor_router(manifest)


def _check_anchor_router(manifest: AnchorManifest) -> None:
    """Rows are needed; moments may be there, in the one or the other size."""
    shape = manifest.architecture
    hidden = shape.hidden_size
    router = {entry.name: _form(entry) for entry in manifest.tensors if entry.file == ROUTER_NAME}
    for layer in range(shape.num_hidden_layers):
        if router.pop(router_row_name(layer), None) != (shape.dtype, (1, hidden)):
            raise ArchitectureError(f"{ROUTER_NAME} lacks the public row of layer {layer}, [1, {hidden}] in {shape.dtype}.")
        mean = router.pop(input_mean_name(layer), ("F32", (hidden,)))
        second = router.pop(input_second_moment_name(layer), ("F32", (hidden,)))
        if mean != ("F32", (hidden,)) or second not in {("F32", (hidden,)), ("F32", (hidden, hidden))}:
            raise ArchitectureError(f"{ROUTER_NAME}: the input moments of layer {layer} have another shape or dtype than F32 [{hidden}].")
    if router:
        raise ArchitectureError(f"{ROUTER_NAME} holds {min(router)}, which is neither a public row nor an input moment.")


def expert_parts(names: Iterable[str]) -> tuple[str, ...]:
    """The part files among the files of an expert package, in order.

    Raises:
        LayoutError: parts are missing or not numbered from 0, the router or privacy file is missing, or a file does not belong.
    """
    names = sorted(names)
    parts = tuple(name for name in names if name not in {ROUTER_NAME, PRIVACY_NAME})
    if not parts:
        raise LayoutError(f"The package lacks {part_name(0)}.")
    for index, name in enumerate(parts):
        if name != part_name(index):
            raise LayoutError(f"The package holds {name} where {part_name(index)} belongs.")
    for needed in (ROUTER_NAME, PRIVACY_NAME):
        if needed not in names:
            raise LayoutError(f"The package lacks {needed}.")
    return parts


def check_template(manifest: ExpertManifest, anchor: AnchorManifest, *, anchor_digest: str | None = None) -> None:
    """Check that an expert's table is exactly the anchor's FFN, or factors of it of one rank, and one router row per layer.

    Args:
        manifest: the expert's.
        anchor: the manifest it was trained against.
        anchor_digest: SHA-256 of the anchor's manifest, to be compared with the one the expert names.

    Raises:
        WrongAnchorError: the expert names another anchor or consortium.
        TemplateError: a tensor is missing, surplus, in the wrong file, or of another shape or dtype; a rank is out of bounds; or the
            table of materialised tensors is not of the anchor's FFN.
        LayoutError: the files are not a package's.
    """
    if manifest.consortium != anchor.consortium or (anchor_digest is not None and manifest.anchor != anchor_digest):
        raise WrongAnchorError(f"Expert {manifest.name} was trained against another anchor: {manifest.anchor[:16]}.")
    parts = set(expert_parts(entry.name for entry in manifest.files))
    layers = anchor.architecture.num_hidden_layers
    ffn = _anchor_ffn(anchor)
    if isinstance(manifest.kind, LowRankKind):
        _check_low_rank(manifest.name, manifest.kind, anchor)
        expected = _factor_forms(ffn, manifest.kind.rank)
    else:
        expected = ffn
    found = _by_name(manifest.tensors, "The package")
    rows = {router_row_name(layer): (anchor.architecture.dtype, (1, anchor.architecture.hidden_size)) for layer in range(layers)}
    fault = _difference({name: _form(entry) for name, entry in found.items()}, expected | rows)
    if fault:
        raise TemplateError(f"Expert {manifest.name} does not match its anchor: {fault}.")
    for name, entry in found.items():
        if (entry.file == ROUTER_NAME) != (name in rows) or (name not in rows and entry.file not in parts):
            raise TemplateError(f"Tensor {name} lies in {entry.file}, where it does not belong.")


def _anchor_ffn(anchor: AnchorManifest) -> dict[str, Form]:
    """Dtype and shape of the anchor's FFN matrices, in layer order."""
    table = {entry.name: entry for entry in anchor.tensors if entry.file != ROUTER_NAME}
    try:
        return {name: _form(table[name]) for name in ffn_names(anchor.architecture.num_hidden_layers)}
    except KeyError as error:
        raise TemplateError(f"The anchor has no tensor {error.args[0]}.") from error


def _check_low_rank(expert: str, kind: LowRankKind, anchor: AnchorManifest) -> None:
    most = min(anchor.architecture.hidden_size, anchor.architecture.intermediate_size)
    if kind.rank > most:
        raise TemplateError(f"Expert {expert} is of rank {kind.rank}; its anchor's matrices are of rank {most} at most.")
    named, needed = {entry.name for entry in kind.materialised}, set(ffn_names(anchor.architecture.num_hidden_layers))
    if named != needed:
        odd = min(named ^ needed)
        raise TemplateError(f"Expert {expert} {'lacks the digest of' if odd in needed else 'gives a digest of'} materialised tensor {odd}.")


def _factor_forms(ffn: Mapping[str, Form], rank: int) -> dict[str, Form]:
    forms: dict[str, Form] = {}
    for name, (dtype, shape) in ffn.items():
        if len(shape) != 2:
            raise TemplateError(f"The anchor's tensor {name} is not a matrix.")
        first, second, (out, into) = *factor_names(name), shape
        forms |= {first: (dtype, (rank, into)), second: (dtype, (out, rank))}
    return forms


def expert_ffn(manifest: ExpertManifest, anchor: AnchorManifest) -> dict[str, FfnTensor]:
    """The FFN matrices, under their Olmo2 names, that an expert gives a model: uploaded, or materialised if it is of low rank.

    Args:
        manifest: the expert's, which :func:`check_template` passed.
        anchor: the manifest it was trained against.

    Raises:
        TemplateError: the expert gives no digest of a matrix that the anchor has.
    """
    if isinstance(manifest.kind, LowRankKind):
        digests = {entry.name: entry.sha256 for entry in manifest.kind.materialised}
        forms = _anchor_ffn(anchor)
    else:
        uploaded = {entry.name: entry for entry in manifest.tensors if entry.file != ROUTER_NAME}
        digests = {name: entry.sha256 for name, entry in uploaded.items()}
        forms = {name: _form(entry) for name, entry in uploaded.items()}
    try:
        return {name: FfnTensor(name, dtype, shape, digests[name]) for name, (dtype, shape) in forms.items()}
    except KeyError as error:
        raise TemplateError(f"Expert {manifest.name} lacks the digest of materialised tensor {error.args[0]}.") from error


def _form(entry: TensorEntry) -> Form:
    return entry.dtype, entry.shape


def _by_name(entries: Iterable[TensorEntry], what: str) -> dict[str, TensorEntry]:
    table: dict[str, TensorEntry] = {}
    for entry in entries:
        if entry.name in table:
            raise FormatError(f"{what} holds tensor {entry.name} twice.")
        table[entry.name] = entry
    return table


def _difference(found: Mapping[str, Form], expected: Mapping[str, Form]) -> str:
    """The first difference between two tensor tables in words, or an empty text."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing:
        return f"{missing[0]} is missing" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
    if surplus:
        return f"{surplus[0]} does not belong" + (f" (and {len(surplus) - 1} more)" if len(surplus) > 1 else "")
    for name, form in expected.items():
        if found[name] != form:
            return f"{name} is {_spell(found[name])} where {_spell(form)} belongs"
    return ""


def _spell(form: Form) -> str:
    return f"{form[0]} {list(form[1])}"
