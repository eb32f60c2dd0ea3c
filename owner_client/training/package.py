"""The files of an expert package that training makes: FFN parts, router rows and ``privacy.json``; manifest and signature come later."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import NonFiniteError
from common.files import atomic_folder, storage_errors
from common.formats.layout import PRIVACY_NAME, ROUTER_NAME, part_name
from common.formats.limits import MAX_PART_BYTES
from common.modeling.loading import expert_tensors, router_tensors
from common.modeling.model import CausalLM

__all__ = ["write_package_files"]

_HEADER_ROOM = 1 << 20  # bytes of a part left for its header
_PRIVACY = {"schema": "elmgrove.privacy/v1", "self_audit": "not-performed", "differential_privacy": "none"}


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
    tensors, rows = expert_tensors(model, dtype=dtype), router_tensors(model, dtype=dtype)
    for name, tensor in (tensors | rows).items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"The trained tensor {name} holds values that are not finite; nothing was written.")
    with atomic_folder(out_dir) as aside, storage_errors("the expert"):
        for number, part in enumerate(_parts(tensors)):
            save_file(part, aside / part_name(number), metadata={"format": "pt"})
        save_file(rows, aside / ROUTER_NAME, metadata={"format": "pt"})
        (aside / PRIVACY_NAME).write_text(json.dumps(_PRIVACY, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in aside.iterdir():
            path.chmod(0o644)


def _parts(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
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
