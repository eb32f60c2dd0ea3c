"""Checkpoints of a training run: ``step-XXXXXXXX/{state.safetensors,state.json}``, each folder whole or absent; never pickle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.errors import DataError
from common.files import atomic_folder, storage_errors
from owner_client.training.optimizer import ExpertOptimizer

__all__ = ["latest", "load_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-([0-9]{8})")
_KEEP = 2


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    numbered = _numbered(folder)
    return numbered[-1][1] if numbered else None


def save_checkpoint(folder: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: ExpertOptimizer) -> None:
    """Write the state after ``step`` steps and remove all but the newest two checkpoints.

    Raises:
        StorageError: the disk is full or not writable; earlier checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    if target.exists():
        return
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    for name, value in _state(parameters, optimizer).items():
        tensors[name] = value.cpu().contiguous()
    with storage_errors("a checkpoint"), atomic_folder(target) as aside:
        save_file(tensors, aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps({"schema": 1, "step": step}), encoding="utf-8")
    for _, old in _numbered(folder)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path: Path, parameters: dict[str, nn.Parameter], optimizer: ExpertOptimizer) -> int:
    """Put the state in ``path`` into the parameters and the optimizer, bit for bit; returns the number of finished steps.

    Raises:
        DataError: the checkpoint is damaged or of another model.
    """
    problem = f"The checkpoint {path.name} is damaged or of another run; remove it and run the command again."
    try:
        step = json.loads((path / "state.json").read_bytes())["step"]
        tensors = load_file(path / "state.safetensors")
        with torch.no_grad():
            for name, tensor in _state(parameters, optimizer).items():
                value = tensors[name]
                if value.shape != tensor.shape or value.dtype != tensor.dtype:
                    raise DataError(problem)
                tensor.copy_(value)
        optimizer.restored(step)
        torch.set_rng_state(tensors["rng"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(problem) from error
    return int(step)


def _state(parameters: dict[str, nn.Parameter], optimizer: ExpertOptimizer) -> dict[str, Tensor]:
    """The live tensors of a run, by their names in a checkpoint."""
    return {f"param.{name}": parameter.detach() for name, parameter in parameters.items()} | optimizer.state()
