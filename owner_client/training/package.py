"""The files of an expert package that training makes: FFN matrices or factors, router rows, ``privacy.json``; the manifest comes later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import NonFiniteError
from common.files import atomic_folder, storage_errors
from common.formats.layout import PRIVACY_NAME, ROUTER_NAME, is_factor_name, part_name
from common.formats.limits import MAX_PART_BYTES
from common.formats.manifest import FullKind, LowRankKind
from common.lowrank.materialise import low_rank_kind, low_rank_matrices
from common.modeling.loading import expert_tensors, router_tensors
from common.modeling.model import CausalLM
from common.progress import ProgressSink, silent
from common.weights.index import read_header
from common.weights.template import is_weights_name

__all__ = ["package_kind", "write_package_files", "write_tensors"]

_HEADER_ROOM = 1 << 20  # bytes of a part left for its header
_PRIVACY: Final = b"""{
  "differential_privacy": "none",
  "schema": "elmgrove.privacy/v1",
  "self_audit": "not-performed"
}
"""


def write_package_files(model: CausalLM, out_dir: Path, *, dtype: torch.dtype) -> None:
    """Write the trained expert of ``model`` as the folder ``out_dir``, which appears whole or not at all.

    Args:
        model: a model of pairs.
        out_dir: must not exist.
        dtype: the anchor's, in which the tensors are stored.

    Raises:
        AlreadyExistsError: ``out_dir`` exists.
        NonFiniteError: a tensor holds NaN or infinity, or does in ``dtype``.
        StorageError: the disk is full or not writable.
    """
    write_tensors(expert_tensors(model, dtype=dtype), router_tensors(model, dtype=dtype), out_dir)


def write_tensors(tensors: Mapping[str, Tensor], rows: Mapping[str, Tensor], out_dir: Path, *, privacy: bytes = _PRIVACY) -> None:
    """Write an expert's tensors as the folder ``out_dir``, which appears whole or not at all.

    Args:
        tensors: FFN matrices, or factors of them, under their names in a package, in layer order.
        rows: the router's.
        out_dir: must not exist.
        privacy: the bytes of ``privacy.json``; by default it says that nothing was done.

    Raises:
        AlreadyExistsError, NonFiniteError, StorageError: as :func:`write_package_files`.
    """
    for name, tensor in (*tensors.items(), *rows.items()):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"The trained tensor {name} holds values that are not finite; nothing was written.")
    with atomic_folder(out_dir) as aside, storage_errors("the expert"):
        for number, part in enumerate(_parts(tensors)):
            save_file(part, aside / part_name(number), metadata={"format": "pt"})
        save_file(dict(rows), aside / ROUTER_NAME, metadata={"format": "pt"})
        (aside / PRIVACY_NAME).write_bytes(privacy)
        for path in aside.iterdir():
            path.chmod(0o644)


def package_kind(folder: Path, anchor_folder: Path, *, progress: ProgressSink = silent) -> FullKind | LowRankKind:
    """The kind of the expert in ``folder``, for its manifest; a low-rank one is multiplied out to know what its owner will sign.

    Args:
        folder: holds the part files.
        anchor_folder: the anchor it was trained against.
        progress: hears of the matrices multiplied out.

    Raises:
        TemplateError: the parts hold factors that do not fit the anchor.
        NonFiniteError: a matrix holds NaN or infinity once its factors are multiplied out.
        SafetensorsError, StorageError: a file cannot be read.
    """
    parts = sorted(folder.glob("part-*.safetensors"))
    if not any(is_factor_name(span.name) for part in parts for span in read_header(part).tensors):
        return FullKind(type="full")
    weights = [path for path in sorted(anchor_folder.iterdir()) if is_weights_name(path.name)]
    return low_rank_kind(low_rank_matrices(weights, parts), progress=progress)


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split in layer order so that no part exceeds the limit; one tensor is never split."""
    parts: list[dict[str, Tensor]] = []
    room = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room or not parts:
            parts.append({})
            room = MAX_PART_BYTES - _HEADER_ROOM
        parts[-1][name] = tensor
        room -= size
    return parts
