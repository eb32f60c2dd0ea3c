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

__all__ = ["latest", "load_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-([0-9]{8})")
_KEEP = 2
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in found)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder``, or None."""
    numbered = _numbered(folder)
    return numbered[-1][1] if numbered else None


def save_checkpoint(folder: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Write the state after ``step`` steps and remove all but the newest two checkpoints.

    Raises:
        StorageError: the disk is full or not writable; earlier checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    if target.exists():
        return
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    for name, parameter in parameters.items():
        tensors[f"param.{name}"] = parameter.detach().cpu().contiguous()
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.detach().cpu().contiguous()
    with storage_errors("a checkpoint"), atomic_folder(target) as aside:
        save_file(tensors, aside / "state.safetensors")
        (aside / "state.json").write_text(json.dumps({"schema": 1, "step": step}), encoding="utf-8")
    for _, old in _numbered(folder)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put the state in ``path`` into the parameters and the optimizer, bit for bit; returns the number of finished steps.

    Raises:
        DataError: the checkpoint is damaged or of another model.
    """
    problem = f"The checkpoint {path.name} is damaged or of another run; remove it and run the command again."
    try:
        step = json.loads((path / "state.json").read_bytes())["step"]
        tensors = load_file(path / "state.safetensors")
        with torch.no_grad():
            for name, parameter in parameters.items():
                value = tensors[f"param.{name}"]
                if value.shape != parameter.shape or value.dtype != parameter.dtype:
                    raise DataError(problem)
                parameter.copy_(value)
        _load_moments(tensors, parameters, optimizer)
        torch.set_rng_state(tensors["rng"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(problem) from error
    return int(step)


def _load_moments(tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in parameters.items():
        if f"exp_avg.{name}" in tensors:
            # The fused optimizer wants its step count where the parameter is; elsewhere it lives on the CPU.
            optimizer.state[parameter] = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
